"""An issuer rotates its keys while several workers serve. Other tests of keys are in ``tests/auth/test_jwks.py``."""

import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from chronoverse.auth.jwks import MIN_REFETCH_SECONDS
from tests.support.issuer import Issuer
from tests.support.servers import RedisServer
from tests.support.service import PATIENCE_SECONDS, Service, serving
from tests.support.waiting import wait_until
from tests.web.routes.foreign import Foreign

pytestmark = pytest.mark.long

#: Private keys by name. Each test starts with ``known`` published; ``stranger`` never is.
KEYS: Final = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("known", "stranger")}
WORKERS: Final = 3
#: Time limit for accepting a new key, in seconds: the interval of fetches, and some for a busy machine.
SOON_SECONDS: Final = MIN_REFETCH_SECONDS + 10


def new_key() -> str:
    """Creates an unpublished key and returns its name."""
    name = f"key-{len(KEYS)}"
    KEYS[name] = ec.generate_private_key(ec.SECP256R1())
    return name


def published(*names: str) -> list[dict[str, object]]:
    """The keys in an issuer's format."""
    return [{**ECAlgorithm.to_jwk(KEYS[name].public_key(), as_dict=True), "kid": name} for name in names]


def token(name: str, kid: str | None = None) -> str:
    """A token signed with a key, with its key id or another one."""
    claims = {"sub": "ada", "exp": int(time.time()) + 600, "scope": "logs:read", "workflows": ["*"]}
    return jwt.encode(claims, KEYS[name], "ES256", {"kid": kid or name})


def ask(service: Service, bearer: str) -> httpx.Response:
    """Requests a job on a new connection, so that any worker can answer."""
    headers = {"Authorization": f"Bearer {bearer}"}
    return httpx.get(f"{service.url}/workflows/wf_keys/jobs/job_1", headers=headers, timeout=20, verify=service.verify)


def readiness(service: Service) -> httpx.Response:
    """Requests ``/readyz`` on a new connection."""
    return httpx.get(f"{service.url}/readyz", timeout=20, verify=service.verify)


def ask_until_accepted(service: Service, bearer: str) -> tuple[Counter[int], float]:
    """Repeats a request until it gets 200. Returns the statuses before that, and the duration in seconds."""
    began, statuses = time.monotonic(), Counter[int]()
    while time.monotonic() - began < 60:
        answer = ask(service, bearer)
        if answer.status_code == 200:
            return statuses, time.monotonic() - began
        statuses[answer.status_code] += 1
        assert answer.status_code != 503 or int(answer.headers["retry-after"]) <= 2
        time.sleep(0.1)
    pytest.fail(f"the key was not accepted for a minute: {statuses}")


@pytest.fixture(scope="module", autouse=True)
def job(redis_server: RedisServer) -> None:
    """The job of all requests."""
    Foreign(redis_server.url, "wf_keys", "job_1").lines(["x"]).end()


@pytest.fixture(scope="module")
def shared_issuer() -> Iterator[Issuer]:
    """An issuer that is down at first."""
    with Issuer() as issuer:
        issuer.keys = None
        yield issuer


@dataclass(frozen=True)
class Begun:
    """A service with several workers that started without keys, and its state before it had them."""

    service: Service
    #: Status and media type of ten requests to ``/readyz``.
    readiness: Counter[tuple[int, str]]
    keys_age_seconds: float


@pytest.fixture(scope="module")
def begun(
    tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer, shared_issuer: Issuer
) -> Iterator[Begun]:
    """A service that fetches the issuer's keys. The issuer is down until the service's state is recorded."""
    directory, url = tmp_path_factory.mktemp("service"), shared_issuer.url
    with serving(directory, redis_server.url, workers=WORKERS, jwt_secret="", jwt_jwks_url=url) as service:
        answers = [readiness(service) for _ in range(10)]
        said = Counter((answer.status_code, answer.headers["content-type"]) for answer in answers)
        age = service.metric("chronoverse_issuer_keys_age_seconds")
        shared_issuer.keys = published("known")

        def are_ready() -> bool:
            return {readiness(service).status_code for _ in range(10)} == {200}

        wait_until(are_ready, PATIENCE_SECONDS, "its workers have the keys")
        yield Begun(service, said, age)


@pytest.fixture
def issuer(shared_issuer: Issuer) -> Issuer:
    """The issuer, with one published key."""
    shared_issuer.keys = published("known")
    return shared_issuer


@pytest.fixture
def service(begun: Begun, issuer: Issuer) -> Service:
    """The service, which has fetched that key."""
    ask_until_accepted(begun.service, token("known"))
    return begun.service


def test_a_node_is_ready_only_once_it_has_keys(begun: Begun, service: Service) -> None:
    """It is not sent any requests before, so it fetches them without one."""
    assert begun.readiness == {(503, "application/problem+json"): 10}
    assert begun.keys_age_seconds == math.inf
    # Each worker fetches them.
    assert Counter(readiness(service).status_code for _ in range(10)) == {200: 10}
    assert Counter(ask(service, token("known")).status_code for _ in range(10)) == {200: 10}


def test_a_new_key_is_never_answered_with_401(service: Service, issuer: Issuer) -> None:
    """Every worker accepts it within seconds, although its kid was unknown in earlier requests.

    Streams are authorised like other requests.
    """
    new = new_key()
    for _ in range(WORKERS):
        assert ask(service, token(new)).status_code == 401
    issuer.keys = published("known", new)

    statuses, seconds = ask_until_accepted(service, token(new))
    assert set(statuses) <= {503}
    assert seconds < SOON_SECONDS
    assert Counter(ask(service, token(new)).status_code for _ in range(20)) == {200: 20}
    assert ask(service, token("stranger", new)).status_code == 401
    headers = {"Authorization": f"Bearer {token(new)}"}
    path = f"{service.url}/workflows/wf_keys/jobs/job_1/events"
    assert "event: end" in httpx.get(path, headers=headers, timeout=20, verify=service.verify).text


def test_a_key_is_undecided_while_the_issuer_is_down(service: Service, issuer: Issuer) -> None:
    """Known keys stay valid. An unknown one gets 503 with Retry-After, not 401."""
    new = new_key()
    issuer.keys = None
    for _ in range(2):
        answer = ask(service, token(new))
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) <= 2
        assert ask(service, token("known")).status_code == 200
    issuer.keys = published("known", new)

    statuses, seconds = ask_until_accepted(service, token(new))
    assert set(statuses) <= {503}
    assert seconds < SOON_SECONDS
    assert "the keys at CHRONOVERSE_JWT_JWKS_URL cannot be fetched: HTTP Error 503" in service.logs()
