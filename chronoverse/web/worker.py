"""gunicorn's gevent worker: it bounds every connection, lets a stream have its socket, and goes when it is told to."""

import contextlib
import math
import resource
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import gevent
from gevent.pool import Pool
from gevent.server import StreamServer
from gunicorn.sock import ssl_context
from gunicorn.workers.base_async import ALREADY_HANDLED
from gunicorn.workers.ggevent import GeventWorker

from chronoverse import metrics
from chronoverse.errors import AtCapacity
from chronoverse.web.http.client_ip import join_forwarded_for
from chronoverse.web.http.dependencies import Dependencies
from chronoverse.web.http.parse_errors import check_host, refusal_for
from chronoverse.web.streaming.connection import (
    Connection,
    Connections,
    TlsConnection,
    finish_sending,
    set_socket_options,
    stop_receiving,
)

#: Seconds between looks whether it was told to go, and whether the last request has ended. A look takes 20 µs.
TICK_SECONDS: Final = 0.1
#: Seconds that requests and full sockets have beyond the drain. The table of settings tells it too.
LINGER_SECONDS: Final = 5.0
#: Connections that one of several workers accepts before the event loop goes round.
ACCEPTED_AT_ONCE: Final = 8
#: Descriptors that connections leave to everything else: files, and connections to the store and the archive.
SPARE_DESCRIPTORS: Final = 100
#: Seconds between looks for a descriptor when every connection is a stream, or has a request that is worked on.
RETRY_ACCEPT_SECONDS: Final = 0.01
#: Bytes of one read of a body that nobody wants.
DISCARD_READ_BYTES: Final = 65_536
#: What load balancers and supervisors ask for. Their requests do not wait for those of others.
PROBE_PATHS: Final = ("/healthz", "/readyz")


class Server(StreamServer):
    """Accepts a worker's connections, however many there are: the :class:`Connections` bound them.

    ``streams`` tells how many sockets event streams have taken over. ``tls`` is what wraps a socket where gunicorn
    speaks TLS itself.
    """

    def __init__(
        self, listener: Any, handle: Any, connections: Connections, streams: Callable[[], int], tls: Any = None
    ) -> None:
        # The pool is there to count its greenlets. One with a bound would stop accepting, and keep everybody out.
        super().__init__(listener, handle=handle, spawn=Pool())
        self._connections = connections
        self._streams = streams
        self._tls = tls

    def do_read(self) -> tuple[Connection, Any] | None:
        """The next connection and its client's address; None when there is none just now, or no descriptor for it."""
        if len(self._connections) + self._streams() >= max_connections():
            # It is accepted when the event loop comes round again, and has closed one; or when a request has ended.
            if not self._connections.make_room():
                self.stop_accepting()
                gevent.spawn_later(RETRY_ACCEPT_SECONDS, self._start_accepting_if_started)
            return None
        try:
            descriptor, address = self.socket._accept()
        except BlockingIOError:
            return None
        listener = self.socket
        connection = Connection(listener.family, listener.type, listener.proto, fileno=descriptor)
        if self._tls:
            try:
                connection = self._tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
            except (OSError, ValueError):
                # The client has left already.
                connection.close()
                return None
        self._connections.add(connection)
        return connection, address


def max_connections() -> float:
    """For how many connections and streams the system gives the process descriptors."""
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if descriptors == resource.RLIM_INFINITY:
        return math.inf
    return descriptors - min(SPARE_DESCRIPTORS, descriptors // 2)


class Worker(GeventWorker):
    """A response of ``ALREADY_HANDLED`` ends gunicorn's part: no further request is read from that connection."""

    _connections: Connections

    def init_process(self) -> None:
        """In the worker's own process, before it serves."""
        # gunicorn looks each setting up in three calls, some twenty of them for a request: 6 % of what it costs to
        # take a viewer in. Nothing changes them from here on.
        self.cfg.__dict__.update({name: setting.get() for name, setting in self.cfg.settings.items()})
        # What the system allows, and not only what shells begin with: 1,024 is less than a worker's streams.
        allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, allowed))
        super().init_process()

    def is_already_handled(self, respiter: Any) -> bool:
        """Raises StopIteration, which is how gunicorn's handlers are told to let go."""
        if super().is_already_handled(respiter):
            raise StopIteration
        return False

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        """One connection."""
        try:
            # The handshake has as long as a request's head.
            if not isinstance(client, TlsConnection) or client.handshake(self.cfg.keepalive):
                super().handle(listener, client, addr)
            else:
                self.log.debug("no TLS came from %s", addr)
        finally:
            self._connections.remove(client)

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> None:
        """One request. It returns only when the connection is kept for another."""
        sock.begin_request()
        check_host(req)
        # Viewers have turns of their own.
        if sock.is_pipelined or not (req.path in PROBE_PATHS or req.path.endswith("/events")):
            with self._connections.request_lock.hold(self._client_ip(req, addr)):
                pass
        super().handle_request(listener_name, req, sock, addr)
        self._discard_body(req.body)
        sock.end_request(pipelined=req.unreader.buf.getbuffer().nbytes > 0)

    def _client_ip(self, req: Any, addr: Any) -> str:
        """The client's address, behind proxies of ours too. Each client has its turns at having a request begun."""
        deps: Dependencies = self.wsgi.extensions["chronoverse"]
        return deps.proxies.client(addr[0] if addr else "", join_forwarded_for(req.headers))

    def _discard_body(self, body: Any) -> None:
        """Reads what the application has not read of a request's body, in the time that a head has.

        Raises StopIteration, with which the connection ends, when that is not all by then.
        """
        try:
            with gevent.Timeout(self.cfg.keepalive, TimeoutError()):
                while body.read(DISCARD_READ_BYTES):
                    pass
        except Exception as error:
            raise StopIteration from error

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Answers a request that is none, or that nothing else has answered. gunicorn itself would send HTML."""
        refusal = refusal_for(exc, self.cfg)
        extra = {"fields": {"request_id": refusal.request_id, "client": addr[0] if addr else ""}}
        if refusal.status == 500:
            self.log.error("unexpected error", exc_info=exc, extra=extra)
        else:
            self.log.warning("refused with %d: %s", refusal.status, exc, extra=extra)
        metrics.REQUESTS_REFUSED.labels(refusal.status).inc()
        client.begin_request()
        with contextlib.suppress(OSError, AtCapacity):
            # A refusal costs as much as an answer, so it waits for a turn, too.
            with self._connections.request_lock:
                pass
            client.sendall(refusal.answer)
        finish_sending(client)

    def run(self) -> None:
        """Serves until told to go, and until the streams have ended or their time is over.

        Not gunicorn's own loop, which goes on accepting for up to a second, although its answers can only be refusals
        then, and new workers wait at the same sockets.
        """
        deps: Dependencies = self.wsgi.extensions["chronoverse"]
        deps.stream_writers.already_handled = ALREADY_HANDLED
        self._connections = Connections(self.worker_connections, deps.request_lock)
        servers = [self._serve(listener) for listener in self.sockets]
        while self.alive:
            self._tick(deps)
        for server in servers:
            server.close()
        for connection in self._connections:
            if connection.is_idle:
                # Or a proxy would send its next request here.
                stop_receiving(connection)
        deadline = time.monotonic() + deps.settings.drain_seconds + LINGER_SECONDS
        while time.monotonic() < deadline and (
            deps.stream_writers.open_count or any(len(each.pool) for each in servers)
        ):
            self._tick(deps)
        deps.tail.report_metrics()
        if deps.traces:
            deps.traces.close()

    def _tick(self, deps: Dependencies) -> None:
        """Tells the master and the other workers what is due, and lets some time pass."""
        self.notify()
        if deps.tail.watched:
            deps.presence.announce()
        gevent.sleep(TICK_SECONDS)

    def _serve(self, listener: Any) -> Server:
        listener.setblocking(True)
        set_socket_options(listener)
        tls = None
        if self.cfg.is_ssl:
            tls = ssl_context(self.cfg)
            tls.sslsocket_class = TlsConnection
        deps: Dependencies = self.wsgi.extensions["chronoverse"]
        server = Server(
            listener, partial(self.handle, listener), self._connections, lambda: deps.stream_writers.open_count, tls
        )
        if self.cfg.workers > 1:
            # Or the first to wake would take a whole crowd.
            server.max_accept = ACCEPTED_AT_ONCE
        server.start()
        return server
