"""Authorisation: every kind of token on every route. No token ever appears in a log or an answer."""

import base64
import contextlib
import hmac
import itertools
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from chronoverse.auth.jwks import FETCH_SECONDS
from chronoverse.auth.tokens import ADMIN, READ, WRITE, mint
from chronoverse.settings import Settings
from chronoverse.web.app import create_app
from tests.auth.claim_forms import CONFIGURED
from tests.support.commands import call_main, environ
from tests.support.issuer import Issuer
from tests.support.keys import RSA
from tests.support.nginx import Nginx
from tests.support.servers import RedisServer
from tests.support.service import SECRET, Service, serving
from tests.support.waiting import wait_until
from tests.web.routes.foreign import Foreign
from tests.web.routes.wire import Endpoint, PatientClient, exchange, request_bytes

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
    "new": ("GET", "/workflows/mine/jobs/job/logs/new?against=job"),
    "raw": ("GET", "/workflows/mine/jobs/job/logs/raw"),
    "summary": ("GET", "/workflows/mine/jobs/job/summary"),
    "profile": ("GET", "/workflows/mine/jobs/job/profile"),
    "wait": ("GET", "/workflows/mine/jobs/job/wait?timeout=0"),
    "search workflow": ("GET", "/workflows/mine/logs/search?q=x"),
    "search all": ("GET", "/logs/search?q=x"),
    "workflows": ("GET", "/workflows"),
    "redact": ("POST", "/workflows/mine/jobs/job/logs/redact"),
    "redactions": ("GET", "/workflows/mine/jobs/job/logs/redactions"),
    "audit": ("GET", "/audit"),
    "settings": ("GET", "/workflows/mine/settings"),
    "watches": ("GET", "/workflows/mine/watches"),
    "test": ("POST", "/workflows/mine/watches/main/test"),
    # A job that does not exist, because the other requests need theirs.
    "DELETE": ("DELETE", "/workflows/mine/jobs/nothing"),
}
#: Statuses of reads with the good token. A GET of ``events`` returns because the job has ended.
READS: Final = dict.fromkeys(
    (
        *("events", "logs", "job", "jobs", "search", "new", "raw", "summary", "profile", "wait"),
        *("search workflow", "search all", "workflows"),
    ),
    200,
)
#: Routes with a scope that the good token lacks; the scope is checked before the job.
ADMINISTERS: Final = dict.fromkeys(("redact", "redactions", "audit", "settings", "watches", "test", "DELETE"), 403)
#: Statuses of writes with the good token. A POST without a body is rejected.
WRITES: Final = {"PUT": 200, "open": 415, "append": 415, "end": 415}


#: Statuses that differ if the job does not exist; scope and body are checked first.
ABSENT: Final = {200: 404}
#: Numbers for the ids of jobs that do not exist.
_numbers = itertools.count(1)


def claims(**changes: object) -> dict[str, object]:
    """The claims of a good token with ``changes``; None removes a claim."""
    good = {"sub": "tests", "exp": int(time.time()) + 60, "scope": f"{READ} {WRITE}", "workflows": ["mine"]}
    return {name: value for name, value in (good | changes).items() if value is not None}


def base64url(data: bytes) -> str:
    """Base64url without padding, as in tokens."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def signed(
    key: bytes = SECRET, header: Mapping[str, object] | None = None, digest: str = "sha256", **changes: object
) -> str:
    """``Bearer`` and a hand-made token: libraries refuse to make some of them.

    ``header`` extends the token's header.
    """
    head = {"alg": "HS256", "typ": "JWT", **(header or {})}
    body = ".".join(base64url(json.dumps(part).encode()) for part in (head, claims(**changes)))
    return f"Bearer {body}.{base64url(hmac.digest(key, body.encode(), digest))}"


def unsigned() -> str:
    """A token whose algorithm is ``none``."""
    return signed(header={"alg": "none"}).rpartition(".")[0] + "."


#: Statuses with the good token, which lacks only the administrators' scopes.
GOOD: Final = READS | WRITES | ADMINISTERS
#: Statuses with a token for other workflows. Lists contain only those.
UNSEEN: Final = ADMINISTERS | {"workflows": 200, "search all": 200, "else": 404}
#: Another key, and key addresses that a token can name. The service never fetches them.
THEIRS: Final = b"another secret, as long as a key has to be"
POINTERS: Final[dict[str, Mapping[str, object]]] = {
    "kid of a file": {"kid": "../../dev/null"},
    "kid of a table": {"kid": "x' UNION SELECT 'secret"},
    "kid of an address": {"kid": "http://127.0.0.1:9/key"},
    "jku": {"jku": "http://127.0.0.1:9/keys"},
    "x5u": {"x5u": "http://127.0.0.1:9/certificate"},
    "jwk": {"jwk": {"kty": "oct", "k": base64url(THEIRS)}},
}

#: Every kind of token, and each route's status. ``else`` is for all other routes.
MATRIX: Final[dict[str, tuple[Callable[[], str | None], dict[str, int]]]] = {
    "none": (lambda: None, {"else": 401}),
    "malformed": (lambda: "Bearer not.a.token", {"else": 401}),
    "not a bearer": (lambda: "Basic dXNlcjpwYXNz", {"else": 401}),
    "empty": (lambda: "Bearer", {"else": 401}),
    "two spaces": (lambda: signed().replace(" ", "  "), {"else": 401}),
    "four parts": (lambda: signed() + ".x", {"else": 401}),
    "two in one": (lambda: f"{signed()}, {signed()}", {"else": 401}),
    "expired": (lambda: signed(exp=int(time.time()) - 1), {"else": 401}),
    "no exp": (lambda: signed(exp=None), {"else": 401}),
    "absurd exp": (lambda: signed(exp=10**400), {"else": 401}),
    "exp of text": (lambda: signed(exp=str(int(time.time()) + 60)), {"else": 401}),
    "negative exp": (lambda: signed(exp=-1), {"else": 401}),
    "exp that is no number": (lambda: signed(exp=float("nan")), {"else": 401}),
    "nbf to come": (lambda: signed(nbf=int(time.time()) + 3600), {"else": 401}),
    "iat to come": (lambda: signed(iat=int(time.time()) + 3600), {"else": 401}),
    "another audience": (lambda: signed(aud="another-service"), {"else": 401}),
    "audiences": (lambda: signed(aud=["another-service", "chronoverse"]), {"else": 401}),
    "any issuer": (lambda: signed(iss="https://issuer.example.evil"), GOOD),
    "no sub": (lambda: signed(sub=None), {"else": 401}),
    "sub of a number": (lambda: signed(sub=7), {"else": 401}),
    "subs": (lambda: signed(sub=["tests"]), {"else": 401}),
    "no workflows": (lambda: signed(workflows=None), {"else": 401}),
    "a text of workflows": (lambda: signed(workflows="mine"), {"else": 401}),
    "a pattern of workflows": (lambda: signed(workflows=["m*e"]), {"else": 401}),
    "a suffix of workflows": (lambda: signed(workflows=["mine", "*e"]), {"else": 401}),
    "an empty workflow": (lambda: signed(workflows=[""]), {"else": 401}),
    "alg none": (unsigned, {"else": 401}),
    "wrong key": (lambda: signed(THEIRS), {"else": 401}),
    "no key": (lambda: signed(b"", {"kid": "../../dev/null"}), {"else": 401}),
    "another algorithm": (lambda: signed(header={"alg": "HS512"}, digest="sha512"), {"else": 401}),
    "crit": (lambda: signed(header={"crit": ["exp"]}), {"else": 401}),
    "bound to a key by DPoP": (
        lambda: signed(cnf={"jkt": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"}),
        {"else": 401},
    ),
    **{name: (partial(signed, header=head), GOOD) for name, head in POINTERS.items()},
    **{f"wrong key, {name}": (partial(signed, THEIRS, head), {"else": 401}) for name, head in POINTERS.items()},
    "other workflow": (lambda: signed(workflows=["theirs"]), UNSEEN),
    "a prefix": (lambda: signed(workflows=["theirs", "mi*"]), GOOD),
    "a prefix that is all of it": (lambda: signed(workflows=["mine*"]), GOOD),
    "a longer prefix": (lambda: signed(workflows=["mine.*", "mine1*"]), UNSEEN),
    "a prefix of others": (lambda: signed(workflows=["their*"]), UNSEEN),
    "a prefix in another case": (lambda: signed(workflows=["Mi*"]), UNSEEN),
    "a prefix, read only": (lambda: signed(workflows=["mi*"], scope=READ), READS | {"else": 403}),
    "a part of it": (lambda: signed(workflows=["min"]), UNSEEN),
    "it is a prefix": (lambda: signed(workflows=["mine1"]), UNSEEN),
    "in another case": (lambda: signed(workflows=["Mine"]), UNSEEN),
    "no workflow": (lambda: signed(workflows=[]), UNSEEN),
    "read only": (lambda: signed(scope=READ), READS | {"else": 403}),
    "write only": (lambda: signed(scope=WRITE), WRITES | {"else": 403}),
    "no scope": (lambda: signed(scope=""), {"else": 403}),
    "scopes in another case": (lambda: signed(scope=f"{READ} {WRITE}".title()), {"else": 403}),
    "a pattern of scopes": (lambda: signed(scope="logs:* *"), {"else": 403}),
    "a list of scopes": (lambda: signed(scope=[READ, WRITE]), GOOD),
    "scp": (lambda: signed(scope=None, scp=f"{READ} {WRITE}"), GOOD),
    "a list of scp": (lambda: signed(scope=None, scp=[READ]), READS | {"else": 403}),
    "scopes of numbers": (lambda: signed(scope=[1, 2]), {"else": 401}),
    "admin only": (
        lambda: signed(scope=ADMIN),
        {
            "redact": 415,
            "redactions": 200,
            "audit": 200,
            "settings": 200,
            "watches": 200,
            "test": 404,
            "DELETE": 404,
            "else": 403,
        },
    ),
    "both": (signed, GOOD),
    "all workflows": (lambda: signed(workflows=["*"]), GOOD),
    "lower case": (lambda: signed().replace("Bearer", "bearer"), GOOD),
}


@pytest.fixture(scope="module", autouse=True)
def jobs(service: Service, redis_server: object) -> None:
    """A finished job in each workflow, and one whose id exists in only one of them."""
    headers = {"Authorization": f"Bearer {service.token()}"}
    assert isinstance(service.redis_url, str)
    for workflow in ("mine", "theirs"):
        httpx.put(f"{service.url}/workflows/{workflow}/jobs/job", headers=headers, verify=service.verify)
        Foreign(service.redis_url, workflow, "job").lines(["secret of " + workflow]).end()
    Foreign(service.redis_url, "theirs", "only_theirs").lines(["x"]).end()


def ask(endpoint: Endpoint, method: str, path: str, authorization: str | None) -> httpx.Response:
    """Sends one request with this Authorization header, if any."""
    with httpx.Client(verify=endpoint.verify, timeout=5) as client:
        return client.request(method, endpoint.url + path, headers=named(authorization))


def named(authorization: str | None) -> dict[str, str]:
    """The Authorization header, if any."""
    return {} if authorization is None else {"Authorization": authorization}


@pytest.fixture
def anonymous(endpoint: Endpoint) -> Iterator[httpx.Client]:
    """A client without a token."""
    with PatientClient(base_url=endpoint.url, verify=endpoint.verify, timeout=30) as client:
        yield client


#: The kinds of tokens that at least one route accepts. With the others no route looks up the job.
GOOD_KINDS: Final = [kind for kind, (_, statuses) in MATRIX.items() if statuses != {"else": 401}]


#: The kinds of headers. nginx does not check tokens.
HEADER_KINDS: Final = ("none", "malformed", "not a bearer", "empty", "two spaces", "two in one", "both", "lower case")
#: The kinds in the default run. ``tests/auth`` checks the claims of the others, too.
USUAL_KINDS: Final = {*GOOD_KINDS, *HEADER_KINDS, "wrong key"}


def routes_for(kind: str, absent: bool) -> list[str]:
    """The names of the routes to request with a kind of token.

    All routes for those that differ in the rights (for an absent job: some of them), every third route for the others,
    each starting at another one: all routes read a token in the same way.
    """
    names = list(ROUTES)
    all_of: tuple[str, ...] = ("none", "wrong key", "both", "read only", "other workflow")
    if not absent:
        all_of += ("malformed", "write only", "no scope", "admin only", "a prefix", "a prefix of others", "no workflow")
    return names if kind in all_of else names[list(MATRIX).index(kind) % 3 :: 3]


@pytest.mark.parametrize(
    ("endpoint", "kind", "absent"),
    [
        *(
            pytest.param(
                "direct", kind, False, id=f"{kind}-exists", marks=[] if kind in USUAL_KINDS else pytest.mark.long
            )
            for kind in MATRIX
        ),
        *(
            pytest.param("direct", kind, True, id=f"{kind}-absent", marks=pytest.mark.long)
            for kind in ("none", "malformed", "wrong key", *GOOD_KINDS)
        ),
        *(pytest.param("nginx", kind, False, id=f"{kind}-nginx", marks=pytest.mark.long) for kind in HEADER_KINDS),
    ],
    indirect=["endpoint"],
)
def test_every_route_answers_every_token_as_documented(anonymous: httpx.Client, kind: str, absent: bool) -> None:
    """Status, media type, and the challenge of a 401. A refusal does not reveal what exists."""
    make, expected = MATRIX[kind]
    headers = named(make())
    for route in routes_for(kind, absent):
        method, path = ROUTES[route]
        status = expected[route if route in expected else "else"]
        if absent and "/mine/jobs/job" in path:
            path = path.replace("/jobs/job", f"/jobs/none_{next(_numbers)}")
            status = 201 if (route, status) == ("PUT", 200) else ABSENT.get(status, status)
        response = anonymous.request(method, path, headers=headers)
        assert (route, response.status_code) == (route, status)
        if response.status_code >= 400:
            assert response.headers["content-type"] == "application/problem+json"
            assert response.json()["status"] == response.status_code
            assert b"secret" not in response.content
        if response.status_code == 401:
            assert response.headers["www-authenticate"].startswith("Bearer")


#: Groups, and each route's status for a token of them.
GROUPS: Final = f"""
[readers]
workflows = ["mi*"]
scopes = ["{READ}"]
[writers]
workflows = ["mine"]
scopes = ["{READ}", "{WRITE}"]
[admins]
workflows = ["*"]
scopes = ["{ADMIN}"]
[others]
workflows = ["their*"]
scopes = ["{READ}", "{WRITE}"]
[plain]
workflows = ["*"]
"""
_ADMIN: Final = {
    "redact": 415,
    "redactions": 200,
    "audit": 200,
    "settings": 200,
    "watches": 200,
    "test": 404,
    "DELETE": 404,
}
GROUP_MATRIX: Final[dict[str, tuple[list[str], dict[str, int]]]] = {
    "readers": (["readers"], READS | {"else": 403}),
    "writers": (["writers", "unknown"], GOOD),
    "admins": (["admins"], _ADMIN | {"else": 403}),
    "others": (["others"], UNSEEN),
    # Read access to this workflow, write access to another one.
    "readers and others": (["readers", "others"], READS | {"else": 403}),
    "writers and admins": (["writers", "admins"], GOOD | _ADMIN),
    # The token's own scopes.
    "plain": (["plain"], GOOD),
    "unknown": (["mine", "*"], {"else": 403}),
    "none": ([], {"else": 403}),
}


@pytest.mark.long
def test_every_route_answers_every_group_as_documented(tmp_path: Path, redis_server: RedisServer) -> None:
    """Edits of the groups file apply immediately, unless it has errors."""
    path = tmp_path / "groups.toml"
    path.write_text(GROUPS)
    with (
        serving(tmp_path, redis_server.url, jwt_workflows_map=path, jwt_workflows_claim="groups") as service,
        PatientClient(base_url=service.url, timeout=30, verify=service.verify) as client,
    ):

        def statuses(groups: list[str]) -> dict[str, int]:
            headers = named(signed(groups=groups, workflows=["theirs"]))
            return {
                route: client.request(method, address, headers=headers).status_code
                for route, (method, address) in ROUTES.items()
            }

        for kind, (groups, expected) in GROUP_MATRIX.items():
            assert (kind, statuses(groups)) == (kind, {r: expected.get(r, expected.get("else", 0)) for r in ROUTES})

        path.write_text(GROUPS + "[more]")
        assert statuses(["readers"])["job"] == 200
        assert service.metric("chronoverse_workflows_map_invalid") == 1
        assert "group 'more': workflows is not a list" in service.logs()
        path.write_text(GROUPS.replace("mi*", "their*"))
        assert statuses(["readers"])["job"] == 404
        assert service.metric("chronoverse_workflows_map_invalid") == 0


PEM: Final = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def jwk(key: rsa.RSAPrivateKey, kid: str) -> dict[str, Any]:
    """The public half of a key, in an issuer's format."""
    return {**jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key(), as_dict=True), "kid": kid}


@pytest.fixture(scope="module", params=["PEM", "JWKS"])
def keyed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer
) -> Iterator[dict[str, Endpoint]]:
    """Both endpoints of a service that is given a public key, or fetches it. The key is not a secret."""
    directory = tmp_path_factory.mktemp("keyed")
    with Issuer() as issuer:
        issuer.keys = [jwk(RSA, "k1")]
        pem, url = (PEM.decode(), "") if request.param == "PEM" else ("", issuer.url)
        with (
            serving(directory, redis_server.url, jwt_secret="", jwt_public_key=pem, jwt_jwks_url=url) as service,
            Nginx(directory, [(service.host, service.port)]) as nginx,
        ):
            yield {"direct": service, "nginx": nginx}


class DrippingIssuer:
    """A context manager: a server that sends every answer byte by byte, without end."""

    def __init__(self, every_seconds: float = 0.1) -> None:
        self._every_seconds = every_seconds
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}/jwks.json"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopped.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while not self._stopped.is_set():
            with contextlib.suppress(OSError):
                connection, _ = self._listener.accept()
                with connection:
                    self._drip(connection)

    def _drip(self, connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\nX-Padding: ")
        while not self._stopped.is_set():
            connection.sendall(b"x")
            time.sleep(self._every_seconds)


@pytest.mark.long
def test_fetching_keys_from_a_slow_issuer_times_out(tmp_path: Path, redis_server: RedisServer) -> None:
    """The answer is 503 and does not blame the token."""
    with (
        DrippingIssuer() as issuer,
        serving(tmp_path, redis_server.url, jwt_secret="", jwt_jwks_url=issuer.url) as service,
    ):
        token = "Bearer " + jwt.encode(claims(), RSA, "RS256", {"kid": "k1"})
        # Keys are first fetched at startup. A request during that fetch would then wait for its own.
        wait_until(lambda: "cannot be fetched" in service.logs(), 2 * FETCH_SECONDS, "the first fetch is given up")
        started = time.monotonic()
        first = ask(service, *ROUTES["job"], token)
        took = time.monotonic() - started

        assert (first.status_code, ask(service, *ROUTES["job"], token).status_code) == (503, 503)
        assert "keys" in first.json()["detail"]
        assert took < FETCH_SECONDS + 10


@pytest.mark.long
@pytest.mark.parametrize("name", ["direct", "nginx"])
def test_a_public_key_is_not_accepted_as_a_secret(keyed: dict[str, Endpoint], name: str) -> None:
    """No token signed with the public key as an HMAC secret, or with a key of its own, is accepted."""
    stranger = rsa.generate_private_key(65_537, 2_048)
    refused = {
        "HMAC of the PEM": signed(PEM, {"kid": "k1"}),
        "and without its end": signed(PEM.strip(), {"kid": "k1"}),
        "HMAC of the JWK": signed(json.dumps(jwk(RSA, "k1")).encode(), {"kid": "k1"}),
        "HMAC by another name": signed(PEM, {"alg": "RS256", "kid": "k1"}),
        "nothing": unsigned(),
        **{
            f"a stranger, {head}": "Bearer " + jwt.encode(claims(), stranger, "RS256", {"kid": "k1", **head})
            for head in ({"jwk": jwk(stranger, "k1")}, *POINTERS.values())
        },
    }
    good = "Bearer " + jwt.encode(claims(), RSA, "RS256", {"kid": "k1"})

    assert ask(keyed[name], *ROUTES["job"], good).status_code == 200
    answers = {kind: ask(keyed[name], *ROUTES["job"], token).status_code for kind, token in refused.items()}
    assert answers == dict.fromkeys(refused, 401)


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
def test_jobs_of_other_workflows_look_like_unknown_jobs(
    endpoint: Endpoint, method: str, hidden: str, absent: str
) -> None:
    """Byte for byte, except for the date and the request id."""
    answers = [ask(endpoint, method, path, signed()) for path in (hidden, absent)]

    assert [answer.status_code for answer in answers] == [404, 404]
    assert answers[0].content == answers[1].content
    first, second = ({**answer.headers, "date": "", "x-request-id": ""} for answer in answers)
    assert first == second


def test_a_job_is_not_found_under_another_workflow(endpoint: Endpoint) -> None:
    """Guessing a job's id is useless."""
    answers = [ask(endpoint, "GET", f"/workflows/mine/jobs/{job}", signed()) for job in ("only_theirs", "nothing")]
    assert [answer.status_code for answer in answers] == [404, 404]
    assert answers[0].content == answers[1].content


@pytest.mark.parametrize("name", ["token", "access_token", "authorization", "jwt"])
@pytest.mark.parametrize("authorization", [False, True], ids=["alone", "and in the header"])
def test_a_token_in_the_query_is_ignored(service: Service, endpoint: Endpoint, name: str, authorization: bool) -> None:
    """It is not a token, and with a real one it is an unknown parameter. It never reaches a log."""
    token = signed().removeprefix("Bearer ")
    before = service.log_size()
    for method, path in ROUTES.values():
        query = f"{'&' if '?' in path else '?'}{name}={token}"
        response = ask(endpoint, method, path + query, signed() if authorization else None)
        assert response.status_code in ((200, 400, 403, 415) if authorization else (401,))

    signature = token.rpartition(".")[2]
    assert signature not in service.logs(before) + endpoint.logs()


@pytest.mark.parametrize("path", ["/workflows/{}/jobs/job", "/workflows/mine/jobs/{}/events", "/{}"])
def test_a_token_in_the_path_is_in_no_log(service: Service, endpoint: Endpoint, path: str) -> None:
    """Nor in the answer."""
    token = signed().removeprefix("Bearer ")
    response = ask(endpoint, "GET", path.format(token), signed())

    assert response.status_code == 404
    assert token.encode() not in response.content
    assert token not in service.logs() + endpoint.logs()


def test_tokens_that_were_refused_are_in_no_log(service: Service, endpoint: Endpoint) -> None:
    """Of any kind: a token rejected here can be valid elsewhere."""
    before = service.log_size()
    used = [authorization for make, _ in MATRIX.values() if (authorization := make())]
    for authorization in used:
        ask(endpoint, "GET", ROUTES["job"][1], authorization)

    logs = service.logs(before) + endpoint.logs()
    assert not [one for one in used if len(one) > 20 and one[-20:] in logs]


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
    answer = httpx.get(f"{service.url}/workflows/mine/jobs/job", headers=headers, timeout=10, verify=service.verify)

    assert (answer.status_code, answer.json()["detail"]) == (status, detail)
    assert f"refused with {status}: {logged}" in service.logs(before)


def forged(token: str, other: str) -> str:
    """The claims of ``other`` with the signature of ``token``."""
    return ".".join([*other.split(".")[:2], token.split(".")[2]])


@pytest.mark.long
def test_tokens_made_by_the_cli_follow_the_service_settings(tmp_path: Path) -> None:
    """`token` and `run --server` read the settings, so their tokens have the service's audience and issuer."""
    settings = {f"CHRONOVERSE_{name.upper()}": value for name, value in CONFIGURED.items()}
    with serving(tmp_path, **CONFIGURED) as service:
        env = environ(service, **settings)
        run = ("run", "--server", service.url, "--workflow", "mine", "--job", "cli", "--", "echo", "x")
        ran = call_main(*run, environ=env)
        headers = {"Authorization": f"Bearer {call_main('token', environ=env).stdout.strip()}"}
        answer = httpx.get(f"{service.url}/workflows/mine/jobs/cli", headers=headers, timeout=10, verify=False)

    assert (ran.returncode, answer.json()["status"]) == (0, "COMPLETED")


@pytest.mark.parametrize(
    "lines",
    [
        [b"Authorization: Bearer second"],
        [b"Authorization: %b"],
        [b"authorization:\t%b"],
    ],
    ids=["another", "itself", "itself in lower case"],
)
def test_two_authorization_headers_are_rejected(endpoint: Endpoint, lines: list[bytes]) -> None:
    """Even if both are equal."""
    token = signed().removeprefix("Bearer ")
    headers = [line.replace(b"%b", b"Bearer " + token.encode()) for line in lines]
    status, answer, _ = exchange(endpoint, request_bytes(b"/workflows/mine/jobs/job", token, *headers))

    if isinstance(endpoint, Nginx):
        # nginx rejects a duplicate of this header.
        assert status == 400
    else:
        assert (status, answer["www-authenticate"]) == (401, "Bearer")


@pytest.mark.parametrize("suffix", ["\n", "\x0b", "\x00", "\u00a0"], ids=ascii)
def test_nothing_can_follow_a_token(endpoint: Endpoint, suffix: str) -> None:
    """Not even characters that some parsers treat as white space."""
    token = signed().removeprefix("Bearer ") + suffix
    status, _, _ = exchange(endpoint, request_bytes(b"/workflows/mine/jobs/job", token))

    if suffix == "\n" and isinstance(endpoint, Nginx):
        # RFC 9112 allows a lone newline as the end of a header.
        assert status == 200
    else:
        assert status in (400, 401)


@pytest.mark.parametrize("size", [9_000, 1_000_000])
def test_a_giant_token_is_refused(endpoint: Endpoint, size: int) -> None:
    """Before it is decoded or verified."""
    status, _, _ = exchange(endpoint, request_bytes(b"/workflows/mine/jobs/job", "a" * size + ".b.c"))

    assert status in (400, 401, 431)


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/openapi.json"])
def test_operators_need_no_token(service: Service, path: str) -> None:
    """An invalid token is ignored."""
    assert ask(service, "GET", path, None).status_code == 200
    assert ask(service, "GET", path, "Bearer not.a.token").status_code == 200


def test_a_secret_is_rotated_without_a_gap(tmp_path: Path, redis_server: RedisServer) -> None:
    """Both secrets are accepted, and the first one signs."""
    old, new = "an old secret of at least 32 bytes", "a new secret of at least 32 bytes"
    secret = f"{new},{old}"
    environ = {"CHRONOVERSE_JWT_SECRET": secret, "CHRONOVERSE_REDIS_URL": redis_server.url}
    client = create_app(Settings.from_env({**environ, "CHRONOVERSE_DATA_DIR": str(tmp_path)})).test_client()

    def status(key: str) -> int:
        token = mint(key.encode(), "tests", [READ], ["*"], 600, time.time())
        return client.get(ROUTES["jobs"][1], headers={"Authorization": f"Bearer {token}"}).status_code

    assert [status(key) for key in (new, old, secret, THEIRS.decode())] == [200, 200, 401, 401]
    made = call_main("token", environ=environ).stdout.strip()
    assert jwt.decode(made, new, ["HS256"])["sub"] == "cli"
