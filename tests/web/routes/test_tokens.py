"""Authorisation: every kind of token on every route. No token ever appears in a log or an answer."""

import itertools
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import gevent
import httpx
import jwt
import pytest
from jsonschema import Draft202012Validator

from chronoverse.auth import jwks
from chronoverse.auth.minting import mint
from chronoverse.auth.rights import ADMIN, READ, WRITE
from chronoverse.settings import Settings
from chronoverse.web.app import _fetch_keys_in_time, create_app
from tests.support.commands import call_main
from tests.support.nginx import Nginx
from tests.support.servers import RedisServer
from tests.support.service import SECRET, Service
from tests.web.routes.foreign import Foreign
from tests.web.routes.wire import Endpoint, PatientClient, exchange, request_bytes

#: The path of the job of most routes.
JOB: Final = "/workflows/mine/jobs/job"
#: The routes as method and path. The workflow ``mine`` has a job ``job``; ``theirs`` has one too.
ROUTES: Final = {
    "events": ("GET", f"{JOB}/events"),
    "logs": ("GET", f"{JOB}/logs"),
    "job": ("GET", JOB),
    "PUT": ("PUT", JOB),
    "jobs": ("GET", "/workflows/mine/jobs"),
    "open": ("POST", f"{JOB}/attempts"),
    "append": ("POST", f"{JOB}/logs"),
    "end": ("POST", f"{JOB}/end"),
    "search": ("GET", f"{JOB}/logs/search?q=x"),
    "new": ("GET", f"{JOB}/logs/new?against=job"),
    "raw": ("GET", f"{JOB}/logs/raw"),
    "summary": ("GET", f"{JOB}/summary"),
    "profile": ("GET", f"{JOB}/profile"),
    "history": ("GET", f"{JOB}/logs/1/history"),
    "wait": ("GET", f"{JOB}/wait?timeout=0"),
    "search workflow": ("GET", "/workflows/mine/logs/search?q=x"),
    "workflow events": ("GET", "/workflows/mine/events?jobs=x"),
    "search all": ("GET", "/logs/search?q=x"),
    "workflows": ("GET", "/workflows"),
    "redact": ("POST", f"{JOB}/logs/redact"),
    "redactions": ("GET", f"{JOB}/logs/redactions"),
    "audit": ("GET", "/audit"),
    "settings": ("GET", "/workflows/mine/settings"),
    "watches": ("GET", "/workflows/mine/watches"),
    "test": ("POST", "/workflows/mine/watches/main/test"),
    # A job that does not exist, because the other requests need theirs.
    "DELETE": ("DELETE", "/workflows/mine/jobs/nothing"),
}
#: Statuses of reads with the good token. A GET of ``events`` returns because the job has ended.
READS: Final = {"workflow events": 400} | dict.fromkeys(
    (
        *("events", "logs", "job", "jobs", "search", "new", "raw", "summary", "profile", "history", "wait"),
        *("search workflow", "search all", "workflows"),
    ),
    200,
)
#: Routes with a scope that the good token lacks; the scope is checked before the job.
ADMINISTERS: Final = dict.fromkeys(("redact", "redactions", "audit", "settings", "watches", "test", "DELETE"), 403)
#: Their statuses with an administrator's token.
GRANTED: Final = dict.fromkeys(("redactions", "audit", "settings", "watches"), 200) | {
    "redact": 415,
    "test": 404,
    "DELETE": 404,
}
#: Statuses of writes with the good token. A POST without a body is rejected.
WRITES: Final = {"PUT": 200, "open": 415, "append": 415, "end": 415}


#: Statuses that differ if the job does not exist; scope and body are checked first.
ABSENT: Final = {200: 404}
#: Numbers for the ids of jobs that do not exist.
_numbers = itertools.count(1)


def signed(key: bytes = SECRET, **changes: object) -> str:
    """``Bearer`` and a token with the claims of a good one, and ``changes``."""
    good = {"sub": "tests", "exp": int(time.time()) + 60, "scope": f"{READ} {WRITE}", "workflows": ["mine"]}
    return "Bearer " + jwt.encode({**good, **changes}, key, "HS256")


#: Statuses with the good token, which lacks only the administrators' scopes.
GOOD: Final = READS | WRITES | ADMINISTERS
#: Statuses with a token for other workflows. Lists contain only those.
UNSEEN: Final = ADMINISTERS | {"workflows": 200, "search all": 200, "else": 404}

#: Each kind of Authorization header, and each route's status. ``else`` is for all other routes. ``tests/auth`` has all
#: kinds of tokens.
MATRIX: Final[dict[str, tuple[Callable[[], str | None], dict[str, int]]]] = {
    "none": (lambda: None, {"else": 401}),
    "malformed": (lambda: "Bearer not.a.token", {"else": 401}),
    "not a bearer": (lambda: "Basic dXNlcjpwYXNz", {"else": 401}),
    "two spaces": (lambda: signed().replace(" ", "  "), {"else": 401}),
    "two in one": (lambda: f"{signed()}, {signed()}", {"else": 401}),
    "expired": (lambda: signed(exp=int(time.time()) - 1), {"else": 401}),
    "wrong key": (lambda: signed(b"another secret, as long as a key has to be"), {"else": 401}),
    "other workflow": (lambda: signed(workflows=["theirs"]), UNSEEN),
    "a prefix": (lambda: signed(workflows=["theirs", "mi*"]), GOOD),
    "a prefix of others": (lambda: signed(workflows=["their*"]), UNSEEN),
    "a part of it": (lambda: signed(workflows=["min"]), UNSEEN),
    "no workflow": (lambda: signed(workflows=[]), UNSEEN),
    "read only": (lambda: signed(scope=READ), READS | {"else": 403}),
    "write only": (lambda: signed(scope=WRITE), WRITES | {"else": 403}),
    "no scope": (lambda: signed(scope=""), {"else": 403}),
    "admin only": (lambda: signed(scope=ADMIN), GRANTED | {"else": 403}),
    "both": (signed, GOOD),
    "lower case": (lambda: signed().replace("Bearer", "bearer"), GOOD),
}


@pytest.fixture(scope="module", autouse=True)
def jobs(service: Service, redis_server: object) -> None:
    """A finished job in each workflow, and one whose id exists in only one of them."""
    headers = {"Authorization": f"Bearer {service.token()}"}
    assert isinstance(service.redis_url, str)
    for workflow in ("mine", "theirs"):
        httpx.put(f"{service.url}/workflows/{workflow}/jobs/job", headers=headers, verify=service.verify)
        job = Foreign(service.redis_url, workflow, "job").lines(["secret of " + workflow])
        job.add("2-0", "message", "half", "partial", "1")
        job.last = 2
        job.end("FAILED", 1)
    Foreign(service.redis_url, "theirs", "only_theirs").lines(["x"]).end()


def named(authorization: str | None) -> dict[str, str]:
    return {} if authorization is None else {"Authorization": authorization}


@pytest.fixture
def anonymous(endpoint: Endpoint) -> Iterator[httpx.Client]:
    with PatientClient(base_url=endpoint.url, verify=endpoint.verify, timeout=30) as client:
        yield client


def check_documented(document: dict[str, Any], response: httpx.Response) -> None:
    """Fails unless ``document`` describes ``response``, down to every key."""
    path = response.request.url.path
    # A path without parameters is not an instance of one with them.
    template = min(
        (each for each in document["paths"] if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", each), path)),
        key=lambda each: each.count("{"),
    )
    responses = document["paths"][template][response.request.method.lower()]["responses"]
    documented = responses.get(str(response.status_code), responses.get("default"))
    assert documented is not None, response.status_code
    if "$ref" in documented:
        documented = document["components"]["responses"][documented["$ref"].rpartition("/")[2]]
    if "content" not in documented:
        assert response.content == b""
        return
    kind = response.headers["content-type"].partition(";")[0]
    assert kind in documented["content"]
    if kind.endswith("json"):
        schema = documented["content"][kind]["schema"]
        Draft202012Validator(schema | {"components": document["components"]}).validate(response.json())


@pytest.mark.parametrize("absent", [False, pytest.param(True, marks=pytest.mark.long)], ids=["exists", "absent"])
@pytest.mark.parametrize("kind", MATRIX)
def test_every_route_answers_every_token_as_documented(
    service: Service, endpoint: Endpoint, anonymous: httpx.Client, document: dict[str, Any], kind: str, absent: bool
) -> None:
    """As the document says. No refusal reveals what exists, no cache keeps an answer, and no log has the token."""
    make, expected = MATRIX[kind]
    before, headers = service.log_size(), {"X-Request-ID": "mine", **named(make())}
    for route, (method, path) in ROUTES.items():
        status = expected[route if route in expected else "else"]
        if absent and "/mine/jobs/job" in path:
            path = path.replace("/jobs/job", f"/jobs/none_{next(_numbers)}")
            status = 201 if (route, status) == ("PUT", 200) else ABSENT.get(status, status)
        response = anonymous.request(method, path, headers=headers)
        assert (route, response.status_code) == (route, status)
        check_documented(document, response)
        assert re.search("no-(store|cache)", response.headers["cache-control"])
        assert "public" not in response.headers["cache-control"]
        assert response.headers["x-content-type-options"] == "nosniff"
        # nginx gives each request an id of its own.
        assert (response.headers["x-request-id"] == "mine") == (endpoint is service)
        if "content-encoding" in response.headers:
            plain = anonymous.request(method, path, headers={**headers, "Accept-Encoding": "identity"})
            assert "content-encoding" not in plain.headers
            assert plain.headers["vary"] == response.headers["vary"] == "Accept-Encoding"
        if response.status_code >= 400:
            assert response.json()["status"] == response.status_code
            assert b"secret" not in response.content
        if response.status_code == 401:
            assert response.headers["www-authenticate"] == "Bearer"
    sent = headers.get("Authorization", "")
    assert len(sent) < 50 or sent[-20:] not in service.logs(before) + endpoint.logs()


#: Each route with the scope of the good token.
_OPEN: Final = [ROUTES[name] for name in (*READS, *WRITES) if "/mine/" in ROUTES[name][1]]


@pytest.mark.parametrize(
    ("method", "path"), [*_OPEN, ("GET", f"{JOB}/events?wait=5"), ("GET", f"{JOB}/logs?limit=abc")]
)
def test_jobs_of_other_workflows_look_like_unknown_jobs(anonymous: httpx.Client, method: str, path: str) -> None:
    """Byte for byte, except for the date and the request id. Guessing a job's id is useless."""
    paths = [path.replace("mine", "theirs"), path.replace("mine", "nobodys"), "/no/such/path"]
    if method == "GET" and JOB in path and "?" not in path:
        paths += [path.replace("/jobs/job", f"/jobs/{name}") for name in ("nothing", "only_theirs")]
    answers = [anonymous.request(method, path, headers=named(signed())) for path in paths]

    assert {answer.status_code for answer in answers} == {404}
    assert len({answer.content for answer in answers}) == 1
    heads = [{**answer.headers, "date": "", "x-request-id": ""} for answer in answers]
    assert all(head == heads[0] for head in heads)


@pytest.mark.parametrize("name", ["access_token", "jwt"])
@pytest.mark.parametrize("authorization", [False, True], ids=["alone", "and in the header"])
def test_a_token_in_the_query_is_ignored(
    service: Service, endpoint: Endpoint, anonymous: httpx.Client, name: str, authorization: bool
) -> None:
    """It is not a token, and with a real one it is an unknown parameter. It never reaches a log."""
    token = signed().removeprefix("Bearer ")
    before = service.log_size()
    for method, path in ROUTES.values():
        query = f"{'&' if '?' in path else '?'}{name}={token}"
        response = anonymous.request(method, path + query, headers=named(signed() if authorization else None))
        assert response.status_code in ((200, 400, 403, 415) if authorization else (401,))

    signature = token.rpartition(".")[2]
    assert signature not in service.logs(before) + endpoint.logs()


@pytest.mark.parametrize(
    ("token", "status", "detail", "logged"),
    [
        (lambda: forged(signed(), signed(workflows=["*"])), 401, "invalid token", "the token's signature is invalid"),
        (lambda: signed(scope=WRITE), 403, "the token lacks the scope logs:read", "the token lacks the scope"),
        (lambda: signed(workflows=["theirs"]), 404, "Not found, or no access.", "the token is not for this workflow"),
    ],
)
def test_only_the_log_has_the_exact_reason(
    service: Service, token: Callable[[], str], status: int, detail: str, logged: str
) -> None:
    """The reason could help to forge a token or to find a job."""
    before = service.log_size()
    headers = {"Authorization": token()}
    answer = httpx.get(service.url + JOB, headers=headers, timeout=10, verify=service.verify)

    assert (answer.status_code, answer.json()["detail"]) == (status, detail)
    assert f"refused with {status}: {logged}" in service.logs(before)


def forged(token: str, other: str) -> str:
    """The claims of ``other`` with the signature of ``token``."""
    return ".".join([*other.split(".")[:2], token.split(".")[2]])


@pytest.mark.parametrize(
    ("suffix", "line", "by_nginx"),
    [
        ("", b"Authorization: Bearer second", {400}),
        ("", b"authorization:\t%b", {400}),
        # RFC 9112 allows a lone newline as the end of a header.
        ("\n", b"X: y", {200}),
        ("\x0b", b"X: y", {400}),
        ("\u00a0", b"X: y", {400, 401}),
        ("a" * 9_000, b"X: y", {400, 401, 431}),
    ],
    ids=["another", "itself", "newline", "tab", "space", "giant"],
)
def test_a_header_is_one_token(endpoint: Endpoint, suffix: str, line: bytes, by_nginx: set[int]) -> None:
    """Not two, even if both are equal, and nothing can follow it that some parsers treat as white space."""
    token = signed().removeprefix("Bearer ")
    more = line.replace(b"%b", b"Bearer " + token.encode())
    status, answer, _ = exchange(endpoint, request_bytes(JOB.encode(), token + suffix, more))

    assert status in (by_nginx if isinstance(endpoint, Nginx) else (400, 401, 431))
    assert status != 401 or answer["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/openapi.json"])
def test_operators_need_no_token(service: Service, path: str) -> None:
    """An invalid token is ignored."""
    for token in (None, "Bearer not.a.token"):
        assert httpx.get(service.url + path, headers=named(token), verify=service.verify).status_code == 200


def test_a_secret_is_rotated_without_a_gap(tmp_path: Path, redis_server: RedisServer) -> None:
    """Both secrets are accepted, and the first one signs."""
    old, new = "an old secret of at least 32 bytes", "a new secret of at least 32 bytes"
    secret = f"{new},{old}"
    environ = {"CHRONOVERSE_JWT_SECRET": secret, "CHRONOVERSE_REDIS_URL": redis_server.url}
    client = create_app(Settings.from_env({**environ, "CHRONOVERSE_DATA_DIR": str(tmp_path)})).test_client()

    def status(key: str) -> int:
        token = mint(key.encode(), "tests", [READ], ["*"], 600, time.time())
        return client.get(ROUTES["jobs"][1], headers={"Authorization": f"Bearer {token}"}).status_code

    assert [status(key) for key in (new, old, secret, "x" * 40)] == [200, 200, 401, 401]
    made = call_main("token", environ=environ).stdout.strip()
    assert jwt.decode(made, new, ["HS256"])["sub"] == "cli"


def test_fetching_keys_from_a_slow_issuer_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte can arrive in time, so the timeout is for all of them."""
    monkeypatch.setattr(jwks, "FETCH_SECONDS", 0.05)
    monkeypatch.setattr(jwks, "fetch_key_set", lambda url, ca_file: gevent.sleep(30))
    with pytest.raises(TimeoutError):
        _fetch_keys_in_time(None, "https://issuer.example/keys")
