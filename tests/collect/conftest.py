"""A service, an API server, and a node's agents."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.collect.apiserver import ApiServer
from tests.collect.node import Agent, Jobs
from tests.support.faultproxy import FaultProxy
from tests.support.servers import RedisServer, running
from tests.support.service import Service, serving

#: Longer than an agent's start on a busy machine, so that a killed agent's jobs are not LOST.
LEASE_SECONDS: Final = 60


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running(tmp_path_factory.mktemp("store")) as server:
        yield server


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Iterator[Service]:
    with serving(tmp_path_factory.mktemp("service"), redis_server.url, lease_seconds=LEASE_SECONDS) as service:
        yield service


@pytest.fixture
def proxy(service: Service) -> Iterator[FaultProxy]:
    with FaultProxy((service.host, service.port)) as proxy:
        yield proxy


@pytest.fixture
def jobs(service: Service, redis_server: RedisServer) -> Iterator[Jobs]:
    """The service's jobs, initially none."""
    redis_server.ask("FLUSHALL")
    jobs = Jobs(service)
    yield jobs
    jobs.client.close()


@pytest.fixture
def api() -> Iterator[ApiServer]:
    with ApiServer() as api:
        yield api


@pytest.fixture
def agent(tmp_path: Path, api: ApiServer, service: Service) -> Iterator[Callable[..., Agent]]:
    """Creates an agent that publishes through the service, or directly to a ``store``. It is killed at the end."""
    made: list[Agent] = []

    def make(*options: str, url: str = "", store: str = "") -> Agent:
        environ = {"CHRONOVERSE_URL": url or service.url, "CHRONOVERSE_TOKEN": service.token()}
        environ = {"CHRONOVERSE_REDIS_URL": store} if store else environ
        environ |= {
            "CHRONOVERSE_DATA_DIR": str(tmp_path / "data"),
            "CHRONOVERSE_DURABILITY": "acked",
            "CHRONOVERSE_LEASE_SECONDS": str(LEASE_SECONDS),
        }
        made.append(Agent(tmp_path, api, environ, *options))
        return made[-1]

    yield make
    for each in made:
        each.__exit__()
