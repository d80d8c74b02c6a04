"""Tokens: whom they let in, what they let them do, and every hostile shape that must be turned away."""

import base64
import hashlib
import hmac
import json
import os
import stat
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from chronoverse.auth.local_secret import local_secret
from chronoverse.auth.tokens import MAX_HEADER_BYTES, READ, WRITE, Principal, Verifier, mint
from chronoverse.errors import Forbidden, SettingsError, Unauthorized
from chronoverse.settings import Settings

NOW = 1_772_532_000.0
SECRET = b"0123456789abcdef0123456789abcdef"
CLAIMS: dict[str, Any] = {"sub": "ada", "exp": NOW + 60, "scope": "logs:read", "workflows": ["wf_1"]}
ROOT = Path(__file__).parents[2]


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def signed(
    claims: bytes | Mapping[str, Any], header: Mapping[str, Any] | bytes = b'{"alg":"HS256"}', secret: bytes = SECRET
) -> str:
    """A token made by hand, so that no library can refuse to make it."""
    parts = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, claims)]
    body = ".".join(map(base64url, parts))
    return f"{body}.{base64url(hmac.digest(secret, body.encode(), hashlib.sha256))}"


def settings(tmp_path: Path, **given: Any) -> Settings:
    return Settings(data_dir=tmp_path, **given)


@pytest.fixture
def verifier(tmp_path: Path) -> Verifier:
    """One with our secret."""
    return Verifier.from_settings(settings(tmp_path, jwt_secret=SECRET))


def pem(key: Any) -> str:
    return str(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())


def test_a_good_token_names_its_bearer(verifier: Verifier) -> None:
    """Everything that the claims say, in our words."""
    principal = verifier.verify("Bearer " + signed(CLAIMS), NOW)

    assert principal == Principal("ada", NOW + 60, frozenset({"logs:read"}), frozenset({"wf_1"}))


def test_a_minted_token_is_a_good_one(verifier: Verifier) -> None:
    """What we make, we take, for as long as it was made for."""
    token = mint(SECRET, "ada", [READ, WRITE], ["wf_1", "wf_2"], 3_600, NOW)

    principal = verifier.verify(f"Bearer {token}", NOW + 3_599)
    assert (principal.subject, principal.expires_at) == ("ada", NOW + 3_600)
    assert principal.scopes == {READ, WRITE}
    assert principal.workflows == {"wf_1", "wf_2"}


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_scheme_may_be_in_any_case(verifier: Verifier, scheme: str) -> None:
    """RFC 9110 section 11.1."""
    assert verifier.verify(f"{scheme} {signed(CLAIMS)}", NOW).subject == "ada"


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Basic YWRhOnB3",
        "Token {token}",
        "{token}",
        "Bearer  {token}",
        " Bearer {token}",
        "Bearer {token} ",
        "Bearer {token}\n",
        "Bearer {token}\r\nX: y",
        "Bearer {token},Bearer {token}",
        "Bearer {token}, {token}",
        "Bearer {token}.x",
        "Bearer {token}=",
        "Bearer a.b",
        "Bearer ..",
        "Bearer \N{FULLWIDTH LATIN SMALL LETTER A}.b.c",
        "Bearer " + "a" * (1 << 20) + ".b.c",
    ],
)
def test_anything_but_one_bearer_token_is_refused(verifier: Verifier, header: str | None) -> None:
    """No second header, no trailing newline, no fourth part, no megabyte."""
    if header is not None:
        header = header.replace("{token}", signed(CLAIMS))
    with pytest.raises(Unauthorized):
        verifier.verify(header, NOW)


def test_a_good_token_that_is_too_long_is_refused(verifier: Verifier) -> None:
    """The bound holds for the signed as well."""
    with pytest.raises(Unauthorized):
        verifier.verify("Bearer " + signed({**CLAIMS, "x": "x" * MAX_HEADER_BYTES}), NOW)


@pytest.mark.parametrize(
    ("header", "why"),
    [
        ({"alg": "none"}, "unsigned"),
        ({"alg": "None"}, "unsigned, spelled to slip through"),
        ({"alg": "HS384"}, "not our algorithm"),
        ({"alg": "RS256"}, "not our kind of key"),
        ({"alg": ["HS256"]}, "no text"),
        ({"alg": None}, "no text"),
        ({}, "nothing said"),
        ({"alg": "HS256", "crit": ["exp"]}, "asks for what nobody understands"),
        ({"alg": "HS256", "crit": ["b64"], "b64": True}, "asks for what the library understands"),
        ({"alg": "HS256", "crit": []}, "an empty list is not allowed either"),
        ({"alg": "HS256", "b64": False}, "payload elsewhere"),
        ({"alg": "HS256", "kid": 7}, "kid must be text"),
        (b"[]", "no object"),
        (b"{", "no JSON"),
        (b"[" * 3_000, "deep"),
        (b'{"alg":"HS256","x":' + b"9" * 5_000 + b"}", "a number nobody can read"),
    ],
)
def test_a_hostile_header_is_refused(verifier: Verifier, header: Any, why: str) -> None:
    """The token's header chooses nothing."""
    with pytest.raises(Unauthorized):
        verifier.verify("Bearer " + signed(CLAIMS, header), NOW)


@pytest.mark.parametrize(
    "header", [{"kid": "../../dev/null"}, {"kid": "' OR 1=1"}, {"jku": "http://evil/"}, {"jwk": {}}]
)
def test_a_token_cannot_say_where_its_key_is(verifier: Verifier, header: dict[str, Any]) -> None:
    """Such headers are not even looked at: our key is the key."""
    assert verifier.verify("Bearer " + signed(CLAIMS, {"alg": "HS256", **header}), NOW).subject == "ada"


def test_an_unsigned_token_is_refused(verifier: Verifier) -> None:
    """Header and claims alone, whatever the header says."""
    body, _, _ = signed(CLAIMS, {"alg": "none"}).rpartition(".")
    for token in (body + ".", body):
        with pytest.raises(Unauthorized):
            verifier.verify("Bearer " + token, NOW)


def test_another_secret_is_refused(tmp_path: Path) -> None:
    """Wrong key."""
    other = Verifier.from_settings(settings(tmp_path, jwt_secret=b"x" * 32))
    with pytest.raises(Unauthorized):
        other.verify("Bearer " + signed(CLAIMS), NOW)


@pytest.mark.parametrize(
    "changes",
    [
        {"exp": None},
        {"exp": "missing"},
        {"exp": NOW},
        {"exp": NOW - 1},
        {"exp": str(int(NOW) + 60)},
        {"exp": True},
        {"exp": -1},
        {"exp": [NOW + 60]},
        {"exp": {}},
        {"exp": 10**400},
        {"exp": 253_402_300_800},
        {"exp": 1e300},
        {"exp": float("nan")},
        {"exp": float("inf")},
        {"sub": "missing"},
        {"sub": 7},
        {"sub": None},
        {"sub": ["ada"]},
        {"nbf": NOW + 61},
        {"nbf": "0"},
        {"nbf": None},
        {"iat": NOW + 61},
        {"iat": float("nan")},
        {"iat": False},
        {"aud": "another-service"},
        {"jti": 7},
        {"jti": None},
        {"aud": ["another-service"]},
        {"scope": "missing"},
        {"scope": ["logs:read"]},
        {"scope": None},
        {"workflows": "missing"},
        {"workflows": "wf_1"},
        {"workflows": "*"},
        {"workflows": None},
        {"workflows": {"wf_1": 1}},
        {"workflows": ["*", "wf_1"]},
        {"workflows": ["wf_1", 2]},
        {"workflows": ["wf:*"]},
        {"workflows": ["wf_1\n"]},
        {"workflows": [["wf_1"]]},
        {"workflows": [""]},
    ],
)
def test_a_bad_claim_is_refused(verifier: Verifier, changes: dict[str, Any]) -> None:
    """Missing, of the wrong type, out of range, over, or not yet."""
    claims = {name: value for name, value in {**CLAIMS, **changes}.items() if value != "missing"}
    with pytest.raises(Unauthorized):
        verifier.verify("Bearer " + signed(claims), NOW)


@pytest.mark.parametrize(
    "payload", [b"[]", b"7", b"null", b"{", b"\xff", b"[" * 3_000, b'{"exp":' + b"9" * 5_000 + b"}"]
)
def test_claims_that_are_no_object_are_refused(verifier: Verifier, payload: bytes) -> None:
    """Signed, and still nothing that can be understood."""
    with pytest.raises(Unauthorized):
        verifier.verify("Bearer " + signed(payload), NOW)


@pytest.mark.parametrize("changes", [{"nbf": NOW + 60}, {"iat": NOW + 59.5}, {"exp": NOW + 0.5}, {"workflows": []}])
def test_a_borderline_claim_is_taken(verifier: Verifier, changes: dict[str, Any]) -> None:
    """Clocks differ by up to a minute, the last half second counts, and a token may be for nothing at all."""
    assert verifier.verify("Bearer " + signed({**CLAIMS, **changes}), NOW).subject == "ada"


def test_why_a_token_was_refused_repeats_nothing_of_it(verifier: Verifier) -> None:
    """The message goes into answers and logs."""
    with pytest.raises(Unauthorized) as caught:
        verifier.verify("Bearer " + signed({**CLAIMS, "aud": "canary", "nbf": "canary"}, {"alg": "canary"}), NOW)

    assert "canary" not in str(caught.value)


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda data: "Bearer " + data.decode("latin-1")))
def test_no_header_does_more_than_be_refused(header: str) -> None:
    """Whatever comes, the answer is 401 and never an error of ours."""
    with pytest.raises(Unauthorized):
        Verifier.from_settings(Settings(data_dir=ROOT, jwt_secret=SECRET)).verify(header, NOW)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=5))
def test_no_claim_does_more_than_be_refused(value: object) -> None:
    """Signed nonsense in each claim: refused or taken, but never an error of ours."""
    verifier = Verifier.from_settings(Settings(data_dir=ROOT, jwt_secret=SECRET))
    for name in ("sub", "exp", "nbf", "iat", "scope", "workflows", "aud", "jti", "iss"):
        token = signed({**CLAIMS, name: value})
        try:
            verifier.verify("Bearer " + token, NOW)
        except Unauthorized:
            continue


def test_scopes_and_workflows_match_whole_and_exactly() -> None:
    """No prefix, no case folding, no pattern."""
    principal = Principal("ada", NOW, frozenset({"logs:read"}), frozenset({"wf_1"}))

    principal.require("logs:read")
    for scope in ("logs:write", "logs", "Logs:Read", "logs:read ", "*", ""):
        with pytest.raises(Forbidden):
            principal.require(scope)
    assert principal.may_access("wf_1")
    assert not any(map(principal.may_access, ("wf_10", "wf_", "WF_1", "wf_2", "*", "")))


def test_a_star_sees_every_workflow() -> None:
    """And only by itself, which the claims' check sees to."""
    assert Principal("ada", NOW, frozenset(), frozenset({"*"})).may_access("wf_1")


def test_only_a_space_separates_scopes(verifier: Verifier) -> None:
    """RFC 6749 section 3.3: no other white space does."""
    principal = verifier.verify("Bearer " + signed({**CLAIMS, "scope": " logs:read  logs:write\tx\u00a0y"}), NOW)

    assert principal.scopes == {"logs:read", "logs:write\tx\u00a0y"}


ED25519 = ed25519.Ed25519PrivateKey.generate()
EC = ec.generate_private_key(ec.SECP256R1())
RSA = rsa.generate_private_key(65_537, 2_048)


@pytest.mark.parametrize(("key", "algorithm"), [(ED25519, "EdDSA"), (EC, "ES256"), (RSA, "RS256"), (RSA, "PS512")])
def test_a_public_key_checks_tokens_of_its_private_one(tmp_path: Path, key: Any, algorithm: str) -> None:
    """Every kind of key that the settings name."""
    verifier = Verifier.from_settings(settings(tmp_path, jwt_public_key=pem(key)))

    assert verifier.verify("Bearer " + jwt.encode(CLAIMS, key, algorithm), NOW).subject == "ada"


@pytest.mark.parametrize("key", [ED25519, EC, RSA])
def test_a_public_key_is_no_hmac_secret(tmp_path: Path, key: Any) -> None:
    """The algorithm confusion of RFC 8725 section 2.1: HS256 with the public key, which everybody has."""
    text = pem(key)
    token = signed(CLAIMS, secret=text.encode())
    verifier = Verifier.from_settings(settings(tmp_path, jwt_public_key=text))
    with pytest.raises(Unauthorized):
        verifier.verify("Bearer " + token, NOW)


def test_a_curve_has_one_algorithm(tmp_path: Path) -> None:
    """P-256 goes with ES256 alone."""
    verifier = Verifier.from_settings(settings(tmp_path, jwt_public_key=pem(EC)))
    _, _, rest = jwt.encode(CLAIMS, EC, "ES256").partition(".")
    with pytest.raises(Unauthorized):
        verifier.verify("Bearer " + base64url(b'{"alg":"ES384"}') + "." + rest, NOW)


@pytest.mark.parametrize(
    "text",
    [
        pem(rsa.generate_private_key(65_537, 1_024)),
        pem(ec.generate_private_key(ec.SECP256K1())),
        "-----BEGIN PUBLIC KEY-----\nMCow\n-----END PUBLIC KEY-----\n",
    ],
)
def test_a_key_that_is_weak_or_broken_stops_the_start(tmp_path: Path, text: str) -> None:
    """Found out at once, not at the first request."""
    with pytest.raises(SettingsError, match="CHRONOVERSE_JWT_PUBLIC_KEY"):
        Verifier.from_settings(settings(tmp_path, jwt_public_key=text))


@pytest.mark.parametrize(
    "secret", [pem(RSA).encode(), b'{"kty":"oct","k":"c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0"}']
)
def test_a_secret_that_is_a_key_of_another_kind_stops_the_start(tmp_path: Path, secret: bytes) -> None:
    """Whoever has it would be meant to verify, not to sign."""
    with pytest.raises(SettingsError, match="must be a secret, not a key"):
        Verifier.from_settings(settings(tmp_path, jwt_secret=secret))


def test_a_shared_store_needs_a_shared_key(tmp_path: Path) -> None:
    """A secret made on one machine would be wrong on the next."""
    with pytest.raises(SettingsError, match="CHRONOVERSE_REDIS_URL needs"):
        Verifier.from_settings(settings(tmp_path, redis_url="redis://db"))


def test_the_local_secret_is_made_once_and_kept(tmp_path: Path) -> None:
    """It is long, ours alone, and the same for everybody who asks."""
    directory = tmp_path / "state" / "chronoverse"
    secret = local_secret(directory)

    assert len(secret) >= 48
    assert local_secret(directory) == secret
    assert [stat.S_IMODE(path.stat().st_mode) for path in (directory, *directory.iterdir())] == [0o700, 0o600]


def test_processes_that_race_for_the_secret_get_the_same(tmp_path: Path) -> None:
    """Eight at once, one secret, and no draft left behind."""
    program = "import sys; from pathlib import Path; from chronoverse.auth.local_secret import local_secret as s; " + (
        "sys.stdin.read(); print(s(Path(sys.argv[1])))"
    )
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path / "data")],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for _ in range(8)
    ]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.close()
    answers = set()
    for racer in racers:
        with racer:
            assert racer.stdout is not None
            answers.add(racer.stdout.read())

    assert len(answers) == 1
    assert answers != {b""}
    assert len(list((tmp_path / "data").iterdir())) == 1


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o622])
def test_a_secret_that_others_can_reach_is_refused(tmp_path: Path, mode: int) -> None:
    """And the message says what to do about it."""
    local_secret(tmp_path)
    (path,) = tmp_path.iterdir()
    path.chmod(mode)
    with pytest.raises(SettingsError, match=f"{path.name} .*chmod 600"):
        local_secret(tmp_path)


def test_a_link_in_the_secrets_place_is_refused(tmp_path: Path) -> None:
    """It could lead to a file of somebody else's choosing."""
    (tmp_path / "real").write_bytes(b"x" * 64)
    (tmp_path / "real").chmod(0o600)
    (tmp_path / "token.secret").symlink_to("real")
    with pytest.raises(SettingsError):
        local_secret(tmp_path)


def test_a_file_that_holds_no_secret_is_refused(tmp_path: Path) -> None:
    """An empty key would let everybody in."""
    local_secret(tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(b"")
    with pytest.raises(SettingsError, match="remove it"):
        local_secret(tmp_path)


def test_a_data_directory_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    """A file stands in its way."""
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match=os.strerror(20)):
        local_secret(tmp_path / "file" / "data")
