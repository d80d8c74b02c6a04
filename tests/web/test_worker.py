"""The worker, without a gunicorn master."""

import logging
from collections.abc import Iterator
from types import SimpleNamespace

import gevent.socket
import orjson
import pytest
from gunicorn.http import errors

from chronoverse.errors import AtCapacity
from chronoverse.fair_lock import FairLock
from chronoverse.web.guards.connection import Connection, Connections
from chronoverse.web.http.client_ip import TrustedProxies
from chronoverse.web.worker import Worker
from tests.web.routes.wire import receive


@pytest.fixture
def sockets() -> Iterator[tuple[Connection, gevent.socket.socket]]:
    """A client's connection, and the client's end of it."""
    ours, peer = gevent.socket.socketpair()
    with peer, Connection(ours.family, ours.type, ours.proto, fileno=ours.detach()) as connection:
        yield connection, peer


@pytest.mark.parametrize(("path", "kind"), [("/workflows", "request"), ("/healthz", "probe"), ("/readyz", "probe")])
def test_a_request_that_gets_no_turn_is_refused(
    sockets: tuple[Connection, gevent.socket.socket], path: str, kind: str
) -> None:
    """With a problem document and Retry-After. Then its connection is closed. Probes wait only for other probes."""
    lock = FairLock(0, AtCapacity)
    deps = SimpleNamespace(turns=SimpleNamespace(**{kind: lock}), proxies=TrustedProxies())
    worker = Worker.__new__(Worker)
    worker.wsgi = SimpleNamespace(extensions={"chronoverse": deps})
    request, (connection, peer) = SimpleNamespace(path=path, headers=[]), sockets
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
