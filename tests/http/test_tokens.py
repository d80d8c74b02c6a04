"""Who may do what: every kind of token against every kind of route, and tokens where they must never be."""

import base64
import time
from collections.abc import Callable
from typing import Final

import httpx
import jwt
import orjson
import pytest

from chronoverse.auth import ADMIN, READ, WRITE
from tests.http.foreign import Foreign
from tests.http.wire import Door, exchange, request_bytes
from tests.support.nginx import Nginx
from tests.support.service import SECRET, Service

#: The routes as method and path. The workflow ``mine`` has a job ``job``; ``theirs`` has one too.
ROUTES: Final = {
    "events": ("GET", "/workflows/mine/jobs/job/events"),
    "logs": ("GET", "/workflows/mine/jobs/job/logs"),
    "job": ("GET", "/workflows/mine/jobs/job"),
    "PUT": ("PUT", "/workflows/mine/jobs/job"),
    "jobs": ("GET", "/workflows/mine/jobs"),
    "open": ("POST", "/workflows/mine/jobs/job/attempts"),
    "append": ("POST", "/workflows/mine/jobs/job/logs"),
    "end": ("POST", "/workflows/mine/jobs/job/end"),
    "search": ("GET", "/workflows/mine/jobs/job/logs/search?q=x"),
    "raw": ("GET", "/workflows/mine/jobs/job/logs/raw"),
    "redact": ("POST", "/workflows/mine/jobs/job/logs/redact"),
    "redactions": ("GET", "/workflows/mine/jobs/job/logs/redactions"),
    # Of one that is not there: nobody is to delete what the others ask for.
    "DELETE": ("DELETE", "/workflows/mine/jobs/nothing"),
}
#: What the good token reads: a GET of ``events`` ends since the job has.
READS: Final = dict.fromkeys(("events", "logs", "job", "jobs", "search", "raw"), 200)
#: What takes a scope of its own, which the good token has not: that is said first, whatever is there.
ADMINISTERS: Final = dict.fromkeys(("redact", "redactions", "DELETE"), 403)
#: What the good token writes: a POST gets as far as its body, of which there is none.
WRITES: Final = {"PUT": 200, "open": 415, "append": 415, "end": 415}


def claims(**changes: object) -> dict[str, object]:
    """A good token's claims, changed; None takes one away."""
    good = {"sub": "tests", "exp": int(time.time()) + 60, "scope": f"{READ} {WRITE}", "workflows": ["mine"]}
    return {name: value for name, value in (good | changes).items() if value is not None}


def signed(key: bytes | str = SECRET, algorithm: str = "HS256", **changes: object) -> str:
    """``Bearer`` and a token."""
    return "Bearer " + jwt.encode(claims(**changes), key, algorithm=algorithm)


def unsigned() -> str:
    """A token that says of itself that it needs no signature."""
    parts = ({"alg": "none", "typ": "JWT"}, claims())
    return (
        "Bearer " + ".".join(base64.urlsafe_b64encode(orjson.dumps(part)).rstrip(b"=").decode() for part in parts) + "."
    )


#: Every kind of token, and what each route answers to it. ``else`` is for those not named.
MATRIX: Final[dict[str, tuple[Callable[[], str | None], dict[str, int]]]] = {
    "none": (lambda: None, {"else": 401}),
    "malformed": (lambda: "Bearer not.a.token", {"else": 401}),
    "not a bearer": (lambda: "Basic dXNlcjpwYXNz", {"else": 401}),
    "empty": (lambda: "Bearer", {"else": 401}),
    "expired": (lambda: signed(exp=int(time.time()) - 1), {"else": 401}),
    "no exp": (lambda: signed(exp=None), {"else": 401}),
    "absurd exp": (lambda: signed(exp=10**400), {"else": 401}),
    "no sub": (lambda: signed(sub=None), {"else": 401}),
    "no workflows": (lambda: signed(workflows=None), {"else": 401}),
    "a text of workflows": (lambda: signed(workflows="mine"), {"else": 401}),
    "alg none": (unsigned, {"else": 401}),
    "wrong key": (lambda: signed(b"another secret, as long as a key has to be"), {"else": 401}),
    "another algorithm": (lambda: signed(SECRET * 2, "HS512"), {"else": 401}),
    "other workflow": (lambda: signed(workflows=["theirs"]), ADMINISTERS | {"else": 404}),
    "a prefix of it": (lambda: signed(workflows=["min"]), ADMINISTERS | {"else": 404}),
    "no workflow": (lambda: signed(workflows=[]), ADMINISTERS | {"else": 404}),
    "read only": (lambda: signed(scope=READ), READS | {"else": 403}),
    "write only": (lambda: signed(scope=WRITE), WRITES | {"else": 403}),
    "no scope": (lambda: signed(scope=""), {"else": 403}),
    "admin only": (lambda: signed(scope=ADMIN), {"redact": 415, "redactions": 200, "DELETE": 404, "else": 403}),
    "both": (signed, READS | WRITES | ADMINISTERS),
    "all workflows": (lambda: signed(workflows=["*"]), READS | WRITES | ADMINISTERS),
    "lower case": (lambda: signed().replace("Bearer", "bearer"), READS | WRITES | ADMINISTERS),
}


@pytest.fixture(scope="module", autouse=True)
def jobs(service: Service, redis_server: object) -> None:
    """A finished job in either workflow."""
    headers = {"Authorization": f"Bearer {service.token()}"}
    assert isinstance(service.redis_url, str)
    for workflow in ("mine", "theirs"):
        httpx.put(f"{service.url}/workflows/{workflow}/jobs/job", headers=headers)
        Foreign(service.redis_url, workflow, "job").lines(["secret of " + workflow]).end()


def ask(door: Door, method: str, path: str, authorization: str | None) -> httpx.Response:
    """One request with one Authorization header, or none."""
    headers = {} if authorization is None else {"Authorization": authorization}
    return httpx.request(method, door.url + path, headers=headers, timeout=5, verify=door.verify)


@pytest.mark.parametrize("kind", MATRIX)
def test_every_route_answers_every_token_as_documented(door: Door, kind: str) -> None:
    """The status, the kind of document, and for 401 the challenge."""
    make, expected = MATRIX[kind]
    authorization = make()
    for route, (method, path) in ROUTES.items():
        response = ask(door, method, path, authorization)
        assert (route, response.status_code) == (route, expected.get(route, expected.get("else")))
        if response.status_code >= 400:
            assert response.headers["content-type"] == "application/problem+json"
            assert response.json()["status"] == response.status_code
            assert b"secret" not in response.content
        if response.status_code == 401:
            assert response.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize(
    ("method", "hidden", "absent"),
    [
        ("GET", "/workflows/theirs/jobs/job/events", "/workflows/mine/jobs/nothing/events"),
        ("GET", "/workflows/theirs/jobs/job/events?wait=5", "/workflows/mine/jobs/nothing/events"),
        ("GET", "/workflows/theirs/jobs/job/events?tail=3", "/workflows/theirs/jobs/nothing/events"),
        ("GET", "/workflows/theirs/jobs/job/logs", "/workflows/mine/jobs/nothing/logs"),
        ("GET", "/workflows/theirs/jobs/job", "/workflows/mine/jobs/nothing"),
        ("GET", "/workflows/theirs/jobs", "/workflows/nobodys/jobs"),
        ("PUT", "/workflows/theirs/jobs/job", "/workflows/nobodys/jobs/nothing"),
        ("GET", "/workflows/theirs/jobs/job/logs?limit=abc", "/workflows/mine/jobs/nothing/logs"),
        ("GET", "/workflows/theirs/jobs/job/logs", "/no/such/path"),
    ],
)
def test_not_yours_looks_like_not_there(door: Door, method: str, hidden: str, absent: str) -> None:
    """The same bytes, and the same headers but for the time and the request's name."""
    answers = [ask(door, method, path, signed()) for path in (hidden, absent)]

    assert [answer.status_code for answer in answers] == [404, 404]
    assert answers[0].content == answers[1].content
    first, second = ({**answer.headers, "date": "", "x-request-id": ""} for answer in answers)
    assert first == second


def test_a_job_of_one_workflow_is_not_there_under_another(service: Service) -> None:
    """An id guessed right does not help."""
    Foreign(str(service.redis_url), "theirs", "only_theirs").lines(["x"]).end()

    answers = [ask(service, "GET", f"/workflows/mine/jobs/{job}", signed()) for job in ("only_theirs", "nothing")]
    assert [answer.status_code for answer in answers] == [404, 404]
    assert answers[0].content == answers[1].content


@pytest.mark.parametrize("name", ["token", "access_token", "authorization", "jwt"])
@pytest.mark.parametrize("authorization", [False, True], ids=["alone", "beside the header"])
def test_a_token_in_the_address_opens_nothing(service: Service, door: Door, name: str, authorization: bool) -> None:
    """It is no token, and beside a real one it is a bad parameter; either way no log has it."""
    token = signed().removeprefix("Bearer ")
    before = service.log_size()
    for method, path in ROUTES.values():
        query = f"{'&' if '?' in path else '?'}{name}={token}"
        response = ask(door, method, path + query, signed() if authorization else None)
        assert response.status_code in ((200, 400, 403, 415) if authorization else (401,))

    signature = token.rpartition(".")[2]
    assert signature not in service.logs(before) + door.logs()


@pytest.mark.parametrize("path", ["/workflows/{}/jobs/job", "/workflows/mine/jobs/{}/events", "/{}"])
def test_a_token_in_the_path_is_in_no_log(service: Service, door: Door, path: str) -> None:
    """Nor in the answer."""
    token = signed().removeprefix("Bearer ")
    response = ask(door, "GET", path.format(token), signed())

    assert response.status_code == 404
    assert token.encode() not in response.content
    assert token not in service.logs() + door.logs()


def test_tokens_that_were_refused_are_in_no_log(service: Service, door: Door) -> None:
    """Of no kind: a token that is bad today may be good elsewhere."""
    before = service.log_size()
    used = [authorization for make, _ in MATRIX.values() if (authorization := make())]
    for authorization in used:
        ask(door, "GET", ROUTES["job"][1], authorization)

    logs = service.logs(before) + door.logs()
    assert not [one for one in used if len(one) > 20 and one[-20:] in logs]


@pytest.mark.parametrize(
    "lines",
    [
        [b"Authorization: Bearer second"],
        [b"Authorization: %b"],
        [b"authorization:\t%b"],
    ],
    ids=["another", "itself", "itself in lower case"],
)
def test_two_authorization_headers_are_none(door: Door, lines: list[bytes]) -> None:
    """Nobody can say which one counts."""
    token = signed().removeprefix("Bearer ")
    headers = [line.replace(b"%b", b"Bearer " + token.encode()) for line in lines]
    status, answer, _ = exchange(door, request_bytes(b"/workflows/mine/jobs/job", token, *headers))

    if isinstance(door, Nginx):
        # It has no header of that name twice.
        assert status == 400
    else:
        assert (status, answer["www-authenticate"]) == (401, "Bearer")


@pytest.mark.parametrize("size", [9_000, 1_000_000])
def test_a_giant_token_is_refused(door: Door, size: int) -> None:
    """Before anybody computes with it."""
    status, _, _ = exchange(door, request_bytes(b"/workflows/mine/jobs/job", "a" * size + ".b.c"))

    assert status in (400, 401, 431)


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/openapi.json"])
def test_operators_need_no_token(service: Service, path: str) -> None:
    """And a bad one does no harm."""
    assert ask(service, "GET", path, None).status_code == 200
    assert ask(service, "GET", path, "Bearer not.a.token").status_code == 200
