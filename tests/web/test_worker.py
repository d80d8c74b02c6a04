"""The worker, without a gunicorn master."""

from types import SimpleNamespace

import gevent.socket
import orjson
import pytest

from chronoverse.errors import AtCapacity
from chronoverse.fair_lock import FairLock
from chronoverse.web.guards.connection import Connection
from chronoverse.web.http.client_ip import TrustedProxies
from chronoverse.web.worker import Worker
from tests.web.routes.wire import receive


def test_a_request_that_gets_no_turn_is_refused() -> None:
    """With a problem document and Retry-After. Then its connection is closed."""
    lock = FairLock(0, AtCapacity)
    deps = SimpleNamespace(turns=SimpleNamespace(request=lock), proxies=TrustedProxies())
    worker = Worker.__new__(Worker)
    worker.wsgi = SimpleNamespace(extensions={"chronoverse": deps})
    ours, peer = gevent.socket.socketpair()
    connection = Connection(ours.family, ours.type, ours.proto, fileno=ours.detach())
    request = SimpleNamespace(path="/workflows", headers=[])
    with peer, connection:
        with lock.hold(), pytest.raises(StopIteration):
            worker.handle_request(None, request, connection, ("192.0.2.1", 1))
        status, headers, body = receive(peer)

    assert (status, headers["content-type"]) == (503, "application/problem+json")
    assert int(headers["retry-after"]) > 0
    assert orjson.loads(body)["status"] == 503
