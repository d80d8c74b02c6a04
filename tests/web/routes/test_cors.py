"""CORS: only pages of configured origins can read answers, whatever they request."""

from collections.abc import Callable
from typing import Final

import httpx
import pytest

from tests.web.routes.foreign import Foreign

ORIGIN: Final = "https://ci.example"
#: Origins other than the configured one, as sent by browsers.
OTHERS: Final = (
    *("null", "*", "https://ci.example.evil", "https://evilci.example", "https://ci.example:8443", "http://ci.example"),
    *("https://ci.example/", "https://CI.example", "https://sub.ci.example", "", "https://ci.example, https://evil"),
)


@pytest.fixture
def client(in_process: Callable[..., httpx.Client]) -> httpx.Client:
    """Of a service with two configured origins."""
    return in_process(cors_origins=(ORIGIN, "http://127.0.0.1:3000"))


def preflight(client: httpx.Client, path: str, origin: str, method: str = "GET") -> httpx.Response:
    """The preflight request of a browser, which has no token."""
    asked = {"Origin": origin, "Access-Control-Request-Method": method, "Authorization": ""}
    return client.options(path, headers={**asked, "Access-Control-Request-Headers": "authorization"})


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
def test_a_preflight_names_the_methods_of_the_route(client: httpx.Client, path: str, methods: str) -> None:
    """And that a page can send any header. Without a token, and without allowing credentials."""
    for method in ("GET", "BREW"):
        answer = preflight(client, path, ORIGIN, method)
        assert answer.status_code == 204
        assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
        assert answer.headers["Access-Control-Allow-Methods"] == methods
        assert answer.headers["Access-Control-Allow-Headers"] == "*, Authorization"
        assert answer.headers["Access-Control-Max-Age"] == "600"
        assert "Access-Control-Allow-Credentials" not in answer.headers
        assert "Origin" in answer.headers["Vary"]


@pytest.mark.parametrize("origin", [*OTHERS, None])
def test_other_origins_get_no_permission(client: httpx.Client, job: Foreign, origin: str | None) -> None:
    """Neither in the preflight nor in the answer, which is otherwise the same. Caches keep the answers apart."""
    job.line("a line")
    answers = [client.get(job.path, headers={} if origin is None else {"Origin": origin})]
    assert answers[0].status_code == 200
    if origin is not None:
        answers.append(preflight(client, job.path, origin))
        assert answers[1].status_code == 204
    for each in answers:
        assert not [name for name in each.headers if name.lower().startswith("access-control-")]
        assert "Origin" in each.headers["Vary"]


@pytest.mark.parametrize(
    ("path", "status"), [("/workflows", 200), ("/workflows", 401), ("/nowhere", 404), ("/workflows?limit=x", 400)]
)
def test_a_page_can_read_each_answer(client: httpx.Client, path: str, status: int) -> None:
    """Otherwise it could not show the reason of an error."""
    headers = {"Origin": "http://127.0.0.1:3000"} | ({"Authorization": ""} if status == 401 else {})
    answer = client.get(path, headers=headers)
    assert (answer.status_code, answer.headers["Access-Control-Allow-Origin"]) == (status, "http://127.0.0.1:3000")
    assert answer.headers["Access-Control-Expose-Headers"] == "*"


def test_an_options_request_without_a_preflight_needs_a_token(
    client: httpx.Client, in_process: Callable[..., httpx.Client]
) -> None:
    """And so does a preflight without the setting."""
    assert client.options("/workflows", headers={"Origin": ORIGIN, "Authorization": ""}).status_code == 401
    answer = preflight(in_process(), "/workflows", ORIGIN)
    assert (answer.status_code, "Access-Control-Allow-Origin" in answer.headers) == (401, False)
