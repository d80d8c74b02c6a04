"""Encodes and decodes Server-Sent Events. Pure; knows nothing about jobs.

The WHATWG HTML standard defines the format:
https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

#: A comment without a following blank line: some decoders turn ``:\n\n`` into an empty event.
HEARTBEAT = b":\n"

#: Maximum bytes of a block that is decoded. The longest line of a log has 6 MiB as JSON.
_BLOCK_BYTES: Final = 2**24

_NEWLINES = re.compile(r"[\r\n]+")
_LINE_END = re.compile(rb"\r\n|\r|\n")
_DIGITS = re.compile(r"[0-9]{1,15}")


class ServerSentEvent(NamedTuple):
    """One event. ``id`` is the stream's last id so far, even if an earlier block set it."""

    event: str
    data: str
    id: str


def frame(event: str, data: bytes, id: int | None = None, retry_ms: int | None = None) -> bytes:
    r"""One block. ``id`` comes last, so that an incomplete block never moves a client's cursor.

    >>> frame("end", b'{"status":"stream_ended"}', id=4)
    b'event: end\ndata: {"status":"stream_ended"}\nid: 4\n\n'

    ``data`` must not contain CR or LF. JSON never does; use :func:`fold` for text.
    """
    block = b"event: %b\ndata: %b\n" % (event.encode("ascii"), data)
    if retry_ms is not None:
        block += b"retry: %d\n" % retry_ms
    if id is not None:
        block += b"id: %d\n" % id
    return block + b"\n"


def cursor(id: int) -> bytes:
    """A block that sets the client's ``Last-Event-ID`` and dispatches no event."""
    return b"id: %d\n\n" % id


def retry(milliseconds: int) -> bytes:
    """A block that sets the client's reconnection time and dispatches no event."""
    return b"retry: %d\n\n" % milliseconds


def fold(text: str) -> bytes:
    """``text`` as one line of data. Each run of CR and LF becomes a space."""
    return _NEWLINES.sub(" ", text).strip().encode("utf-8", "replace")


class Decoder:
    """Decodes a stream's bytes, in chunks of any size. ``last_event_id`` changes only when a block is complete."""

    def __init__(self, last_event_id: str = "") -> None:
        self.last_event_id = last_event_id
        self.retry_ms: int | None = None
        #: Whether the last event's own block has an id.
        self.has_id = False
        self._sets_id = False
        self._buffer = bytearray()
        self._started = False
        #: Bytes since the last complete block.
        self._pending = 0
        self._event = ""
        self._data: list[str] = []
        self._id = last_event_id

    def feed(self, chunk: bytes) -> Iterator[ServerSentEvent]:
        """Yields the events that ``chunk`` completes. Raises ValueError if a block is too long."""
        self._pending += len(chunk)
        if self._started and not self._buffer.endswith(b"\r") and not _LINE_END.search(chunk):
            self._buffer += chunk  # a copy of the buffer for each chunk would take quadratic time
        else:
            yield from self._lines(chunk)
        if self._pending > _BLOCK_BYTES:
            raise ValueError(f"an event of more than {_BLOCK_BYTES:,} bytes")

    def _lines(self, chunk: bytes) -> Iterator[ServerSentEvent]:
        buffer = bytes(self._buffer) + chunk
        if not self._started and len(buffer) < 3 and b"\xef\xbb\xbf".startswith(buffer):
            self._buffer = bytearray(buffer)
            return
        start = 3 if not self._started and buffer.startswith(b"\xef\xbb\xbf") else 0
        self._started = True
        for end in _LINE_END.finditer(buffer, start):
            if end.group() == b"\r" and end.end() == len(buffer):
                break  # The \n of a \r\n may come in the next chunk.
            event = self._line(buffer[start : end.start()].decode("utf-8", "replace"))
            start = end.end()
            if event is not None:
                yield event
        self._buffer = bytearray(buffer[start:])

    def _line(self, line: str) -> ServerSentEvent | None:
        if not line:
            event = ServerSentEvent(self._event or "message", "\n".join(self._data), self._id) if self._data else None
            self.last_event_id, self._event, self._data = self._id, "", []
            self.has_id, self._sets_id, self._pending = self._sets_id, False, 0
            return event
        field, _, value = line.partition(":")
        value = value[1:] if value.startswith(" ") else value
        if field == "data":
            self._data.append(value)
        elif field == "event":
            self._event = value
        elif field == "id" and "\0" not in value:
            self._id, self._sets_id = value, True
        elif field == "retry" and _DIGITS.fullmatch(value):
            self.retry_ms = int(value)
        return None
