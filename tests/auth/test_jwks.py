"""Published keys: they are fetched rarely over HTTP, and used for a while when the issuer is down."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from chronoverse.auth.jwks import (
    MAX_KEY_SET_BYTES,
    MAX_STALE_SECONDS,
    MIN_REFETCH_SECONDS,
    REFRESH_SECONDS,
    PublishedKeys,
    fetch_keys,
)
from chronoverse.auth.tokens import Verifier
from chronoverse.errors import SigningKeysUnavailable, Unauthorized
from chronoverse.settings import Settings
from tests.support.issuer import Issuer

NOW = 1_772_532_000.0
CLAIMS: dict[str, Any] = {"sub": "ada", "exp": NOW + 60, "scope": "logs:read", "workflows": ["*"]}
EC = ec.generate_private_key(ec.SECP256R1())
OTHER = ec.generate_private_key(ec.SECP256R1())
RSA = rsa.generate_private_key(65_537, 2_048)
ED25519 = ed25519.Ed25519PrivateKey.generate()


def published(key: Any, kid: str, **more: str) -> dict[str, Any]:
    """The public half of ``key`` as a JWK."""
    kinds: dict[Any, Any] = {EC: ECAlgorithm, OTHER: ECAlgorithm, RSA: RSAAlgorithm, ED25519: OKPAlgorithm}
    return {**kinds[key].to_jwk(key.public_key(), as_dict=True), "kid": kid, **more}


class Clock:
    """A clock that a test advances."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    """An issuer that runs for one test."""
    with Issuer() as issuer:
        yield issuer


@pytest.mark.parametrize(("key", "algorithm"), [(EC, "ES256"), (RSA, "RS256"), (ED25519, "EdDSA")])
def test_a_token_is_checked_with_the_key_that_it_names(
    issuer: Issuer, tmp_path: Path, key: Any, algorithm: str
) -> None:
    """The key set is fetched over real HTTP and has other keys, too."""
    issuer.keys = [published(OTHER, "other"), published(key, "k1")]
    verifier = Verifier.from_settings(Settings(data_dir=tmp_path, jwt_jwks_url=issuer.url))

    assert verifier.verify("Bearer " + jwt.encode(CLAIMS, key, algorithm, headers={"kid": "k1"}), NOW).subject == "ada"
    with pytest.raises(Unauthorized):
        verifier.verify("Bearer " + jwt.encode(CLAIMS, key, algorithm, headers={"kid": "other"}), NOW)


def test_a_token_without_a_kid_is_checked_with_the_only_key(issuer: Issuer, tmp_path: Path) -> None:
    """With two keys, the token does not say which."""
    issuer.keys = [published(EC, "k1")]
    verifier = Verifier.from_settings(Settings(data_dir=tmp_path, jwt_jwks_url=issuer.url))

    assert verifier.verify("Bearer " + jwt.encode(CLAIMS, EC, "ES256"), NOW).subject == "ada"


@pytest.mark.parametrize(
    "key",
    [
        published(RSA, "k1", alg="RS512"),
        published(RSA, "k1", use="enc"),
        {"kty": "oct", "kid": "k1", "k": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY"},
    ],
)
def test_a_key_is_used_for_its_purpose_only(issuer: Issuer, tmp_path: Path, key: dict[str, Any]) -> None:
    """Another algorithm, an encryption key and a symmetric key are refused."""
    issuer.keys = [key, published(EC, "k2")]
    verifier = Verifier.from_settings(Settings(data_dir=tmp_path, jwt_jwks_url=issuer.url))
    for material, algorithm in ((RSA, "RS256"), (b"0123456789abcdef0123456789abcdef", "HS256")):
        with pytest.raises(Unauthorized):
            verifier.verify("Bearer " + jwt.encode(CLAIMS, material, algorithm, headers={"kid": "k1"}), NOW)


def test_unknown_kids_cause_few_fetches(issuer: Issuer) -> None:
    """Otherwise anybody could make us flood the issuer with requests."""
    issuer.keys = [published(EC, "k1")]
    clock = Clock()
    keys = PublishedKeys(issuer.url, clock=clock)
    for number in range(50):
        with pytest.raises(Unauthorized):
            keys.get(f"made up {number}")
    assert issuer.requests == 1

    clock.now += MIN_REFETCH_SECONDS + 1
    issuer.keys.append(published(OTHER, "k2"))
    assert keys.get("k2").key_id == "k2"
    assert issuer.requests == 2


def test_a_withdrawn_key_is_refused_in_time(issuer: Issuer) -> None:
    """Every token that is signed with it is refused after the refresh time."""
    issuer.keys = [published(EC, "k1"), published(OTHER, "k2")]
    clock = Clock()
    keys = PublishedKeys(issuer.url, clock=clock)
    assert keys.get("k1").key_id == "k1"

    del issuer.keys[0]
    clock.now += REFRESH_SECONDS + 1
    with pytest.raises(Unauthorized):
        keys.get("k1")


def test_keys_are_used_during_an_outage_of_the_issuer(issuer: Issuer) -> None:
    """The issuer is asked again from time to time. After an hour, no token is accepted."""
    issuer.keys = [published(EC, "k1")]
    clock = Clock()
    keys = PublishedKeys(issuer.url, clock=clock)
    keys.get("k1")

    issuer.keys = None
    for _ in range(3):
        clock.now += REFRESH_SECONDS + 1
        assert keys.get("k1").key_id == "k1"
    assert issuer.requests == 4
    clock.now += MAX_STALE_SECONDS
    with pytest.raises(SigningKeysUnavailable):
        keys.get("k1")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"keys":[]}',
        b'{"keys":1}',
        b"{}",
        b'{"keys":[]' + b" " * MAX_KEY_SET_BYTES + b"}",
        b"\xff",
    ],
    ids=["nothing", "half", "a list", "null", "no keys", "a number", "an empty object", "too long", "no text"],
)
def test_an_invalid_key_set_is_refused(issuer: Issuer, body: bytes) -> None:
    """The errors are those after which the cached keys stay in use."""
    issuer.keys = [published(EC, "k1")]
    clock = Clock()
    keys = PublishedKeys(issuer.url, clock=clock)
    keys.get("k1")
    issuer.body = body
    with pytest.raises((ValueError, jwt.PyJWTError)):
        fetch_keys(issuer.url)

    clock.now += REFRESH_SECONDS + 1
    assert keys.get("k1").key_id == "k1"
    assert issuer.requests == 3


def test_a_redirect_is_not_followed(issuer: Issuer) -> None:
    """The operator has said where the keys are."""
    issuer.keys, issuer.moved_to = [published(EC, "k1")], issuer.url
    with pytest.raises(OSError, match="302"):
        fetch_keys(issuer.url)

    assert issuer.requests == 1


def test_an_unreachable_issuer_is_not_a_401() -> None:
    """A client would give up after a 401. There is also no second fetch at once."""
    asked: list[str] = []

    def refuse(url: str) -> dict[str, jwt.PyJWK]:
        asked.append(url)
        raise OSError("connection refused")

    keys = PublishedKeys("http://127.0.0.1/", fetch=refuse, clock=Clock())
    for _ in range(3):
        with pytest.raises(SigningKeysUnavailable):
            keys.get("k1")
    assert len(asked) == 1


def test_cached_keys_do_not_wait_for_a_fetch(issuer: Issuer) -> None:
    """While one request asks the issuer, the others use the cached keys."""
    issuer.keys = [published(EC, "k1")]
    known = fetch_keys(issuer.url)
    asking, answer = threading.Event(), threading.Event()
    clock = Clock()

    def slow(url: str) -> Any:
        if clock.now > 2_000:
            asking.set()
            assert answer.wait(10)
        return known

    keys = PublishedKeys(issuer.url, fetch=slow, clock=clock)
    keys.get("k1")
    clock.now += 2_000
    first = threading.Thread(target=keys.get, args=("k1",))
    first.start()
    assert asking.wait(10)

    assert keys.get("k1").key_id == "k1"
    assert first.is_alive()
    answer.set()
    first.join()
