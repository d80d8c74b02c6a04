"""Every form of a token's claims, as issuers write them, at a service with published keys, and why it refuses some.

``tests/auth/test_claim_forms.py`` has the same forms with every kind of key, without a service.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import jwt
import pytest

from tests.auth.claim_forms import (
    AUDIENCE,
    CLAIM,
    CONFIGURED,
    CONFIGURED_FORMS,
    ISSUER,
    PLAIN_FORMS,
    Refused,
    good_claims,
    signed,
)
from tests.support.commands import call_main, environ
from tests.support.issuer import Issuer
from tests.support.keys import RSA
from tests.support.servers import RedisServer
from tests.support.service import Service, serving
from tests.web.routes.foreign import Foreign

#: Each of these tests starts processes. CI runs them.
pytestmark = pytest.mark.long

JWK: Final = {**jwt.algorithms.RSAAlgorithm.to_jwk(RSA.public_key(), as_dict=True), "kid": "k1"}
#: A key for encryption, as Keycloak publishes one beside its key for signatures.
ENCRYPTION_JWK: Final = {**JWK, "kid": "enc", "use": "enc", "alg": "RSA-OAEP"}

_request_ids = map("claims-{}".format, itertools.count())


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    """An issuer with a key for signatures and one for encryption."""
    with Issuer() as issuer:
        issuer.keys = [JWK, ENCRYPTION_JWK]
        yield issuer


@pytest.fixture(scope="module")
def job(redis_server: RedisServer) -> None:
    """A job of the workflow ``mine``."""
    Foreign(redis_server.url, "mine", "claims").lines(["x"]).end()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer, issuer: Issuer) -> Iterator[Service]:
    """A service with published keys and no other setting."""
    keys: dict[str, Any] = {"jwt_secret": "", "jwt_jwks_url": issuer.url}
    with serving(tmp_path_factory.mktemp("plain"), redis_server.url, **keys) as service:
        yield service


@pytest.fixture(scope="module")
def configured(
    tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer, issuer: Issuer
) -> Iterator[Service]:
    """A service with published keys, an audience, an issuer and a name for the claim with the workflows."""
    keys: dict[str, Any] = {"jwt_secret": "", "jwt_jwks_url": issuer.url}
    with serving(tmp_path_factory.mktemp("configured"), redis_server.url, **keys, **CONFIGURED) as service:
        yield service


def check(service: Service, claims: dict[str, Any], changes: dict[str, Any], refused: Refused | None) -> None:
    """Asks for the job with the changed claims, and looks at the answer and at the log."""
    token = signed({name: value for name, value in (claims | changes).items() if value is not None}, RSA, "RS256")
    request_id = next(_request_ids)
    before = service.log_size()
    headers = {"Authorization": f"Bearer {token}", "X-Request-ID": request_id}
    answer = httpx.get(f"{service.url}/workflows/mine/jobs/claims", headers=headers, timeout=10, verify=False)
    lines = [line for line in service.logs(before).splitlines() if f"request_id={request_id}" in line]

    if refused is None:
        assert (answer.status_code, lines) == (200, [])
        return
    assert answer.status_code == refused.status
    # The answer of a 404 does not say whether the job exists.
    assert refused.status == 404 or refused.reason in answer.json()["detail"]
    (line,) = lines
    assert f"refused with {refused.status}: " in line
    assert refused.reason in line
    assert token.rpartition(".")[2] not in service.logs(before) + answer.text


@pytest.mark.usefixtures("job")
@pytest.mark.parametrize("form", PLAIN_FORMS)
def test_every_form_of_claims_without_further_settings(plain: Service, form: str) -> None:
    """The token is accepted, or the answer and the service's log say why it is not."""
    check(plain, good_claims(workflows=["mine"]), *PLAIN_FORMS[form])


@pytest.mark.usefixtures("job")
@pytest.mark.parametrize("form", CONFIGURED_FORMS)
def test_every_form_of_claims_with_an_audience_and_an_issuer(configured: Service, form: str) -> None:
    """The audience and the issuer must be the configured ones, and the workflows are in the configured claim."""
    claims = good_claims(aud=AUDIENCE, iss=ISSUER)
    check(configured, claims | {CLAIM: ["mine"]}, *CONFIGURED_FORMS[form])


def test_only_the_log_says_why_a_signature_is_refused(plain: Service) -> None:
    """A reason in the answer could help to forge a token."""
    header, _, signature = signed(good_claims(workflows=["mine"]), RSA, "RS256").split(".")
    _, payload, _ = signed(good_claims(workflows=["*"]), RSA, "RS256").split(".")
    before = plain.log_size()
    answer = httpx.get(
        f"{plain.url}/workflows/mine/jobs/claims",
        headers={"Authorization": f"Bearer {header}.{payload}.{signature}"},
        timeout=10,
        verify=False,
    )

    assert (answer.status_code, answer.json()["detail"]) == (401, "invalid token")
    assert "refused with 401: the token's signature is invalid" in plain.logs(before)


@pytest.mark.long
def test_tokens_of_the_command_line_obey_the_same_settings(tmp_path: Path) -> None:
    """`token` and `run --server` read the settings of the service, so their tokens have its audience and its issuer."""
    settings: dict[str, Any] = {f"CHRONOVERSE_{name.upper()}": value for name, value in CONFIGURED.items()}
    with serving(tmp_path, **CONFIGURED) as service:
        env = environ(service, **settings)
        run = ("run", "--server", service.url, "--workflow", "mine", "--job", "cli", "--", "echo", "x")
        ran = call_main(*run, environ=env)
        token = call_main("token", environ=env).stdout.strip()
        answer = httpx.get(
            f"{service.url}/workflows/mine/jobs/cli",
            headers={"Authorization": f"Bearer {token}"},
            timeout=10,
            verify=False,
        )

    assert (ran.returncode, answer.json()["status"]) == (0, "COMPLETED")
