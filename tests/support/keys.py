"""A key for signing tokens."""

from typing import Final

from cryptography.hazmat.primitives.asymmetric import rsa

#: Shared by all tests of a process, because generating it takes 0.1 s.
RSA: Final = rsa.generate_private_key(65_537, 2_048)
