"""Replaces the machine's network and disk by simulated ones in the modules that would use them."""

import http.client
import inspect
import logging
import socket
import threading
from types import SimpleNamespace
from typing import Any, Final

import flask_smorest
import gevent
import redis.connection
from redis._parsers import hiredis
from werkzeug.routing import Rule

from chronoverse.history.scans import client as scan_client
from chronoverse.live import feed
from chronoverse.store import driver, live_reader
from chronoverse.web.routes import otlp, ui
from tests.simulation.http_server import read_headers
from tests.simulation.kernel import loop, world
from tests.simulation.network import Network, Pipe, SimSocket

#: The text of an error raised by a fault.
ASKED_FOR: Final = "a fault of the simulation"


class OrderedSet(dict[Any, None]):
    """A set with insertion order. The order of a set of objects would depend on their addresses."""

    def add(self, member: Any) -> None:
        self[member] = None

    def discard(self, member: Any) -> None:
        self.pop(member, None)

    remove = dict.__delitem__


class Told(logging.Handler):
    """Adds what the code under test logs to the story. Tracebacks are violations."""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if world.story is not None:
            world.story.append((loop.time, world.process_name, text[:300]))
        if record.exc_info and record.exc_info[1] is not None and str(record.exc_info[1]) != ASKED_FOR:
            world.violation(f"{world.process_name}: {text[:200]}", record.exc_info[1])


def install(network: Network) -> None:
    """Once, before the simulation's first part starts."""

    def connect_redis(self: Any) -> SimSocket:
        sock = network.connect(self.host, self.socket_connect_timeout)
        sock.settimeout(self.socket_timeout)
        return sock

    def connect_http(self: Any) -> None:
        seconds = self.timeout if isinstance(self.timeout, int | float) else None
        self.sock = network.connect(self.host, seconds)

    def wait_readable(connection: Any, other: Pipe, seconds: float) -> bool:
        sock = None if connection is None else connection._sock
        if not (other.is_woken or (sock is not None and sock.is_readable())):
            other.event.clear()
            if sock is not None:
                sock.also = other.event
            other.event.wait(seconds)
        return other.is_woken

    def parse_headers(file: Any) -> http.client.HTTPMessage:
        vars(message := http.client.HTTPMessage())["_headers"] = read_headers(file)
        return message

    def connect_scans(self: Any) -> None:
        self.sock = network.connect(self._path, self.timeout)

    scan_client._UnixConnection.connect = connect_scans  # type: ignore[method-assign]
    redis.connection.Connection._connect = connect_redis  # type: ignore[method-assign]
    http.client.HTTPConnection.connect = connect_http  # type: ignore[method-assign]
    hiredis._socket_can_read = lambda sock, timeout: sock.is_readable()
    hiredis._socket_is_closed = lambda sock: sock.is_at_end()
    live_reader.wait_readable = driver.wait_readable = wait_readable  # type: ignore[assignment,attr-defined]
    live_reader.socket = SimpleNamespace(socketpair=Pipe.pair, socket=socket.socket)  # type: ignore
    # A third of the time: nodes' OpenAPI documents, pages and OTLP, and warnings about arguments that nobody passes.
    flask_smorest.Blueprint.register_views_in_doc = lambda *_, **__: None
    flask_smorest.Api._register_responses = Rule._compile_builder = lambda *_: lambda *_: None  # type: ignore[assignment]
    for module in (flask_smorest.arguments, flask_smorest.blueprint, flask_smorest.response):
        module.deepcopy = lambda document: document
    otlp.is_installed = lambda: False
    ui.blueprint = lambda _: flask_smorest.Blueprint("ui", __name__)  # type: ignore[assignment]
    for pool in (redis.ConnectionPool, redis.BlockingConnectionPool):
        pool.get_connection = inspect.unwrap(pool.get_connection)  # type: ignore[method-assign]
    for module in (redis.connection, redis.client):
        for name in [each for each in vars(module) if each.startswith("record_")]:
            setattr(module, name, lambda **_: None)
    http.client.parse_headers = parse_headers  # type: ignore[assignment]
    feed.set = OrderedSet  # type: ignore[attr-defined]
    gevent.get_hub().handle_error = _handle_error
    threading.excepthook = lambda args: _handle_error(None, args.exc_type, args.exc_value, args.exc_traceback)
    logger = logging.getLogger("chronoverse")
    logger.handlers, logger.propagate = [Told()], False
    logger.setLevel(logging.INFO)


def _handle_error(context: object, kind: Any, value: Any, traceback: Any) -> None:
    if not issubclass(kind, gevent.GreenletExit):
        world.violation(f"{world.process_name}: {kind.__name__}: {value}", value)
