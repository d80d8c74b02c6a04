"""TLS of clients: which authorities they trust, and why they reject a certificate."""

import ssl
from collections.abc import Iterator
from pathlib import Path


def tls_context(ca_file: Path | None) -> ssl.SSLContext | None:
    """A context that trusts the system's authorities and those in ``ca_file``. Raises OSError for an unreadable file.

    None without ``ca_file``: libraries then load the system's authorities on demand.
    """
    if ca_file is None:
        return None
    context = ssl.create_default_context()
    context.load_verify_locations(ca_file)
    return context


def certificate_problem(error: BaseException, setting: str = "CHRONOVERSE_CA_FILE") -> str | None:
    """Why the server's certificate was rejected, with a hint to ``setting``. None if ``error`` has another cause."""
    for each in _causes(error):
        if isinstance(each, ssl.SSLCertVerificationError):
            hint = f"; {setting} can name a file with your own authority's certificate"
            # Self-signed, or its issuer is missing: https://docs.openssl.org/3.0/man3/X509_STORE_CTX_get_error/
            return f"{each.verify_message}{hint if each.verify_code in (18, 19, 20, 21) else ''}"
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if each is not None and each not in seen:
            seen.append(each)
            yield each
            waiting += [each.__cause__, each.__context__, *(arg for arg in each.args if isinstance(arg, BaseException))]
