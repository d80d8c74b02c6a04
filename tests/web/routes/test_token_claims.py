"""Every form of a token's claims with every kind of key, as issuers write them, and why the service refuses some."""

import itertools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from chronoverse.auth.tokens import READ, WRITE
from tests.support.commands import run_chronoverse
from tests.support.issuer import Issuer
from tests.support.servers import RedisServer
from tests.support.service import SECRET, Service, serving
from tests.web.routes.foreign import Foreign

RSA: Final = rsa.generate_private_key(65_537, 2_048)
PEM: Final = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
JWK: Final = {**jwt.algorithms.RSAAlgorithm.to_jwk(RSA.public_key(), as_dict=True), "kid": "k1"}
#: A key for encryption, as Keycloak publishes one beside its key for signatures.
ENCRYPTION_JWK: Final = {**JWK, "kid": "enc", "use": "enc", "alg": "RSA-OAEP"}

AUDIENCE: Final = "https://logs.example.com"
ISSUER: Final = "https://id.example.com/realms/platform"
CLAIM: Final = "https://logs.example.com/workflows"
#: The settings of a service beside an issuer of its own.
CONFIGURED: Final[dict[str, Any]] = {"jwt_audience": AUDIENCE, "jwt_issuer": ISSUER, "jwt_workflows_claim": CLAIM}

_request_ids = map("claims-{}".format, itertools.count())


class Refused(NamedTuple):
    """The status of a refusal, and words of its reason, which the answer and the log have."""

    status: int
    reason: str


#: Changes of a good token's claims, and what a service without the settings above answers. None removes a claim.
PLAIN_FORMS: Final[dict[str, tuple[dict[str, Any], Refused | None]]] = {
    "as minted": ({}, None),
    "scope is a list": ({"scope": [READ, WRITE]}, None),
    "scp is a text": ({"scope": None, "scp": f"{READ} {WRITE}"}, None),
    "scp is a list": ({"scope": None, "scp": [READ]}, None),
    "scope and scp": ({"scp": WRITE}, None),
    "scp lacks the scope": ({"scope": None, "scp": [WRITE]}, Refused(403, "lacks the scope logs:read")),
    "scope lacks the scope": ({"scope": "openid profile"}, Refused(403, "lacks the scope logs:read")),
    "no scope": ({"scope": None}, Refused(401, "no scope")),
    "scope of numbers": ({"scope": [7]}, Refused(401, "no scope")),
    "any issuer": ({"iss": "https://anybody.example"}, None),
    "an audience": ({"aud": "account"}, Refused(401, "CHRONOVERSE_JWT_AUDIENCE is not set")),
    "audiences": ({"aud": ["account", AUDIENCE]}, Refused(401, "CHRONOVERSE_JWT_AUDIENCE is not set")),
    "an audience that is a number": ({"aud": 7}, Refused(401, "(aud)")),
    "another claim for the workflows": ({"workflows": None, CLAIM: ["mine"]}, Refused(401, "claim workflows")),
    "workflows is a text": ({"workflows": "mine"}, Refused(401, "claim workflows")),
    "every workflow": ({"workflows": ["*"]}, None),
    "no sub": ({"sub": None}, Refused(401, "sub")),
    "no exp": ({"exp": None}, Refused(401, "exp")),
    "expired": ({"exp": 1}, Refused(401, "expired")),
    "not valid yet": ({"nbf": 4_000_000_000}, Refused(401, "not valid yet (nbf)")),
    "claims that the service does not know": ({"azp": "ci", "realm_access": {"roles": ["x"]}, "typ": "Bearer"}, None),
}
#: The same for a service with those settings. A good token has them.
CONFIGURED_FORMS: Final[dict[str, tuple[dict[str, Any], Refused | None]]] = {
    "as minted": ({}, None),
    "one audience of several": ({"aud": ["account", AUDIENCE]}, None),
    "no audience": ({"aud": None}, Refused(401, "(aud) is not CHRONOVERSE_JWT_AUDIENCE")),
    "another audience": ({"aud": "account"}, Refused(401, "(aud) is not CHRONOVERSE_JWT_AUDIENCE")),
    "other audiences": ({"aud": ["account", AUDIENCE + "/"]}, Refused(401, "(aud) is not CHRONOVERSE_JWT_AUDIENCE")),
    "no issuer": ({"iss": None}, Refused(401, "issuer")),
    "another issuer": ({"iss": ISSUER + "/"}, Refused(401, "issuer")),
    "issuers": ({"iss": [ISSUER]}, Refused(401, "issuer")),
    "every workflow": ({CLAIM: ["*"]}, None),
    "another workflow": ({CLAIM: ["theirs"]}, Refused(404, "not for this workflow")),
    "workflows in the usual claim": ({CLAIM: None, "workflows": ["mine"]}, Refused(401, CLAIM)),
    "scope is a list": ({"scope": [READ]}, None),
    "scp is a list": ({"scope": None, "scp": [READ]}, None),
}

Sign = Callable[[dict[str, Any]], str]


class Keyed(NamedTuple):
    """A service with one kind of key, and the function that signs claims for it."""

    service: Service
    sign: Sign


@pytest.fixture(
    scope="module", params=["JWKS", *(pytest.param(kind, marks=pytest.mark.long) for kind in ("HS256", "PEM"))]
)
def key(request: pytest.FixtureRequest) -> Iterator[tuple[dict[str, Any], Sign]]:
    """The settings of a kind of key, and the function that signs claims with it."""
    with Issuer() as issuer:
        issuer.keys = [JWK, ENCRYPTION_JWK]
        settings: dict[str, dict[str, Any]] = {
            "HS256": {},
            "PEM": {"jwt_secret": "", "jwt_public_key": PEM},
            "JWKS": {"jwt_secret": "", "jwt_jwks_url": issuer.url},
        }
        if request.param == "HS256":
            yield settings["HS256"], lambda claims: signed(claims, SECRET, "HS256")
        else:
            yield settings[request.param], lambda claims: signed(claims, RSA, "RS256")


@pytest.fixture(scope="module")
def job(redis_server: RedisServer) -> None:
    """A job of the workflow ``mine``."""
    Foreign(redis_server.url, "mine", "claims").lines(["x"]).end()


@pytest.fixture(scope="module")
def plain(
    tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer, key: tuple[dict[str, Any], Sign]
) -> Iterator[Keyed]:
    """A service with a key and no other setting."""
    with serving(tmp_path_factory.mktemp("plain"), redis_server.url, **key[0]) as service:
        yield Keyed(service, key[1])


@pytest.fixture(scope="module")
def configured(
    tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer, key: tuple[dict[str, Any], Sign]
) -> Iterator[Keyed]:
    """A service with a key, an audience, an issuer and a name for the claim with the workflows."""
    with serving(tmp_path_factory.mktemp("configured"), redis_server.url, **key[0], **CONFIGURED) as service:
        yield Keyed(service, key[1])


def signed(claims: dict[str, Any], key: Any, algorithm: str) -> str:
    """A token with these claims, whatever they are. ``jwt.encode`` would refuse some of them."""
    return jwt.PyJWS().encode(json.dumps(claims).encode(), key, algorithm, {"kid": "k1"})


def good_claims(**more: object) -> dict[str, Any]:
    """The claims of a token for the workflow ``mine``."""
    return {"sub": "ada", "exp": int(time.time()) + 60, "scope": f"{READ} {WRITE}", **more}


def check(keyed: Keyed, claims: dict[str, Any], changes: dict[str, Any], refused: Refused | None) -> None:
    """Asks for the job with the changed claims, and looks at the answer and at the log."""
    service = keyed.service
    token = keyed.sign({name: value for name, value in (claims | changes).items() if value is not None})
    request_id = next(_request_ids)
    before = service.log_size()
    headers = {"Authorization": f"Bearer {token}", "X-Request-ID": request_id}
    answer = httpx.get(f"{service.url}/workflows/mine/jobs/claims", headers=headers, timeout=10)
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
def test_every_form_of_claims_without_further_settings(plain: Keyed, form: str) -> None:
    """The token is accepted, or the answer and the service's log say why it is not."""
    check(plain, good_claims(workflows=["mine"]), *PLAIN_FORMS[form])


@pytest.mark.usefixtures("job")
@pytest.mark.parametrize("form", CONFIGURED_FORMS)
def test_every_form_of_claims_with_an_audience_and_an_issuer(configured: Keyed, form: str) -> None:
    """The audience and the issuer must be the configured ones, and the workflows are in the configured claim."""
    claims = good_claims(aud=AUDIENCE, iss=ISSUER)
    check(configured, claims | {CLAIM: ["mine"]}, *CONFIGURED_FORMS[form])


def test_only_the_log_says_why_a_signature_is_refused(plain: Keyed) -> None:
    """A reason in the answer could help to forge a token."""
    header, _, signature = plain.sign(good_claims(workflows=["mine"])).split(".")
    _, payload, _ = plain.sign(good_claims(workflows=["*"])).split(".")
    before = plain.service.log_size()
    answer = httpx.get(
        f"{plain.service.url}/workflows/mine/jobs/claims",
        headers={"Authorization": f"Bearer {header}.{payload}.{signature}"},
        timeout=10,
    )

    assert (answer.status_code, answer.json()["detail"]) == (401, "the token is not valid")
    assert "refused with 401: the token's signature was not made with the key" in plain.service.logs(before)


@pytest.mark.long
def test_tokens_of_the_command_line_obey_the_same_settings(tmp_path: Path) -> None:
    """`token` and `run --server` read the settings of the service, so their tokens have its audience and its issuer."""
    settings: dict[str, Any] = {f"CHRONOVERSE_{name.upper()}": value for name, value in CONFIGURED.items()}
    with serving(tmp_path, **CONFIGURED) as service:
        ran = run_chronoverse(
            service, "run", "--server", service.url, "--workflow", "mine", "--job", "cli", "--", "echo", "x", **settings
        )
        token = run_chronoverse(service, "token", **settings).stdout.decode().strip()
        answer = httpx.get(
            f"{service.url}/workflows/mine/jobs/cli", headers={"Authorization": f"Bearer {token}"}, timeout=10
        )

    assert (ran.returncode, answer.json()["status"]) == (0, "COMPLETED")
