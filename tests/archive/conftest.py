"""Fixtures with fewer servers than ``tests/store``, which tests each store operation on all of them."""

from pathlib import Path

import pytest

from chronoverse.archive.object_store import FileObjectStore
from tests.conftest import KINDS


@pytest.fixture(
    params=[
        pytest.param((KINDS[0], 3), id=f"{KINDS[0]}-RESP3"),
        pytest.param((KINDS[1], 2), id=f"{KINDS[1]}-RESP2", marks=pytest.mark.long),
    ]
)
def bench_server(request: pytest.FixtureRequest) -> tuple[str, int]:
    """A Valkey, and a Redis with RESP2."""
    chosen: tuple[str, int] = request.param
    return chosen


@pytest.fixture
def objects(tmp_path: Path) -> FileObjectStore:
    return FileObjectStore(tmp_path / "archive")
