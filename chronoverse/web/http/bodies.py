"""Reads whole request bodies. Limits their size, their arrival rate, and the number of values they contain."""

import contextlib
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import gevent
import orjson
from flask import Request
from marshmallow import Schema, ValidationError
from werkzeug.exceptions import BadRequest, RequestEntityTooLarge, RequestTimeout, UnsupportedMediaType

from chronoverse.errors import AtCapacity, ShareExceeded
from chronoverse.web.guards.connection import stop_receiving
from chronoverse.web.guards.event_loop import TimeSlice
from chronoverse.web.guards.memory import BodyMemory

#: Bytes per read. gunicorn copies its remaining buffer each time: with 16 KiB, a body would take four times as long.
READ_BYTES: Final = 65_536
#: Bytes inflated or scanned at once, in at most 0.2 ms.
SLICE_BYTES: Final = 16_384
#: Maximum brackets, commas and quotation marks outside the text of strings. Parsing costs time and memory per value
#: rather than per byte: 8 MiB of ``[],`` take 0.6 s and 300 MB. A body of 500 lines has 9,500 of these characters.
MAX_STRUCTURAL_CHARACTERS: Final = 20_000


class _UnsupportedContentCoding(UnsupportedMediaType):
    """Answers 415 with the accepted coding. https://www.rfc-editor.org/rfc/rfc9110#section-15.5.16"""

    def get_headers(self, *args: Any, **kwargs: Any) -> list[tuple[str, str]]:
        return [*super().get_headers(*args, **kwargs), ("Accept-Encoding", "gzip")]


@dataclass(eq=False)
class BodyReader:
    """Reads bodies of at most ``limit`` bytes, as sent and as inflated, within :class:`BodyMemory`."""

    limit: int
    #: Timeout for the next :data:`READ_BYTES`, or the body's end: 13 KB per second.
    read_seconds: float = 5.0
    #: Timeout for a whole body, while nginx's timeout applies only between two reads.
    receive_seconds: float = 20.0

    def __post_init__(self) -> None:
        self._memory = BodyMemory(self.limit)

    @contextlib.contextmanager
    def read(self, request: Request, subject: str, *mimetypes: str) -> Iterator[bytearray]:
        """Yields the inflated request body, whose type must be one of ``mimetypes``.

        Its bytes count against ``subject`` until the block exits. Raises HTTPException (400, 408, 413 or 415),
        :class:`ShareExceeded` if there is no room because of the subject's other bodies, or :class:`AtCapacity` if
        there is none because of other subjects' bodies.
        """
        with self._memory.hold(subject) as take:
            yield self._read_body(request, take, mimetypes)

    def _read_body(self, request: Request, take: Callable[[int], None], mimetypes: Sequence[str]) -> bytearray:
        if request.mimetype not in mimetypes:
            raise UnsupportedMediaType(f"the body must be {' or '.join(mimetypes)}")
        coding = request.headers.get("Content-Encoding", "").strip().lower()
        if coding not in ("", "identity", "gzip", "x-gzip"):
            raise _UnsupportedContentCoding("unsupported Content-Encoding: only gzip is accepted")
        length, parts = request.content_length or 0, self._receive(request)
        try:
            self._check_length(length)
            sent = self._join(parts, take)
        except (RequestEntityTooLarge, ShareExceeded, AtCapacity):
            # Reads and discards the rest. A client that is still sending could get a reset instead of the answer.
            left = 2 * self.limit
            while left > 0 and (part := next(parts, b"")):
                left -= len(part)
            if left <= 0:
                _stop_reading(request)
            raise
        if len(sent) < length:
            raise BadRequest("incomplete request body")
        return self._join(_inflate_slices(sent), take) if "gzip" in coding else sent

    def _join(self, parts: Iterable[bytes], take: Callable[[int], None]) -> bytearray:
        body = bytearray()
        for part in parts:
            self._check_length(len(body) + len(part))
            take(len(part))
            body += part
        return body

    def _check_length(self, length: int) -> None:
        if length > self.limit:
            raise RequestEntityTooLarge(f"the body exceeds {self.limit} bytes, as sent or inflated")

    def _receive(self, request: Request) -> Iterator[bytes]:
        """The parts of a body as they arrive, of at most :data:`READ_BYTES`.

        If they arrive too slowly, stops reading from the connection and raises 408. Raises 400 for an incomplete body.
        """
        ends_at, time_slice = time.monotonic() + self.receive_seconds, TimeSlice()
        while True:
            time_slice.check()
            seconds, late = self.read_seconds, f"too little of the body arrived within {self.read_seconds:g} s"
            left = max(ends_at - time.monotonic(), 0)
            if left < seconds:
                seconds, late = left, f"the body did not arrive within {self.receive_seconds:g} s"
            try:
                with gevent.Timeout(seconds, RequestTimeout(late)):
                    data: bytes = request.stream.read(READ_BYTES)
            except RequestTimeout:
                _stop_reading(request)
                raise
            except Exception as error:  # gunicorn's errors for malformed chunks have no common base class
                raise BadRequest("incomplete request body") from error
            if not data:
                return
            yield data


def _stop_reading(request: Request) -> None:
    if sock := request.environ.get("gunicorn.socket"):
        stop_receiving(sock)


def _inflate_slices(sent: bytearray) -> Iterator[bytes]:
    """Inflates ``sent`` in slices. Raises 400 unless it is one complete gzip member."""
    inflater = zlib.decompressobj(16 + zlib.MAX_WBITS)  # gzip, and nothing else
    time_slice = TimeSlice()
    for start in range(0, len(sent), SLICE_BYTES):
        rest: bytes | bytearray = sent[start : start + SLICE_BYTES]
        while rest:
            time_slice.check()
            try:
                part = inflater.decompress(rest, SLICE_BYTES)
            except zlib.error as error:
                raise BadRequest("invalid gzip") from error
            if inflater.unused_data:
                raise BadRequest("more than one gzip member")
            yield part
            rest = inflater.unconsumed_tail
    if not inflater.eof:
        raise BadRequest("incomplete gzip")


def load_json(body: bytes | bytearray, pause: Callable[[], object]) -> Any:
    """The JSON document in ``body``. Raises 400 for invalid JSON, or beyond :data:`MAX_STRUCTURAL_CHARACTERS`."""
    limit = MAX_STRUCTURAL_CHARACTERS
    if has_more_values(body, pause, limit):
        raise BadRequest(f"the body has more than {limit} brackets, commas and quotation marks around values")
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the body is not JSON: {error}") from error


def load_body(body: bytearray, schema: Schema) -> Mapping[str, Any]:
    """The JSON document in ``body``, loaded by ``schema``. Raises 400."""
    time_slice = TimeSlice()
    document = load_json(body, time_slice.check)
    time_slice.check()
    return load(document, schema, "body")


def load(document: Any, schema: Schema, where: str) -> Mapping[str, Any]:
    """Loads ``document`` by ``schema``. Raises 400, with errors that name the location ``where``, such as ``query``."""
    try:
        loaded: Mapping[str, Any] = schema.load(document)
    except ValidationError as error:
        refusal = BadRequest("invalid request body")
        # Uses the form of webargs, so that all invalid parameters are reported in the same way.
        refusal.data = {"messages": {where: error.messages}}  # type: ignore[attr-defined]
        raise refusal from error
    return loaded


def has_more_values(body: bytes | bytearray, pause: Callable[[], object], limit: int) -> bool:
    """Whether ``body`` has more than ``limit`` brackets, commas, and quotation marks around strings."""
    found = 0
    for parts, in_string in _at_quotation_marks(body, pause):
        outside = b"".join(parts[in_string::2])
        found += len(parts) - 1 + outside.count(b",") + outside.count(b"[") + outside.count(b"{")
        if found > limit:
            return True
    return False


def without_strings(body: bytes | bytearray, pause: Callable[[], object]) -> Iterator[bytes]:
    """The body in slices, with the content of strings zeroed: all quotation marks left begin or end a string."""
    for parts, in_string in _at_quotation_marks(body, pause):
        parts[1 - in_string :: 2] = [bytes(len(part)) for part in parts[1 - in_string :: 2]]
        yield b'"'.join(parts)


def _at_quotation_marks(body: bytes | bytearray, pause: Callable[[], object]) -> Iterator[tuple[list[bytes], int]]:
    """Yields slices of JSON, split at the quotation marks around strings, and whether each begins in a string (1 or 0).

    Escaped quotation marks and backslashes become zeros.
    """
    in_string, escape = 0, False
    for start in range(0, len(body), SLICE_BYTES):
        pause()
        data = bytes(body[start : start + SLICE_BYTES])
        if escape:
            data = b"\0" + data[1:]
            escape = False
        if b"\\" in data:
            data = data.replace(rb"\\", b"\0\0")
            # A backslash at the end of a slice is half of an escape; the next slice begins with the other half.
            escape = data.endswith(b"\\")
            data = data.replace(rb"\"", b"\0\0")
        parts = data.split(b'"')
        count = len(parts)
        yield parts, in_string
        in_string ^= (count - 1) % 2
