"""A key for signing tokens."""

from typing import Final

from cryptography.hazmat.primitives.asymmetric import rsa

#: Making it takes 0.1 s, so that all tests of a process share it.
RSA: Final = rsa.generate_private_key(65_537, 2_048)
