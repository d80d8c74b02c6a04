"""Posts a message to a receiver, following Standard Webhooks (https://www.standardwebhooks.com).

A workflow's administrator chooses the URL, so the receiver is untrusted: it may be slow, answer endlessly, or resolve
to an internal address. Connects only to the address that was checked.
"""

import asyncio
import base64
import contextlib
import errno
import hashlib
import hmac
import os
import re
import socket
import ssl
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any, Final

from chronoverse.errors import ChronoverseError, Forbidden
from chronoverse.joblog.watches import split_url

#: IPv6 addresses that are routed globally, and IPv6 addresses that NAT64 maps to IPv4 addresses.
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
            # 6to4 and Teredo are obsolete, and their addresses embed other addresses.
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
    seconds: float = 10.0,
) -> None:
    """Posts a message. Raises :class:`NotDelivered`, also if the response headers take more than ``seconds``."""
    try:
        parts, host, may_be_private = split_url(url, hosts)
        tls, port = (context, parts.port or 443) if parts.scheme == "https" else (None, parts.port or 80)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        fixed = {"Host": parts.netloc, "User-Agent": "chronoverse", "Content-Type": "application/json"}
        fixed |= {**headers, "Content-Length": str(len(body)), "Connection": "close"}
        lines = [f"POST {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fixed.items()), "", ""]
        request = "\r\n".join(lines).encode("ascii") + body
        with asyncio.Runner(loop_factory=None if may_be_private else _PublicLoop) as runner:
            status, retry_after = runner.run(_send(host, port, tls, request, seconds))
    except ssl.SSLCertVerificationError as error:
        raise NotDelivered(f"{host}: invalid certificate: {error.verify_message}") from error
    except (EOFError, asyncio.LimitOverrunError) as error:
        raise NotDelivered(f"{host}: no valid HTTP answer") from error
    except TimeoutError as error:
        raise NotDelivered(f"{host}: no answer within {seconds:g} s") from error
    except OSError as error:
        # asyncio's text contains the address instead of the reason.
        why = os.strerror(error.errno) if isinstance(error, ConnectionError) and error.errno else error.strerror
        raise NotDelivered(f"{host}: {why or 'no address accepts a connection'}") from error
    except (ValueError, Forbidden) as error:
        raise NotDelivered(str(error)) from error
    if not 200 <= status < 300:
        raise NotDelivered(f"{host} returned {status}", retry_after)


class _PublicLoop(asyncio.SelectorEventLoop):
    """Connects to public addresses only."""

    async def sock_connect(self, sock: socket.socket, address: Any) -> None:
        if not is_public(address[0]):
            raise OSError(errno.EACCES, "no public address; it may need +private in CHRONOVERSE_WEBHOOK_HOSTS")
        await super().sock_connect(sock, address)


def _seconds(retry_after: str) -> int:
    """A Retry-After, which is a number of seconds or a date, in seconds from now. 0 if it is invalid."""
    if retry_after.isdigit():
        return int(retry_after[:9])  # more digits are years, too
    with contextlib.suppress(ValueError, OverflowError):
        return int(parsedate_to_datetime(retry_after).timestamp() - time.time())
    return 0


async def _send(host: str, port: int, tls: ssl.SSLContext | None, request: bytes, seconds: float) -> tuple[int, int]:
    """Sends ``request``. Returns the status, and Retry-After in seconds, or 0."""
    async with asyncio.timeout(seconds):
        # Tries the next address after a second, in case this one does not answer.
        reader, writer = await asyncio.open_connection(host, port, ssl=tls, happy_eyeballs_delay=1.0)
        try:
            writer.write(request)
            # Reads only headers: at most a thousand lines of 64 KB. Some receivers end lines with LF only.
            status = retry_after = 0
            for _ in range(1_000):
                line = await reader.readuntil(b"\n")
                if not status:
                    found = re.match(rb"HTTP/1\.[01] ([0-9]{3})\b", line)
                    if not found:
                        break
                    status = int(found[1])
                elif asked := re.fullmatch(rb"(?i)retry-after:[ \t]*([ -~]*?)\s*", line):
                    retry_after = _seconds(asked[1].decode())
                elif not line.strip() and 100 <= status < 200:
                    status = 0  # the final response follows
                elif not line.strip():
                    return status, retry_after
            raise EOFError
        finally:
            writer.transport.abort()
