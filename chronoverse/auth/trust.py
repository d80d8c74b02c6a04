"""The files CHRONOVERSE_TRUST_FILE and CHRONOVERSE_JWT_WORKFLOWS_MAP: trusted issuers, and rights by claims."""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import orjson

from chronoverse.auth.rights import SCOPES, Rule, Workflows
from chronoverse.joblog.matcher import whole_match
from chronoverse.settings import parse

#: Asymmetric algorithms only: with a shared secret, a reader of an issuer's keys could forge its tokens.
_ALGORITHMS: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")

#: What a rule can require of its claim, and the function that makes the test.
_TESTS: Final = {"equals": lambda text: text.__eq__, "matches": whole_match}
_TEMPLATE: Final = re.compile(r"([^{}]*)\{([^{}]+)\}([^{}]*)")


class Terms(NamedTuple):
    """An issuer in the trust file. Without ``rules``, its tokens have the claims ``scope`` and ``workflows``."""

    issuer: str
    jwks_url: str | None
    audience: str
    algorithms: Sequence[str]
    rules: tuple[Rule, ...] | None

    @property
    def keys_url(self) -> str:
        """The URL of the keys, or of the discovery metadata that contains it:
        https://openid.net/specs/openid-connect-discovery-1_0.html
        """
        return self.jwks_url or f"{self.issuer.rstrip('/')}/.well-known/openid-configuration"

    def fetch(self, fetch: Callable[[str], bytes], url: str) -> bytes:
        """The issuer's key set. ``fetch`` fetches a URL. Raises ValueError for unusable metadata."""
        content = fetch(url)
        if self.jwks_url is not None:
            return content
        metadata = orjson.loads(content)
        if not isinstance(metadata, dict) or metadata.get("issuer") != self.issuer:
            raise ValueError("the issuer's metadata names another issuer")
        keys_url = parse.jwks_url(str(metadata.get("jwks_uri")))
        if url.startswith("https:") and not keys_url.startswith("https:"):
            raise ValueError("the issuer's keys are not at an https:// URL")
        return fetch(keys_url)


def parse_trust(document: Mapping[str, Any]) -> tuple[Terms, ...]:
    """The issuers in the file. Raises ValueError, which names the issuer and the rule."""
    _only(document, "issuer")
    tables = document.get("issuer")
    if not (isinstance(tables, list) and tables):
        raise ValueError("no [[issuer]]")
    found = tuple(_named(f"issuer {number}", _terms, each) for number, each in enumerate(tables, 1))
    if len({each.issuer for each in found}) < len(found):
        raise ValueError("duplicate issuer")
    return found


def group_rules(claim: str, document: Mapping[str, Any]) -> list[Rule]:
    if not document:
        raise ValueError("no group")
    return [_named(f"group {name!a:.130}", partial(_group, claim, name), each) for name, each in document.items()]


def _group(claim: str, name: str, table: Any) -> Rule:
    _only(table, "workflows", "scopes")
    workflows = _named("workflows", Workflows.parse, table.get("workflows"), " ")
    return Rule(claim, name.__eq__, workflows, _some_of(SCOPES, table, "scopes"))


def _some_of(known: Sequence[str], table: Mapping[str, Any], name: str) -> list[str] | None:
    found: list[str] | None = table.get(name)
    if found is not None and not (isinstance(found, list) and found and all(each in known for each in found)):
        raise ValueError(f"{name} must be a list of one or more of {', '.join(known)}")
    return found


def _terms(table: Any) -> Terms:
    _only(table, "issuer", "jwks_url", "audience", "algorithms", "rule")
    issuer, url = _text(table, "issuer"), _text(table, "jwks_url") if "jwks_url" in table else None
    # Without ``jwks_url``, the issuer's metadata contain the URL of its keys.
    _named("issuer", parse.issuer, issuer) if url is None else _named("jwks_url", parse.jwks_url, url)
    algorithms, rules = _some_of(_ALGORITHMS, table, "algorithms"), table.get("rule")
    if rules is not None and not (isinstance(rules, list) and rules):
        raise ValueError("a rule must begin with [[issuer.rule]]")
    named = rules and tuple(_named(f"rule {number}", _rule, each) for number, each in enumerate(rules, 1))
    return Terms(issuer, url, _text(table, "audience"), algorithms or _ALGORITHMS, named)


def _rule(table: Any) -> Rule:
    _only(table, "claim", "equals", "matches", "workflows", "scope")
    scopes = _text(table, "scope").split()
    if not scopes or not all(each in SCOPES for each in scopes):
        raise ValueError(f"scope must be one or more of {', '.join(SCOPES)}, separated by spaces")
    tests = [_named(name, make, _text(table, name)) for name, make in _TESTS.items() if name in table]
    if len(tests) > 1:
        raise ValueError("equals and matches cannot be combined")
    entries = table.get("workflows")
    if not (isinstance(entries, list) and entries):
        raise ValueError("workflows is not a list of entries")
    made = [_named("workflows", _template, each, " ") for each in entries if "{" in str(each) or "}" in str(each)]
    plain = [each for each in entries if not ("{" in str(each) or "}" in str(each))]
    workflows = _named("workflows", Workflows.parse, plain, " ")
    return Rule(_text(table, "claim"), tests[0] if tests else bool, workflows, scopes, tuple(made))


def _template(entry: Any) -> tuple[str, str, str]:
    found = _TEMPLATE.fullmatch(entry) if isinstance(entry, str) else None
    if found is None:
        raise ValueError(f"has {entry!a:.130}: an entry can contain one claim, such as {{project_path}}")
    before, claim, after = found.groups()
    if after.endswith("*") and not after.startswith("."):
        raise ValueError(f"has {entry!a:.130}: the * would match other values: put a . after the value")
    # The template must make a valid entry from any valid value.
    Workflows.parse([f"{before}a{after}"])
    return before, claim, after


def _named(where: str, read: Callable[[Any], Any], value: Any, joint: str = ": ") -> Any:
    try:
        return read(value)
    except ValueError as error:
        raise ValueError(f"{where}{joint}{error}") from error


def _only(table: Any, *names: str) -> None:
    if not isinstance(table, dict):
        raise ValueError(f"is not a table with {', '.join(names)}")
    for key in table.keys() - {*names}:
        raise ValueError(f"has {key!a:.130}: expected {', '.join(names)} (quote names with dots)")


def _text(table: Mapping[str, Any], name: str) -> str:
    if not (isinstance(value := table.get(name), str) and value):
        raise ValueError(f"{name} is missing or not a string")
    return value
