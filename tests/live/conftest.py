"""A server for the tests of a file."""

from collections.abc import Iterator

import pytest

from tests.support.servers import RedisServer, running


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """It ends a blocked read within 2 ms of its timeout. By default, servers check only every tenth of a second."""
    with running(tmp_path_factory.mktemp("server"), None, "--hz", "500") as server:
        yield server
