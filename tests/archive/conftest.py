"""Fixtures: a bench on fewer servers than ``tests/store`` has, where each operation of the store is tested on all."""

from collections.abc import Callable, Iterator

import pytest

from tests.conftest import KINDS
from tests.support.bench import Bench
from tests.support.servers import RedisServer


@pytest.fixture(
    params=[
        pytest.param((KINDS[0], 3), id=f"{KINDS[0]}-RESP3"),
        pytest.param((KINDS[1], 2), id=f"{KINDS[1]}-RESP2", marks=pytest.mark.long),
    ]
)
def bench(request: pytest.FixtureRequest, servers: Callable[[str], RedisServer], prefix: str) -> Iterator[Bench]:
    """A test bench on a Valkey, and on a Redis with the old version of the protocol."""
    kind, protocol = request.param
    bench = Bench(servers(kind), prefix, protocol)
    yield bench
    bench.close()
