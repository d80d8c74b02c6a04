"""Who asks, and what they may.

tokens  checks and makes bearer tokens, which are signed JWTs
jwks    fetches an issuer's public keys, and keeps them
"""
