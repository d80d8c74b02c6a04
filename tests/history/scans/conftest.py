"""A store whose jobs have different creation times."""

import contextlib
from collections.abc import Iterator

import pytest

from chronoverse.store import Store
from tests.support.bench import ticking
from tests.support.servers import RedisServer


@pytest.fixture
def store(server: RedisServer, prefix: str) -> Iterator[Store]:
    with contextlib.closing(Store(server.url, prefix=prefix, clock=ticking())) as store:
        yield store
