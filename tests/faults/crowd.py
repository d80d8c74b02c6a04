"""A crowd of viewers in one process, each coming back whenever its stream ends, as an EventSource does.

Raw sockets and one loop: what hundreds of them see of hundreds of lines a second is checked to the last number.
"""

import contextlib
import re
import selectors
import socket
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

#: Bytes read at once.
READ_BYTES: Final = 1 << 18
#: Seconds before the next try where nobody listened or the answer was no stream.
AGAIN_SECONDS: Final = 0.5
#: Seconds between two calls of the loop's ``beat``.
BEAT_SECONDS: Final = 0.02

_STATUS: Final = re.compile(rb"HTTP/1\.1 (\d{3}) ")
_ID: Final = re.compile(rb"\nid: (\d+)\n\n")
_RETRY: Final = re.compile(rb"\nretry: (\d+)\n\n")
_LAST_CHUNK: Final = b"0\r\n\r\n"


class Member:
    """One viewer: what it has seen so far, over however many connections."""

    def __init__(self) -> None:
        self.cursor = 0
        self.lines = 0
        self.wrong = 0
        self.retry = 1.0
        self.due = 0.0
        self.over = self.streaming = False
        self.rest = b""


class Crowd:
    """``count`` viewers of ``path`` at ``address``. ``headers`` are lines of a request, each with its CRLF."""

    def __init__(self, address: tuple[str, int], path: str, headers: str, count: int) -> None:
        self.members = [Member() for _ in range(count)]
        #: When each connection of those that came back was begun, on the monotonic clock.
        self.returns: list[float] = []
        #: Answers by status, and connections that failed or broke off, by a word.
        self.answers: Counter[str] = Counter()
        #: How many have a stream.
        self.present = 0
        self._address = address
        self._path = path
        self._headers = headers
        self._selector = selectors.DefaultSelector()
        self._away = set(self.members)

    @property
    def wrong(self) -> int:
        """Numbers that were lost, doubled or out of order."""
        return sum(member.wrong for member in self.members)

    def run(self, beat: Callable[[], bool]) -> None:
        """Until all have seen the end, or ``beat``, called every 20 ms, says that it is enough."""
        try:
            while not all(member.over for member in self.members) and not beat():
                now = time.monotonic()
                for member in [each for each in self._away if each.due <= now and not each.over]:
                    self._connect(member, now)
                for key, _ in self._selector.select(BEAT_SECONDS):
                    self._receive(key.data, key.fileobj)
        finally:
            for key in list(self._selector.get_map().values()):
                key.fileobj.close()  # type: ignore[union-attr]
            self._selector.close()

    def _connect(self, member: Member, now: float) -> None:
        if member.lines:
            self.returns.append(now)
        cursor = f"Last-Event-ID: {member.cursor}\r\n" if member.cursor else ""
        request = f"GET {self._path} HTTP/1.1\r\nHost: crowd\r\n{self._headers}{cursor}\r\n".encode()
        try:
            sock = socket.create_connection(self._address, timeout=5)
            sock.sendall(request)
        except OSError:
            self.answers["unreachable"] += 1
            member.due = now + AGAIN_SECONDS
            return
        sock.setblocking(False)
        member.rest = b""
        self._away.discard(member)
        self._selector.register(sock, selectors.EVENT_READ, member)

    def _receive(self, member: Member, sock: object) -> None:
        assert isinstance(sock, socket.socket)
        chunk = b""
        with contextlib.suppress(ConnectionError):
            chunk = sock.recv(READ_BYTES)
        if chunk:
            self._take(member, chunk)
            return
        self._selector.unregister(sock)
        sock.close()
        self.answers["whole" if member.rest.endswith(_LAST_CHUNK) else "cut"] += 1
        self.present -= member.streaming
        member.streaming = False
        self._away.add(member)
        member.due = time.monotonic() + member.retry

    def _take(self, member: Member, chunk: bytes) -> None:
        if not member.rest and (found := _STATUS.match(chunk)):
            self.answers[found[1].decode()] += 1
            member.over = found[1] == b"204"
            member.streaming = found[1] == b"200"
            self.present += member.streaming
            if found[1] != b"200":
                member.retry = AGAIN_SECONDS
        text = member.rest + chunk
        numbers = [int(number) for number in _ID.findall(text)]
        if retries := _RETRY.findall(text):
            member.retry = int(retries[-1]) / 1000
        cut = 0
        if numbers:
            member.wrong += sum(two != one + 1 for one, two in zip([member.cursor, *numbers], numbers, strict=False))
            member.lines += len(numbers)
            member.cursor = numbers[-1]
            cut = text.rfind(b"\nid: %d\n\n" % member.cursor) + len(b"\nid: %d\n" % member.cursor)
            member.over = member.over or b"\nevent: end\n" in text
        member.rest = text[cut:]
