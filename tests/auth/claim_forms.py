"""The forms of a token's claims, as issuers write them, and the service's answer to each."""

import json
import time
from typing import Any, Final, NamedTuple

import jwt

from chronoverse.auth.tokens import READ, WRITE

AUDIENCE: Final = "https://logs.example.com"
ISSUER: Final = "https://id.example.com/realms/platform"
CLAIM: Final = "https://logs.example.com/workflows"
#: The settings of a service, in addition to those for an issuer.
CONFIGURED: Final[dict[str, Any]] = {"jwt_audience": AUDIENCE, "jwt_issuer": ISSUER, "jwt_workflows_claim": CLAIM}


class Refused(NamedTuple):
    """A refusal's status, and words of its reason, which is logged and, unless the status is 404, in the answer."""

    status: int
    reason: str


#: Changes to a good token's claims, and the answer of a service without the settings above. None removes a claim.
PLAIN_FORMS: Final[dict[str, tuple[dict[str, Any], Refused | None]]] = {
    "as minted": ({}, None),
    "scope is a list": ({"scope": [READ, WRITE]}, None),
    "scp is a text": ({"scope": None, "scp": f"{READ} {WRITE}"}, None),
    "scp is a list": ({"scope": None, "scp": [READ]}, None),
    "scope and scp": ({"scp": WRITE}, None),
    "scp lacks the scope": ({"scope": None, "scp": [WRITE]}, Refused(403, "lacks the scope logs:read")),
    "scope lacks the scope": ({"scope": "openid profile"}, Refused(403, "lacks the scope logs:read")),
    "no scope": ({"scope": None}, Refused(401, "no scope")),
    "scope of numbers": ({"scope": [7]}, Refused(401, "no scope")),
    "any issuer": ({"iss": "https://anybody.example"}, None),
    "an audience": ({"aud": "account"}, Refused(401, "CHRONOVERSE_JWT_AUDIENCE is not set")),
    "audiences": ({"aud": ["account", AUDIENCE]}, Refused(401, "CHRONOVERSE_JWT_AUDIENCE is not set")),
    "an audience that is a number": ({"aud": 7}, Refused(401, "(aud)")),
    "another claim for the workflows": ({"workflows": None, CLAIM: ["mine"]}, Refused(401, "claim workflows")),
    "workflows is a text": ({"workflows": "mine"}, Refused(401, "claim workflows")),
    "every workflow": ({"workflows": ["*"]}, None),
    "a prefix": ({"workflows": ["m*"]}, None),
    "another prefix": ({"workflows": ["mine.*"]}, Refused(404, "not for this workflow")),
    "a suffix": (
        {"workflows": ["mine", "*-x"]},
        Refused(401, "claim workflows has '*-x': * is allowed only as the last"),
    ),
    "a star in the middle": ({"workflows": ["a*b"]}, Refused(401, "claim workflows has 'a*b': * is allowed only")),
    "two stars": ({"workflows": ["mi**"]}, Refused(401, "claim workflows has 'mi**': * is allowed only as the last")),
    "an empty entry": ({"workflows": ["mine", ""]}, Refused(401, "has '': an entry must not be empty")),
    "a prefix of no id": ({"workflows": [".*"]}, Refused(401, "has '.*': an entry must be a workflow id")),
    "no sub": ({"sub": None}, Refused(401, "sub")),
    "no exp": ({"exp": None}, Refused(401, "exp")),
    "expired": ({"exp": 1}, Refused(401, "expired")),
    "not valid yet": ({"nbf": 4_000_000_000}, Refused(401, "not valid yet (nbf)")),
    "claims that the service does not know": ({"azp": "ci", "realm_access": {"roles": ["x"]}, "typ": "Bearer"}, None),
}
#: The same for a service with those settings, whose good tokens match them.
CONFIGURED_FORMS: Final[dict[str, tuple[dict[str, Any], Refused | None]]] = {
    "as minted": ({}, None),
    "one audience of several": ({"aud": ["account", AUDIENCE]}, None),
    "no audience": ({"aud": None}, Refused(401, "(aud) is not CHRONOVERSE_JWT_AUDIENCE")),
    "another audience": ({"aud": "account"}, Refused(401, "(aud) is not CHRONOVERSE_JWT_AUDIENCE")),
    "other audiences": ({"aud": ["account", AUDIENCE + "/"]}, Refused(401, "(aud) is not CHRONOVERSE_JWT_AUDIENCE")),
    "no issuer": ({"iss": None}, Refused(401, "issuer")),
    "another issuer": ({"iss": ISSUER + "/"}, Refused(401, "issuer")),
    "issuers": ({"iss": [ISSUER]}, Refused(401, "issuer")),
    "every workflow": ({CLAIM: ["*"]}, None),
    "another workflow": ({CLAIM: ["theirs"]}, Refused(404, "not for this workflow")),
    "workflows in the usual claim": ({CLAIM: None, "workflows": ["mine"]}, Refused(401, CLAIM)),
    "scope is a list": ({"scope": [READ]}, None),
    "scp is a list": ({"scope": None, "scp": [READ]}, None),
}


def signed(claims: dict[str, Any], key: Any, algorithm: str) -> str:
    """A token with these claims. ``jwt.encode`` would refuse some of them."""
    return jwt.PyJWS().encode(json.dumps(claims).encode(), key, algorithm, {"kid": "k1"})


def good_claims(**more: object) -> dict[str, Any]:
    """The claims of a token for the workflow ``mine``."""
    return {"sub": "ada", "exp": int(time.time()) + 60, "scope": f"{READ} {WRITE}", **more}
