"""Who sends a request, with which rights, and which servers a client trusts.

tokens        ``Verifier`` checks bearer tokens (signed JWTs) and returns a ``Principal``
rights        ``Workflows``: the workflows of a scope, by ids and prefixes. ``Rule``: rights by claims
trust         the issuers of CHRONOVERSE_TRUST_FILE, and the rules for their tokens
toml_file     a file with rights, reread when it changes
minting       ``mint`` makes tokens
jwks          ``PublishedKeys`` fetches an issuer's public keys, and shares them with other workers
token_file    a client's token in a file that another program renews
local_secret  the secret in the data directory: the key if no other is configured
tls           which certificates a client trusts, and why others are refused
"""
