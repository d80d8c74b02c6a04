"""Parameters of tests, of which only the first are part of the default run."""

from collections.abc import Iterable
from typing import Any

import pytest


def long_after(count: int, values: Iterable[Any]) -> list[Any]:
    """``values`` as a test's parameters. Those after the first ``count`` are marked as ``long``."""
    return [each if index < count else pytest.param(each, marks=pytest.mark.long) for index, each in enumerate(values)]
