"""The gunicorn worker class: a gevent worker that limits its connections, and drains its streams at shutdown."""

import contextlib
import math
import resource
import secrets
import time
from functools import partial
from http import HTTPStatus
from typing import Any, Final

import gevent
from gevent.server import StreamServer
from gunicorn.http import errors
from gunicorn.workers.ggevent import GeventWorker

from chronoverse.errors import AtCapacity
from chronoverse.web.guards.connection import (
    Connection,
    Connections,
    finish_sending,
    set_socket_options,
    stop_receiving,
)
from chronoverse.web.http.client_ip import join_forwarded_for
from chronoverse.web.http.dependencies import Dependencies
from chronoverse.web.http.problems import problem
from chronoverse.web.routes.events import response_head
from chronoverse.web.streaming.stream_writer import StreamWriters

#: The status and the problem of requests that gunicorn cannot parse, by its error. All others get 400.
_REFUSALS: Final = {
    errors.LimitRequestLine: (HTTPStatus.REQUEST_URI_TOO_LONG, "the request line is too long: shorten the URL"),
    errors.LimitRequestHeaders: (
        HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
        "a header is too long, or there are too many",
    ),
    errors.ExpectationFailed: (HTTPStatus.EXPECTATION_FAILED, "unknown Expect header: expected 100-continue"),
    errors.UnsupportedTransferCoding: (HTTPStatus.NOT_IMPLEMENTED, "unsupported Transfer-Encoding: expected chunked"),
}


class Server(StreamServer):
    """Accepts all connections; :class:`Connections` closes those above its limit."""

    def __init__(self, listener: Any, handle: Any, connections: Connections, writers: StreamWriters) -> None:
        super().__init__(listener, handle=handle, spawn=gevent.spawn_raw)
        self._connections = connections
        self._writers = writers

    def do_read(self) -> tuple[Connection, Any] | None:
        """Accepts a connection. Returns it and its address, or None if no connection waits or no descriptor is free."""
        if len(self._connections) + self._writers.open_count >= max_connections():
            # If this closes a connection, the next round of the event loop accepts the new one.
            if not self._connections.make_room():
                self.stop_accepting()
                # Accepts again later, unless the server was stopped. gevent has no public method for this.
                gevent.spawn_later(0.01, self._start_accepting_if_started)
            return None
        try:
            # The public ``accept`` would block, and would create gevent's type of socket.
            descriptor, address = self.socket._accept()
        except BlockingIOError:
            return None
        connection = Connection(fileno=descriptor)
        self._connections.add(connection)
        return connection, address


def max_connections() -> float:
    """The number of connections and streams that the process's file descriptors allow."""
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if descriptors == resource.RLIM_INFINITY:
        return math.inf
    # The rest is for files, the store and the archive.
    return descriptors - min(100, descriptors // 2)


def refuse(sock: Connection, status: HTTPStatus, detail: str) -> None:
    """Sends a problem document instead of Flask's response, as the connection's last response."""
    request_id = secrets.token_hex(8)
    response = problem(status, detail, request_id=request_id)
    response.headers["X-Request-ID"] = request_id
    sock.sendall(response_head(response.headers, time.time(), status) + response.data)
    finish_sending(sock)


class Worker(GeventWorker):
    """A gevent worker that ignores a connection after a route has answered with gunicorn's ``ALREADY_HANDLED``."""

    _connections: Connections
    #: When :meth:`run` returns even if streams are open, on the monotonic clock.
    _ends_at = math.inf

    def init_process(self) -> None:
        # Caches the settings: gunicorn needs three calls for each, 6 % of the cost of a new viewer.
        self.cfg.__dict__.update({name: setting.get() for name, setting in self.cfg.settings.items()})
        # Raises the soft limit to the hard limit. The usual 1,024 is less than a worker's streams.
        hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
        super().init_process()

    def handle_quit(self, sig: int, frame: Any) -> None:
        """Makes :meth:`run` return at once.

        gunicorn's own handler exits in a greenlet, which prints a traceback if the worker is already exiting.
        """
        self.alive, self._ends_at = False, time.monotonic() + 0.1

    def is_already_handled(self, respiter: Any) -> bool:
        """Raises StopIteration, which makes gunicorn's handlers leave the connection alone."""
        if super().is_already_handled(respiter):
            raise StopIteration
        return False

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        try:
            super().handle(listener, client, addr)
        finally:
            self._connections.remove(client)

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> None:
        """Serves one request. Raises StopIteration unless the connection stays open for another."""
        sock.begin_request()
        try:
            self._take_turn(req, sock, addr)
        except AtCapacity as error:
            refuse(sock, HTTPStatus.SERVICE_UNAVAILABLE, "This worker has too many requests at a time; try again.")
            raise StopIteration from error
        super().handle_request(listener_name, req, sock, addr)
        self._discard_body(req.body)
        sock.end_request(pipelined=req.unreader.buf.getbuffer().nbytes > 0)

    def _take_turn(self, req: Any, sock: Connection, addr: Any) -> None:
        """Waits for the request's turn, before Flask gets it. Raises :class:`AtCapacity`.

        Client addresses take turns. Probes wait only for probes; new viewers wait within Flask (``Turns.viewer``).
        """
        deps: Dependencies = self.wsgi.extensions["chronoverse"]
        if sock.is_pipelined or not req.path.endswith("/events"):
            turn = deps.turns.probe if req.path in ("/healthz", "/readyz") else deps.turns.request
            peer = addr[0] if addr else ""
            with turn.hold(deps.proxies.client(peer, join_forwarded_for(req.headers))):
                pass

    def _discard_body(self, body: Any) -> None:
        try:
            with gevent.Timeout(self.cfg.keepalive, TimeoutError()):
                while body.read(65_536):
                    pass
        except Exception as error:
            raise StopIteration from error

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Answers and logs a malformed request. Leaves other failed requests to gunicorn."""
        client.begin_request()
        with contextlib.suppress(AtCapacity, OSError):
            # Refusals wait for a turn, too, because they cost as much as other answers.
            with self._connections.request_lock.hold():
                pass
            at_fault = (errors.InvalidResponseHeader, errors.InvalidResponseHeaderName)
            if isinstance(exc, errors.ParseException) and not isinstance(exc, at_fault):
                self.log.warning("Invalid request from ip=%s: %s", addr[0] if addr else "", exc)
                default = (HTTPStatus.BAD_REQUEST, f"invalid HTTP: {type(exc).__name__}")
                refuse(client, *_REFUSALS.get(type(exc), default))
            else:
                super().handle_error(req, client, addr, exc)
        finish_sending(client)

    def run(self) -> None:
        """Serves until the master stops the worker, then until all streams have ended or the deadline is reached."""
        # Replaces gunicorn's loop, which would accept connections for up to another second, and then refuse them.
        deps: Dependencies = self.wsgi.extensions["chronoverse"]
        self._connections = Connections(self.worker_connections, deps.turns.request)
        servers = [self._serve(listener) for listener in self.sockets]
        while self.alive:
            self._tick()
        for server in servers:
            server.close()
        for connection in self._connections:
            if connection.is_idle:
                # A proxy could otherwise send its next request on this connection.
                stop_receiving(connection)
        # Waits 5 s longer than the drain, for requests and full sockets, as the table of settings says.
        self._ends_at = min(self._ends_at, time.monotonic() + deps.settings.drain_seconds + 5.0)
        while time.monotonic() < self._ends_at and (deps.stream_writers.open_count or len(self._connections)):
            self._tick()
        deps.tail.report_metrics()
        if deps.traces:
            deps.traces.close()

    def _tick(self) -> None:
        self.notify()
        gevent.sleep(0.1)

    def _serve(self, listener: Any) -> Server:
        listener.setblocking(True)
        set_socket_options(listener)
        deps: Dependencies = self.wsgi.extensions["chronoverse"]
        server = Server(listener, partial(self.handle, listener), self._connections, deps.stream_writers)
        if self.cfg.workers > 1:
            # A worker accepts at most 8 connections per round, so that all workers get some.
            server.max_accept = 8
        server.start()
        return server
