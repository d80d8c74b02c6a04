"""Verifies bearer tokens (RFC 6750): signed JWTs (RFC 7519), as RFC 8725 recommends. See docs/tokens.md.

The key's type determines the allowed algorithms; the token never does.
"""

import contextlib
import hmac
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple

import jwt
import orjson
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt.algorithms import HMACAlgorithm
from jwt.utils import base64url_decode

from chronoverse.auth.jwks import KeySetStore, PublishedKeys, fetch_key_set
from chronoverse.auth.local_secret import local_secret
from chronoverse.auth.rights import Rule, Workflows, rights_by
from chronoverse.auth.toml_file import TomlFile
from chronoverse.auth.trust import Terms, group_rules, parse_trust
from chronoverse.errors import (
    Forbidden,
    JobNotFound,
    RightsUnavailable,
    SettingsError,
    SigningKeysUnavailable,
    Unauthorized,
)
from chronoverse.settings import Settings

#: Maximum bytes of an Authorization header. A token for a hundred workflows has less than 4,000.
MAX_HEADER_BYTES: Final = 8_192

_INVALID: Final = "invalid token"
_BEARER = re.compile(r"bearer ([A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+)", re.ASCII | re.IGNORECASE)
_RSA_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_EC_ALGORITHMS = {"secp256r1": ("ES256",), "secp384r1": ("ES384",), "secp521r1": ("ES512",)}


@dataclass(frozen=True, slots=True)
class Principal:
    """A token's user and rights. Answers are cut off at ``expires_at``, in Unix seconds."""

    subject: str
    expires_at: float
    rights: Mapping[str, Workflows]

    def require(self, scope: str, workflow_id: str | None = None) -> None:
        """Raises :class:`Forbidden` if the token lacks ``scope``, :class:`JobNotFound` if it lacks this workflow."""
        if scope not in self.rights:
            raise Forbidden(f"the token lacks the scope {scope}")
        if workflow_id is None or workflow_id in self.rights[scope]:
            return
        if any(workflow_id in workflows for workflows in self.rights.values()):
            raise Forbidden(f"the token lacks the scope {scope} for this workflow")
        raise JobNotFound("the token is not for this workflow")


class Key(NamedTuple):
    """A key, and the algorithms that it can be used with."""

    material: Any
    algorithms: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Issuer:
    """An accepted issuer, configured by environment variables or by ``terms`` of the trust file.

    ``name`` is the required ``iss`` of its tokens; None accepts any.
    """

    keys: Sequence[Key] | PublishedKeys
    name: str | None
    audience: str | None
    groups: TomlFile[list[Rule]] | None = None
    claim: str = "workflows"
    terms: Terms | None = None

    def rules(self) -> Sequence[Rule] | None:
        if self.terms is not None:
            return self.terms.rules
        return self.groups.check() if self.groups else None


class _PreparedHmac(HMACAlgorithm):
    """HS256 with a key whose length is already checked."""

    def prepare_key(self, key: Any) -> bytes:
        return bytes(key)

    def check_key_length(self, key: bytes) -> None:
        pass

    def sign(self, msg: bytes, key: bytes) -> bytes:
        return hmac.digest(key, msg, "sha256")


#: The library is used only to verify signatures. This module checks claims, strictly, and gets ``now`` as an argument.
_SIGNATURES: Final = jwt.PyJWS()
_SIGNATURES.unregister_algorithm("HS256")
_SIGNATURES.register_algorithm("HS256", _PreparedHmac(HMACAlgorithm.SHA256))


class Verifier:
    """Turns Authorization headers into principals, with the keys of the issuers in ``settings``.

    ``store`` shares published keys with other nodes. Raises :class:`SettingsError` if there is no usable key.
    """

    def __init__(
        self, settings: Settings, fetch: Callable[[str], bytes] | None = None, store: KeySetStore | None = None
    ) -> None:
        self._fetch = fetch or partial(fetch_key_set, ca_file=settings.ca_file)
        self._store = store
        self.groups: TomlFile[list[Rule]] | None = None
        self.trust: TomlFile[tuple[Terms, ...]] | None = None
        if settings.jwt_workflows_map is not None:
            parse_groups = partial(group_rules, settings.jwt_workflows_claim)
            self.groups = TomlFile(settings.jwt_workflows_map, "CHRONOVERSE_JWT_WORKFLOWS_MAP", parse_groups)
        if settings.trust_file is not None:
            self.trust = TomlFile(settings.trust_file, "CHRONOVERSE_TRUST_FILE", parse_trust)
        self._single = self._single_issuer(settings)
        self._named: Mapping[str, Issuer] = {}
        self._terms: tuple[Terms, ...] = ()

    def _single_issuer(self, settings: Settings) -> Issuer | None:
        keys: Sequence[Key] | PublishedKeys
        if settings.jwt_jwks_url is not None:
            keys = PublishedKeys(settings.jwt_jwks_url, store=self._store, fetch=self._fetch)
        elif settings.jwt_public_key is not None:
            keys = [_pem_key(settings.jwt_public_key)]
        elif settings.jwt_secret is None and settings.trust_file is not None:
            return None
        else:
            keys = [_secret_key(secret) for secret in secrets(settings)]
        return Issuer(keys, settings.jwt_issuer, settings.jwt_audience, self.groups, settings.jwt_workflows_claim)

    def _of_file(self) -> Mapping[str, Issuer]:
        terms = self.trust.check() if self.trust else ()
        if terms is not self._terms:
            self._named = {each.issuer: self._issuer_of(each) for each in terms}
            self._terms = terms
        return self._named

    def _issuer_of(self, terms: Terms) -> Issuer:
        known = self._named.get(terms.issuer)
        if known and known.terms and known.terms.jwks_url == terms.jwks_url:
            return Issuer(known.keys, terms.issuer, terms.audience, terms=terms)
        fetch = partial(terms.fetch, self._fetch)
        keys = PublishedKeys(terms.keys_url, name=terms.issuer, store=self._store, fetch=fetch)
        return Issuer(keys, terms.issuer, terms.audience, terms=terms)

    def published(self) -> list[PublishedKeys]:
        found = [self._single.keys] if self._single else []
        with contextlib.suppress(RightsUnavailable):
            found += [each.keys for each in self._of_file().values()]
        return [keys for keys in found if isinstance(keys, PublishedKeys)]

    def files(self) -> Iterator[TomlFile[Any]]:
        yield from (each for each in (self.groups, self.trust) if each is not None)

    def check(self) -> None:
        """Raises :class:`SigningKeysUnavailable` or :class:`RightsUnavailable` if no token can be verified."""
        for file in self.files():
            file.check()
        published, failures = self.published(), []
        for keys in published:
            try:
                keys.check()
            except SigningKeysUnavailable as error:
                failures.append(error)
        if failures and len(failures) == len(self._named) + bool(self._single):
            raise failures[0]

    def verify(self, authorization: str | None, now: float) -> Principal:
        """The principal of the header's bearer token at Unix time ``now``.

        Raises :class:`Unauthorized`, :class:`SigningKeysUnavailable`, :class:`Forbidden`, :class:`RightsUnavailable`.
        """
        if authorization is None:
            raise Unauthorized("a bearer token is required")
        if len(authorization) > MAX_HEADER_BYTES:
            raise Unauthorized(f"the Authorization header has more than {MAX_HEADER_BYTES} bytes")
        found = _BEARER.fullmatch(authorization)
        if found is None:
            raise Unauthorized("the Authorization header is not a bearer token (a JWT)")
        issuer = self._issuer(found[1])
        return _principal(_claims(found[1], issuer), issuer, now)

    def _issuer(self, token: str) -> Issuer:
        named = self._of_file() if self.trust else {}
        issuer = named.get(_named_issuer(token), self._single) if named else self._single
        if issuer is None:
            raise Unauthorized(_INVALID, "the token's issuer (iss) is not in CHRONOVERSE_TRUST_FILE")
        return issuer


def _named_issuer(token: str) -> str:
    with contextlib.suppress(ValueError):
        claims = orjson.loads(base64url_decode(token.split(".")[1]))
        if isinstance(claims, dict) and isinstance(claims.get("iss"), str):
            return str(claims["iss"])
    return ""


def _claims(token: str, issuer: Issuer) -> dict[str, Any]:
    """A token's claims, after verifying its signature. Error messages give details only if the signature is valid."""
    try:
        signed = _signed(token, issuer)
    except jwt.InvalidSignatureError as error:
        raise Unauthorized(_INVALID, "the token's signature is invalid") from error
    except jwt.InvalidAlgorithmError as error:
        raise Unauthorized(_INVALID, "the token's algorithm (alg) is not one of the key's") from error
    except (jwt.PyJWTError, UnsupportedAlgorithm, ValueError, TypeError, RecursionError) as error:
        raise Unauthorized(_INVALID, "the token's header cannot be read") from error
    if "crit" in signed["header"]:  # https://www.rfc-editor.org/rfc/rfc7515#section-4.1.11
        raise Unauthorized("the token requires unsupported extensions (crit)")
    try:
        # Unlike json, orjson refuses text that is not UTF-8, which the audit trail could not store.
        claims = orjson.loads(signed["payload"])
    except ValueError:
        claims = None
    if not isinstance(claims, dict):
        raise Unauthorized("the token's claims are not a JSON object")
    return claims


def _signed(token: str, issuer: Issuer) -> dict[str, Any]:
    def decode(key: Key) -> dict[str, Any]:
        return _SIGNATURES.decode_complete(token, key.material, algorithms=list(key.algorithms))

    if isinstance(issuer.keys, PublishedKeys):
        return decode(_published_key(token, issuer.keys, issuer.terms))
    *others, last = issuer.keys
    for key in others:
        with contextlib.suppress(jwt.InvalidSignatureError):
            return decode(key)
    return decode(last)


def _published_key(token: str, keys: PublishedKeys, terms: Terms | None) -> Key:
    published = keys.get(jwt.get_unverified_header(token).get("kid"))
    try:
        key = _public_key(published.key)
    except ValueError as error:
        raise Unauthorized(_INVALID, "the token's key is not usable") from error
    allowed = {published.algorithm_name}.intersection(terms.algorithms if terms else key.algorithms)
    return key._replace(algorithms=tuple(name for name in key.algorithms if name in allowed))


def _principal(claims: dict[str, Any], issuer: Issuer, now: float) -> Principal:
    if "cnf" in claims:  # https://www.rfc-editor.org/rfc/rfc7800#section-3.1
        raise Unauthorized("the token is bound to a key (cnf), as with DPoP: only bearer tokens are accepted")
    subject, expires_at = claims.get("sub"), _time(claims, "exp")
    if issuer.name is not None and claims.get("iss") != issuer.name:
        raise Unauthorized("the token's issuer (iss) is not CHRONOVERSE_JWT_ISSUER")
    _check_audience(claims.get("aud"), issuer)
    if expires_at is None:
        raise Unauthorized("the token's exp is missing or not a time in seconds")
    if now >= expires_at:
        raise Unauthorized("the token has expired")
    for claim in ("nbf", "iat"):
        # An issuer's clock can be 60 s ahead of ours. ``exp`` has no such tolerance, because streams end exactly then.
        if claim in claims and ((start := _time(claims, claim)) is None or start > now + 60):
            raise Unauthorized(f"the token is not valid yet ({claim}): compare the clocks of service and issuer")
    if not isinstance(subject, str):
        raise Unauthorized("the token's sub is missing or not a string")
    if not isinstance(claims.get("jti", ""), str):
        raise Unauthorized("the token's jti is not a string")
    # Two issuers of the trust file can use the same ``sub``.
    subject = f"{issuer.name} {subject}" if issuer.terms else subject
    return Principal(subject, expires_at, _rights(claims, issuer))


def _rights(claims: dict[str, Any], issuer: Issuer) -> Mapping[str, Workflows]:
    rules, scopes = issuer.rules(), frozenset[str]()
    if rules is None:
        return dict.fromkeys(_scopes(claims), _workflows(claims, issuer.claim))
    if issuer.terms is None:
        names = claims.get(issuer.claim)
        if not isinstance(names, list) or not all(isinstance(each, str) for each in names):
            raise Unauthorized(f"the token's claim {issuer.claim} is not a list of groups")
        # If these claims are missing, as from an issuer that only has groups, only rules with scopes grant rights.
        scopes = _scopes(claims) if claims.keys() & {"scope", "scp"} else scopes
    rights = rights_by(rules, claims, scopes)
    if not rights and issuer.terms is None:
        raise Forbidden(f"no group of the token (claim {issuer.claim}) has rights in CHRONOVERSE_JWT_WORKFLOWS_MAP")
    if not rights:
        raise Forbidden("no rule of the token's issuer in CHRONOVERSE_TRUST_FILE matches this token")
    return rights


def _check_audience(claim: object, issuer: Issuer) -> None:
    """Refuses a token for another service (RFC 8725, 3.9). If no audience is configured, refuses tokens with one."""
    named = [claim] if isinstance(claim, str) else [] if claim is None else claim
    if not isinstance(named, list) or not all(isinstance(each, str) for each in named):
        raise Unauthorized("the token's audience (aud) must be a string or a list of strings")
    if issuer.audience is None and any(named):
        raise Unauthorized("the token names an audience (aud), and CHRONOVERSE_JWT_AUDIENCE is not set")
    if issuer.audience is not None and issuer.audience not in named:
        where = "that of its issuer in CHRONOVERSE_TRUST_FILE" if issuer.terms else "CHRONOVERSE_JWT_AUDIENCE"
        raise Unauthorized(f"the token's audience (aud) is not {where}")


def _scopes(claims: dict[str, Any]) -> frozenset[str]:
    """The scopes in the claim ``scope`` or else ``scp``: a string as in RFC 8693 section 4.2, or a list."""
    name = "scope" if "scope" in claims or "scp" not in claims else "scp"
    value = claims.get(name)
    words = value.split(" ") if isinstance(value, str) else value
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise Unauthorized(f"the token has no {name}, or it is not a string or a list of strings")
    return frozenset(words) - {""}


def _workflows(claims: dict[str, Any], name: str) -> Workflows:
    try:
        return Workflows.parse(claims.get(name))
    except ValueError as error:
        raise Unauthorized(f"the token's claim {name} {error}") from error


def _time(claims: dict[str, Any], name: str) -> float | None:
    """The claim as Unix time. None if it is out of range, or no number. (JSON's true is a number only in Python.)"""
    value = claims.get(name)
    if type(value) is not int and type(value) is not float:
        return None
    # The last second of the year 9999: the latest time that a ``datetime`` can hold.
    return value if 0 <= value <= 253_402_300_799 else None


def _secret_key(secret: bytes) -> Key:
    try:
        return Key(HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(secret), ("HS256",))
    except jwt.InvalidKeyError as error:
        where = "CHRONOVERSE_JWT_SECRET, or token.secret in the data directory,"
        raise SettingsError(f"{where} must be a secret, not a key of another kind") from error


def _pem_key(pem: str) -> Key:
    try:
        return _public_key(load_pem_public_key(pem.encode()))
    except (ValueError, UnsupportedAlgorithm) as error:
        expected = "RSA of 2048 bits or more, EC P-256, P-384 or P-521, or Ed25519"
        raise SettingsError(f"CHRONOVERSE_JWT_PUBLIC_KEY must be a usable key: {expected}") from error


def _public_key(material: object) -> Key:
    # https://www.rfc-editor.org/rfc/rfc7518#section-3.3
    if isinstance(material, rsa.RSAPublicKey) and material.key_size >= 2_048:
        return Key(material, _RSA_ALGORITHMS)
    if isinstance(material, ec.EllipticCurvePublicKey) and material.curve.name in _EC_ALGORITHMS:
        return Key(material, _EC_ALGORITHMS[material.curve.name])
    if isinstance(material, ed25519.Ed25519PublicKey):
        return Key(material, ("EdDSA",))
    raise ValueError("unsupported public key")


def secrets(settings: Settings) -> list[bytes]:
    """The HS256 keys in ``settings``; the first one signs. Raises :class:`SettingsError` if there are none."""
    if settings.jwt_secret is not None:
        return settings.jwt_secret.split(b",")
    if settings.has_local_secret:
        return [local_secret(settings.data_dir)]
    if settings.jwt_public_key or settings.jwt_jwks_url or settings.trust_file:
        raise SettingsError("tokens can only be issued with the private key")
    raise SettingsError(
        "CHRONOVERSE_REDIS_URL needs one of CHRONOVERSE_JWT_SECRET, CHRONOVERSE_JWT_PUBLIC_KEY,"
        " CHRONOVERSE_JWT_JWKS_URL and CHRONOVERSE_TRUST_FILE"
    )
