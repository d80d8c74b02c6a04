"""Many viewers in one process that reconnect whenever their stream ends, like a browser's EventSource.

They use raw sockets and one event loop, so that a few hundred viewers of a few hundred lines per second can check every
sequence number.
"""

import re
import selectors
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from tests.web.routes.wire import Endpoint

#: Time limit of opening a connection, in seconds.
CONNECT_SECONDS: Final = 5.0
#: Bytes per read of a socket.
READ_BYTES: Final = 1 << 18
#: Delay before retrying after a refused connection or an answer other than a stream, in seconds.
RETRY_SECONDS: Final = 0.5
#: Maximum seconds between two calls of ``on_tick``.
TICK_SECONDS: Final = 0.02

_STATUS: Final = re.compile(rb"HTTP/1\.1 (\d{3}) ")
_ID: Final = re.compile(rb"\nid: (\d+)\n\n")
_RETRY: Final = re.compile(rb"(?:^|\n)retry: (\d+)\n\n")


class ReconnectingViewer:
    """One viewer, and what it has received over all its connections.

    ``cursor``: the last number received. ``lines``: how many numbers were received. ``errors``: how many did not follow
    the previous one. ``over``: whether the end of the log was received.
    """

    def __init__(self) -> None:
        self.cursor = 0
        self.lines = 0
        self.errors = 0
        self.over = False
        self.retry_seconds = 1.0
        self.reconnect_at = 0.0
        self.start_connection()

    def start_connection(self) -> None:
        """Resets the state of the previous connection."""
        self.status = ""
        self.complete = False
        self._raw = self._text = b""

    def feed(self, received: bytes) -> bool:
        """Parses received bytes. Returns False once the response is complete."""
        self._raw += received
        if not self.status:
            head, ended, rest = self._raw.partition(b"\r\n\r\n")
            found = _STATUS.match(head)
            if not ended or not found:
                return True
            self.status, self._raw = found[1].decode(), rest
            self.over = self.status == "204"
            if self.status != "200":
                self.complete, self.retry_seconds = True, RETRY_SECONDS
                return False
        self._read(self._text + b"".join(self._chunks()))
        return not self.complete

    def _chunks(self) -> list[bytes]:
        """The bodies of all complete chunks (RFC 9112 section 7.1). Sets ``complete`` at the last one."""
        found, start = [], 0
        while (end := self._raw.find(b"\r\n", start)) >= 0:
            size = int(self._raw[start:end], 16)
            if len(self._raw) < end + 2 + size + 2:
                break
            found.append(self._raw[end + 2 : end + 2 + size])
            start = end + 2 + size + 2
            self.complete = size == 0
        self._raw = self._raw[start:]
        return found

    def _read(self, text: bytes) -> None:
        numbers = [int(number) for number in _ID.findall(text)]
        if retries := _RETRY.findall(text):
            self.retry_seconds = int(retries[-1]) / 1000
        cut = 0
        if numbers:
            self.errors += sum(two != one + 1 for one, two in zip([self.cursor, *numbers], numbers, strict=False))
            self.lines += len(numbers)
            self.cursor = numbers[-1]
            last = b"\nid: %d\n" % self.cursor
            cut = text.rfind(last + b"\n") + len(last)
            # Only up to the last id: the rest can be an incomplete frame.
            self.over = self.over or b"event: end\n" in text[:cut]
        self._text = text[cut:]


class ReconnectingViewers:
    """``count`` viewers of ``path`` at ``endpoint``. ``headers`` are request header lines, each with its CRLF.

    ``make_viewer`` creates each viewer.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        path: str,
        headers: str,
        count: int,
        make_viewer: Callable[[], ReconnectingViewer] = ReconnectingViewer,
    ) -> None:
        self.viewers = [make_viewer() for _ in range(count)]
        #: When each reconnect started, on the monotonic clock.
        self.reconnections: list[float] = []
        #: Number of answers by status, and of connections that ended "whole", "cut" or "unreachable".
        self.answers: Counter[str] = Counter()
        self._endpoint = endpoint
        self._path = path
        self._headers = headers
        self._selector = selectors.DefaultSelector()
        self._disconnected = set(self.viewers)

    @property
    def errors(self) -> int:
        """How many numbers were missing, duplicate or out of order."""
        return sum(viewer.errors for viewer in self.viewers)

    @property
    def connected(self) -> int:
        """How many viewers have a stream."""
        return sum(viewer.status == "200" for viewer in self.viewers)

    def run(self, on_tick: Callable[[], bool]) -> None:
        """Runs until all viewers have received the end, or until ``on_tick`` returns True.

        ``on_tick`` is called after each round of the loop, at least every :data:`TICK_SECONDS`.
        """
        try:
            while not all(viewer.over for viewer in self.viewers) and not on_tick():
                now = time.monotonic()
                for viewer in [each for each in self._disconnected if each.reconnect_at <= now and not each.over]:
                    self._connect(viewer, now)
                for key, _ in self._selector.select(TICK_SECONDS):
                    self._receive(key.data, key.fileobj)
        finally:
            for key in list(self._selector.get_map().values()):
                key.fileobj.close()  # type: ignore[union-attr]
            self._selector.close()

    def _connect(self, viewer: ReconnectingViewer, now: float) -> None:
        if viewer.lines:
            self.reconnections.append(now)
        cursor = f"Last-Event-ID: {viewer.cursor}\r\n" if viewer.cursor else ""
        request = f"GET {self._path} HTTP/1.1\r\nHost: viewers\r\n{self._headers}{cursor}\r\n".encode()
        try:
            sock = self._endpoint.connect(CONNECT_SECONDS)
            sock.sendall(request)
        except OSError:
            self.answers["unreachable"] += 1
            viewer.reconnect_at = now + RETRY_SECONDS
            return
        sock.setblocking(False)
        self._disconnected.discard(viewer)
        self._selector.register(sock, selectors.EVENT_READ, viewer)

    def _receive(self, viewer: ReconnectingViewer, sock: object) -> None:
        assert isinstance(sock, socket.socket)
        status_before, more_follows = viewer.status, True
        try:
            chunk = sock.recv(READ_BYTES)
            more_follows = bool(chunk) and viewer.feed(chunk)
            # Bytes already decrypted by the TLS layer do not make the socket readable.
            while more_follows and isinstance(sock, ssl.SSLSocket) and sock.pending():
                more_follows = viewer.feed(sock.recv(READ_BYTES))
        except (BlockingIOError, ssl.SSLWantReadError):
            pass
        except OSError:
            more_follows = False
        if viewer.status != status_before:
            self.answers[viewer.status] += 1
        if more_follows:
            return
        self._selector.unregister(sock)
        sock.close()
        self.answers["whole" if viewer.complete else "cut"] += 1
        viewer.start_connection()
        self._disconnected.add(viewer)
        viewer.reconnect_at = time.monotonic() + viewer.retry_seconds
