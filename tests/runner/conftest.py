"""Fixtures: a server for each test, and its store."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from chronoverse.store import Store
from tests.support.servers import RedisServer, running


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that loses nothing when killed."""
    with running(tmp_path / "server", None, "--appendonly", "yes", "--appendfsync", "always") as server:
        yield server


@pytest.fixture
def store(server: RedisServer) -> Iterator[Store]:
    with contextlib.closing(Store(server.url)) as store:
        yield store
