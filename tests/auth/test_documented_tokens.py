"""The tokens in docs/tokens.md: each is accepted with the settings shown before it."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from jwt.algorithms import RSAAlgorithm

from chronoverse.auth.tokens import Verifier
from chronoverse.settings import Settings
from tests.support.keys import RSA

PAGE: Final = (Path(__file__).parents[2] / "docs" / "tokens.md").read_text()
#: Within the lifetime of every token on the page.
NOW: Final = 1_772_532_001.0
ED25519: Final = ed25519.Ed25519PrivateKey.generate()

_EXAMPLE: Final = re.compile(
    r"^#+ (?P<title>[^\n]+)\n(?:(?!^#+ ).)*?"
    r"^```sh\n(?P<settings>CHRONOVERSE_[^`]*)^```\n(?:(?!^#+ ).)*?"
    r"^```json\n(?P<header>.*?)^```\n(?:(?!^#+ ).)*?"
    r"^```json\n(?P<claims>.*?)^```\n",
    re.DOTALL | re.MULTILINE,
)
EXAMPLES: Final = {found["title"]: found for found in _EXAMPLE.finditer(PAGE)}


def environ_of(example: re.Match[str]) -> dict[str, str]:
    return dict(line.split("=", 1) for line in example["settings"].splitlines())


def verifier_for(environ: dict[str, str], data_dir: Path, key: Any, kid: str | None) -> Verifier:
    """A verifier with these settings. ``key`` is the content of the file or URL in them."""
    if "CHRONOVERSE_JWT_PUBLIC_KEY" in environ:
        pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        environ = environ | {"CHRONOVERSE_JWT_PUBLIC_KEY": pem}
    settings = Settings.from_env({"CHRONOVERSE_DATA_DIR": str(data_dir), **environ})
    jwk = RSAAlgorithm.to_jwk(RSA.public_key(), as_dict=True)
    return Verifier(settings, lambda _: json.dumps({"keys": [{**jwk, "kid": kid}]}).encode())


def test_the_page_has_an_example_for_each_kind_of_key_and_two_issuers() -> None:
    """The other tests depend on these."""
    assert list(EXAMPLES) == ["A secret: HS256", "A public key: PEM", "Published keys: JWKS", "Keycloak", "Auth0"]


@pytest.mark.parametrize("title", EXAMPLES)
def test_each_token_on_the_page_is_accepted(tmp_path: Path, title: str) -> None:
    """Signed with exactly the JSON on the page."""
    environ = environ_of(EXAMPLES[title])
    header, claims = (json.loads(EXAMPLES[title][name]) for name in ("header", "claims"))
    keys: dict[str, Any] = {"HS256": environ.get("CHRONOVERSE_JWT_SECRET", "").encode(), "EdDSA": ED25519, "RS256": RSA}
    key = keys[header["alg"]]
    token = jwt.PyJWS().encode(EXAMPLES[title]["claims"].encode(), key, header["alg"], header)

    principal = verifier_for(environ, tmp_path, key, header.get("kid")).verify(f"Bearer {token}", NOW)
    assert (principal.subject, principal.expires_at) == (claims["sub"], claims["exp"])
    principal.require("logs:write", "wf_1")


def test_the_program_on_the_page_makes_a_token_that_is_accepted(tmp_path: Path) -> None:
    """It signs with the private half of the service's public key."""
    (program,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    (tmp_path / "private.pem").write_bytes(ED25519.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    token = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    ).stdout.strip()

    verifier = verifier_for(environ_of(EXAMPLES["A public key: PEM"]), tmp_path, ED25519, None)
    assert verifier.verify(f"Bearer {token}", time.time()).rights.keys() == {"logs:write"}
