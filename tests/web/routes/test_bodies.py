"""Request bodies that stall, arrive in large numbers, or are expensive to parse do not affect other requests."""

import contextlib
import gc
import gzip
import io
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import gevent
import gevent.event
import gevent.socket
import orjson
import pytest
from flask import Request
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.datastructures import Headers
from werkzeug.exceptions import BadRequest, HTTPException, RequestEntityTooLarge, RequestTimeout
from werkzeug.test import EnvironBuilder

from chronoverse.errors import AtCapacity, ShareExceeded
from chronoverse.settings import Settings
from chronoverse.web.app import create_app
from chronoverse.web.guards.memory import SHORT_BODY_BYTES
from chronoverse.web.http.bodies import (
    MAX_STRUCTURAL_CHARACTERS,
    SLICE_BYTES,
    BodyReader,
    _inflate_slices,
    has_more_values,
    load_body,
)
from chronoverse.web.http.publish_schemas import LinesBody
from chronoverse.web.routes.publish import _load_text
from tests.support.parameters import long_after
from tests.support.service import SECRET
from tests.support.waiting import deadline
from tests.web.routes.foreign import TIMESTAMP

#: The service's defaults.
MAX_BODY: Final = 8 * 2**20
MAX_LINE: Final = 65_536
#: CPU time that a body can take before the worker switches to other requests, in seconds. Parsing 8 MiB takes 15 ms,
#: and longer on a busy machine.
TURN_SECONDS: Final = 0.1
RUNNER: Final = "0" * 32
#: The schema of an append.
SCHEMA: Final = LinesBody(MAX_LINE)


class Dripping:
    """A body that arrives in small parts, ``pause`` seconds apart."""

    def __init__(self, parts: int, size: int = 1, pause: float = 0) -> None:
        self._parts, self._size, self._pause = parts, size, pause

    def read(self, count: int = -1) -> bytes:
        gevent.sleep(self._pause)
        self._parts -= 1
        return b" " * self._size if self._parts >= 0 else b""


def request(stream: Any, **headers: str) -> Request:
    """A request with ``stream`` as its chunked body."""
    builder = EnvironBuilder("/", method="POST", content_type="application/json", headers=Headers(headers))
    return Request(builder.get_environ() | {"wsgi.input": stream, "wsgi.input_terminated": True})


@contextlib.contextmanager
def read_json(bodies: BodyReader, incoming: Request, subject: str = "ada") -> Iterator[Mapping[str, Any]]:
    """Reads and loads a body, as a route does."""
    with bodies.read(incoming, subject, "application/json") as body:
        yield load_body(body, SCHEMA)


def refusal(bodies: BodyReader, stream: Any, subject: str = "ada", **headers: str) -> Exception:
    """The error that rejects a body.

    A complete body is rejected, too: it is not JSON.
    """
    incoming = request(stream, **headers)
    with pytest.raises((HTTPException, AtCapacity, ShareExceeded)) as refused, read_json(bodies, incoming, subject):
        pass
    return refused.value


def status(bodies: BodyReader, stream: Any, subject: str = "ada") -> int | None:
    """The HTTP status that rejects a body."""
    error = refusal(bodies, stream, subject)
    return error.code if isinstance(error, HTTPException) else None


def test_a_body_that_does_not_arrive_is_refused() -> None:
    """408 after a timeout for the whole body."""
    assert status(BodyReader(1000, receive_seconds=0.2), Dripping(1000, pause=0.01)) == 408


def test_a_stalled_connection_is_not_read_again() -> None:
    """408 after a timeout for the next bytes. The server closes it after the answer, although the client does not."""
    started = time.monotonic()
    ours, peers = gevent.socket.socketpair()
    with ours, peers:
        stalled = request(Dripping(2, pause=30))
        stalled.environ["gunicorn.socket"] = ours
        bodies = BodyReader(1000, read_seconds=0.1)
        with pytest.raises(RequestTimeout), read_json(bodies, stalled):
            pass

        assert time.monotonic() - started < 10
        assert ours.recv(1) == b""
        ours.sendall(b"the answer")
        assert peers.recv(100) == b"the answer"


def test_an_endless_body_is_not_read_to_its_end() -> None:
    """After the answer, the connection is not read again."""
    ours, peers = gevent.socket.socketpair()
    with ours, peers:
        endless = request(Dripping(1_000, 100))
        endless.environ["gunicorn.socket"] = ours
        with pytest.raises(RequestEntityTooLarge), read_json(BodyReader(1_000), endless):
            pass
        assert endless.stream.read(1)
        ours.settimeout(0)
        assert ours.recv(1) == b""


def test_each_token_has_a_share_of_the_memory_for_bodies() -> None:
    """Of that for long bodies, and of that for short ones, which many tokens' long bodies cannot use up."""
    limit = 2**20
    bodies = BodyReader(limit)
    for _ in range(2):
        with contextlib.ExitStack() as held:

            def read(size: int, subject: str) -> str:
                try:
                    body = bodies.read(request(Dripping(16, size // 16)), subject, "application/json")
                    held.enter_context(body)
                except (AtCapacity, ShareExceeded) as error:
                    return str(error)
                return ""

            share = "this token has used its share of {} request bodies"
            assert next(filter(None, (read(limit, "ada") for _ in range(100)))) == share.format("long")
            assert read(limit, "bob") == ""
            full = next(filter(None, (read(limit, f"token {number}") for number in range(100))))
            assert full.endswith("long request bodies")
            assert next(filter(None, (read(SHORT_BODY_BYTES, "ada") for _ in range(1_000)))) == share.format("short")
            assert read(SHORT_BODY_BYTES, "carol") == ""


@given(st.lists(st.tuples(st.sampled_from([b"x", b"some text ", bytes(range(256))]), st.integers(0, 9)), max_size=4))
def test_a_body_is_inflated_whole(parts: list[tuple[bytes, int]]) -> None:
    """Wherever slices end, as sent and inflated."""
    body = b"".join((unit * SLICE_BYTES)[: count * SLICE_BYTES] for unit, count in parts)
    assert b"".join(_inflate_slices(bytearray(gzip.compress(body)))) == body


def test_nothing_is_inflated_before_it_is_complete() -> None:
    """A truncated gzip bomb is not decompressed at all."""
    bomb = gzip.compress(bytes(2**20))

    error = refusal(BodyReader(1000), Parts([bomb[:-1]], RuntimeError), Content_Encoding="gzip")
    assert isinstance(error, HTTPException)
    assert (error.code, error.description) == (400, "incomplete request body")


class Parts:
    """A body of ``parts``, followed by an error of gunicorn's reader, if any."""

    def __init__(self, parts: list[bytes], error: type[Exception] | None = None) -> None:
        self._parts, self._error = iter(parts), error

    def read(self, count: int = -1) -> bytes:
        part = next(self._parts, b"")
        if not part and self._error:
            raise self._error
        return part


def test_an_incomplete_body_is_refused() -> None:
    """Whatever error gunicorn's reader raises, and if it raises none."""
    assert status(BodyReader(1000), Parts([], RuntimeError)) == 400
    document = orjson.dumps({"token": RUNNER, "attempt": 1, "first": 1, "lines": []})
    for more in (0, 1):
        incoming = request(io.BytesIO(document))
        incoming.environ["CONTENT_LENGTH"] = str(len(document) + more)
        refused = pytest.raises(BadRequest, match="incomplete") if more else contextlib.nullcontext()
        with refused, read_json(BodyReader(1000), incoming):
            pass


# Bodies that are expensive


def test_values_are_counted_wherever_a_slice_ends() -> None:
    """Within an escape, or before a quotation mark."""
    for first in range(-3, 4):
        for second in range(-3, 7):
            texts = ["x" * (SLICE_BYTES - 4 - first) + '"\\', "y" * (SLICE_BYTES - 3 - second), "[{,"]
            more = [has_more_values(orjson.dumps(texts), lambda: None, limit) for limit in (8, 9)]
            # Six quotation marks, two commas and a bracket.
            assert more == [True, False]
    for unit in (b",", b"[", b"{", b'"'):
        assert [has_more_values(unit * 10, lambda: None, limit) for limit in (9, 10)] == [True, False], unit


def repeated(unit: bytes, before: bytes = b"", after: bytes = b"") -> bytes:
    """``unit``, repeated up to the maximum size of a body."""
    return before + unit * ((MAX_BODY - len(before) - len(after)) // len(unit)) + after


def in_lines(unit: bytes) -> bytes:
    """A valid append of 500 lines whose messages repeat ``unit``, which is JSON already."""
    head = b'{"timestamp":"%b","stream":"stdout","message":"' % TIMESTAMP.encode()
    line = head + unit * (16_000 // len(unit)) + b'"}'
    return b'{"token":"%b","attempt":1,"first":1,"lines":[%b]}' % (RUNNER.encode(), b",".join([line] * 500))


#: Builds each body, of 8 MiB.
SHAPES: Final[dict[str, Callable[[], bytes]]] = {
    "empty texts": lambda: repeated(b'"",', b"[", b"1]"),
    "quotation marks": lambda: repeated(b'"'),
    "brackets": lambda: repeated(b"["),
    "nested": lambda: b"[" * 1000 + b"]" * 1000,
    "numbers": lambda: repeated(b"1,", b"[", b"1]"),
    "a long number": lambda: repeated(b"1"),
    "a long fraction": lambda: repeated(b"1", b"0."),
    "blanks": lambda: repeated(b" "),
    "escaped quotation marks": lambda: repeated(b'\\"', b'["', b'"]'),
    "backslashes": lambda: repeated(b"\\\\", b'["', b'"]'),
    "long keys": lambda: b"{" + b",".join(b'"%d%b":1' % (number, b"k" * 2**19) for number in range(14)) + b"}",
    "many keys": lambda: (
        b"{" + b",".join(b'"%d":1' % number for number in range(MAX_STRUCTURAL_CHARACTERS // 3 - 1)) + b"}"
    ),
    "lines of escapes": lambda: in_lines(b"\\u0000"),
    "lines of pairs": lambda: in_lines(b"\\ud83d\\ude00"),
    "lines of JSON": lambda: in_lines(b'[{\\"a\\":[],\\"b\\":\\"[{,\\"},'),
    "lines of emoji": lambda: in_lines("\U0001f642".encode()),
}


@pytest.fixture
def frozen() -> Iterator[None]:
    """Excludes the existing objects from garbage collection, as in a worker."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("frozen")
@pytest.mark.parametrize(
    "zipped", [pytest.param(True, id="gzip"), pytest.param(False, id="plain", marks=pytest.mark.long)]
)
@pytest.mark.parametrize("shape", long_after(6, SHAPES))
def test_no_body_occupies_the_worker_for_long(shape: str, zipped: bool) -> None:
    """Between two rounds of the event loop the worker computes no longer than parsing 8 MiB takes."""
    body = gzip.compress(SHAPES[shape](), 1) if zipped else SHAPES[shape]()
    headers = {"Content_Encoding": "gzip"} if zipped else {}
    parts = [body[start : start + 16_384] for start in range(0, len(body), 16_384)]

    def read() -> None:
        incoming = request(Parts(parts), **headers)
        with contextlib.suppress(BadRequest), read_json(BodyReader(MAX_BODY), incoming):
            pass

    assert longest_turn(read) < TURN_SECONDS


@pytest.mark.usefixtures("frozen")
@pytest.mark.parametrize("unit", [b"-----BEGIN RSA PRIVATE KEY-----\n", b"ghp_"])
def test_no_plain_text_occupies_the_worker_for_long(tmp_path: Path, unit: bytes) -> None:
    """Too many lines that must be masked, or one long line."""
    app = create_app(Settings(data_dir=tmp_path, redis_url="unix:///none", jwt_secret=SECRET))
    headers = {"Chronoverse-Attempt": "1", "Chronoverse-Token": RUNNER}

    def read() -> None:
        with (
            app.test_request_context("/?first=1", headers=headers, content_type="text/plain"),
            contextlib.suppress(RequestEntityTooLarge),
        ):
            _load_text(app.extensions["chronoverse"], bytearray(repeated(unit)))

    assert longest_turn(read) < TURN_SECONDS


def longest_turn(read: Callable[[], None]) -> float:
    """The longest time in seconds that ``read`` computes between two rounds of the event loop."""
    longest, last = 0.0, time.thread_time()
    reading = gevent.spawn(read)
    in_time = deadline(60, "the body is read")
    while not reading.ready() and in_time():
        gevent.sleep(0)
        now = time.thread_time()
        longest, last = max(longest, now - last), now

    reading.get()
    return longest
