"""Fake keys, assembled at runtime so that scanners for leaked keys do not find them."""

from typing import Final

LETTERS: Final = "aB3dE5gH7jK9mN1pQ2rS4tU6vW8xY0zA"
GITHUB: Final = "gh" + "p_" + LETTERS + "Zz12"
#: A private key's lines.
PEM: Final = (
    "-----BEGIN RSA " + "PRIVATE KEY-----",
    "Proc-Type: 4,ENCRYPTED",
    "",
    *[LETTERS * 2] * 12,
    LETTERS[:11] + "=",
    "-----END RSA " + "PRIVATE KEY-----",
)
#: The same lines, masked.
MASKED_PEM: Final = tuple("[masked]" if line else "" for line in PEM)
