"""Fixtures: a server for each module, emptied for each test, and its store."""

import contextlib
from collections.abc import Iterator

import pytest

from chronoverse.store import Store
from tests.support.servers import RedisServer, running


@pytest.fixture(scope="module")
def durable_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server that loses nothing when killed."""
    directory = tmp_path_factory.mktemp("server")
    with running(directory, None, "--appendonly", "yes", "--appendfsync", "always") as server:
        yield server


@pytest.fixture
def server(durable_server: RedisServer) -> RedisServer:
    """The module's server, empty and running."""
    if not durable_server.answers():
        durable_server.start()
    durable_server.ask("FLUSHALL")
    return durable_server


@pytest.fixture
def store(server: RedisServer) -> Iterator[Store]:
    with contextlib.closing(Store(server.url)) as store:
        yield store
