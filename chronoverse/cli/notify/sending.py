"""Posts a message to a receiver, following Standard Webhooks (https://www.standardwebhooks.com).

A workflow's administrator chooses the URL, so the receiver is untrusted: it may be slow, answer endlessly, or resolve
to an internal address. Connects only to the address that was checked.
"""

import base64
import contextlib
import hashlib
import hmac
import http.client
import io
import re
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any, Final, cast

from chronoverse.errors import ChronoverseError, Forbidden
from chronoverse.joblog.watches import split_url

#: Seconds for one delivery, from connecting to the response headers.
SEND_SECONDS: Final = 10.0
#: The IPv6 addresses that are routed globally, and those that NAT64 maps to IPv4 addresses.
_GLOBAL: Final = IPv6Network("2000::/3")
_NAT64: Final = IPv6Network("64:ff9b::/96")
#: Addresses reserved for protocols. Older versions of Python consider them global.
_PROTOCOLS: Final = IPv4Network("192.0.0.0/24")


class NotDelivered(ChronoverseError):
    """Raised when a receiver did not accept a message. ``retry_after`` is its Retry-After in seconds, or 0."""

    def __init__(self, message: str, retry_after: int = 0):
        super().__init__(message)
        self.retry_after = retry_after


def is_public(address: str) -> bool:
    """Whether an address, or the IPv4 address embedded in it, is public."""
    found = ip_address(address.partition("%")[0])
    if isinstance(found, IPv6Address):
        embedded = found.ipv4_mapped or (IPv4Address(int(found) & 0xFFFFFFFF) if found in _NAT64 else None)
        if embedded is None:
            # 6to4 and Teredo are obsolete, and their addresses embed others.
            return found in _GLOBAL and found.is_global and found.sixtofour is None and found.teredo is None
        found = embedded
    return found.is_global and not found.is_multicast and found not in _PROTOCOLS


def signed_headers(secret: str, webhook_id: str, seconds: int, body: bytes) -> dict[str, str]:
    """The headers of a message sent at Unix time ``seconds``."""
    key = base64.b64decode(secret.removeprefix("whsec_") + "==")
    digest = hmac.digest(key, b"%b.%d.%b" % (webhook_id.encode(), seconds, body), hashlib.sha256)
    return {
        "webhook-id": webhook_id,
        "webhook-timestamp": str(seconds),
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }


def post(
    url: str,
    headers: Mapping[str, str],
    body: bytes,
    hosts: Mapping[str, bool],
    context: ssl.SSLContext,
    seconds: float = SEND_SECONDS,
) -> None:
    """Posts a message. ``hosts`` is CHRONOVERSE_WEBHOOK_HOSTS. Raises :class:`NotDelivered`."""
    try:
        parts, host, may_be_private = split_url(url, hosts)
    except (ValueError, Forbidden) as error:
        raise NotDelivered(str(error)) from error
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    fixed = {"Host": parts.netloc, "User-Agent": "chronoverse", "Content-Type": "application/json"}
    deadline = time.monotonic() + seconds

    def left() -> float:
        if (rest := deadline - time.monotonic()) <= 0:
            raise TimeoutError
        return rest

    try:
        with _connect(host, parts.port or {"http": 80, "https": 443}[parts.scheme], may_be_private, left) as plain:
            plain.settimeout(left())
            with context.wrap_socket(plain, server_hostname=host) if parts.scheme == "https" else plain as sock:
                connection = http.client.HTTPConnection(host)
                connection.sock = cast(Any, _TimedSocket(sock, left))
                connection.request("POST", target, body, {**fixed, **headers, "Connection": "close"})
                # Only the headers of the response are read.
                response = connection.getresponse()
    except ssl.SSLCertVerificationError as error:
        raise NotDelivered(f"{host}: invalid certificate: {error.verify_message}") from error
    except http.client.HTTPException as error:
        raise NotDelivered(f"{host}: no valid HTTP answer") from error
    except (OSError, ValueError) as error:
        late = time.monotonic() >= deadline
        why = f"no answer within {seconds:g} s" if late else getattr(error, "strerror", None) or repr(error)[:200]
        raise NotDelivered(f"{host}: {why}") from error
    if not 200 <= response.status < 300:
        asked = response.headers.get("Retry-After", "")
        seconds_asked = int(asked) if re.fullmatch("[0-9]{1,6}", asked) else 0
        raise NotDelivered(f"{host} answered {response.status}", seconds_asked)


class _TimedSocket(io.RawIOBase):
    """A socket for :mod:`http.client`, with one time limit for all calls: a socket's timeout limits each call."""

    def __init__(self, sock: socket.socket, left: Callable[[], float]) -> None:
        self._sock, self._left = sock, left

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._sock.settimeout(self._left())
        return self._sock.recv_into(buffer)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def sendall(self, data: bytes) -> None:
        # A TLS socket sends 16 KB at a time, each with the full timeout.
        for at in range(0, len(data), 16_384):
            self._sock.settimeout(self._left())
            self._sock.sendall(data[at : at + 16_384])


def _connect(host: str, port: int, may_be_private: bool, left: Callable[[], float]) -> socket.socket:
    """Connects to the first allowed address that accepts, within ``left()`` seconds.

    Raises OSError, :class:`NotDelivered`.
    """
    found = dict.fromkeys(str(each[4][0]) for each in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    allowed = [each for each in found if may_be_private or is_public(each)]
    if not allowed:
        raise NotDelivered(f"{host} has no public address: it may need +private in CHRONOVERSE_WEBHOOK_HOSTS")
    for address in allowed[:-1]:
        with contextlib.suppress(OSError):
            return socket.create_connection((address, port), left() / 2)
    return socket.create_connection((allowed[-1], port), left())
