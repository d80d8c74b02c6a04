"""CHRONOVERSE_TRUST_FILE: whose tokens are accepted, and what their claims allow, with an attacker for each rule."""

import base64
import hashlib
import hmac
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from itertools import permutations
from pathlib import Path
from typing import Any, Final

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from chronoverse.auth import jwks
from chronoverse.auth.rights import ADMIN, READ, WRITE
from chronoverse.auth.tokens import Principal, Verifier
from chronoverse.auth.trust import parse_trust
from chronoverse.cli.serve import service_settings
from chronoverse.errors import (
    Forbidden,
    JobNotFound,
    RightsUnavailable,
    SettingsError,
    SigningKeysUnavailable,
    Unauthorized,
)
from chronoverse.settings import Settings
from tests.support.certificates import Authority
from tests.support.issuer import Issuer, OidcIssuer

SECRET: Final = b"a secret of at least 32 bytes for HS256"
AUDIENCE: Final = "https://logs.example.com"

#: Claims as in ID tokens of GitLab, GitHub Actions and Kubernetes.
#: https://docs.gitlab.com/ci/secrets/id_token_authentication/
GITLAB: Final[dict[str, Any]] = {
    "aud": AUDIENCE,
    "sub": "project_path:team-a/shop:ref_type:branch:ref:main",
    "namespace_path": "team-a",
    "project_path": "team-a/shop",
    "user_login": "ada",
    "ref_protected": "true",
    "runner_id": 1,
    "groups_direct": ["team-a", "platform"],
}
#: https://docs.github.com/en/actions/reference/security/oidc
GITHUB: Final[dict[str, Any]] = {
    "aud": AUDIENCE,
    "sub": "repo:octo-org/shop:ref:refs/heads/main",
    "jti": "example-id",
    "repository": "octo-org/shop",
    "repository_owner": "octo-org",
    "ref": "refs/heads/main",
}
#: https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/
KUBERNETES: Final[dict[str, Any]] = {
    "aud": [AUDIENCE],
    "sub": "system:serviceaccount:ci:runner",
    "jti": "ea28ed49-2e11-4280-9ec5-bc3d1d84661a",
    "kubernetes.io": {
        "namespace": "ci",
        "serviceaccount": {"name": "runner", "uid": "a087d5a0-e1dd-43ec-93ac-f13d89cd13af"},
    },
}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def issuer(authority: Authority) -> Iterator[OidcIssuer]:
    with OidcIssuer(authority.issue("issuer")) as issuer:
        yield issuer


@pytest.fixture(scope="module")
def other(authority: Authority) -> Iterator[OidcIssuer]:
    """Another issuer, whose key has the same id. Its owner can be hostile."""
    with OidcIssuer(authority.issue("other"), "/realms/x") as other:
        yield other


Trust = Callable[..., Verifier]


@pytest.fixture
def trust(tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> Trust:
    """Makes the verifier of a service whose file has this text, with AUDIENCE replaced by its name."""
    # Reading the machine's certificates takes a third of these tests' CPU time.
    monkeypatch.setenv("SSL_CERT_FILE", os.devnull)
    monkeypatch.setattr(jwks, "MIN_REFETCH_SECONDS", 0.05)

    def make(text: str, **settings: Any) -> Verifier:
        path = tmp_path / "trust.toml"
        path.write_text(text.replace("AUDIENCE", AUDIENCE))
        return Verifier(Settings(data_dir=tmp_path, redis_url="x", trust_file=path, ca_file=authority.path, **settings))

    return make


def block(issuer: OidcIssuer, *rules: str, **more: str) -> str:
    """An issuer in the file. Each rule is the inside of an inline table."""
    fields = {"issuer": json.dumps(issuer.name), "audience": '"AUDIENCE"', **more}
    if rules:
        fields["rule"] = f"[{', '.join(f'{{ {rule} }}' for rule in rules)}]"
    return "[[issuer]]\n" + "".join(f"{name} = {value}\n" for name, value in fields.items())


def verified(verifier: Verifier, token: str) -> Principal:
    return verifier.verify(f"Bearer {token}", time.time())


def entries(principal: Principal) -> dict[str, set[str]]:
    """The rights, as a token would have them."""
    return {
        scope: {*workflows.ids, *(f"{prefix}*" for prefix in workflows.prefixes)}
        for scope, workflows in principal.rights.items()
    }


TEAM: Final = 'claim = "project_path", workflows = ["{namespace_path}.*"], scope = "logs:write"'

#: Tokens like those of real issuers: the claims, the rules, and the resulting rights.
KINDS: Final[dict[str, tuple[dict[str, Any], tuple[str, ...], dict[str, set[str]]]]] = {
    "GitLab": (GITLAB, (TEAM,), {WRITE: {"team-a.*"}}),
    "a project of GitLab": (
        GITLAB,
        ('claim = "ref_protected", equals = "true", workflows = ["{project_path}"], scope = "logs:read logs:write"',),
        {READ: {"team-a.shop"}, WRITE: {"team-a.shop"}},
    ),
    "groups of a person": (
        GITLAB,
        ('claim = "groups_direct", equals = "platform", workflows = ["*"], scope = "logs:read"', TEAM),
        {READ: {"*"}, WRITE: {"team-a.*"}},
    ),
    "a branch of GitHub": (
        GITHUB,
        (
            'claim = "sub", matches = "repo:octo-org/[a-z]+:ref:refs/heads/main", workflows = ["gh"],'
            ' scope = "logs:write"',
        ),
        {WRITE: {"gh"}},
    ),
    "any service account of a name": (
        KUBERNETES,
        (
            'claim = "sub", matches = "system:serviceaccount:[a-z-]+:runner",'
            ' workflows = ["{kubernetes.io.namespace}.*", "{sub}"], scope = "logs:write"',
        ),
        {WRITE: {"ci.*", "system.serviceaccount.ci.runner"}},
    ),
    "without rules": ({"aud": AUDIENCE, "scope": "logs:read", "workflows": ["mine"]}, (), {READ: {"mine"}}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_of_real_issuers_are_accepted(trust: Trust, issuer: OidcIssuer, kind: str) -> None:
    """The file needs only the issuer's name: its metadata contain its keys' URL. Two issuers can use one subject."""
    claims, rules, rights = KINDS[kind]
    principal = verified(trust(block(issuer, *rules)), issuer.token(claims))
    assert entries(principal) == rights
    assert principal.subject == f"{issuer.name} {claims.get('sub', 'somebody')}"


def test_each_rule_gives_its_scope_for_its_own_workflows(trust: Trust, issuer: OidcIssuer) -> None:
    """Several rules add up. The token's own scopes add nothing."""
    verifier = trust(
        block(
            issuer,
            'claim = "ref_protected", equals = "true", workflows = ["{project_path}"], scope = "logs:write"',
            'claim = "user_login", equals = "ada", workflows = ["team-b.*"], scope = "logs:read"',
            'claim = "user_login", equals = "root", workflows = ["*"], scope = "logs:admin"',
        )
    )
    claims = {**GITLAB, "scope": "logs:admin logs:read logs:write", "workflows": ["*"]}
    user = verified(verifier, issuer.token(claims))

    user.require(WRITE, "team-a.shop")
    user.require(READ, "team-b.x")
    for scope, workflow in ((WRITE, "team-b.x"), (READ, "team-a.shop"), (ADMIN, "team-a.shop")):
        with pytest.raises(Forbidden):
            user.require(scope, workflow)
    with pytest.raises(JobNotFound):
        user.require(WRITE, "team-a.shopping")


#: Claims of an attacker with a token of the trusted issuer, to whom TEAM and the rules below must not apply.
HOSTILE_VALUES: Final = [
    "*",
    "team-a*",
    "team-a.*",
    "",
    "/",
    ".",
    "..",
    "/team-a",
    "-team-a",
    "_x",
    "team a",
    "team-a\n",
    "team-a\x00",
    "tëam",
    "team\u2024a",
    "\uff0a",
    "team-a%2f",
    "team-a\\b",
    "{namespace_path}",
    "x" * 129,
    "x" * 100_0,
    7,
    7.5,
    True,
    None,
    [],
    ["team-a"],
    {},
    {"team-a": "team-a"},
]
VALID_AFTER_TEXT: Final = ("/", ".", "..", "/team-a", "-team-a", "_x")


@pytest.mark.parametrize("value", HOSTILE_VALUES, ids=lambda text: ascii(text)[:20])
def test_a_value_that_reaches_beyond_its_place_disables_the_rule(trust: Trust, issuer: OidcIssuer, value: Any) -> None:
    """Including the rule's other workflows, and even if the text before it would be a valid entry."""
    token = issuer.token({**GITLAB, "namespace_path": value})
    texts = ["{namespace_path}.*", "{namespace_path}", *["ci.{namespace_path}"] * (value not in VALID_AFTER_TEXT)]
    for entry in texts:
        rule = f'claim = "project_path", workflows = ["{entry}", "besides"], scope = "logs:write"'
        with pytest.raises((Forbidden, Unauthorized)) as caught:
            verified(trust(block(issuer, rule)), token)
        # The size of a header is limited, so the longest value is refused earlier.
        assert isinstance(caught.value, Forbidden) or len(token) > 8_000


@pytest.mark.parametrize(
    "value", ["team-a.b", "team-a/b/c", "team-a:b:c", "Team-A_1.0"], ids=["dot", "slash", "colon", "others"]
)
def test_a_value_stays_in_its_place(trust: Trust, issuer: OidcIssuer, value: str) -> None:
    """Its separators become those of ids, and the text after it stays after it."""
    rule = 'claim = "project_path", workflows = ["ci.{namespace_path}.end"], scope = "logs:write"'
    user = verified(trust(block(issuer, rule)), issuer.token({**GITLAB, "namespace_path": value}))
    assert entries(user) == {WRITE: {f"ci.{value.replace('/', '.').replace(':', '.')}.end"}}


@pytest.mark.parametrize(
    ("test", "value"),
    [
        ('equals = "team-a/shop"', each)
        for each in ("team-a/shop2", "Team-A/shop", "team-a/shop ", "team-a", "", "team-a.shop", None, 7, {"x": "y"})
    ]
    + [
        ('matches = "team-a/[a-z]+"', each)
        for each in (
            "xteam-a/shop",
            "team-a/shop/x",
            "team-a/shop\n",
            "x\nteam-a/shop",
            "TEAM-A/SHOP",
            "team-a/",
            None,
            7,
            ["team-a/shop/x", 7, None],
            {"team-a/shop": "team-a/shop"},
        )
    ]
    + [("", each) for each in ("", None, 7, True, [], [7], {"x": "y"})],
)  # fmt: skip
def test_a_rule_matches_whole_strings_only(trust: Trust, issuer: OidcIssuer, test: str, value: Any) -> None:
    """Case-sensitively. Numbers and objects never match."""
    rule = f'claim = "project_path", {test + ", " if test else ""}workflows = ["*"], scope = "logs:admin"'
    with pytest.raises(Forbidden, match="no rule of the token's issuer"):
        verified(trust(block(issuer, rule)), issuer.token({**GITLAB, "project_path": value}))


def test_a_claim_with_dots_takes_precedence_over_an_object(trust: Trust, issuer: OidcIssuer) -> None:
    """A path only descends into objects, and never past a claim with that name."""
    rule = 'claim = "kubernetes.io.namespace", equals = "ci", workflows = ["x"], scope = "logs:write"'
    verifier = trust(block(issuer, rule))
    for claims in (
        {"kubernetes.io.namespace": "other", "kubernetes.io": {"namespace": "ci"}},
        {"kubernetes": {"io.namespace": "other"}, "kubernetes.io": {"namespace": "ci"}},
        {"kubernetes.io": "ci"},
        {"kubernetes.io": ["namespace", "ci"]},
    ):
        with pytest.raises(Forbidden):
            verified(verifier, issuer.token({"aud": AUDIENCE, **claims}))
    assert entries(verified(verifier, issuer.token({"aud": AUDIENCE, "kubernetes": {"io": {"namespace": "ci"}}}))) == {
        WRITE: {"x"}
    }


ALL: Final = 'claim = "sub", workflows = ["*"], scope = "logs:admin"'


def test_a_token_is_valid_only_with_its_issuers_keys(trust: Trust, issuer: OidcIssuer, other: OidcIssuer) -> None:
    """Neither another trusted issuer with the same key id nor the holder of the service's own secret can sign it."""
    verifier = trust(
        block(issuer, ALL) + block(other, 'claim = "sub", workflows = ["theirs"], scope = "logs:read"'),
        jwt_secret=SECRET,
    )
    assert entries(verified(verifier, issuer.token({"aud": AUDIENCE}))) == {ADMIN: {"*"}}
    assert entries(verified(verifier, other.token({"aud": AUDIENCE}))) == {READ: {"theirs"}}
    own = {"sub": "ci", "exp": time.time() + 60, "scope": READ, "workflows": ["own"]}
    assert entries(verified(verifier, jwt.encode(own, SECRET))) == {READ: {"own"}}

    pem = issuer.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    hostile = {
        "for another issuer": other.token({"aud": AUDIENCE, "iss": issuer.name}),
        "with its own secret": jwt.encode({**own, "aud": AUDIENCE, "iss": issuer.name}, SECRET, headers={"kid": "k1"}),
        "for no issuer": other.token({"aud": AUDIENCE, "iss": None, "scope": ADMIN, "workflows": ["*"]}),
        "for an unknown issuer": other.token({"aud": AUDIENCE, "iss": "https://x.example", "workflows": ["*"]}),
        "for several issuers": other.token({"aud": AUDIENCE, "iss": [other.name, issuer.name]}),
        "for almost the issuer": issuer.token({"aud": AUDIENCE, "iss": f"{issuer.name}/"}),
        "with a key of its own": other.token({"aud": AUDIENCE, "iss": issuer.name}, jku=f"{other.name}/jwks"),
        "with the public key as a secret": _signed_with(pem, issuer, "HS256"),
        "unsigned": jwt.encode({**own, "aud": AUDIENCE, "iss": issuer.name}, "", "none", {"kid": "k1"}),
        "with an unknown key": issuer.token({"aud": AUDIENCE}, kid="k2"),
    }
    for what, token in hostile.items():
        with pytest.raises(Unauthorized):
            pytest.fail(f"{what}: {verified(verifier, token)}")


def _signed_with(key: bytes, issuer: OidcIssuer, algorithm: str) -> str:
    """A token whose signature is made with ``key``."""

    def part(value: dict[str, Any]) -> bytes:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=")

    claims = {"iss": issuer.name, "aud": AUDIENCE, "sub": "x", "exp": time.time() + 60}
    body = part({"alg": algorithm, "kid": issuer.kid}) + b"." + part(claims)
    signature = base64.urlsafe_b64encode(hmac.digest(key, body, hashlib.sha256)).rstrip(b"=")
    return (body + b"." + signature).decode()


def test_without_its_own_key_a_service_accepts_only_the_files_issuers(
    trust: Trust, issuer: OidcIssuer, other: OidcIssuer
) -> None:
    """Other issuers are refused without a request to them."""
    verifier = trust(block(issuer, ALL))
    before = other.requests
    for token in (other.token({"aud": AUDIENCE}), other.token({"aud": AUDIENCE, "iss": None}), "a.b.c", "a.e30.c"):
        with pytest.raises(Unauthorized, match="invalid token") as caught:
            verified(verifier, token)
        assert "not in CHRONOVERSE_TRUST_FILE" in caught.value.explanation
    assert other.requests == before


@pytest.mark.parametrize(
    "audience", [None, "", "other", [], ["other"], f"{AUDIENCE}/", AUDIENCE.upper(), {AUDIENCE: 1}, 7, [AUDIENCE, 7]]
)
def test_a_token_for_another_audience_is_refused(trust: Trust, issuer: OidcIssuer, audience: Any) -> None:
    """On GitHub, any repository can get a token for any audience, but not for another service."""
    verifier = trust(block(issuer, ALL), jwt_audience="other")
    with pytest.raises(Unauthorized, match="audience"):
        verified(verifier, issuer.token({"aud": audience}))


def test_only_the_files_algorithms_are_accepted(trust: Trust, issuer: OidcIssuer) -> None:
    """A key without ``alg`` is for RS256, and a token cannot request another."""
    for allowed in ('["RS256"]', '["ES256", "RS256"]'):
        verified(trust(block(issuer, ALL, algorithms=allowed)), issuer.token({"aud": AUDIENCE}))
    for allowed, algorithm in (('["PS256"]', "RS256"), ('["EdDSA"]', "RS256"), ('["RS256", "PS256"]', "PS256")):
        with pytest.raises(Unauthorized, match="invalid token"):
            verified(trust(block(issuer, ALL, algorithms=allowed)), issuer.token({"aud": AUDIENCE}, algorithm))


@pytest.mark.parametrize(
    "claims",
    [{"exp": 1}, {"exp": None}, {"exp": "4000000000"}, {"nbf": 4_000_000_000}, {"sub": None}, {"sub": 7}, {"cnf": {}}],
)
def test_required_claims_are_also_required_here(trust: Trust, issuer: OidcIssuer, claims: dict[str, Any]) -> None:
    """Rules give rights, but waive no requirement."""
    with pytest.raises(Unauthorized):
        verified(trust(block(issuer, ALL)), issuer.token({"aud": AUDIENCE, **claims}))


def test_the_keys_url_can_be_configured(trust: Trust, other: OidcIssuer) -> None:
    """Then no metadata are requested, and the issuer's name can be any text."""
    name = "kubernetes/serviceaccount"
    text = block(other, ALL, jwks_url=json.dumps(f"{other.name}/keys")).replace(f'"{other.name}"', json.dumps(name))
    assert entries(verified(trust(text), other.token({"aud": AUDIENCE, "iss": name}))) == {ADMIN: {"*"}}


@pytest.mark.parametrize(
    "metadata",
    [
        {"issuer": "https://attacker.example"},
        {"issuer": "https://z.example"},
        {"issuer": None},
        {"jwks_uri": "http://attacker.example/jwks"},
        {"jwks_uri": "file:///etc/passwd"},
        {"jwks_uri": 7},
        {"jwks_uri": None},
    ],
)
def test_metadata_of_another_issuer_are_refused(
    trust: Trust, other: OidcIssuer, monkeypatch: pytest.MonkeyPatch, metadata: dict[str, Any]
) -> None:
    """It is not the token's fault. Here None means a missing member."""
    changed = {name: value for name, value in {**other.metadata, **metadata}.items() if value is not None}
    monkeypatch.setattr(other, "metadata", changed)
    with pytest.raises(SigningKeysUnavailable):
        verified(trust(block(other, ALL)), other.token({"aud": AUDIENCE}))


def test_keys_over_plain_http_are_refused(trust: Trust, other: OidcIssuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even from this machine, if the issuer's metadata use TLS."""
    with Issuer() as plain:
        plain.keys = other.keys
        monkeypatch.setattr(other, "metadata", {**other.metadata, "jwks_uri": plain.url})
        with pytest.raises(SigningKeysUnavailable):
            verified(trust(block(other, ALL)), other.token({"aud": AUDIENCE}))
        assert plain.requests == 0


def test_an_unavailable_issuer_does_not_affect_others(
    trust: Trust, issuer: OidcIssuer, other: OidcIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service is ready while any issuer is available, and names the unavailable ones."""
    monkeypatch.setattr(other, "keys", None)
    verifier = trust(block(issuer, ALL) + block(other, ALL))
    for keys in verifier.published():
        keys.prefetch()
    verifier.check()
    verified(verifier, issuer.token({"aud": AUDIENCE}))
    with pytest.raises(SigningKeysUnavailable):
        verified(verifier, other.token({"aud": AUDIENCE}))
    away = trust(block(other, ALL))
    with pytest.raises(SigningKeysUnavailable):
        away.check()
    # Tokens signed with the service's own secret need no issuer.
    trust(block(other, ALL), jwt_secret=SECRET).check()


def test_a_changed_file_applies_immediately(
    trust: Trust, issuer: OidcIssuer, other: OidcIssuer, tmp_path: Path
) -> None:
    """Nothing of its former contents remains, whatever has changed. A file with errors changes nothing.

    A worker that starts with errors answers 503 until they are corrected.
    """
    tokens = [each.token({**GITLAB, "aud": audience}) for each in (issuer, other) for audience in (AUDIENCE, "else")]

    def answers(verifier: Verifier) -> list[Any]:
        found = list[Any]()
        for token in tokens:
            try:
                found.append(verified(verifier, token))
            except Unauthorized as error:
                found.append(error.explanation)
        return found

    keys_of_other = json.dumps(f"{other.name}/keys")
    versions = [
        block(issuer, ALL),
        block(issuer, TEAM),
        block(issuer, ALL, audience='"else"'),
        block(issuer, ALL, algorithms='["PS512"]'),
        block(issuer, ALL, jwks_url=keys_of_other),
        block(other, ALL),
        block(other, ALL) + block(issuer, ALL),
    ]
    fresh = {text: answers(trust(text)) for text in versions}
    assert len({*map(str, fresh.values())}) == len(versions)
    verifier, path = trust("[[issuer]]"), tmp_path / "trust.toml"
    for ask in (verifier.check, lambda: verified(verifier, tokens[0])):
        with pytest.raises(RightsUnavailable):
            ask()
    for before, after in permutations(versions, 2):
        for text in (before, "[[issuer]]", after):
            path.write_text(text.replace("AUDIENCE", AUDIENCE))
            assert answers(verifier) == fresh[before if text == "[[issuer]]" else text]


def test_a_changed_file_keeps_the_keys_of_its_issuers(
    trust: Trust, issuer: OidcIssuer, other: OidcIssuer, tmp_path: Path
) -> None:
    verifier = trust(block(issuer, ALL))
    verified(verifier, issuer.token({"aud": AUDIENCE}))
    asked = issuer.requests
    for text in (block(issuer, TEAM), block(issuer, TEAM) + block(other, ALL)):
        (tmp_path / "trust.toml").write_text(text.replace("AUDIENCE", AUDIENCE))
        verified(verifier, issuer.token(GITLAB))
    assert issuer.requests == asked


def test_a_service_does_not_start_with_an_invalid_file(tmp_path: Path) -> None:
    """And generates no secret."""
    path = tmp_path / "trust.toml"
    environ = {"CHRONOVERSE_DATA_DIR": str(tmp_path), "CHRONOVERSE_TRUST_FILE": str(path)}
    with pytest.raises(SettingsError, match="No such file"):
        service_settings(environ)
    path.write_text("[[issuer]]")
    with pytest.raises(SettingsError, match="issuer 1: issuer is missing"):
        service_settings(environ)
    path.write_text('[[issuer]]\nissuer = "https://id.example.com"\naudience = "x"')
    assert service_settings(environ).trust_file == path
    assert not (tmp_path / "token.secret").exists()


GOOD: Final[dict[str, Any]] = {"issuer": "https://id.example.com", "audience": "logs"}
RULE: Final[dict[str, Any]] = {"claim": "sub", "workflows": ["x"], "scope": "logs:read"}

ERRORS: Final[dict[str, tuple[dict[str, Any], dict[str, Any] | None, str]]] = {
    "no issuer": ({"issuer": None}, None, "issuer is missing"),
    "a number": ({"issuer": 7}, None, "issuer is missing or not a string"),
    "plain http": ({"issuer": "http://id.example.com"}, None, "issuer: must be https://"),
    "no URL": ({"issuer": "kubernetes"}, None, "issuer: must be a complete"),
    "plain http for keys": ({"jwks_url": "http://id.example.com/k"}, None, "jwks_url: must be https://"),
    "an empty URL": ({"jwks_url": ""}, None, "jwks_url is missing or not a string"),
    "no audience": ({"audience": None}, None, "audience is missing"),
    "an empty audience": ({"audience": ""}, None, "audience is missing or not a string"),
    "audiences": ({"audience": ["a", "b"]}, None, "audience is missing or not a string"),
    "a secret's algorithm": ({"algorithms": ["HS256"]}, None, "algorithms must be a list of one or more of RS256"),
    "no algorithm": ({"algorithms": []}, None, "algorithms must be"),
    "the algorithm none": ({"algorithms": ["none"]}, None, "algorithms must be"),
    "an algorithm alone": ({"algorithms": "RS256"}, None, "algorithms must be"),
    "a typo": ({"audiance": "x"}, None, "has 'audiance': expected issuer, jwks_url"),
    "no rule in the list": ({"rule": []}, None, "a rule must begin with [[issuer.rule]]"),
    "a rule alone": ({"rule": dict(RULE)}, None, "a rule must begin with [[issuer.rule]]"),
    "no claim": ({}, {"claim": None}, "rule 1: claim is missing"),
    "no scope": ({}, {"scope": None}, "rule 1: scope is missing"),
    "an unknown scope": ({}, {"scope": "logs:read logs:raed"}, "rule 1: scope must be one or more of logs:read"),
    "an empty scope": ({}, {"scope": " "}, "rule 1: scope must be one or more of"),
    "a list of scopes": ({}, {"scope": ["logs:read"]}, "rule 1: scope is missing or not a string"),
    "scopes": ({}, {"scopes": "logs:read"}, "rule 1: has 'scopes': expected claim"),
    "two tests": ({}, {"equals": "a", "matches": "b"}, "equals and matches cannot be combined"),
    "an empty test": ({}, {"equals": ""}, "equals is missing or not a string"),
    "a number to equal": ({}, {"equals": 7}, "equals is missing or not a string"),
    "a bad expression": ({}, {"matches": "("}, "rule 1: matches: invalid regular expression: missing )"),
    "a look-ahead": ({}, {"matches": "(?=x)y"}, "rule 1: matches: invalid regular expression"),
    "no workflows": ({}, {"workflows": None}, "workflows is not a list of entries"),
    "no workflow": ({}, {"workflows": []}, "workflows is not a list of entries"),
    "a workflow alone": ({}, {"workflows": "x"}, "workflows is not a list of entries"),
    "a bad entry": ({}, {"workflows": ["a*b"]}, "rule 1: workflows has 'a*b': * is allowed only as the last"),
    "a number as an entry": ({}, {"workflows": [7]}, "rule 1: workflows is refused: an entry must be a string"),
    "an object as an entry": ({}, {"workflows": [{}]}, "workflows has {}: an entry can contain one claim"),
    "two claims": ({}, {"workflows": ["{a}.{b}"]}, "an entry can contain one claim"),
    "an open brace": ({}, {"workflows": ["{a"]}, "an entry can contain one claim"),
    "an empty claim": ({}, {"workflows": ["{}"]}, "an entry can contain one claim"),
    "braces in braces": ({}, {"workflows": ["{{a}}"]}, "an entry can contain one claim"),
    "a star after a value": ({}, {"workflows": ["{a}*"]}, "put a . after the value"),
    "a star after another separator": ({}, {"workflows": ["{a}-*"]}, "put a . after the value"),
    "a star before a value": ({}, {"workflows": ["*{a}"]}, "has '*a': * is allowed only as the last"),
    "a bad beginning": ({}, {"workflows": ["-{a}"]}, "has '-a': an entry must be a workflow id"),
}


@pytest.mark.parametrize("error", ERRORS)
def test_an_error_in_the_file_is_named(error: str) -> None:
    """With the issuer, and with the rule if it is in one."""
    terms, rule, words = ERRORS[error]
    table = {**GOOD, **({} if rule is None else {"rule": [_without_none({**RULE, **rule})]}), **terms}
    with pytest.raises(ValueError, match=f"^issuer 1: .*{re.escape(words)}"):
        parse_trust({"issuer": [_without_none(table)]})


def _without_none(table: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in table.items() if value is not None}


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({}, "no [[issuer]]"),
        ({"issuer": []}, "no [[issuer]]"),
        ({"issuer": GOOD}, "no [[issuer]]"),
        ({"issuers": [GOOD]}, "has 'issuers': expected issuer"),
        ({"issuer": [GOOD, GOOD]}, "duplicate issuer"),
        ({"issuer": ["x"]}, "issuer 1: is not a table"),
    ],
)
def test_a_file_without_issuers_or_with_duplicates_is_refused(document: dict[str, Any], words: str) -> None:
    """Neither of two duplicates has precedence."""
    with pytest.raises(ValueError, match=re.escape(words)):
        parse_trust(document)
