"""Makes tokens that are signed with a secret: JWTs (RFC 7519) with HS256.

The command line makes one for each connection to the service of its own machine. The import of the library that checks
tokens takes 70 ms, so this does without it.
"""

import hmac
from base64 import urlsafe_b64encode
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Self

import orjson

from chronoverse.settings import Settings

#: Stands for all workflows in the claim ``workflows``. No workflow can have this id.
EVERY_WORKFLOW: Final = "*"


@dataclass(frozen=True, slots=True)
class ClaimRules:
    """What the claims of every token must say, as the settings have it. None means that nothing is required."""

    audience: str | None = None
    issuer: str | None = None
    workflows_claim: str = "workflows"

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """The rules that ``settings`` name."""
        return cls(settings.jwt_audience, settings.jwt_issuer, settings.jwt_workflows_claim)


_NO_RULES: Final = ClaimRules()


def mint(
    secret: bytes,
    subject: str,
    scopes: Iterable[str],
    workflows: Iterable[str],
    ttl_seconds: int,
    now: float,
    rules: ClaimRules = _NO_RULES,
) -> str:
    """A token that is signed with ``secret`` and valid from ``now`` (Unix time) for ``ttl_seconds``.

    A service with the same ``rules`` accepts it.
    """
    start = int(now)
    claims = {"sub": subject, "iat": start, "exp": start + ttl_seconds, "scope": " ".join(scopes)}
    claims |= {rules.workflows_claim: list(workflows)}
    required = {"iss": rules.issuer, "aud": rules.audience}
    claims |= {name: value for name, value in required.items() if value is not None}
    signed = b".".join(map(_base64url, (b'{"alg":"HS256","typ":"JWT"}', orjson.dumps(claims))))
    return b".".join((signed, _base64url(hmac.digest(secret, signed, "sha256")))).decode()


def _base64url(data: bytes) -> bytes:
    return urlsafe_b64encode(data).rstrip(b"=")
