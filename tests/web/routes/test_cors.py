"""CORS: only pages of configured origins can read answers, whatever they request."""

from collections.abc import Iterator

import httpx
import pytest

from tests.support.nginx import Nginx
from tests.support.servers import RedisServer
from tests.support.service import Service, serving
from tests.web.routes.foreign import Foreign
from tests.web.routes.wire import Endpoint, Stream

pytestmark = pytest.mark.long

ORIGIN = "https://ci.example"
#: Origins other than the configured one, as sent by browsers.
OTHERS = (
    *("null", "*", "https://ci.example.evil", "https://evilci.example", "https://ci.example:8443", "http://ci.example"),
    *("https://ci.example/", "https://CI.example", "https://sub.ci.example", "", "https://ci.example, https://evil"),
)


@pytest.fixture(scope="module")
def open_service(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Iterator[Service]:
    """A service with two configured origins."""
    origins = f"{ORIGIN} http://127.0.0.1:3000"
    with serving(tmp_path_factory.mktemp("cors"), redis_server.url, cors_origins=origins) as service:
        yield service


@pytest.fixture(scope="module", params=["direct", pytest.param("nginx", marks=pytest.mark.long)])
def endpoint(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, open_service: Service
) -> Iterator[Endpoint]:
    """The browsers' endpoint: the service itself, or nginx in front of it."""
    if request.param == "direct":
        yield open_service
        return
    with Nginx(tmp_path_factory.mktemp("nginx"), [(open_service.host, open_service.port)]) as nginx:
        yield nginx


def preflight(endpoint: Endpoint, path: str, origin: str, method: str) -> httpx.Response:
    """The preflight request of a browser."""
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": "authorization",
    }
    return httpx.options(endpoint.url + path, headers=headers, verify=endpoint.verify)


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/workflows", "GET, HEAD, OPTIONS"),
        ("/workflows/wf_1/jobs/job_1", "DELETE, GET, HEAD, OPTIONS, PUT"),
        ("/workflows/wf_1/jobs/job_1/events", "GET, HEAD, OPTIONS"),
        ("/workflows/wf_1/jobs/job_1/logs", "GET, HEAD, OPTIONS, POST"),
        ("/workflows/wf_1/jobs/job_1/attempts", "OPTIONS, POST"),
        ("/nowhere", ""),
    ],
)
def test_a_preflight_names_the_methods_of_the_route(endpoint: Endpoint, path: str, methods: str) -> None:
    """Without a token, and without allowing credentials."""
    answer = preflight(endpoint, path, ORIGIN, "GET")
    assert answer.status_code == 204
    assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert answer.headers["Access-Control-Allow-Methods"] == methods
    assert "authorization" in answer.headers["Access-Control-Allow-Headers"].lower()
    assert "Access-Control-Allow-Credentials" not in answer.headers
    assert "Origin" in answer.headers["Vary"]


@pytest.mark.parametrize("origin", OTHERS)
def test_other_origins_get_no_permission(endpoint: Endpoint, open_service: Service, job: Foreign, origin: str) -> None:
    """Neither in the preflight nor in the answer, which is otherwise the same."""
    job.line("a line")
    asked = preflight(endpoint, job.path, origin, "GET")
    headers = {"Authorization": f"Bearer {open_service.token()}", "Origin": origin}
    answer = httpx.get(endpoint.url + job.path, headers=headers, verify=endpoint.verify)
    assert (asked.status_code, answer.status_code) == (204, 200)
    for each in (asked, answer):
        assert not [name for name in each.headers if name.lower().startswith("access-control-")]
        assert "Origin" in each.headers["Vary"]


def test_an_unknown_method_and_an_options_request_without_preflight(endpoint: Endpoint) -> None:
    """The answer to the preflight does not list the method."""
    answer = preflight(endpoint, "/workflows", ORIGIN, "BREW")
    assert "BREW" not in answer.headers["Access-Control-Allow-Methods"]
    # Without the headers of a preflight it is an ordinary request.
    asked = httpx.options(f"{endpoint.url}/workflows", headers={"Origin": ORIGIN}, verify=endpoint.verify)
    assert asked.status_code == 401


@pytest.mark.parametrize(("path", "status"), [("/workflows", 401), ("/nowhere", 404), ("/workflows?limit=x", 400)])
def test_a_page_can_read_an_error(endpoint: Endpoint, open_service: Service, path: str, status: int) -> None:
    """Otherwise it could not show the reason."""
    headers = {"Origin": "http://127.0.0.1:3000"}
    if status != 401:
        headers["Authorization"] = f"Bearer {open_service.token()}"
    answer = httpx.get(endpoint.url + path, headers=headers, verify=endpoint.verify)
    assert (answer.status_code, answer.headers["Access-Control-Allow-Origin"]) == (status, "http://127.0.0.1:3000")
    assert "Retry-After" in answer.headers["Access-Control-Expose-Headers"]


def test_a_stream_for_another_origin(endpoint: Endpoint, open_service: Service, job: Foreign) -> None:
    """Streams write their own headers."""
    job.line("a line")
    headers = {"Authorization": f"Bearer {open_service.token()}", "Origin": ORIGIN}
    stream = Stream(endpoint, f"{job.path}/events", headers)
    assert stream.headers["access-control-allow-origin"] == ORIGIN
    stream.close()


def test_without_the_setting_there_is_no_cors(service: Service) -> None:
    """And an OPTIONS request needs a token."""
    answer = preflight(service, "/workflows", ORIGIN, "GET")
    assert (answer.status_code, "Access-Control-Allow-Origin" in answer.headers) == (401, False)
