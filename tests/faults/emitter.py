"""The lines that writers print, each with a hash: ``w=<writer> n=<k> h=<sha1 of "writer:k">``."""

import hashlib


def line(writer: str, number: int) -> str:
    """Line ``number`` of ``writer``, without its newline."""
    digest = hashlib.sha1(f"{writer}:{number}".encode(), usedforsecurity=False).hexdigest()
    return f"w={writer} n={number} h={digest}"
