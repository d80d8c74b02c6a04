"""Every form of a token's claims with every kind of key, as issuers write them. Needs no running service."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from chronoverse.auth.tokens import READ, Verifier
from chronoverse.errors import Forbidden, JobNotFound, Unauthorized
from chronoverse.settings import Settings
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
from tests.support.keys import RSA

SECRET: Final = b"a secret of at least 32 bytes for HS256"
PEM: Final = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
JWK: Final = {**jwt.algorithms.RSAAlgorithm.to_jwk(RSA.public_key(), as_dict=True), "kid": "k1"}

#: For each kind of key: its settings, and the key and algorithm that sign its tokens.
KEYS: Final[dict[str, tuple[dict[str, Any], Any, str]]] = {
    "HS256": ({"jwt_secret": SECRET}, SECRET, "HS256"),
    "PEM": ({"jwt_public_key": PEM}, RSA, "RS256"),
    "JWKS": ({"jwt_jwks_url": "https://id.example.com/jwks.json"}, RSA, "RS256"),
}


Verify = Callable[[dict[str, Any], dict[str, Any]], str]


@pytest.fixture(params=KEYS)
def ask(request: pytest.FixtureRequest, tmp_path: Path) -> Verify:
    """A function that asks to read a log of the workflow ``mine``, with these settings and a token with these claims.

    It returns None if that is allowed, else the reason for the log.
    """
    key, signer, algorithm = KEYS[request.param]

    def ask(settings: dict[str, Any], claims: dict[str, Any]) -> str:
        verifier = Verifier(
            Settings(data_dir=tmp_path, **key, **settings), fetch=lambda _: json.dumps({"keys": [JWK]}).encode()
        )
        token = signed({name: value for name, value in claims.items() if value is not None}, signer, algorithm)
        try:
            principal = verifier.verify(f"Bearer {token}", time.time())
            principal.require(READ, "mine")
        except Unauthorized as error:
            return f"401: {error.explanation}"
        except Forbidden as error:
            return f"403: {error}"
        except JobNotFound as error:
            return f"404: {error}"
        return ""

    return ask


def test_every_form_without_other_settings(ask: Verify) -> None:
    """Each token is accepted, or the reason says why not."""
    for form, (changes, refused) in PLAIN_FORMS.items():
        assert_answer(form, ask({}, good_claims(workflows=["mine"]) | changes), refused)


def test_every_form_with_an_audience_and_an_issuer(ask: Verify) -> None:
    """The audience and issuer must match the configured ones; the workflows are in the configured claim."""
    for form, (changes, refused) in CONFIGURED_FORMS.items():
        claims = good_claims(aud=AUDIENCE, iss=ISSUER) | {CLAIM: ["mine"]} | changes
        assert_answer(form, ask(CONFIGURED, claims), refused)


def assert_answer(form: str, answer: str, refused: Refused | None) -> None:
    """The answer has this status and reason."""
    if refused is None:
        assert (form, answer) == (form, "")
    else:
        assert answer.startswith(f"{refused.status}: "), (form, answer)
        assert refused.reason in answer, (form, answer)
