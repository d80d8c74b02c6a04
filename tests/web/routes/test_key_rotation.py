"""An issuer rotates its keys while several workers serve. Other tests of keys are in ``tests/auth/test_jwks.py``."""

import math
import time
from collections import Counter
from pathlib import Path
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

#: Private keys by name.
KEYS: Final = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("known", "new", "stranger")}
WORKERS: Final = 3
#: Time limit for accepting a new key, in seconds: the interval of fetches, and some for a busy machine.
SOON_SECONDS: Final = MIN_REFETCH_SECONDS + 10


def published(*names: str) -> list[dict[str, object]]:
    """The keys in an issuer's format."""
    return [{**ECAlgorithm.to_jwk(KEYS[name].public_key(), as_dict=True), "kid": name} for name in names]


def ask(service: Service, name: str, path: str = "", kid: str | None = None) -> httpx.Response:
    """Requests a job with a token signed with a key, on a new connection, so that any worker can answer."""
    claims = {"sub": "ada", "exp": int(time.time()) + 600, "scope": "logs:read", "workflows": ["*"]}
    headers = {"Authorization": "Bearer " + jwt.encode(claims, KEYS[name], "ES256", {"kid": kid or name})}
    url = f"{service.url}/workflows/wf_keys/jobs/job_1{path}"
    return httpx.get(url, headers=headers, timeout=20, verify=service.verify)


def readiness(service: Service) -> Counter[tuple[int, str]]:
    """Status and media type of ten requests to ``/readyz``."""
    answers = [httpx.get(f"{service.url}/readyz", timeout=20, verify=service.verify) for _ in range(10)]
    return Counter((each.status_code, each.headers["content-type"]) for each in answers)


@pytest.mark.long
def test_no_good_token_is_refused_while_keys_are_rotated(tmp_path: Path, redis_server: RedisServer) -> None:
    """A node is ready only once it has keys. A key that it cannot fetch is undecided, and known ones stay valid."""
    Foreign(redis_server.url, "wf_keys", "job_1").lines(["x"]).end()
    with Issuer() as issuer:
        issuer.keys = None
        with serving(tmp_path, redis_server.url, workers=WORKERS, jwt_secret="", jwt_jwks_url=issuer.url) as service:
            assert readiness(service) == {(503, "application/problem+json"): 10}
            assert service.metric("chronoverse_issuer_keys_age_seconds") == math.inf
            issuer.keys = published("known")
            # It is not sent any requests before, so each worker fetches the keys without one.
            wait_until(lambda: {status for status, _ in readiness(service)} == {200}, PATIENCE_SECONDS, "it is ready")
            assert Counter(ask(service, "known").status_code for _ in range(10)) == {200: 10}
            for _ in range(WORKERS):
                assert ask(service, "new").status_code == 401

            issuer.keys = None
            wait_until(lambda: ask(service, "new").status_code == 503, SOON_SECONDS, "the key is undecided")
            answer = ask(service, "new")
            assert (answer.status_code, int(answer.headers["retry-after"]) <= 2) == (503, True)
            assert ask(service, "known").status_code == 200
            issuer.keys = published("known", "new")

            statuses, began = Counter[int](), time.monotonic()
            while not statuses[200] and time.monotonic() < began + SOON_SECONDS:
                statuses[ask(service, "new").status_code] += 1
                time.sleep(0.1)
            assert set(statuses) <= {200, 503}
            assert Counter(ask(service, "new").status_code for _ in range(20)) == {200: 20}
            assert ask(service, "stranger", kid="new").status_code == 401
            # Streams are authorised like other requests.
            assert "event: end" in ask(service, "new", "/events").text
            assert "the keys at CHRONOVERSE_JWT_JWKS_URL cannot be fetched: HTTP Error 503" in service.logs()
