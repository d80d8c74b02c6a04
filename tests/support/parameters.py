"""Test parameters, of which the default run uses only the first few."""

from collections.abc import Iterable
from typing import Any

import pytest


def long_after(count: int, values: Iterable[Any]) -> list[Any]:
    """``values`` as test parameters. All but the first ``count`` are marked ``long``."""
    return [each if index < count else pytest.param(each, marks=pytest.mark.long) for index, each in enumerate(values)]
