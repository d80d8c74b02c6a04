"""Fixtures: one service and one store, shared by all tests that do not damage them."""

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from chronoverse.auth.rights import ADMIN, READ, WRITE
from chronoverse.settings import Settings
from chronoverse.web.app import create_app
from tests.support.nginx import Nginx
from tests.support.servers import RedisServer, running
from tests.support.service import Service, serving
from tests.web.routes.foreign import Foreign
from tests.web.routes.runner import Runner
from tests.web.routes.site import Site, open_site
from tests.web.routes.wire import Endpoint, Stream

#: Marks a module whose tests run twice: with streams that write to their sockets, and with streams written by
#: gunicorn.
both_ways = pytest.mark.parametrize(
    "service",
    [pytest.param(None, id="writer"), pytest.param("gevent", id="gunicorn", marks=pytest.mark.long)],
    indirect=True,
)

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running(tmp_path_factory.mktemp("store")) as server:
        yield server


@pytest.fixture(scope="session")
def archive_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive of the shared service. Each module uses its own workflows."""
    return tmp_path_factory.mktemp("archive")


@pytest.fixture(scope="session")
def services(
    tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer, archive_directory: Path
) -> Iterator[Callable[[str | None], Service]]:
    """Returns the shared service for a worker class, which starts at the first call."""
    started: dict[str | None, Service] = {}
    with contextlib.ExitStack() as stack:

        def service_of(worker_class: str | None) -> Service:
            if worker_class not in started:
                started[worker_class] = stack.enter_context(
                    serving(
                        tmp_path_factory.mktemp("service"),
                        redis_server.url,
                        worker_class=worker_class,
                        archive_url=archive_directory.as_uri(),
                        heartbeat_seconds=1,
                        audit_reads="true",
                        webhook_hosts="hooks.example, 127.0.0.1+private",
                    )
                )
            return started[worker_class]

        yield service_of


@pytest.fixture(scope="session")
def service(request: pytest.FixtureRequest, services: Callable[[str | None], Service]) -> Service:
    """The shared service: one worker, a heartbeat per second, an archive, and two hosts for watches.

    The fixture's parameter, if any, is gunicorn's worker class.
    """
    return services(getattr(request, "param", None))


@pytest.fixture(scope="module")
def site(request: pytest.FixtureRequest, service: Service, archive_directory: Path) -> Iterator[Site]:
    """The shared service's site. Each module has its own workflow."""
    with open_site(service, archive_directory, request.module.__name__.rpartition("test_")[2]) as site:
        yield site


@pytest.fixture(scope="session")
def nginx(tmp_path_factory: pytest.TempPathFactory, service: Service) -> Iterator[Nginx]:
    """nginx with the shipped configuration, in front of the shared service."""
    with Nginx(tmp_path_factory.mktemp("nginx"), [(service.host, service.port)]) as nginx:
        yield nginx


@pytest.fixture(params=["direct", pytest.param("nginx", marks=pytest.mark.long)])
def endpoint(request: pytest.FixtureRequest, service: Service) -> Endpoint:
    """The clients' endpoint: the shared service itself, or nginx in front of it."""
    endpoint: Endpoint = service if request.param == "direct" else request.getfixturevalue("nginx")
    return endpoint


@pytest.fixture(scope="session")
def auth(service: Service) -> dict[str, str]:
    return {"Authorization": f"Bearer {service.token()}"}


@pytest.fixture(scope="session")
def document(service: Service) -> dict[str, Any]:
    """The service's OpenAPI document."""
    found: dict[str, Any] = httpx.get(f"{service.url}/openapi.json", verify=service.verify).json()
    return found


@pytest.fixture
def client(service: Service, auth: dict[str, str]) -> Iterator[httpx.Client]:
    """An HTTP client with a token for everything."""
    with httpx.Client(base_url=service.url, headers=auth, timeout=10, verify=service.verify) as client:
        yield client


@pytest.fixture
def admin(service: Service) -> Iterator[httpx.Client]:
    """A client of ``ada`` with a token for workflows that begin with ``wf_``, ``team.`` or ``watched.``."""
    token = service.token("wf_*", "team.*", "watched.*", scopes=(READ, WRITE, ADMIN), subject="ada")
    headers = {"Authorization": f"Bearer {token}"}
    with httpx.Client(base_url=service.url, headers=headers, timeout=10) as client:
        yield client


@pytest.fixture(scope="module")
def in_process(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., httpx.Client]:
    """Makes a client of an application in this process, with these settings and a token for everything.

    The applications of a module with equal settings are the same.
    """

    @functools.cache
    def make(**settings: Any) -> httpx.Client:
        known = {"redis_url": service.redis_url, "jwt_secret": service.secret}
        app = create_app(Settings(data_dir=tmp_path_factory.mktemp("data"), **{**known, **settings}))
        headers = {"Authorization": f"Bearer {service.token(scopes=(READ, WRITE, ADMIN))}"}
        return httpx.Client(base_url="http://localhost", headers=headers, transport=httpx.WSGITransport(app))

    return make


@pytest.fixture
def job(redis_server: RedisServer) -> Foreign:
    """A new job for each test, without lines."""
    return Foreign(redis_server.url, f"wf_{next(_numbers)}", "job_1")


@pytest.fixture
def open_stream(service: Service, auth: dict[str, str]) -> Iterator[Callable[..., Stream]]:
    """Opens event streams of the shared service and closes them after the test."""
    opened: list[Stream] = []

    def open_stream(job: Foreign, query: str = "", **headers: str) -> Stream:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        stream = Stream(service, f"{job.path}/events{query}", {**auth, **named})
        opened.append(stream)
        return stream

    yield open_stream
    for stream in opened:
        stream.close()


@pytest.fixture
def runner(client: httpx.Client, job: Foreign) -> Runner:
    return Runner(client, job)


@pytest.fixture
def opened(runner: Runner) -> Runner:
    assert runner.open().status_code == 200
    return runner
