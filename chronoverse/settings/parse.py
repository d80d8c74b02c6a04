"""Parsers of single settings. They raise ValueError with a message that begins with "must"."""

import contextlib
import os
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, urlsplit

from chronoverse.settings.redis_url import RedisUrl

_BIND = re.compile(r"unix:.+|(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|[A-Za-z0-9._-]+):(?P<port>[0-9]{1,5})", re.ASCII)

_ORIGIN: Final = re.compile(
    r"(?P<scheme>https?)://(?:[a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\])(?::(?P<port>[1-9][0-9]{0,4}))?", re.ASCII
)
#: A name, an IPv4 address, or an IPv6 address without brackets.
_HOST: Final = re.compile(r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*|[0-9a-f:.]+", re.ASCII)
_DEFAULT_PORTS: Final = {"http": ("80",), "https": ("443",)}


@dataclass(frozen=True)
class WholeNumber:
    """Parses an integer in plain digits, from ``low`` to ``high``."""

    low: int
    high: int

    def __call__(self, text: str) -> int:
        if re.fullmatch("[0-9]{1,15}", text) and self.low <= int(text) <= self.high:
            return int(text)
        raise ValueError(f"must be an integer from {self.low} to {self.high}")


def matching(pattern: str, what: str) -> Callable[[str], str]:
    """Parses a text that fully matches ``pattern``. ``what`` describes it in the error message."""

    def parse(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"must be {what}")
        return text

    return parse


printable: Final = matching("[!-~]{1,512}", "1 to 512 printable ASCII characters without spaces")
#: Parses requested scopes. Without ``openid``, an issuer does not report who signed in.
scopes: Final = matching(
    "(?=(.* )?openid( |$))[!-~]{1,128}( [!-~]{1,128}){0,31}", "words separated by spaces, including openid"
)
bearer_token: Final = matching("[A-Za-z0-9._~+/=-]{1,8192}", "a bearer token")


def one_of(*words: str) -> Callable[[str], str]:
    """Parses one of ``words``, case-insensitively."""

    def parse(text: str) -> str:
        if text.lower() not in words:
            raise ValueError(f"must be one of {', '.join(words)}")
        return text.lower()

    return parse


def mask_forms(text: str) -> tuple[tuple[str, str], ...] | None:
    """Parses ``on``, ``off`` (returns None), or the path of a TOML file with more formats of secrets, by name."""
    if text.lower() in ("on", "off"):
        return () if text.lower() == "on" else None
    try:
        forms = tomllib.loads(absolute_path(text).read_text("utf-8")).get("forms")
    except (OSError, ValueError) as error:
        raise ValueError(f"must be on, off, or the absolute path of a TOML file: {error}") from error
    if not isinstance(forms, dict) or not all(isinstance(form, str) for form in forms.values()):
        raise ValueError(f"must be a file with a table [forms] of regular expressions: {text}")
    return tuple(forms.items())


def boolean(text: str) -> bool:
    return one_of("true", "false")(text) == "true"


def traces(text: str) -> bool:
    """Parses whether to send traces. Raises ValueError if the optional packages for it are missing."""
    wanted = boolean(text)
    try:
        installed = not wanted or find_spec("opentelemetry.exporter.otlp.proto.http") is not None
    except ModuleNotFoundError:
        installed = False
    if not installed:
        raise ValueError("needs OpenTelemetry: install the extra otel (docs/installing.md)")
    return wanted


def claim_name(text: str) -> str:
    """Parses a claim's name, which must not be a standard claim. Private claims often have URLs as names."""
    taken = ("sub", "exp", "nbf", "iat", "iss", "aud", "jti", "scope", "scp")
    if not re.fullmatch("[!-~]{1,256}", text) or text in taken:
        raise ValueError("must be 1 to 256 printable ASCII characters without spaces, and not a standard claim")
    return text


def redis_url(text: str) -> str:
    RedisUrl.parse(text)
    return text


def jwks_url(text: str) -> str:
    """Parses a key set's URL: HTTPS or on this machine, so that nobody can impersonate the issuer."""
    parts = _url(text, "https", "http")
    if parts.scheme == "http" and not is_loopback(parts.hostname):
        raise ValueError("must be https:// except for this machine")
    return text


def issuer(text: str) -> str:
    """Parses an issuer's URL (HTTPS or on this machine). Kept exactly, as ``issuer`` in its metadata must be equal."""
    parts = urlsplit(jwks_url(text))
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError("must have no user, query or fragment")
    return text


def service_url(text: str) -> str:
    """Parses a service's URL, without a trailing slash, user, query or fragment."""
    parts = _url(text, "http", "https")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError("must have no user, query or fragment")
    return text.rstrip("/")


def origins(text: str) -> tuple[str, ...]:
    """Parses origins as browsers send them: scheme, host, and any port but the scheme's default. No wildcards.

    https://www.rfc-editor.org/rfc/rfc6454#section-6.2
    """
    found = tuple(text.replace(",", " ").split())
    for origin in found:
        match = _ORIGIN.fullmatch(origin)
        if not match or match["port"] in _DEFAULT_PORTS[match["scheme"]]:
            raise ValueError(
                "must be origins as browsers send them, in lower case and without a path, such as https://ci.example or"
                f" http://127.0.0.1:3000, separated by spaces: {origin!r} is invalid"
            )
    return found


def webhook_hosts(text: str) -> tuple[tuple[str, bool], ...]:
    """Parses host names and addresses, optionally with ``+private``. Returns (host, whether private) pairs."""
    found: dict[str, bool] = {}
    for entry in text.replace(",", " ").split():
        host, plus, private = entry.lower().partition("+")
        with contextlib.suppress(ValueError):
            host = str(ip_address(host.strip("[]")))
        if private not in ("", "private") or (plus and not private) or not _HOST.fullmatch(host):
            raise ValueError(f"must be hosts, each optionally with +private, separated by spaces: {entry!r} is invalid")
        found[host] = bool(private)
    return tuple(found.items())


def attribute_names(text: str) -> tuple[str, ...]:
    """Parses attribute names, separated by spaces or commas."""
    names = tuple(text.replace(",", " ").split())
    if not names or not all(re.fullmatch("[!-~]{1,256}", name) for name in names):
        raise ValueError("must be attribute names separated by spaces")
    return names


def bind(text: str) -> str:
    """Parses an address to listen on, in gunicorn's notation."""
    found = _BIND.fullmatch(text)
    try:
        if found and int(found["port"] or 0) < 65_536 and (not found["v6"] or IPv6Address(found["v6"])):
            return text
    except ValueError:
        pass
    raise ValueError("must be HOST:PORT, [IPV6]:PORT or unix:PATH")


def archive_url(text: str) -> str:
    """Parses the URL of a directory or bucket, or ``none``."""
    parts = urlsplit(text)
    is_file = parts.scheme == "file" and not parts.netloc and parts.path.strip("/")
    is_bucket = parts.scheme == "s3" and re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", parts.netloc)
    if parts.scheme == "s3" and parts.netloc and not is_bucket:
        raise ValueError(
            "must have a valid S3 bucket name: 3 to 63 lowercase letters, digits, dots and hyphens, with a letter or "
            "digit at both ends"
        )
    if text != "none" and (not (is_file or is_bucket) or parts.query or parts.fragment):
        raise ValueError("must be file:///DIRECTORY, s3://BUCKET/PREFIX or none")
    return text


def secret(text: str) -> bytes:
    """Parses one or two HS256 keys, separated by a comma."""
    keys = os.fsencode(text).split(b",")
    # A key must be at least as long as the hash: https://www.rfc-editor.org/rfc/rfc7518#section-3.2
    if len(keys) > 2 or any(len(key) < 32 for key in keys):
        raise ValueError("must be a secret of at least 32 bytes, or two separated by a comma")
    return os.fsencode(text)


def public_key(text: str) -> str:
    """Parses a PEM public key, or the path of a file with one."""
    if "-----BEGIN" not in text:
        try:
            with open(text, encoding="ascii") as file:
                # The longest RSA keys in use have under 3,000 characters.
                text = file.read(65_536)
        except (OSError, ValueError):
            raise ValueError("must be a PEM public key or the path of a readable one") from None
    if "PRIVATE KEY-----" in text:
        raise ValueError("must be a public key, not a private one")
    if "-----BEGIN PUBLIC KEY-----" not in text:
        raise ValueError("must be a PEM public key (-----BEGIN PUBLIC KEY-----)")
    return text


def ca_file(text: str) -> Path:
    """Parses the path of a file with PEM certificates."""
    import ssl  # takes 10 ms, and few commands need it

    path = absolute_path(text)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except (OSError, ValueError):  # ssl.SSLError is an OSError
        raise ValueError("must be the path of a readable file with PEM certificates") from None
    return path


def absolute_path(text: str) -> Path:
    """Parses a path, and makes it absolute. Expands ``~``."""
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError:
        raise ValueError("must be an absolute path: this user has no home directory") from None


def is_loopback(host: str | None) -> bool:
    """Whether ``host`` always means this machine."""
    try:
        return host == "localhost" or ip_address(host or "").is_loopback
    except ValueError:
        return False


def _url(text: str, *schemes: str) -> SplitResult:
    names = " or ".join(f"{scheme}://" for scheme in schemes)
    expected = f"must be a complete {names} URL, such as {schemes[0]}://host.example:8000 or {schemes[0]}://[::1]:8000"
    try:
        parts = urlsplit(text)
        complete = bool(parts.hostname and parts.port != 0)
    except ValueError:
        raise ValueError(expected) from None
    if parts.scheme not in schemes or not complete or re.search(r"\s", text):
        raise ValueError(expected)
    return parts
