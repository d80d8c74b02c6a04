"""Published keys: fetched rarely over HTTP, and kept for a while when the issuer is down."""

import contextlib
import json
import math
import ssl
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from chronoverse.auth import jwks
from chronoverse.auth.jwks import (
    CHECK_SECONDS,
    MAX_KEY_SET_BYTES,
    MAX_RECORD_BYTES,
    MAX_STALE_SECONDS,
    MAX_WAITING,
    MIN_REFETCH_SECONDS,
    REFRESH_SECONDS,
    FetchRecord,
    PublishedKeys,
    fetch_key_set,
    keep_fresh,
    key_set_name,
    parse_key_set,
)
from chronoverse.auth.tokens import Verifier
from chronoverse.errors import SigningKeysUnavailable, Unauthorized
from chronoverse.settings import Settings
from chronoverse.store import Store
from tests.support.certificates import Authority
from tests.support.issuer import Issuer
from tests.support.keys import RSA
from tests.support.servers import RedisServer
from tests.support.waiting import wait_until

NOW = 1_772_532_000.0
CLAIMS: dict[str, Any] = {"sub": "ada", "exp": NOW + 60, "scope": "logs:read", "workflows": ["*"]}
EC = ec.generate_private_key(ec.SECP256R1())
OTHER = ec.generate_private_key(ec.SECP256R1())
ED25519 = ed25519.Ed25519PrivateKey.generate()


def published(key: Any, kid: str, **more: str) -> dict[str, Any]:
    """The public half of ``key`` as a JWK."""
    kinds: dict[Any, Any] = {EC: ECAlgorithm, OTHER: ECAlgorithm, RSA: RSAAlgorithm, ED25519: OKPAlgorithm}
    return {**kinds[key].to_jwk(key.public_key(), as_dict=True), "kid": kid, **more}


class Clock:
    """A clock that tests advance. As with a real one, no two readings are equal."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        self.now += 1e-6
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Issuers are asked again soon, for tests with the real clock."""
    monkeypatch.setattr(jwks, "MIN_REFETCH_SECONDS", 0.05)


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    """An issuer with the key ``k1``."""
    with Issuer() as issuer:
        issuer.keys = [published(EC, "k1")]
        yield issuer


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def keys(issuer: Issuer, clock: Clock) -> PublishedKeys:
    return PublishedKeys(issuer.url, clock=clock, sleep=clock.sleep)


@pytest.mark.parametrize(("key", "algorithm"), [(EC, "ES256"), (RSA, "RS256"), (ED25519, "EdDSA")])
def test_a_token_is_checked_with_the_key_that_it_names(
    issuer: Issuer, tmp_path: Path, key: Any, algorithm: str
) -> None:
    """The key set is fetched over real HTTP and contains other keys, too. A token without a kid has the only key."""
    issuer.keys = [published(OTHER, "other"), published(key, "k1")]
    verifier = Verifier(Settings(data_dir=tmp_path, jwt_jwks_url=issuer.url))

    assert verifier.verify("Bearer " + jwt.encode(CLAIMS, key, algorithm, headers={"kid": "k1"}), NOW).subject == "ada"
    with pytest.raises(Unauthorized):
        verifier.verify("Bearer " + jwt.encode(CLAIMS, key, algorithm, headers={"kid": "other"}), NOW)
    del issuer.keys[0]
    for _ in range(2):
        only = Verifier(Settings(data_dir=tmp_path, jwt_jwks_url=issuer.url))
        assert only.verify("Bearer " + jwt.encode(CLAIMS, key, algorithm), NOW).subject == "ada"
        issuer.keys[0].pop("kid", None)


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize(
    "key",
    [
        published(RSA, "k1", alg="RS512"),
        published(RSA, "k1", use="enc"),
        {"kty": "oct", "kid": "k1", "k": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY"},
        {"kty": "oct", "kid": "k1"},
        {"kty": "RSA", "kid": "k1", "alg": "none"},
    ],
)
def test_a_key_is_used_for_its_purpose_only(issuer: Issuer, tmp_path: Path, key: dict[str, Any]) -> None:
    """Another algorithm, an encryption key and a symmetric key are refused. The set's other keys stay in use."""
    issuer.keys = [key, published(EC, "k2")]
    verifier = Verifier(Settings(data_dir=tmp_path, jwt_jwks_url=issuer.url))
    for material, algorithm in ((RSA, "RS256"), (b"0123456789abcdef0123456789abcdef", "HS256")):
        with pytest.raises(Unauthorized):
            verifier.verify("Bearer " + jwt.encode(CLAIMS, material, algorithm, headers={"kid": "k1"}), NOW)
    verifier.verify("Bearer " + jwt.encode(CLAIMS, EC, "ES256", headers={"kid": "k2"}), NOW)


def test_unknown_kids_cause_few_fetches(issuer: Issuer, keys: PublishedKeys, clock: Clock) -> None:
    """Anybody can invent a kid. Each request waits until it is known that no such key exists.

    So a new key is accepted at its first request, even if another one has just asked for the same kid in vain.
    """
    began = clock.now
    for number in range(10):
        with pytest.raises(Unauthorized):
            keys.get(f"made up {number}")

    assert issuer.requests == 10
    assert clock.now - began >= 9 * MIN_REFETCH_SECONDS

    began, issuer.keys = clock.now, [published(OTHER, "made up 9")]
    assert keys.get("made up 9").key_id == "made up 9"
    assert clock.now - began < MIN_REFETCH_SECONDS + 0.1


def test_a_request_with_an_unknown_kid_waits_for_a_limited_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another request's fetch hangs."""
    monkeypatch.setattr(jwks, "WAIT_SECONDS", 0.01)
    keys = PublishedKeys("http://127.0.0.1/", fetch=lambda _: pytest.fail("no fetch"))
    with keys._lock, pytest.raises(SigningKeysUnavailable, match="in time"):
        keys.get("k1")
    assert keys.waiting == 0


@pytest.mark.usefixtures("_impatient")
def test_the_number_of_waiting_requests_is_limited(issuer: Issuer) -> None:
    """Others are refused immediately, and can retry."""
    asking, answer = threading.Event(), threading.Event()

    def slow(url: str) -> bytes:
        asking.set()
        assert answer.wait(10)
        return fetch_key_set(url)

    keys = PublishedKeys(issuer.url, fetch=slow)
    refusals: list[Exception] = []

    def ask() -> None:
        try:
            keys.get("made up")
        except (Unauthorized, SigningKeysUnavailable) as error:
            refusals.append(error)

    waiting = [threading.Thread(target=ask) for _ in range(MAX_WAITING)]
    for thread in waiting:
        thread.start()
    assert asking.wait(10)
    wait_until(lambda: keys.waiting == MAX_WAITING, 10, "all wait")
    with pytest.raises(SigningKeysUnavailable, match="many"):
        keys.get("made up")
    answer.set()
    for thread in waiting:
        thread.join()

    # The first request caused the first fetch. The others arrived during it, and shared the second one.
    assert [type(error) for error in refusals] == [Unauthorized] * MAX_WAITING
    assert (issuer.requests, keys.waiting) == (2, 0)


@pytest.mark.parametrize("ahead", [0.0, 4.5])
def test_a_new_node_uses_another_nodes_keys_while_the_issuer_is_down(
    issuer: Issuer, store: Store, server: RedisServer, prefix: str, ahead: float
) -> None:
    """Their maximum age counts from the other node's fetch. The store keeps them as long."""
    clock = Clock()
    PublishedKeys(issuer.url, store=store, clock=lambda: clock() + ahead).get("k1")
    (key,) = server.ask("KEYS", f"{prefix}*")
    assert server.ask("TTL", key) > REFRESH_SECONDS + MAX_STALE_SECONDS - 60
    issuer.keys = None
    new = PublishedKeys(issuer.url, store=store, clock=clock, sleep=clock.sleep)
    assert new.age() == math.inf
    with pytest.raises(SigningKeysUnavailable):
        new.check()

    # The issuer, which is down, could have a new key.
    with pytest.raises(SigningKeysUnavailable):
        new.get("k2")
    clock.now += 55
    assert new.get("k1").key_id == "k1"
    new.check()
    assert 50 < new.age() < 60
    clock.now += REFRESH_SECONDS + MAX_STALE_SECONDS - 40
    with pytest.raises(SigningKeysUnavailable):
        new.get("k1")
    with pytest.raises(SigningKeysUnavailable):
        new.check()


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"{",
        b'{"tried_at":1,"fetched_at":1,"document":"[]"}',
        FetchRecord(2_000.0, 2_000.0, json.dumps({"keys": [published(EC, "k1")]}).encode()).to_json(),
        FetchRecord(999.0, 999.0, b'{"keys":[]}' + b" " * MAX_RECORD_BYTES).to_json(),
    ],
    ids=["empty", "no JSON", "no key set", "from the future", "too long"],
)
def test_an_unusable_shared_record_is_ignored(issuer: Issuer, store: Store, record: bytes) -> None:
    """The keys are fetched as soon as the issuer is back."""
    store.save_key_set(key_set_name(issuer.url), record, 60)
    issuer.keys = None
    clock = Clock()
    keys = PublishedKeys(issuer.url, store=store, clock=clock, sleep=clock.sleep)
    keys.prefetch()
    with pytest.raises(SigningKeysUnavailable):
        keys.check()

    issuer.keys = [published(EC, "k1")]
    clock.now += CHECK_SECONDS
    keys.prefetch()
    keys.check()
    assert keys.get("k1").key_id == "k1"


def test_keys_are_fetched_again_without_a_request(issuer: Issuer) -> None:
    """Otherwise an idle node would have old keys when the issuer goes down, or would never become ready."""

    class Enough(Exception):
        pass

    issuer.keys = None
    clock = Clock()
    began, asked = clock.now, list[float]()

    def fetch(url: str) -> bytes:
        asked.append(clock.now - began)
        return fetch_key_set(url)

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        if len(asked) == 2:
            issuer.keys = [published(EC, "k1")]
        if clock.now - began > 2 * REFRESH_SECONDS:
            raise Enough

    keys = PublishedKeys(issuer.url, fetch=fetch, clock=clock)
    with pytest.raises(Enough):
        keep_fresh(lambda: [keys], sleep)
    assert [round(seconds) for seconds in asked] == [0, 5, 10, 310]


@pytest.mark.usefixtures("_impatient")
def test_an_unavailable_or_forbidden_store_changes_nothing(issuer: Issuer, caplog: pytest.LogCaptureFixture) -> None:
    """The node uses its own keys, and logs that it shares none."""
    with contextlib.closing(Store("unix:///nowhere")) as away:
        keys = PublishedKeys(issuer.url, store=away)
        assert keys.get("k1").key_id == "k1"
        issuer.keys = None
        with pytest.raises(SigningKeysUnavailable):
            keys.get("k2")

    assert "the issuer's keys are not shared with other nodes" in caplog.text
    assert "the keys of other nodes cannot be read" in caplog.text


@pytest.mark.parametrize("is_down", [False, True])
def test_a_clock_that_is_set_back_causes_a_fetch(issuer: Issuer, is_down: bool) -> None:
    """Times in the future cannot be used to calculate an age, not even that of a failed fetch."""
    clock = Clock()
    keys = PublishedKeys(issuer.url, clock=clock)
    keys.get("k1")
    if is_down:
        issuer.keys = None
        clock.now += REFRESH_SECONDS + 1
        keys.get("k1")
    clock.now -= 200 if is_down else 500

    issuer.keys = [published(OTHER, "k2")]
    assert keys.get("k2").key_id == "k2"
    assert issuer.requests == 2 + is_down


def test_a_withdrawn_key_is_refused_in_time(issuer: Issuer, keys: PublishedKeys, clock: Clock) -> None:
    """Every token signed with it is refused after the refresh interval."""
    issuer.keys = [published(EC, "k1"), published(OTHER, "k2")]
    assert keys.get("k1").key_id == "k1"

    del issuer.keys[0]
    clock.now += REFRESH_SECONDS + 1
    with pytest.raises(Unauthorized):
        keys.get("k1")


def test_keys_are_used_during_an_outage_of_the_issuer(issuer: Issuer, keys: PublishedKeys, clock: Clock) -> None:
    """The issuer is retried from time to time. After an hour, no token is accepted."""
    keys.get("k1")

    issuer.keys = None
    for age in (REFRESH_SECONDS + 1, 2 * REFRESH_SECONDS, REFRESH_SECONDS + MAX_STALE_SECONDS - 60):
        clock.now += age - keys.age()
        assert keys.get("k1").key_id == "k1"
    assert issuer.requests == 4
    clock.now += 60
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
        b'{"keys":[{"kty":"RSA","kid":"k1","alg":"none"},{"kty":"oct","kid":"k1"}]}',
    ],
    ids=["nothing", "half", "a list", "null", "no keys", "a number", "an empty object", "too long", "no text", "none"],
)
def test_an_invalid_key_set_is_refused(issuer: Issuer, body: bytes, keys: PublishedKeys, clock: Clock) -> None:
    """After these errors, the cached keys stay in use."""
    keys.get("k1")
    issuer.body = body
    with pytest.raises((ValueError, jwt.PyJWTError)):
        parse_key_set(fetch_key_set(issuer.url))

    clock.now += REFRESH_SECONDS + 1
    assert keys.get("k1").key_id == "k1"
    assert issuer.requests == 3


def test_a_redirect_is_not_followed(issuer: Issuer) -> None:
    """The operator configured where the keys are."""
    issuer.moved_to = issuer.url
    with pytest.raises(OSError, match="302"):
        fetch_key_set(issuer.url)

    assert issuer.requests == 1


def test_an_unreachable_issuer_is_not_a_401() -> None:
    """A client would give up after a 401. A second fetch does not follow immediately."""
    clock = Clock()
    asked: list[float] = []

    def refuse(url: str) -> bytes:
        asked.append(clock.now)
        raise OSError("connection refused")

    keys = PublishedKeys("http://127.0.0.1/", fetch=refuse, clock=clock, sleep=clock.sleep)
    for _ in range(3):
        with pytest.raises(SigningKeysUnavailable):
            keys.get("k1")
    assert len(asked) == 3
    assert asked[2] - asked[0] >= 2 * MIN_REFETCH_SECONDS


def test_cached_keys_do_not_wait_for_a_fetch(issuer: Issuer) -> None:
    """While one request waits for the issuer, others use the cached keys."""
    known = fetch_key_set(issuer.url)
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


def test_an_issuer_behind_a_private_authority(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log names the cause and the setting. With the CA certificate, the keys are fetched.

    A setting with another authority's certificate replaces none of the system's.
    """
    authority = Authority(tmp_path / "certificates")
    certificate = authority.issue("issuer")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, certificate.with_suffix(".key"))
    issuer = Issuer()
    issuer.socket = context.wrap_socket(issuer.socket, server_side=True)
    issuer.keys = [published(EC, "k1")]
    header = f"Bearer {jwt.encode(CLAIMS, EC, 'ES256', {'kid': 'k1'})}"
    with issuer:
        url = issuer.url.replace("http:", "https:")
        unknown = Verifier(Settings(data_dir=tmp_path / "unknown", jwt_jwks_url=url))
        with pytest.raises(SigningKeysUnavailable):
            unknown.verify(header, NOW)
        known = Settings(data_dir=tmp_path / "known", jwt_jwks_url=url, ca_file=authority.path)
        assert Verifier(known).verify(header, NOW).subject == "ada"
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.path))
        other = Authority(tmp_path / "other").path
        assert Verifier(replace(known, ca_file=other)).verify(header, NOW).subject == "ada"

    assert "; CHRONOVERSE_CA_FILE can name a file with your own authority's certificate" in caplog.text
