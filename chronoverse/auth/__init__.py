"""Tokens and rights of requests, and the certificates that clients trust.

tokens        ``Verifier`` checks bearer tokens (signed JWTs) and returns a ``Principal``
rights        ``Workflows``: a scope's workflows, by ids and prefixes. ``Rule``: grants rights by claims
trust         the issuers of CHRONOVERSE_TRUST_FILE, and the rules for their tokens
toml_file     a TOML file with rights, reread when it changes
minting       ``mint`` creates tokens
jwks          ``PublishedKeys`` fetches an issuer's public keys, and keeps them in the store for an outage
token_file    a client's token in a file that another program renews
local_secret  the secret in the data directory, used if no key is configured
tls           which certificates a client trusts, and why others are refused
"""
