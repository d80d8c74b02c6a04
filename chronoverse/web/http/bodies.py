"""Reads request bodies, with bounds on their size, on how fast they must arrive, and on what they may parse to.

A body is read whole before it is used. No step holds the worker's event loop for long. A body is refused by one of
werkzeug's HTTP errors, which :mod:`chronoverse.web.http.problems` answers with problem documents.
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
from chronoverse.web.guards.connection import stop_receiving
from chronoverse.web.guards.event_loop import TimeSlice, yield_to_loop
from chronoverse.web.guards.memory import BodyMemory

#: Bytes of one read from the connection. gunicorn copies what it has left after each read: with 16 KiB a body would
#: take four times as long.
READ_BYTES: Final = 65_536
#: Seconds within which the next :data:`READ_BYTES` must arrive, or the body's end. This refuses a client that stalls,
#: and one that sends a long body at less than 13 KB a second.
READ_SECONDS: Final = 5.0
#: Seconds that a whole body may take to arrive. nginx's own limit is between two reads.
RECEIVE_SECONDS: Final = 20.0
#: Bytes that are inflated or scanned at once. That takes 0.2 ms, whatever they are.
SLICE_BYTES: Final = 16_384
#: Brackets, commas and quotation marks outside of strings. A body with more is not parsed, because parsing takes time
#: and memory for each value and not for each byte: 8 MiB of ``[],`` take 0.6 s and 300 MB. 500 lines have 9,500.
MAX_STRUCTURAL_CHARACTERS: Final = 20_000

#: What the OpenAPI document says of a body that is refused with 429.
SHARE_USED: Final = "The token's other request bodies use all the memory that it may have at a time."
#: zlib's ``wbits`` for gzip, and nothing else.
_GZIP: Final = 16 + zlib.MAX_WBITS


class _UnsupportedContentCoding(UnsupportedMediaType):
    """415 with the coding that is accepted. https://www.rfc-editor.org/rfc/rfc9110#section-15.5.16"""

    def get_headers(self, *args: Any, **kwargs: Any) -> list[tuple[str, str]]:
        return [*super().get_headers(*args, **kwargs), ("Accept-Encoding", "gzip")]


class BodyReader:
    """Reads bodies of at most ``limit`` bytes, as sent and as inflated. A worker has one. See also :class:`BodyMemory`.

    ``read_seconds`` and ``receive_seconds`` are as :data:`READ_SECONDS` and :data:`RECEIVE_SECONDS`.
    """

    def __init__(
        self, limit: int, *, read_seconds: float = READ_SECONDS, receive_seconds: float = RECEIVE_SECONDS
    ) -> None:
        self._limit = limit
        self._read_seconds = read_seconds
        self._receive_seconds = receive_seconds
        self._memory = BodyMemory(limit)

    @contextlib.contextmanager
    def read_json(self, request: Request, subject: str, schema: Schema) -> Iterator[Mapping[str, Any]]:
        """The request's body, loaded by ``schema``. Its bytes count as ``subject``'s until the block is left.

        Raises:
            HTTPException: 400, 408, 413 or 415.
            ShareExceeded: when the subject's other bodies leave no room for this one.
            AtCapacity: when other subjects' bodies do.
        """
        with self._memory.hold(subject) as take:
            yield _load(self._read_body(request, take), schema)

    def _read_body(self, request: Request, take: Callable[[int], None]) -> bytearray:
        if request.mimetype != "application/json":
            raise UnsupportedMediaType("the body must be application/json")
        coding = request.headers.get("Content-Encoding", "").strip().lower()
        if coding not in ("", "identity", "gzip", "x-gzip"):
            raise _UnsupportedContentCoding("a body may be encoded with gzip, and with nothing else")
        stream = _TimedBodyStream(request, self._read_seconds, self._receive_seconds)
        try:
            sent = self._read(stream, request.content_length or 0, take)
        except (RequestEntityTooLarge, ShareExceeded, AtCapacity):
            # If the connection were closed while the client still sends, it might see a reset instead of the answer.
            stream.drain(2 * self._limit)
            raise
        return self._inflate(sent, take) if "gzip" in coding else sent

    def _read(self, stream: "_TimedBodyStream", length: int, take: Callable[[int], None]) -> bytearray:
        """The whole body as it was sent. ``length`` is its Content-Length, or 0 when there is none."""
        if length > self._limit:
            raise self._too_long()
        body = bytearray()
        while data := stream.read():
            if len(body) + len(data) > self._limit:
                raise self._too_long()
            take(len(data))
            body += data
        if len(body) < length:
            raise BadRequest("the body broke off")
        return body

    def _inflate(self, sent: bytearray, take: Callable[[int], None]) -> bytearray:
        """What ``sent`` inflates to. It must be one whole gzip member."""
        body = bytearray()
        for part in _inflate_slices(sent):
            if len(body) + len(part) > self._limit:
                raise self._too_long()
            take(len(part))
            body += part
        return body

    def _too_long(self) -> HTTPException:
        return RequestEntityTooLarge(f"a body may have {self._limit} bytes, as sent and as inflated")


def _inflate_slices(sent: bytearray) -> Iterator[bytes]:
    """Inflates ``sent`` slice by slice. Raises 400 when it is not one whole gzip member."""
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
            # After a full slice zlib may have more output for input that it has already read.
            more = bool(rest) or len(part) == SLICE_BYTES
    if not inflater.eof:
        raise BadRequest("the body is not one whole gzip member")


class _TimedBodyStream:
    """The bytes of a request's body as they arrive.

    A read raises 408 when they come too slowly; then nothing more is read from the connection. It raises 400 when the
    body ends too early.
    """

    def __init__(self, request: Request, read_seconds: float, receive_seconds: float) -> None:
        self._request = request
        self._read_seconds = read_seconds
        self._receive_seconds = receive_seconds
        self._ends_at = time.monotonic() + receive_seconds
        self._time_slice = TimeSlice()

    def read(self) -> bytes:
        """The next bytes, up to :data:`READ_BYTES`. Empty at the body's end."""
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
        except Exception as error:  # gunicorn's errors for malformed chunks have no common base class
            raise BadRequest("the body broke off") from error
        return data

    def drain(self, limit: int) -> None:
        """Reads and drops up to ``limit`` bytes. If there are more, the connection is closed after the answer."""
        left = limit
        while left > 0 and (data := self.read()):
            left -= len(data)
        if left <= 0:
            self._close()

    def _close(self) -> None:
        """Makes the connection close after the answer, because nobody reads the rest of this body."""
        sock = self._request.environ.get("gunicorn.socket")
        if sock is not None:
            stop_receiving(sock)


def _load(body: bytearray, schema: Schema) -> Mapping[str, Any]:
    _check_structure(body)
    # Each of these steps goes through the whole body at once. With a short body that takes less time than a round of
    # the event loop.
    is_long = len(body) > SLICE_BYTES
    if is_long:
        yield_to_loop()
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the body is not JSON: {error}") from error
    if is_long:
        yield_to_loop()
    try:
        loaded: Mapping[str, Any] = schema.load(document)
    except ValidationError as error:
        refusal = BadRequest("the body is not as it should be")
        # webargs puts its findings there, too, so that all bad parameters are reported in the same way.
        refusal.data = {"messages": {"body": error.messages}}  # type: ignore[attr-defined]
        raise refusal from error
    return loaded


def _check_structure(body: bytearray) -> None:
    """Raises 400 when parsing ``body`` would make too many values.

    Escapes are removed as a parser reads them. Every quotation mark that is left begins or ends a string.
    """
    time_slice = TimeSlice()
    found, in_string, escape = 0, 0, b""
    for start in range(0, len(body), SLICE_BYTES):
        time_slice.check()
        data = escape + body[start : start + SLICE_BYTES]
        escape = b""
        if b"\\" in data:
            data = data.replace(rb"\\", b"")
            # This is the first half of an escape. Its second half is in the next slice.
            escape = data[-1:] if data.endswith(b"\\") else b""
            data = data.replace(rb"\"", b"")
        parts = data.split(b'"')
        outside = b"".join(parts[in_string::2])
        found += len(parts) - 1 + outside.count(b",") + outside.count(b"[") + outside.count(b"{")
        in_string ^= (len(parts) - 1) % 2
        if found > MAX_STRUCTURAL_CHARACTERS:
            raise BadRequest(
                f"the body has more than {MAX_STRUCTURAL_CHARACTERS} brackets, commas and quotation marks around values"
            )
