"""A crowd of viewers in one process, each coming back whenever its stream ends, as an EventSource does.

Raw sockets and one loop: what hundreds of them see of hundreds of lines a second is checked to the last number.
"""

import re
import selectors
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from tests.web.routes.wire import Door

#: Seconds that a connection may take.
CONNECT_SECONDS: Final = 5.0
#: Bytes read at once.
READ_BYTES: Final = 1 << 18
#: Seconds before the next try where nobody listened or the answer was no stream.
AGAIN_SECONDS: Final = 0.5
#: Seconds between two calls of the loop's ``beat``.
BEAT_SECONDS: Final = 0.02

_STATUS: Final = re.compile(rb"HTTP/1\.1 (\d{3}) ")
_ID: Final = re.compile(rb"\nid: (\d+)\n\n")
_RETRY: Final = re.compile(rb"(?:^|\n)retry: (\d+)\n\n")


class Member:
    """One viewer: what it has seen so far, over however many connections."""

    def __init__(self) -> None:
        self.cursor = 0
        self.lines = 0
        self.wrong = 0
        self.over = False
        self.retry = 1.0
        self.due = 0.0
        self.begin()

    def begin(self) -> None:
        """Of a new connection nothing is known."""
        self.status = ""
        self.whole = False
        self._raw = self._text = b""

    def feed(self, received: bytes) -> bool:
        """Takes note of what was received; False once the response is over."""
        self._raw += received
        if not self.status:
            head, ended, rest = self._raw.partition(b"\r\n\r\n")
            found = _STATUS.match(head)
            if not ended or not found:
                return True
            self.status, self._raw = found[1].decode(), rest
            self.over = self.status == "204"
            if self.status != "200":
                self.whole, self.retry = True, AGAIN_SECONDS
                return False
        self._read(self._text + b"".join(self._chunks()))
        return not self.whole

    def _chunks(self) -> list[bytes]:
        """The bodies of the whole chunks so far; sets ``whole`` at the last. RFC 9112 section 7.1."""
        found, place = [], 0
        while (end := self._raw.find(b"\r\n", place)) >= 0:
            size = int(self._raw[place:end], 16)
            if len(self._raw) < end + 2 + size + 2:
                break
            found.append(self._raw[end + 2 : end + 2 + size])
            place = end + 2 + size + 2
            self.whole = size == 0
        self._raw = self._raw[place:]
        return found

    def _read(self, text: bytes) -> None:
        numbers = [int(number) for number in _ID.findall(text)]
        if retries := _RETRY.findall(text):
            self.retry = int(retries[-1]) / 1000
        cut = 0
        if numbers:
            self.wrong += sum(two != one + 1 for one, two in zip([self.cursor, *numbers], numbers, strict=False))
            self.lines += len(numbers)
            self.cursor = numbers[-1]
            last = b"\nid: %d\n" % self.cursor
            cut = text.rfind(last + b"\n") + len(last)
            self.over = self.over or b"event: end\n" in text
        self._text = text[cut:]


class Crowd:
    """``count`` viewers of ``path`` at ``door``. ``headers`` are lines of a request, each with its CRLF.

    ``member`` makes each viewer.
    """

    def __init__(self, door: Door, path: str, headers: str, count: int, member: Callable[[], Member] = Member) -> None:
        self.members = [member() for _ in range(count)]
        #: When each connection of those that came back was begun, on the monotonic clock.
        self.returns: list[float] = []
        #: Answers by status, and how their connections ended, by a word.
        self.answers: Counter[str] = Counter()
        self._door = door
        self._path = path
        self._headers = headers
        self._selector = selectors.DefaultSelector()
        self._away = set(self.members)

    @property
    def wrong(self) -> int:
        """Numbers that were lost, doubled or out of order."""
        return sum(member.wrong for member in self.members)

    @property
    def present(self) -> int:
        """How many have a stream."""
        return sum(member.status == "200" for member in self.members)

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
            sock = self._door.connect(CONNECT_SECONDS)
            sock.sendall(request)
        except OSError:
            self.answers["unreachable"] += 1
            member.due = now + AGAIN_SECONDS
            return
        sock.setblocking(False)
        self._away.discard(member)
        self._selector.register(sock, selectors.EVENT_READ, member)

    def _receive(self, member: Member, sock: object) -> None:
        assert isinstance(sock, socket.socket)
        answered, goes_on = member.status, True
        try:
            chunk = sock.recv(READ_BYTES)
            goes_on = bool(chunk) and member.feed(chunk)
            # What TLS has decrypted already wakes nobody.
            while goes_on and isinstance(sock, ssl.SSLSocket) and sock.pending():
                goes_on = member.feed(sock.recv(READ_BYTES))
        except (BlockingIOError, ssl.SSLWantReadError):
            pass
        except OSError:
            goes_on = False
        if member.status != answered:
            self.answers[member.status] += 1
        if goes_on:
            return
        self._selector.unregister(sock)
        sock.close()
        self.answers["whole" if member.whole else "cut"] += 1
        member.begin()
        self._away.add(member)
        member.due = time.monotonic() + member.retry
