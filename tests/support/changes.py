"""A workflow's change stream with small numbers."""

from collections.abc import Callable
from typing import Any


def number_from_1(ask: Callable[..., Any], key: str) -> None:
    """Makes ``key`` an empty stream, whose first change gets number 1. ``ask`` runs a command."""
    ask("XGROUP", "CREATE", key, "empty", "$", "MKSTREAM")
    ask("XGROUP", "DESTROY", key, "empty")
