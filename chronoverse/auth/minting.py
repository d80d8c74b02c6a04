"""Creates tokens signed with a secret: JWTs with HS256.

Does not use the library that verifies tokens, because importing it takes 70 ms.
"""

import hmac
from base64 import urlsafe_b64encode
from collections.abc import Iterable
from typing import Final

import orjson

from chronoverse.settings import Settings

EVERY_WORKFLOW: Final = "*"


def mint(
    secret: bytes,
    subject: str,
    scopes: Iterable[str],
    workflows: Iterable[str],
    ttl_seconds: int,
    now: float,
    settings: Settings | None = None,
) -> str:
    """A token signed with ``secret``, valid from ``now`` (Unix time), with the claim names of ``settings``."""
    start = int(now)
    claims = {"sub": subject, "iat": start, "exp": start + ttl_seconds, "scope": " ".join(scopes)}
    claims |= {settings.jwt_workflows_claim if settings else "workflows": list(workflows)}
    required = {"iss": settings.jwt_issuer, "aud": settings.jwt_audience} if settings else {}
    claims |= {name: value for name, value in required.items() if value is not None}
    signed = b".".join(map(_base64url, (b'{"alg":"HS256","typ":"JWT"}', orjson.dumps(claims))))
    return b".".join((signed, _base64url(hmac.digest(secret, signed, "sha256")))).decode()


def _base64url(data: bytes) -> bytes:
    return urlsafe_b64encode(data).rstrip(b"=")
