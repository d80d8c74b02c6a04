"""The worker, without a gunicorn master."""

import logging
import math
import resource
from collections.abc import Iterator
from types import SimpleNamespace
from typing import cast

import gevent.socket
import orjson
import pytest
from gevent.event import Event
from gunicorn.http import errors

from chronoverse.errors import AtCapacity
from chronoverse.fair_lock import FairLock
from chronoverse.web import worker
from chronoverse.web.guards.connection import Connection, Connections
from chronoverse.web.http.client_ip import TrustedProxies
from chronoverse.web.streaming.stream_writer import StreamWriters
from chronoverse.web.worker import Server, Worker
from tests.web.routes.wire import receive


@pytest.fixture
def sockets() -> Iterator[tuple[Connection, gevent.socket.socket]]:
    """A client's connection, and the client's end of it."""
    ours, peer = gevent.socket.socketpair()
    with peer, Connection(ours.family, ours.type, ours.proto, fileno=ours.detach()) as connection:
        yield connection, peer


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/workflows", "request"), ("/healthz", "probe"), ("/readyz", "probe"), ("/workflows/w/events", "request")],
)
def test_a_request_that_gets_no_turn_is_refused(
    sockets: tuple[Connection, gevent.socket.socket], path: str, kind: str
) -> None:
    """With a problem document and Retry-After. Then its connection is closed. Probes wait only for other probes.

    Requests for streams wait here only if they are pipelined.
    """
    lock = FairLock(0, AtCapacity)
    deps = SimpleNamespace(turns=SimpleNamespace(**{kind: lock}), proxies=TrustedProxies())
    worker = Worker.__new__(Worker)
    worker.wsgi = SimpleNamespace(extensions={"chronoverse": deps})
    request, (connection, peer) = SimpleNamespace(path=path, headers=[]), sockets
    connection.end_request(pipelined=path.endswith("/events"))
    with lock.hold(), pytest.raises(StopIteration):
        worker.handle_request(None, request, connection, ("192.0.2.1", 1))
    status, headers, body = receive(peer)

    assert (status, headers["content-type"]) == (503, "application/problem+json")
    assert int(headers["retry-after"]) > 0
    assert orjson.loads(body)["status"] == 503


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (errors.InvalidHeader("x"), 400),
        (errors.ExpectationFailed("x"), 417),
        (errors.InvalidResponseHeader("x"), 500),
        (ValueError("x"), 500),
    ],
    ids=lambda each: type(each).__name__,
)
def test_only_a_malformed_request_is_the_clients_fault(
    sockets: tuple[Connection, gevent.socket.socket], error: Exception, expected: int
) -> None:
    """An invalid header of our own answer is not, although gunicorn's error for it is of the same kind."""
    worker, (connection, peer) = Worker.__new__(Worker), sockets
    worker.log = logging.getLogger("test")
    worker._connections = Connections(10, FairLock(0, AtCapacity))
    worker.handle_error(None, connection, ("192.0.2.1", 1), error)
    assert receive(peer)[0] == expected


@pytest.mark.parametrize(
    ("descriptors", "most"), [(1_000, 900), (150, 75), (resource.RLIM_INFINITY, math.inf)], ids=str
)
def test_some_descriptors_are_left_for_the_store_and_for_files(
    monkeypatch: pytest.MonkeyPatch, descriptors: int, most: float
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (descriptors, descriptors))
    assert worker.max_connections() == most


def test_a_worker_that_was_out_of_descriptors_accepts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client that had to wait is served. Streams use descriptors, too."""
    refused, served, limits = Event(), Event(), [1]
    monkeypatch.setattr(worker, "max_connections", lambda: refused.set() or limits[0])
    with gevent.socket.create_server(("127.0.0.1", 0)) as listener:
        connections = Connections(10, FairLock(1, AtCapacity))
        writers = cast(StreamWriters, SimpleNamespace(open_count=1))
        server = Server(listener, lambda *_: served.set(), connections, writers)
        server.start()
        with gevent.socket.create_connection(listener.getsockname()):
            assert refused.wait(60)
            assert not served.wait(0.05)
            limits[0] = 2
            assert served.wait(60)
        server.stop()
        for connection in connections:
            connection.close()
