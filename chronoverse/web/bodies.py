"""Request bodies, bounded before they are anything: how many bytes, how far they inflate, how much they parse to.

Whatever is refused here is refused as HTTP has it, with werkzeug's errors; :mod:`chronoverse.web.problems` makes
documents of them.
"""

import contextlib
import re
import socket
import zlib
from collections.abc import Iterator, Mapping
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

from chronoverse.errors import AtCapacity
from chronoverse.web.fairness import let_others

#: Bytes of one read from the connection. Other greenlets have their turn between any two.
READ_BYTES: Final = 65_536
#: Bytes of all bodies that a worker reads or handles at a time; further ones are refused with 503.
HELD_BYTES: Final = 67_108_864
#: Seconds that a body may take to arrive. nginx's own bound is between two reads.
RECEIVE_SECONDS: Final = 20.0
#: Times the limit that is read of a body that is too long, and thrown away: who is not heard out does not hear our
#: answer, but a reset.
HEAR_OUT: Final = 2
#: Brackets and commas beyond which a body is looked at before it is parsed: 8 MiB of ``[],`` parsed take 0.6 s and
#: 300 MB. Outside strings, where each is a value, this many are parsed in 10 ms.
MAX_VALUES: Final = 50_000

_STRING: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\Z)', re.DOTALL)
#: zlib's spelling of "gzip, and nothing else".
_GZIP: Final = 16 + zlib.MAX_WBITS


class _UnknownCoding(UnsupportedMediaType):
    """415 for a content coding, which says what would do. https://www.rfc-editor.org/rfc/rfc9110#section-15.5.16"""

    def get_headers(self, *args: Any, **kwargs: Any) -> list[tuple[str, str]]:
        return [*super().get_headers(*args, **kwargs), ("Accept-Encoding", "gzip")]


class Bodies:
    """Reads bodies of at most ``limit`` bytes, as sent and as inflated. One of these per worker."""

    def __init__(self, limit: int, *, held_bytes: int = HELD_BYTES, receive_seconds: float = RECEIVE_SECONDS) -> None:
        self._limit = limit
        self._held_bytes = held_bytes
        self._receive_seconds = receive_seconds
        self._held = 0

    @contextlib.contextmanager
    def json(self, request: Request, schema: Schema) -> Iterator[Mapping[str, Any]]:
        """The request's body as ``schema`` has it; its bytes count against the worker's until the block is left.

        Raises 400, 408, 413 or 415 as an HTTPException, and :class:`AtCapacity`.
        """
        held: list[int] = []
        try:
            yield _load(self._receive(request, held), schema)
        finally:
            self._held -= sum(held)

    def _receive(self, request: Request, held: list[int]) -> bytes:
        if request.mimetype != "application/json":
            raise UnsupportedMediaType("the body must be application/json")
        coding = request.headers.get("Content-Encoding", "").strip().lower()
        if coding not in ("", "identity", "gzip", "x-gzip"):
            raise _UnknownCoding("a body may be encoded with gzip, and with nothing else")
        late = RequestTimeout(f"the body did not arrive within {self._receive_seconds:g} s")
        with gevent.Timeout(self._receive_seconds, late):
            try:
                return self._take(request, "gzip" in coding, held)
            except RequestEntityTooLarge:
                _hear_out(request, HEAR_OUT * self._limit)
                raise

    def _take(self, request: Request, zipped: bool, held: list[int]) -> bytes:
        if (request.content_length or 0) > self._limit:
            raise self._too_long()
        inflater = zlib.decompressobj(_GZIP) if zipped else None
        received, parts = 0, []
        while data := _read(request):
            received += len(data)
            part = self._inflate(inflater, data, sum(held)) if inflater else data
            held.append(len(part))
            self._held += len(part)
            if received > self._limit or sum(held) > self._limit:
                raise self._too_long()
            if self._held > self._held_bytes:
                raise AtCapacity("this worker is busy with other bodies")
            parts.append(part)
        if received < (request.content_length or 0):
            raise BadRequest("the body broke off")
        if inflater and (not inflater.eof or inflater.unused_data):
            raise BadRequest("the body is not one whole gzip member")
        return b"".join(parts)

    def _inflate(self, inflater: Any, data: bytes, size: int) -> bytes:
        """``data`` inflated, but never more than shows that it is too long."""
        try:
            part: bytes = inflater.decompress(data, self._limit - size + 1)
        except zlib.error as error:
            raise BadRequest("the body is not gzip") from error
        return part

    def _too_long(self) -> HTTPException:
        return RequestEntityTooLarge(f"a body may have {self._limit} bytes, as sent and as inflated")


def _read(request: Request) -> bytes:
    let_others()
    try:
        data: bytes = request.stream.read(READ_BYTES)
    except (HTTPException, gevent.Timeout):
        raise
    except Exception as error:  # the server's own, for chunks that are none; it has no common name
        raise BadRequest("the body broke off") from error
    return data


def _hear_out(request: Request, limit: int) -> None:
    """Reads on, up to ``limit`` bytes; if there is more, nobody will read it: the connection is closed behind us."""
    left = limit
    while left > 0 and (data := _read(request)):
        left -= len(data)
    connection = request.environ.get("gunicorn.socket")
    if left <= 0 and connection is not None:
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RD)


def _load(body: bytes, schema: Schema) -> Mapping[str, Any]:
    if _is_dense(body):
        raise BadRequest(f"the body has more than {MAX_VALUES} values")
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the body is not JSON: {error}") from error
    try:
        loaded: Mapping[str, Any] = schema.load(document)
    except ValidationError as error:
        refused = BadRequest("the body is not as it should be")
        # Where webargs leaves what it found, so that all bad parameters are told in one way.
        refused.data = {"messages": {"body": error.messages}}  # type: ignore[attr-defined]
        raise refused from error
    return loaded


def _is_dense(body: bytes) -> bool:
    """Whether parsing would make too many values: it takes time and memory for each, not for each byte."""
    if _values(body) <= MAX_VALUES:
        return False
    return _values(_STRING.sub(b"", body)) > MAX_VALUES


def _values(text: bytes) -> int:
    return text.count(b"[") + text.count(b"{") + text.count(b",")
