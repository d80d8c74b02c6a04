"""Tokens: which are accepted, what they allow, and which hostile ones are refused."""

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
from typing import Any, Final

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from chronoverse.auth.local_secret import local_secret
from chronoverse.auth.minting import mint
from chronoverse.auth.rights import READ, WRITE, Workflows
from chronoverse.auth.tokens import MAX_HEADER_BYTES, Principal, Verifier
from chronoverse.errors import Forbidden, JobNotFound, SettingsError, Unauthorized
from chronoverse.settings import Settings
from tests.support.examples import CHARACTERS
from tests.support.keys import RSA

NOW = 1_772_532_000.0
SECRET = b"0123456789abcdef0123456789abcdef"
CLAIMS: dict[str, Any] = {"sub": "ada", "exp": NOW + 60, "scope": "logs:read", "workflows": ["wf_1"]}
ROOT = Path(__file__).parents[2]
#: Clocks can differ by a minute, the last half second is valid, a token can allow nothing, and an empty audience names
#: nobody.
BORDERLINE: list[dict[str, Any]] = [
    *({"nbf": NOW + 60}, {"iat": NOW + 59.5}, {"exp": NOW + 0.5}, {"workflows": []}),
    *({"aud": None}, {"aud": ""}, {"aud": []}),
]


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def signed(
    claims: bytes | Mapping[str, Any], header: Mapping[str, Any] | bytes = b'{"alg":"HS256"}', secret: bytes = SECRET
) -> str:
    """A token made without a library, which could refuse to make it."""
    parts = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, claims)]
    body = ".".join(map(base64url, parts))
    return f"{body}.{base64url(hmac.digest(secret, body.encode(), hashlib.sha256))}"


def settings(tmp_path: Path, **given: Any) -> Settings:
    return Settings(data_dir=tmp_path, **given)


@pytest.fixture
def verifier(tmp_path: Path) -> Verifier:
    """A verifier with our secret."""
    return Verifier(settings(tmp_path, jwt_secret=SECRET))


def pem(key: Any) -> str:
    return str(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())


@pytest.mark.parametrize(
    ("header", "changes"),
    [
        ("Bearer {}", {}),
        # RFC 9110 section 11.1.
        ("bearer {}", {}),
        ("BEARER {}", {}),
        *(("Bearer {}", each) for each in BORDERLINE),
    ],
)
def test_a_valid_token_gives_a_principal(verifier: Verifier, header: str, changes: dict[str, Any]) -> None:
    """With everything in the claims."""
    claims = {**CLAIMS, **changes}
    workflows = Workflows(frozenset(claims["workflows"]))
    assert verifier.verify(header.format(signed(claims)), NOW) == Principal("ada", claims["exp"], {READ: workflows})


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
        "Bearer " + signed({**CLAIMS, "x": "x" * MAX_HEADER_BYTES}),
        # Unsigned, or signed by somebody else.
        "Bearer " + signed(CLAIMS, {"alg": "none"}).rpartition(".")[0] + ".",
        "Bearer " + signed(CLAIMS, secret=b"x" * 32),
    ],
)
def test_anything_but_one_bearer_token_is_refused(verifier: Verifier, header: str | None) -> None:
    """Such as a second header, a trailing newline, a fourth part, a megabyte, or one without our signature."""
    if header is not None:
        header = header.replace("{token}", signed(CLAIMS))
    with pytest.raises(Unauthorized):
        verifier.verify(header, NOW)


#: Unsigned, for other algorithms or kinds of key, with unknown extensions, or unreadable.
HEADERS: Final[tuple[Any, ...]] = (
    *({"alg": each} for each in ("none", "None", "HS384", "RS256", ["HS256"], None)),
    {},
    *({"alg": "HS256", "crit": each, "b64": True} for each in (["exp"], ["b64"], [])),
    *({"alg": "HS256", **each} for each in ({"b64": False}, {"kid": 7})),
    *(b"[]", b"{", b"[" * 3_000, b'{"alg":"HS256","x":' + b"9" * 5_000 + b"}"),
)
#: Signed, but unreadable.
PAYLOADS: Final = (b"[]", b"7", b"null", b"{", b"\xff", b"[" * 3_000, b'{"exp":' + b"9" * 5_000 + b"}")


@pytest.mark.parametrize("token", [*(signed(CLAIMS, each) for each in HEADERS), *map(signed, PAYLOADS)])
def test_a_hostile_token_is_refused(verifier: Verifier, token: str) -> None:
    """Its header does not choose how it is verified."""
    with pytest.raises(Unauthorized):
        verifier.verify("Bearer " + token, NOW)


@pytest.mark.parametrize(
    "header", [{"kid": "../../dev/null"}, {"kid": "' OR 1=1"}, {"jku": "http://evil/"}, {"jwk": {}}]
)
def test_a_token_cannot_name_its_key(verifier: Verifier, header: dict[str, Any]) -> None:
    """Such headers are ignored, and our key is used."""
    assert verifier.verify("Bearer " + signed(CLAIMS, {"alg": "HS256", **header}), NOW).subject == "ada"


#: Values of claims that are missing, of the wrong type, out of range, expired, or not valid yet.
INVALID: Final[dict[str, list[Any]]] = {
    "exp": [
        *(None, "missing", NOW, NOW - 1, str(int(NOW) + 60), True, -1, [NOW + 60], {}, 10**400, 253_402_300_800, 1e300),
        *(float("nan"), float("inf")),
    ],
    # The last is no UTF-8 text, which the audit trail could not store.
    "sub": ["missing", 7, None, ["ada"], "\ud800"],
    "nbf": [NOW + 61, "0", None],
    "iat": [NOW + 61, float("nan"), False],
    "aud": ["another-service", ["another-service"], 7, [7], {"another-service": 1}],
    "cnf": [{"jkt": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"}, None],
    "jti": [7, None],
    "scope": ["missing", None, ["logs:read", 7], {"logs:read": True}],
    "workflows": [
        *("missing", "wf_1", "*", None, {"wf_1": 1}, ["*", "*wf_1"], ["**"], ["wf_1", 2], ["wf:*"], ["wf_1\n"]),
        *([["wf_1"]], [""]),
    ],
}


@pytest.mark.parametrize(
    "changes",
    [
        *({name: value} for name, values in INVALID.items() for value in values),
        *({"scope": scope, "scp": scp} for scope, scp in ((None, "logs:read"), ("missing", 7))),
    ],
)
def test_an_invalid_claim_is_refused(verifier: Verifier, changes: dict[str, Any]) -> None:
    claims = {name: value for name, value in {**CLAIMS, **changes}.items() if value != "missing"}
    with pytest.raises(Unauthorized):
        verifier.verify("Bearer " + signed(claims), NOW)


FORGED: Final = {"secret": b"x" * 32}


@pytest.mark.parametrize(
    ("changes", "token", "reason"),
    [
        *(({"workflows": [each]}, {}, f"workflows has '{each}': * is allowed only") for each in ("*-x", "a*b", "mi**")),
        ({"workflows": ["mine", ""]}, {}, "has '': an entry must not be empty"),
        ({"workflows": [".*"]}, {}, "has '.*': an entry must be a workflow id"),
        *(({"scope": each}, {}, "no scope") for each in (None, [7])),
        *(({name: value}, {}, name) for name, value in {"sub": None, "exp": None, "aud": 7, "nbf": 4e9}.items()),
        ({"exp": 1}, {}, "expired"),
        ({"iat": NOW + 61}, {}, "not valid yet (iat): compare the clocks"),
        *((each, FORGED, "signature") for each in ({}, {"aud": "another-service"})),
        *(({}, {"header": {"alg": each}}, "alg") for each in ("HS512", "none")),
        ({}, {"header": b"{"}, "header cannot be read"),
    ],
)
def test_the_log_has_the_reason(
    verifier: Verifier, changes: dict[str, Any], token: dict[str, Any], reason: str
) -> None:
    """The answer has none before the signature is valid: a forger learns nothing."""
    with pytest.raises(Unauthorized) as caught:
        verifier.verify("Bearer " + signed({**CLAIMS, **changes}, **token), NOW)
    assert reason in caught.value.explanation
    assert (str(caught.value) == "invalid token") or not token


@pytest.mark.parametrize(
    ("claims", "header"),
    [
        ({}, {"alg": "canary"}),
        ({}, {"alg": "HS256", "kid": "canary", "crit": ["canary"]}),
        *(({name: "canary"}, {"alg": "HS256"}) for name in ("aud", "exp", "nbf", "iat", "workflows")),
        *(({name: ["canary", 7]}, {"alg": "HS256"}) for name in ("aud", "sub", "scope", "workflows", "jti")),
    ],
)
def test_a_refusal_repeats_nothing_of_the_token(verifier: Verifier, claims: Any, header: Any) -> None:
    """The message appears in answers, and the reason in the log."""
    with pytest.raises(Unauthorized) as caught:
        verifier.verify("Bearer " + signed({**CLAIMS, **claims}, header), NOW)

    assert "canary" not in str(caught.value) + caught.value.explanation


@pytest.mark.parametrize(
    ("changes", "scopes"),
    [
        *(
            ({"scope": "missing", name: value}, {READ, WRITE})
            for name in ("scope", "scp")
            for value in ("logs:read logs:write", ["logs:read", "logs:write"], ["", "logs:write", "logs:read"])
        ),
        # Only one of them is read.
        ({"scp": WRITE}, {READ}),
        # An entry of a list is one scope, which here no request needs. In a text, only a space separates (RFC 6749).
        ({"scope": ["logs:read logs:write"]}, {"logs:read logs:write"}),
        ({"scope": " logs:read  logs:write\tx\u00a0y"}, {READ, "logs:write\tx\u00a0y"}),
    ],
)
def test_scopes_may_be_a_text_or_a_list(verifier: Verifier, changes: dict[str, Any], scopes: set[str]) -> None:
    """Issuers use either, under either name."""
    claims = {name: value for name, value in {**CLAIMS, **changes}.items() if value != "missing"}
    assert verifier.verify("Bearer " + signed(claims), NOW).rights.keys() == scopes


@pytest.mark.parametrize(
    ("configured", "aud", "reason"),
    [
        ("logs", "logs", ""),
        ("logs", ["other", "logs"], ""),
        *(
            ("logs", each, "is not CHRONOVERSE_JWT_AUDIENCE")
            for each in (None, "other", "LOGS", "logs ", "other logs", [], ["other"])
        ),
        *(("logs", each, "list of strings") for each in (["logs", 7], {"logs": 1})),
        # Otherwise nobody would guess why a good token is refused.
        *((None, each, "CHRONOVERSE_JWT_AUDIENCE is not set") for each in ("other", ["other"], ["", "other"])),
    ],
)
def test_a_token_must_be_for_the_audience_in_the_settings(
    tmp_path: Path, configured: str | None, aud: object, reason: str
) -> None:
    """RFC 8725 section 3.9. The audience can be one of several."""
    verifier = Verifier(settings(tmp_path, jwt_secret=SECRET, jwt_audience=configured))
    token = "Bearer " + signed({**CLAIMS, "aud": aud})
    if not reason:
        assert verifier.verify(token, NOW).subject == "ada"
        return
    with pytest.raises(Unauthorized, match=reason):
        verifier.verify(token, NOW)


@pytest.mark.parametrize("iss", [None, "", "https://id.example", "https://ID.example/", ["https://id.example/"], 7])
def test_a_token_must_come_from_the_issuer_in_the_settings(tmp_path: Path, iss: object) -> None:
    """RFC 8725 section 3.8. The comparison is exact, including a trailing slash."""
    verifier = Verifier(settings(tmp_path, jwt_secret=SECRET, jwt_issuer="https://id.example/"))

    assert verifier.verify("Bearer " + signed({**CLAIMS, "iss": "https://id.example/"}), NOW).subject == "ada"
    with pytest.raises(Unauthorized, match="issuer"):
        verifier.verify("Bearer " + signed({**CLAIMS, "iss": iss}), NOW)


def test_the_claim_with_the_workflows_can_have_another_name(tmp_path: Path) -> None:
    """The default claim is then ignored: the issuer may use it for something else."""
    name = "https://logs.example/workflows"
    verifier = Verifier(settings(tmp_path, jwt_secret=SECRET, jwt_workflows_claim=name))

    assert verifier.verify("Bearer " + signed({**CLAIMS, name: ["wf_2"]}), NOW).rights[READ].ids == {"wf_2"}
    with pytest.raises(Unauthorized, match=name):
        verifier.verify("Bearer " + signed(CLAIMS), NOW)


@pytest.mark.parametrize(
    "more", [{}, {"jwt_audience": "logs", "jwt_issuer": "https://id.example/", "jwt_workflows_claim": "teams"}]
)
def test_a_minted_token_is_valid(tmp_path: Path, more: dict[str, str]) -> None:
    """For exactly as long as requested, in a service with the same settings."""
    configured = settings(tmp_path, jwt_secret=SECRET, **more)
    token = mint(SECRET, "ada", [READ, WRITE], ["wf_1", "wf_2"], 3_600, NOW, configured if more else None)

    workflows = Workflows(frozenset({"wf_1", "wf_2"}))
    principal = Verifier(configured).verify(f"Bearer {token}", NOW + 3_599)
    assert principal == Principal("ada", NOW + 3_600, dict.fromkeys((READ, WRITE), workflows))


@given(st.text(CHARACTERS, max_size=200) | st.binary(max_size=200).map(lambda data: "Bearer " + data.decode("latin-1")))
def test_any_header_is_refused_without_another_error(header: str) -> None:
    """The answer is always 401."""
    with pytest.raises(Unauthorized):
        Verifier(Settings(data_dir=ROOT, jwt_secret=SECRET)).verify(header, NOW)


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(CHARACTERS), st.lists, max_leaves=5)
)
def test_any_claim_is_accepted_or_refused_without_another_error(value: object) -> None:
    """Any JSON value in any claim gives a principal or 401."""
    verifier = Verifier(Settings(data_dir=ROOT, jwt_secret=SECRET))
    for name in ("sub", "exp", "nbf", "iat", "scope", "scp", "workflows", "aud", "jti", "iss"):
        token = signed({**CLAIMS, name: value})
        try:
            verifier.verify("Bearer " + token, NOW)
        except Unauthorized:
            continue


def test_scopes_and_workflows_match_whole_and_exactly() -> None:
    """Prefixes, other cases and patterns do not match."""
    principal = Principal("ada", NOW, {"logs:read": Workflows.parse(["wf_1"])})

    principal.require("logs:read")
    for scope in ("logs:write", "logs", "Logs:Read", "logs:read ", "*", ""):
        with pytest.raises(Forbidden):
            principal.require(scope)
    principal.require("logs:read", "wf_1")
    for workflow_id in ("wf_10", "wf_", "WF_1", "wf_2", "*", ""):
        with pytest.raises(JobNotFound):
            principal.require("logs:read", workflow_id)


@pytest.mark.parametrize(
    ("entries", "within", "outside"),
    [
        (["*"], ["wf_1", "a"], []),
        (["wf_1", "*"], ["wf_1", "a"], []),
        (["team-a.*"], ["team-a.x", "team-a."], ["team-a", "team-ab", "xteam-a.x", "Team-a.x"]),
        (["team-a.*", "wf_1", "team-b*"], ["team-a.x", "wf_1", "team-b", "team-bc"], ["wf_10", "team-", "team-c"]),
        ([], [], ["wf_1", "*", ""]),
    ],
)
def test_a_prefix_allows_all_ids_that_begin_with_it(entries: list[str], within: list[str], outside: list[str]) -> None:
    """A star alone is the shortest prefix, and makes other entries redundant."""
    workflows = Workflows.parse(entries)

    assert all(each in workflows for each in within)
    assert not any(each in workflows for each in outside)


def test_a_scope_for_other_workflows_does_not_hide_readable_ones() -> None:
    """A reader learns that they cannot write there. For others, the workflow does not exist."""
    principal = Principal("ada", NOW, {READ: Workflows.parse(["*"]), WRITE: Workflows.parse(["mine"])})

    principal.require(WRITE, "mine")
    with pytest.raises(Forbidden, match="lacks the scope logs:write for this workflow"):
        principal.require(WRITE, "theirs")
    with pytest.raises(JobNotFound):
        Principal("ada", NOW, {READ: Workflows.parse(["mine"])}).require(READ, "theirs")


ED25519 = ed25519.Ed25519PrivateKey.generate()
EC = ec.generate_private_key(ec.SECP256R1())


@pytest.mark.parametrize(
    ("key", "algorithm"), [(ED25519, "EdDSA"), (EC, "ES256"), (RSA, "RS256"), (RSA, "PS512"), (2_560, "RS256")]
)
def test_a_public_key_checks_tokens_of_its_private_one(tmp_path: Path, key: Any, algorithm: str) -> None:
    """With each kind of key that the settings allow, and no other algorithm.

    RFC 8725 section 2.1: an attacker signs with HS256 and the public key.
    """
    if isinstance(key, int):
        key = rsa.generate_private_key(65_537, key)
    verifier = Verifier(settings(tmp_path, jwt_public_key=pem(key)))
    token = jwt.encode(CLAIMS, key, algorithm)

    assert verifier.verify("Bearer " + token, NOW).subject == "ada"
    for forged in (signed(CLAIMS, secret=pem(key).encode()), base64url(b'{"alg":"ES384"}') + token[token.index(".") :]):
        with pytest.raises(Unauthorized):
            verifier.verify("Bearer " + forged, NOW)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"jwt_public_key": pem(rsa.generate_private_key(65_537, 1_024))}, "CHRONOVERSE_JWT_PUBLIC_KEY"),
        ({"jwt_public_key": pem(ec.generate_private_key(ec.SECP256K1()))}, "CHRONOVERSE_JWT_PUBLIC_KEY"),
        (
            {"jwt_public_key": "-----BEGIN PUBLIC KEY-----\nMCow\n-----END PUBLIC KEY-----\n"},
            "CHRONOVERSE_JWT_PUBLIC_KEY",
        ),
        # Its holders should verify tokens, not sign them.
        ({"jwt_secret": pem(RSA).encode()}, "must be a secret, not a key"),
        ({"jwt_secret": b"s" * 32 + b"," + pem(RSA).encode()}, "must be a secret, not a key"),
        # A secret generated on one machine would be wrong on another.
        ({"redis_url": "redis://db"}, "CHRONOVERSE_REDIS_URL needs"),
    ],
)
def test_an_unusable_key_stops_the_start(tmp_path: Path, given: dict[str, Any], error: str) -> None:
    """At startup, not at the first request."""
    with pytest.raises(SettingsError, match=error):
        Verifier(settings(tmp_path, **given))


def test_the_local_secret_is_made_once(tmp_path: Path) -> None:
    """It is long, private, and always the same."""
    directory = tmp_path / "state" / "chronoverse"
    secret = local_secret(directory)

    assert len(secret) >= 48
    assert local_secret(directory) == secret
    assert [stat.S_IMODE(path.stat().st_mode) for path in (directory, *directory.iterdir())] == [0o700, 0o600]


def test_concurrent_processes_generate_one_secret(tmp_path: Path) -> None:
    """Eight processes get the same secret, and no draft remains."""
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
def test_a_secret_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    """The message says what to do. A symbolic link could lead to a file that somebody else chose."""
    local_secret(tmp_path)
    (path,) = tmp_path.iterdir()
    path.chmod(mode)
    with pytest.raises(SettingsError, match=f"{path.name} .*chmod 600"):
        local_secret(tmp_path)
    path.chmod(0o600)
    path.rename(tmp_path / "real")
    path.symlink_to("real")
    with pytest.raises(SettingsError):
        local_secret(tmp_path)


@pytest.mark.parametrize("content", [b"", b" " * 48, b"x" * 31 + b"\n"], ids=["empty", "blank", "short"])
def test_a_file_without_a_secret_is_refused(tmp_path: Path, content: bytes) -> None:
    """An empty or short key would accept everybody. White space around a key is ignored."""
    local_secret(tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(b" " + SECRET + b"\n")
    assert local_secret(tmp_path) == SECRET
    path.write_bytes(content)
    with pytest.raises(SettingsError, match="remove it"):
        local_secret(tmp_path)


def test_an_impossible_data_directory_is_a_clear_error(tmp_path: Path) -> None:
    """A part of its path is a file."""
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match=os.strerror(20)):
        local_secret(tmp_path / "file" / "data")
