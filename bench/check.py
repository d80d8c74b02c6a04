"""Checks a viewer's response as it arrives: removes the HTTP framing and compares the rest with the reference."""

import re
from typing import Final

from bench.reference import MAX_BLOCK, Reference, Wrong

#: Size limit of a response's head, or of a chunk's, in bytes.
MAX_HEAD: Final = 8192
#: Size limit of cached reads, in bytes. Longer reads rarely repeat, since sockets split them at different positions.
MEMO_BYTES: Final = 4096
#: Number of cached reads. Viewers have similar positions, so only the newest reads are useful.
MEMO_ANSWERS: Final = 64

#: Reported bytes of a refusal: its head and the start of its body.
MAX_STORY: Final = 600

_CHUNKED: Final = re.compile(rb"\r\ntransfer-encoding: *chunked\r\n", re.IGNORECASE)
_CHUNK: Final = re.compile(rb"([0-9a-fA-F]+)\r\n")


class Refused(Exception):
    """Raised for a response other than 200. Its argument is the start of the response."""


class Stream:
    """The response to a viewer that requested all lines after line ``after``.

    ``position`` is its progress in the reference. Everything before that has been compared.
    """

    def __init__(self, reference: Reference, after: int) -> None:
        self.reference = reference
        self.position = reference.position(after)
        #: Whether the head is complete.
        self.answered = False
        #: Whether the response has ended with its last chunk.
        self.closed = False
        self._start = self.position
        self._chunked = False
        #: Remaining bytes of a chunk, including the CR LF after it; 0 between chunks.
        self._left = 0
        #: An incomplete head, chunk head or block.
        self._head = b""
        self._block = b""

    @property
    def lines(self) -> int:
        return self.reference.lines_before(self.position) - self.reference.lines_before(self._start)

    def feed(self, buffer: bytearray, view: memoryview, size: int) -> None:
        """Checks the first ``size`` bytes of ``buffer``. ``view`` is a view of ``buffer``.

        Raises :class:`Wrong`, :class:`Refused`.
        """
        if self._left or self._head or self._block or not self.answered:
            self._take(view[:size])
            return
        known = self.reference.memo.get(self.position)
        if known is not None and known[0] == size and buffer.startswith(known[1]):
            self.position = known[2]
            return
        before = self.position
        self._take(view[:size])
        if size <= MEMO_BYTES and not (self._left or self._head or self._block or self.closed):
            memo = self.reference.memo
            if len(memo) >= MEMO_ANSWERS:
                memo.clear()
            memo[before] = (size, bytes(view[:size]), self.position)

    def _take(self, data: memoryview) -> None:
        if not self.answered:
            data = self._read_head(data)
        if not self._chunked:
            if data:
                self._body(data)
            return
        while data:
            if self._left > 2:
                part = data[: self._left - 2]
                self._body(part)
                data = data[len(part) :]
                self._left -= len(part)
            elif self._left:
                part = data[: self._left]
                if part != b"\r\n"[2 - self._left :][: len(part)]:
                    raise Wrong("a chunk does not end with CR LF")
                data = data[len(part) :]
                self._left -= len(part)
            else:
                data = self._read_chunk_head(data)

    def _read_head(self, data: memoryview) -> memoryview:
        self._head += bytes(data)
        head, blank, rest = self._head.partition(b"\r\n\r\n")
        if not blank:
            if len(self._head) > MAX_HEAD:
                raise Refused(repr(self._head[:MAX_STORY]))
            return memoryview(b"")
        if not head.startswith(b"HTTP/1.1 200"):
            raise Refused(repr(self._head[:MAX_STORY]))
        self.answered = True
        self._head = b""
        self._chunked = _CHUNKED.search(head + b"\r\n") is not None
        return memoryview(rest)

    def _read_chunk_head(self, data: memoryview) -> memoryview:
        text = self._head + bytes(data[: MAX_HEAD - len(self._head)])
        found = _CHUNK.match(text)
        if found is None:
            if len(text) > 20:
                raise Wrong(f"no chunk begins with {text[:40]!r}")
            self._head = text
            return memoryview(b"")
        data = data[found.end() - len(self._head) :]
        self._head = b""
        length = int(found[1], 16)
        self._left = length + 2
        self.closed = not length
        return data

    def _body(self, part: memoryview) -> None:
        reference = self.reference
        # bytearray.startswith() is a memcmp; two memoryviews are compared byte by byte.
        if not self._block and reference.body.startswith(part, self.position):
            self.position += len(part)
            return
        start = reference.block_start(self.position)
        text = bytes(reference.body[start : self.position]) + self._block + bytes(part)
        self.position, self._block, at = start, b"", 0
        shown = memoryview(text)
        while at < len(text):
            size = reference.same(shown[at:], self.position)
            if size:
                self.position += size
            elif size := reference.noise(text, at):
                if size < 0:
                    self._keep(text[at:])
                    return
            elif self.position < len(reference.body):
                raise Wrong(self._story(text[at : at + 200]))
            else:
                size = reference.extend(text, at)
                self.position += size
            at += size

    def _keep(self, text: bytes) -> None:
        if len(text) > MAX_BLOCK:
            raise Wrong(f"a block without an end: {text[:200]!r}")
        self._block = text

    def _story(self, text: bytes) -> str:
        number = self.reference.after + self.reference.lines_before(self.position) + 1
        expected = bytes(self.reference.body[self.position : self.position + 200])
        return f"line {number} came as {text!r}, others had {expected!r}"
