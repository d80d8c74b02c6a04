"""Request bodies: how many bytes they may have, how fast they must come, and how much they may parse to.

A body is read whole before anything is done with it, and nothing that is done with it keeps the worker's event loop for
long. What is refused here is refused with werkzeug's errors; :mod:`chronoverse.web.http.problems` makes documents of
them.
"""

import contextlib
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import gevent
import orjson
from flask import Request
from marshmallow import Schema, ValidationError
from werkzeug.exceptions import (
    BadRequest,
    HTTPException,
    RequestEntityTooLarge,
    RequestTimeout,
    UnsupportedMediaType,
)

from chronoverse.errors import AtCapacity, ShareExceeded
from chronoverse.web.http.event_loop import TimeSlice, yield_to_loop
from chronoverse.web.http.shares import Shares
from chronoverse.web.streaming.connection import half_close

#: Bytes of one read from the connection. Of shorter reads gunicorn makes copies: 16 KiB would take four times as long.
READ_BYTES: Final = 65_536
#: Seconds within which so many bytes must come, or the body's end. A client that stalls is refused then, and so is one
#: that sends a long body at less than 13 KB a second.
READ_SECONDS: Final = 5.0
#: Seconds that a whole body may take to arrive. nginx's own bound is between two reads.
RECEIVE_SECONDS: Final = 20.0
#: Bytes that are inflated or looked through in one go. They take 0.2 ms, whatever they are.
SLICE_BYTES: Final = 16_384
#: Bytes at the beginning of each body that are counted apart from the rest: as sent and as inflated, so that a body of
#: 64 KiB (a renewal, a few lines) needs no room among long ones.
SHORT_BODY_BYTES: Final = 131_072
#: Bytes of such beginnings that a worker holds at a time. One token alone may have half of it: 64 bodies that are long.
SHORT_BODIES_BYTES: Final = 16_777_216
#: How often the longest body fits into the memory for the rest of all bodies of a worker. One token alone may have half
#: of it, and a body that was sent with gzip may take two: as sent and as inflated.
MAX_LONG_BODIES: Final = 8
#: Times the limit that is read of a body that is refused, and thrown away: a client whose connection is closed while it
#: still sends may see a reset instead of the answer.
DRAIN_BODIES: Final = 2
#: Brackets, commas and quotation marks outside of texts, beyond which a body is not parsed: parsing takes time and
#: memory for each value, not for each byte (8 MiB of ``[],`` take 0.6 s and 300 MB). 500 lines have 9,500.
MAX_STRUCTURAL_CHARACTERS: Final = 20_000

#: What the OpenAPI document says of a body that is refused with 429.
SHARE_USED: Final = "The token's other request bodies use all the memory that it may have at a time."
#: zlib's spelling of "gzip, and nothing else".
_GZIP: Final = 16 + zlib.MAX_WBITS


class _UnsupportedContentCoding(UnsupportedMediaType):
    """415 for a content coding, which says what would do. https://www.rfc-editor.org/rfc/rfc9110#section-15.5.16"""

    def get_headers(self, *args: Any, **kwargs: Any) -> list[tuple[str, str]]:
        return [*super().get_headers(*args, **kwargs), ("Accept-Encoding", "gzip")]


class _MemoryShare:
    """The memory that one body takes of a worker's, counted for ``subject``. Give it back with :meth:`leave`."""

    def __init__(self, small: Shares, large: Shares, subject: str) -> None:
        self._small = small
        self._large = large
        self._subject = subject
        self._in_small = 0
        self._in_large = 0

    def take(self, size: int) -> None:
        """Counts ``size`` more bytes. Raises as :meth:`Shares.take` does."""
        first = min(size, SHORT_BODY_BYTES - self._in_small)
        if first:
            self._small.take(self._subject, first)
            self._in_small += first
        if size > first:
            self._large.take(self._subject, size - first)
            self._in_large += size - first

    def give_back(self) -> None:
        """The body is done with."""
        self._small.give_back(self._subject, self._in_small)
        self._large.give_back(self._subject, self._in_large)


class BodyReader:
    """Reads bodies of at most ``limit`` bytes, as sent and as inflated. One of these per worker.

    All bodies that are being read or handled have a bounded amount of memory together, of which each subject has a
    share (see :class:`Shares`). The first :data:`SMALL_BYTES` of each are counted apart: short bodies find room beside
    any number of long ones. ``read_seconds`` and ``receive_seconds`` are as :data:`READ_SECONDS` and
    :data:`RECEIVE_SECONDS`.
    """

    def __init__(
        self, limit: int, *, read_seconds: float = READ_SECONDS, receive_seconds: float = RECEIVE_SECONDS
    ) -> None:
        self._limit = limit
        self._read_seconds = read_seconds
        self._receive_seconds = receive_seconds
        self._small = Shares(SHORT_BODIES_BYTES, "short request bodies")
        self._large = Shares(MAX_LONG_BODIES * limit, "long request bodies")

    @contextlib.contextmanager
    def read_json(self, request: Request, subject: str, schema: Schema) -> Iterator[Mapping[str, Any]]:
        """The request's body as ``schema`` has it; its bytes count as ``subject``'s until the block is left.

        Raises:
            HTTPException: 400, 408, 413 or 415.
            ShareExceeded: when the subject's other bodies leave no room for this one.
            AtCapacity: when others' bodies do.
        """
        room = _MemoryShare(self._small, self._large, subject)
        try:
            yield _load(self._read_body(request, room), schema)
        finally:
            room.give_back()

    def _read_body(self, request: Request, room: _MemoryShare) -> bytearray:
        if request.mimetype != "application/json":
            raise UnsupportedMediaType("the body must be application/json")
        coding = request.headers.get("Content-Encoding", "").strip().lower()
        if coding not in ("", "identity", "gzip", "x-gzip"):
            raise _UnsupportedContentCoding("a body may be encoded with gzip, and with nothing else")
        incoming = _TimedBodyStream(request, self._read_seconds, self._receive_seconds)
        try:
            sent = self._read(incoming, request.content_length or 0, room)
        except (RequestEntityTooLarge, ShareExceeded, AtCapacity):
            incoming.drain(DRAIN_BODIES * self._limit)
            raise
        return self._inflate(sent, room) if "gzip" in coding else sent

    def _read(self, incoming: "_TimedBodyStream", length: int, room: _MemoryShare) -> bytearray:
        """The whole body as it was sent, of which ``length`` bytes were announced, or 0."""
        if length > self._limit:
            raise self._too_long()
        body = bytearray()
        while data := incoming.read():
            if len(body) + len(data) > self._limit:
                raise self._too_long()
            room.take(len(data))
            body += data
        if len(body) < length:
            raise BadRequest("the body broke off")
        return body

    def _inflate(self, sent: bytearray, room: _MemoryShare) -> bytearray:
        """What ``sent``, a whole gzip member, inflates to."""
        body = bytearray()
        for part in _inflate_slices(sent):
            if len(body) + len(part) > self._limit:
                raise self._too_long()
            room.take(len(part))
            body += part
        return body

    def _too_long(self) -> HTTPException:
        return RequestEntityTooLarge(f"a body may have {self._limit} bytes, as sent and as inflated")


def _inflate_slices(sent: bytearray) -> Iterator[bytes]:
    """The gzip member ``sent``, inflated slice by slice. Raises 400 when it is not one whole member."""
    inflater = zlib.decompressobj(_GZIP)
    time_slice = TimeSlice()
    for start in range(0, len(sent), SLICE_BYTES):
        rest: bytes | bytearray = sent[start : start + SLICE_BYTES]
        more = True
        while more:
            time_slice.check()
            try:
                part = inflater.decompress(rest, SLICE_BYTES)
            except zlib.error as error:
                raise BadRequest("the body is not gzip") from error
            if inflater.unused_data:
                raise BadRequest("the body is more than one gzip member")
            yield part
            rest = inflater.unconsumed_tail
            # A slice may also be full because zlib has more to say of what it has already read.
            more = bool(rest) or len(part) == SLICE_BYTES
    if not inflater.eof:
        raise BadRequest("the body is not one whole gzip member")


class _TimedBodyStream:
    """The bytes of a request's body as they arrive, in time.

    Each read raises 408 when the next :data:`READ_BYTES` take longer than ``read_seconds``, or the whole body longer
    than ``receive_seconds``: nothing more is read from the connection then. It raises 400 when the client breaks off.
    """

    def __init__(self, request: Request, read_seconds: float, receive_seconds: float) -> None:
        self._request = request
        self._read_seconds = read_seconds
        self._receive_seconds = receive_seconds
        self._ends_at = time.monotonic() + receive_seconds
        self._time_slice = TimeSlice()

    def read(self) -> bytes:
        """Up to :data:`READ_BYTES`; none when this is all."""
        self._time_slice.check()
        left = max(self._ends_at - time.monotonic(), 0)
        seconds, late = self._read_seconds, f"nothing, or too little, of the body came for {self._read_seconds:g} s"
        if left < seconds:
            seconds, late = left, f"the body did not arrive within {self._receive_seconds:g} s"
        try:
            with gevent.Timeout(seconds, RequestTimeout(late)):
                data: bytes = self._request.stream.read(READ_BYTES)
        except RequestTimeout:
            self._close()
            raise
        except (HTTPException, gevent.Timeout):
            raise
        except Exception as error:  # the server's own, for chunks that are none; it has no common name
            raise BadRequest("the body broke off") from error
        return data

    def drain(self, limit: int) -> None:
        """Reads on, up to ``limit`` bytes; if there is more, nobody will read it."""
        left = limit
        while left > 0 and (data := self.read()):
            left -= len(data)
        if left <= 0:
            self._close()

    def _close(self) -> None:
        """Has the connection closed behind the answer: nobody reads the rest of this body."""
        connection = self._request.environ.get("gunicorn.socket")
        if connection is not None:
            half_close(connection)


def _load(body: bytearray, schema: Schema) -> Mapping[str, Any]:
    _check_structure(body)
    # Each step goes through all of the body. A short one takes less time than the others' turn would.
    others: Callable[[], object] = yield_to_loop if len(body) > SLICE_BYTES else bool
    others()
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the body is not JSON: {error}") from error
    others()
    try:
        loaded: Mapping[str, Any] = schema.load(document)
    except ValidationError as error:
        refused = BadRequest("the body is not as it should be")
        # Where webargs leaves what it found, so that all bad parameters are told in one way.
        refused.data = {"messages": {"body": error.messages}}  # type: ignore[attr-defined]
        raise refused from error
    return loaded


def _check_structure(body: bytearray) -> None:
    """Raises 400 when parsing ``body`` would make too many values.

    It goes through the body slice by slice and lets others go on in between. Escapes are taken out first, as the parser
    understands them, from left to right: every quotation mark that is left begins or ends a text.
    """
    time_slice = TimeSlice()
    marks, in_text, escape = 0, 0, b""
    for start in range(0, len(body), SLICE_BYTES):
        time_slice.check()
        part = escape + body[start : start + SLICE_BYTES]
        escape = b""
        if b"\\" in part:
            part = part.replace(rb"\\", b"")
            # The first half of an escape, whose second half is in the next slice.
            escape = part[-1:] if part.endswith(b"\\") else b""
            part = part.replace(rb"\"", b"")
        pieces = part.split(b'"')
        outside = b"".join(pieces[in_text::2])
        marks += len(pieces) - 1 + outside.count(b",") + outside.count(b"[") + outside.count(b"{")
        in_text ^= (len(pieces) - 1) % 2
        if marks > MAX_STRUCTURAL_CHARACTERS:
            raise BadRequest(
                f"the body has more than {MAX_STRUCTURAL_CHARACTERS} brackets, commas and quotation marks around values"
            )
