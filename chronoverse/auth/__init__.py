"""Which user sends a request, and what that user may do.

tokens        ``Verifier`` checks bearer tokens (signed JWTs) and returns a ``Principal``; ``mint`` makes tokens
jwks          ``PublishedKeys`` fetches and caches the public keys that an issuer publishes
local_secret  the secret in the data directory, which is the key when no other key is configured
"""
