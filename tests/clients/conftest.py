"""Fixtures: the packed module, a service that allows one other origin, and engines that run the module."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clients.javascript import Chromium, Engine, Node, install, serving_files
from tests.support.servers import RedisServer, running
from tests.support.service import Service, serving
from tests.web.routes.foreign import Foreign

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A directory with the packed module where programs find it, and the names of its files."""
    directory = tmp_path_factory.mktemp("program")
    return directory, install(directory)


@pytest.fixture(scope="session")
def origin(installed: tuple[Path, list[str]]) -> Iterator[str]:
    """The other origin."""
    with serving_files(installed[0]) as origin:
        yield origin


@pytest.fixture(scope="session")
def reader_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """The service's store."""
    with running(tmp_path_factory.mktemp("reader-store")) as server:
        yield server


@pytest.fixture(scope="session")
def reader_service(
    tmp_path_factory: pytest.TempPathFactory, reader_server: RedisServer, origin: str
) -> Iterator[Service]:
    """The service, with a heartbeat every second."""
    directory = tmp_path_factory.mktemp("reader-service")
    with serving(
        directory, reader_server.url, heartbeat_seconds=1, cors_origins=origin, webhook_hosts="hooks.example"
    ) as service:
        yield service


@pytest.fixture
def job(reader_server: RedisServer) -> Foreign:
    """A new job for each test. It has no lines."""
    return Foreign(reader_server.url, "readers", f"job-{next(_numbers)}")


@pytest.fixture(scope="session")
def node(installed: tuple[Path, list[str]]) -> Iterator[Node]:
    """Node.js."""
    engine = Node(installed[0])
    yield engine
    engine.close()


@pytest.fixture(scope="module", params=["node", pytest.param("chromium", marks=pytest.mark.long)])
def engine(request: pytest.FixtureRequest, origin: str) -> Iterator[Engine]:
    """Node.js, and Chromium with a page of the other origin."""
    if request.param == "node":
        yield request.getfixturevalue("node")
        return
    page = Chromium(request.getfixturevalue("browser"), origin)
    yield page
    page.close()


def options(service: Service, job: Foreign, /, **more: Any) -> dict[str, Any]:
    """Options that name a job and have a valid token."""
    named = {"service": service.url, "workflow": job.workflow_id, "job": job.job_id}
    return {**named, "token": service.token(), **more}
