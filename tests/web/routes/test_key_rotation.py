"""An issuer changes its keys while several workers serve, and strangers ask with made-up keys."""

import math
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from chronoverse.auth.jwks import FETCH_SECONDS, MIN_REFETCH_SECONDS
from tests.support.issuer import Issuer
from tests.support.servers import RedisServer
from tests.support.service import Service, serving
from tests.support.waiting import wait_until
from tests.web.routes.foreign import Foreign

pytestmark = pytest.mark.long

KEYS: Final = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("k1", "k2", "k3", "k4", "stranger")}
WORKERS: Final = 3
#: Seconds in which a new key must be accepted: those until the next fetch, and some for a busy machine.
SOON_SECONDS: Final = MIN_REFETCH_SECONDS + 10


def published(*names: str) -> list[dict[str, object]]:
    """These keys as an issuer publishes them."""
    return [{**ECAlgorithm.to_jwk(KEYS[name].public_key(), as_dict=True), "kid": name} for name in names]


def token(name: str, kid: str | None = None) -> str:
    """A token that is signed with a key. It names that key, or another one."""
    claims = {"sub": "ada", "exp": int(time.time()) + 600, "scope": "logs:read", "workflows": ["*"]}
    return jwt.encode(claims, KEYS[name], "ES256", {"kid": kid or name})


def ask(service: Service, bearer: str) -> httpx.Response:
    """Asks for a job on a connection of its own, so that any worker may answer."""
    return httpx.get(
        f"{service.url}/workflows/wf_keys/jobs/job_1", headers={"Authorization": f"Bearer {bearer}"}, timeout=20
    )


def ask_until_accepted(service: Service, bearer: str) -> tuple[Counter[int], float]:
    """Repeats a request until it is answered with 200. Returns the statuses before that, and the seconds it took."""
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
    """The job that all requests ask for."""
    Foreign(redis_server.url, "wf_keys", "job_1").lines(["x"]).end()


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    """An issuer with one key."""
    with Issuer() as issuer:
        issuer.keys = published("k1")
        yield issuer


@pytest.fixture
def service(tmp_path: Path, redis_server: RedisServer, issuer: Issuer) -> Iterator[Service]:
    """A service of several workers that fetches the issuer's keys."""
    with serving(tmp_path, redis_server.url, workers=WORKERS, jwt_secret="", jwt_jwks_url=issuer.url) as service:
        yield service


def test_a_new_key_is_never_answered_with_401(service: Service, issuer: Issuer) -> None:
    """It is accepted within seconds, and then by every worker, although its kid was asked for before in vain."""
    assert ask(service, token("k1")).status_code == 200
    for _ in range(WORKERS):
        assert ask(service, token("k2")).status_code == 401
    issuer.keys = published("k1", "k2")

    statuses, seconds = ask_until_accepted(service, token("k2"))
    assert set(statuses) <= {503}
    assert seconds < SOON_SECONDS
    assert Counter(ask(service, token("k2")).status_code for _ in range(20)) == {200: 20}
    assert ask(service, token("stranger", "k2")).status_code == 401


def test_made_up_kids_do_not_hold_up_a_new_key(service: Service, issuer: Issuer) -> None:
    """Strangers ask with a new kid each time. The issuer is still asked rarely, and the new key is found in time."""
    stop = threading.Event()
    statuses: Counter[int] = Counter()

    def flood(number: int) -> None:
        asked = 0
        while not stop.is_set():
            asked += 1
            statuses[ask(service, token("stranger", f"made-up-{number}-{asked}")).status_code] += 1

    strangers = [threading.Thread(target=flood, args=(number,)) for number in range(20)]
    began = time.monotonic()
    for stranger in strangers:
        stranger.start()
    try:
        for name in ("k2", "k3", "k4"):
            time.sleep(1)
            issuer.keys = published(name)
            refused, seconds = ask_until_accepted(service, token(name))
            assert set(refused) <= {503}
            assert seconds < SOON_SECONDS
    finally:
        stop.set()
        for stranger in strangers:
            stranger.join()
    fetches = (time.monotonic() - began) / MIN_REFETCH_SECONDS

    assert set(statuses) <= {401, 503}
    assert statuses[401] > 0
    assert issuer.requests <= fetches + 2
    assert issuer.most_at_once == 1


def test_a_node_asks_a_slow_issuer_once_at_a_time(service: Service, issuer: Issuer) -> None:
    """Requests of all workers wait for the same fetch. The other one that may be is that of the start."""
    issuer.seconds = 1.0
    issuer.keys = published("k2")
    answers: list[int] = []
    clients = [
        threading.Thread(target=lambda: answers.append(ask(service, token("k2")).status_code)) for _ in range(30)
    ]
    for client in clients:
        client.start()
    for client in clients:
        client.join()

    assert Counter(answers) == {200: 30}
    assert issuer.requests <= 2
    assert issuer.most_at_once == 1


def test_while_the_issuer_is_away_nobody_can_tell(service: Service, issuer: Issuer) -> None:
    """Known keys stay valid. An unknown one is answered with 503, which says when to come back, and not with 401."""
    assert ask(service, token("k1")).status_code == 200
    issuer.keys = None
    for _ in range(2):
        answer = ask(service, token("k2"))
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) <= 2
        assert ask(service, token("k1")).status_code == 200
    issuer.keys = published("k1", "k2")

    statuses, seconds = ask_until_accepted(service, token("k2"))
    assert set(statuses) <= {503}
    assert seconds < SOON_SECONDS
    assert "the keys at CHRONOVERSE_JWT_JWKS_URL cannot be fetched: HTTP Error 503" in service.logs()


def test_a_restarted_service_knows_the_keys_without_its_issuer(service: Service, issuer: Issuer) -> None:
    """A node that restarts while the issuer is away goes on with the keys in its data directory."""
    assert ask(service, token("k1")).status_code == 200
    issuer.keys = None
    service.stop()
    service.start()
    began = time.monotonic()

    assert Counter(ask(service, token("k1")).status_code for _ in range(10)) == {200: 10}
    # If each of them waited for the issuer, it would be ten times that.
    assert time.monotonic() - began < 4 * FETCH_SECONDS


def test_a_new_node_serves_while_the_issuer_is_away(
    service: Service, issuer: Issuer, redis_server: RedisServer, tmp_path: Path
) -> None:
    """It checks tokens with the keys that another node has fetched, and its metrics say how old they are."""
    assert ask(service, token("k1")).status_code == 200
    issuer.keys = None
    with serving(tmp_path / "new", redis_server.url, jwt_secret="", jwt_jwks_url=issuer.url) as new:
        wait_until(lambda: httpx.get(f"{new.url}/readyz").status_code == 200, 10, "the new node is ready")
        assert Counter(ask(new, token("k1")).status_code for _ in range(10)) == {200: 10}
        assert 0 < new.metric("chronoverse_issuer_keys_age_seconds") < 60


def test_a_node_is_ready_only_once_it_has_keys(issuer: Issuer, redis_server: RedisServer, tmp_path: Path) -> None:
    """Nobody sends it a request before that, so it fetches them without one."""
    issuer.keys = None
    with serving(tmp_path, redis_server.url, workers=2, jwt_secret="", jwt_jwks_url=issuer.url) as service:
        for _ in range(10):
            answer = httpx.get(f"{service.url}/readyz")
            assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
        assert service.metric("chronoverse_issuer_keys_age_seconds") == math.inf
        issuer.keys = published("k1")
        wait_until(lambda: httpx.get(f"{service.url}/readyz").status_code == 200, 15, "it has the keys")
        # The other workers find them in the file.
        assert Counter(httpx.get(f"{service.url}/readyz").status_code for _ in range(10)) == {200: 10}
        assert Counter(ask(service, token("k1")).status_code for _ in range(10)) == {200: 10}


def test_a_stream_with_a_new_key_opens(service: Service, issuer: Issuer) -> None:
    """A stream is authorised in the same way as other requests."""
    assert ask(service, token("k1")).status_code == 200
    issuer.keys = published("k2")
    with httpx.stream(
        "GET",
        f"{service.url}/workflows/wf_keys/jobs/job_1/events",
        headers={"Authorization": f"Bearer {token('k2')}"},
        timeout=20,
    ) as stream:
        assert stream.status_code == 200
        assert "event: end" in stream.read().decode()
