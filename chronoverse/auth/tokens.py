"""Bearer tokens (RFC 6750), which are signed JWTs (RFC 7519), checked as RFC 8725 recommends.

The claims are ``sub``, ``exp``, ``scope`` or ``scp`` (words separated by spaces, or a list of them) and ``workflows``
(a list of entries, see ``rights``), or what the settings say. ``docs/tokens.md`` shows whole tokens. The kind of the
key decides which algorithms are allowed. Nothing in a token does.
"""

import contextlib
import hmac
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple, Self

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt.algorithms import HMACAlgorithm

from chronoverse.auth.jwks import KeySetStore, PublishedKeys, fetch_key_set
from chronoverse.auth.local_secret import local_secret
from chronoverse.auth.minting import mint as mint
from chronoverse.auth.rights import ADMIN as ADMIN
from chronoverse.auth.rights import READ as READ
from chronoverse.auth.rights import WRITE as WRITE
from chronoverse.auth.rights import Workflows, WorkflowsMap
from chronoverse.errors import Forbidden, JobNotFound, SettingsError, Unauthorized
from chronoverse.settings import Settings

#: Bytes of an Authorization header, at most. A token for a hundred workflows has under 4,000.
MAX_HEADER_BYTES: Final = 8_192

#: What a client learns about a token whose signature is not valid.
_INVALID: Final = "invalid token"
_BEARER = re.compile(r"bearer ([A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+)", re.ASCII | re.IGNORECASE)
_RSA_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_EC_ALGORITHMS = {"secp256r1": ("ES256",), "secp384r1": ("ES384",), "secp521r1": ("ES512",)}


@dataclass(frozen=True, slots=True)
class Principal:
    """The user that a token is for, and what it allows. Nothing is sent after ``expires_at``, in Unix seconds."""

    subject: str
    expires_at: float
    #: The scopes, each with the workflows that the user has it for.
    rights: Mapping[str, Workflows]

    def require(self, scope: str, workflow_id: str | None = None) -> None:
        """Raises an error unless the user has ``scope``, and has it for the workflow if one is given.

        It is :class:`JobNotFound` when the token is not for this workflow at all, and otherwise :class:`Forbidden`.
        """
        if scope not in self.rights:
            raise Forbidden(f"the token lacks the scope {scope}")
        if workflow_id is None or workflow_id in self.rights[scope]:
            return
        if any(workflow_id in workflows for workflows in self.rights.values()):
            raise Forbidden(f"the token lacks the scope {scope} for this workflow")
        raise JobNotFound("the token is not for this workflow")


class Key(NamedTuple):
    """A key, and the algorithms that it may be used with."""

    material: Any
    algorithms: tuple[str, ...]


class _PreparedHmac(HMACAlgorithm):
    """HS256 with a key that :func:`_secret_key` has checked. The library would check it again for each token."""

    def prepare_key(self, key: Any) -> bytes:
        return bytes(key)

    def check_key_length(self, key: bytes) -> None:
        pass

    def sign(self, msg: bytes, key: bytes) -> bytes:
        return hmac.digest(key, msg, "sha256")


#: The library checks signatures only. Claims are checked here, with ``now`` as an argument and strict types.
_SIGNATURES: Final = jwt.PyJWS()
_SIGNATURES.unregister_algorithm("HS256")
_SIGNATURES.register_algorithm("HS256", _PreparedHmac(HMACAlgorithm.SHA256))


class Verifier:
    """Turns Authorization headers into principals, with given keys or with an issuer's published keys."""

    def __init__(self, keys: Sequence[Key] | PublishedKeys, settings: Settings) -> None:
        self._keys = keys
        self._settings = settings
        #: The rights of groups. None when tokens name workflows.
        self.groups = WorkflowsMap(settings.jwt_workflows_map) if settings.jwt_workflows_map else None

    @classmethod
    def from_settings(
        cls, settings: Settings, fetch: Callable[[str], bytes] | None = None, store: KeySetStore | None = None
    ) -> Self:
        """A verifier with the key that ``settings`` name. Makes the local secret if that is the key.

        ``fetch`` fetches published keys, by default :func:`fetch_key_set`. ``store`` shares them with other nodes.
        Raises :class:`SettingsError` when there is no usable key. Rights of groups are not read yet.
        """
        if settings.jwt_jwks_url is not None:
            fetch = fetch or partial(fetch_key_set, ca_file=settings.ca_file)
            return cls(PublishedKeys(settings.jwt_jwks_url, settings.data_dir, store=store, fetch=fetch), settings)
        if settings.jwt_public_key is not None:
            return cls([_pem_key(settings.jwt_public_key)], settings)
        return cls([_secret_key(secret) for secret in secrets(settings)], settings)

    @property
    def published(self) -> PublishedKeys | None:
        """The issuer's published keys, if tokens are checked with these."""
        return self._keys if isinstance(self._keys, PublishedKeys) else None

    def verify(self, authorization: str | None, now: float) -> Principal:
        """The principal of the bearer token in the header ``authorization``, at Unix time ``now``.

        Raises :class:`Unauthorized`, with published keys :class:`chronoverse.errors.SigningKeysUnavailable`, and with
        rights of groups :class:`Forbidden` or :class:`chronoverse.errors.RightsUnavailable`.
        """
        if authorization is None:
            raise Unauthorized("a bearer token is required")
        if len(authorization) > MAX_HEADER_BYTES:
            raise Unauthorized(f"the Authorization header has more than {MAX_HEADER_BYTES} bytes")
        found = _BEARER.fullmatch(authorization)
        if found is None:
            raise Unauthorized("the Authorization header is not a bearer token")
        return _principal(self._claims(found[1]), self._settings, self.groups, now)

    def _claims(self, token: str) -> dict[str, Any]:
        """The claims of a token whose signature is valid. Only then may a message say what is wrong with the token."""
        try:
            signed = self._signed(token)
        except jwt.InvalidSignatureError as error:
            raise Unauthorized(_INVALID, "the token's signature is invalid") from error
        except jwt.InvalidAlgorithmError as error:
            raise Unauthorized(_INVALID, "the token's algorithm (alg) is not one of the key's") from error
        except (jwt.PyJWTError, UnsupportedAlgorithm, ValueError, TypeError, RecursionError) as error:
            raise Unauthorized(_INVALID, "the token's header cannot be read") from error
        if "crit" in signed["header"]:  # https://www.rfc-editor.org/rfc/rfc7515#section-4.1.11
            raise Unauthorized("the token requires unsupported extensions (crit)")
        try:
            claims = json.loads(signed["payload"])
        except (ValueError, RecursionError):
            claims = None
        if not isinstance(claims, dict):
            raise Unauthorized("the token's claims are not a JSON object")
        return claims

    def _signed(self, token: str) -> dict[str, Any]:
        """The token's parts. Raises InvalidSignatureError if it was made with none of the keys."""

        def decode(key: Key) -> dict[str, Any]:
            return _SIGNATURES.decode_complete(token, key.material, algorithms=list(key.algorithms))

        if isinstance(self._keys, PublishedKeys):
            return decode(self._published_key(token, self._keys))
        *others, last = self._keys
        for key in others:
            with contextlib.suppress(jwt.InvalidSignatureError):
                return decode(key)
        return decode(last)

    @staticmethod
    def _published_key(token: str, keys: PublishedKeys) -> Key:
        published = keys.get(jwt.get_unverified_header(token).get("kid"))
        try:
            key = _public_key(published.key)
        except ValueError as error:
            raise Unauthorized(_INVALID, "the token's key is not usable") from error
        return key._replace(algorithms=tuple(name for name in key.algorithms if name == published.algorithm_name))


def _principal(claims: dict[str, Any], settings: Settings, groups: WorkflowsMap | None, now: float) -> Principal:
    if "cnf" in claims:  # https://www.rfc-editor.org/rfc/rfc7800#section-3.1
        raise Unauthorized("the token is bound to a key (cnf), as with DPoP: only bearer tokens are accepted")
    subject, expires_at = claims.get("sub"), _time(claims, "exp")
    if settings.jwt_issuer is not None and claims.get("iss") != settings.jwt_issuer:
        raise Unauthorized("the token's issuer (iss) is not CHRONOVERSE_JWT_ISSUER")
    _check_audience(claims.get("aud"), settings.jwt_audience)
    if expires_at is None:
        raise Unauthorized("the token's exp is missing or not a time in seconds")
    if now >= expires_at:
        raise Unauthorized("the token has expired")
    for claim in ("nbf", "iat"):
        # Seconds by which an issuer's clock may be ahead of ours. This does not apply to ``exp``, at which streams end.
        if claim in claims and ((start := _time(claims, claim)) is None or start > now + 60):
            raise Unauthorized(f"the token is not valid yet ({claim})")
    if not isinstance(subject, str):
        raise Unauthorized("the token's sub is missing or not a string")
    if not isinstance(claims.get("jti", ""), str):
        raise Unauthorized("the token's jti is not a string")
    name = settings.jwt_workflows_claim
    if groups is None:
        return Principal(subject, expires_at, dict.fromkeys(_scopes(claims), _workflows(claims, name)))
    names = claims.get(name)
    if not isinstance(names, list) or not all(isinstance(each, str) for each in names):
        raise Unauthorized(f"the token's claim {name} is not a list of groups")
    # An issuer that knows only groups makes tokens without scopes of ours.
    scopes = _scopes(claims) if claims.keys() & {"scope", "scp"} else frozenset[str]()
    rights = groups.rights(names, scopes)
    if not rights:
        raise Forbidden(f"no group of the token (claim {name}) has rights in CHRONOVERSE_JWT_WORKFLOWS_MAP")
    return Principal(subject, expires_at, rights)


def _check_audience(claim: object, audience: str | None) -> None:
    """Refuses a token that is for another service. https://www.rfc-editor.org/rfc/rfc8725#section-3.9

    Without an ``audience`` of our own, no token is for us if it names one (RFC 7519 section 4.1.3).
    """
    named = [claim] if isinstance(claim, str) else [] if claim is None else claim
    if not isinstance(named, list) or not all(isinstance(each, str) for each in named):
        raise Unauthorized("the token's audience (aud) must be a string or a list of strings")
    if audience is None and any(named):
        raise Unauthorized("the token names an audience (aud), and CHRONOVERSE_JWT_AUDIENCE is not set")
    if audience is not None and audience not in named:
        raise Unauthorized("the token's audience (aud) is not CHRONOVERSE_JWT_AUDIENCE")


def _scopes(claims: dict[str, Any]) -> frozenset[str]:
    """The scopes: a text as RFC 8693 section 4.2 has it, or a list. ``scp`` is read if there is no ``scope``."""
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
    """The claim as Unix time, or None. JSON's true, "1" and NaN are not times, though Python can compare them."""
    value = claims.get(name)
    if type(value) is not int and type(value) is not float:
        return None
    # The last second of the year 9999 in Unix time: the latest time that a ``datetime`` can hold.
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
    """The HS256 keys of ``settings``: all are accepted, and the first one signs.

    Raises :class:`SettingsError` when they name another kind of key, or none.
    """
    if settings.jwt_secret is not None:
        return settings.jwt_secret.split(b",")
    if settings.has_local_secret:
        return [local_secret(settings.data_dir)]
    if settings.jwt_public_key or settings.jwt_jwks_url:
        raise SettingsError("only the holder of the private key can make tokens")
    raise SettingsError("CHRONOVERSE_REDIS_URL needs one of CHRONOVERSE_JWT_SECRET, _JWT_PUBLIC_KEY and _JWT_JWKS_URL")
