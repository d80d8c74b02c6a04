"""Which user sends a request, what that user may do, and which servers a client trusts.

tokens        ``Verifier`` checks bearer tokens (signed JWTs) and returns a ``Principal``
rights        ``Workflows``: which workflows a user has a scope for, by ids and by prefixes. ``Rule``: by claims
trust         the issuers of CHRONOVERSE_TRUST_FILE, and the rules for their tokens
toml_file     a file with rights, which is read again when it has changed
minting       ``mint`` makes tokens
jwks          ``PublishedKeys`` fetches the public keys that an issuer publishes, and shares them with other workers
token_file    a client's own token in a file that is renewed
local_secret  the secret in the data directory, which is the key when no other key is configured
tls           which certificates a client trusts, and what is wrong with the others
"""
