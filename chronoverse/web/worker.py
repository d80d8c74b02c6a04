"""gunicorn's gevent worker, which lets a stream have its socket, and goes when it is told to."""

import contextlib
import socket
import time
from functools import partial
from typing import Any, Final

import gevent
from gevent.pool import Pool
from gevent.server import StreamServer
from gunicorn.sock import ssl_context
from gunicorn.workers.base_async import ALREADY_HANDLED
from gunicorn.workers.ggevent import GeventWorker

from chronoverse import metrics
from chronoverse.web.connection import half_close
from chronoverse.web.refusals import check_host, refuse
from chronoverse.web.services import Services

#: Seconds between looks whether it was told to go, and whether the last request has ended. A look takes 20 µs.
LOOK_SECONDS: Final = 0.1
#: Seconds that requests and full sockets have beyond the drain. The table of settings tells it too.
LINGER_SECONDS: Final = 5.0
#: Seconds that a refused client's socket may take to be written to; and bytes read of what it sent beyond, unread
#: bytes at a close being taken for a reset, which may overtake the answer.
REFUSAL_SECONDS: Final = 1.0
UNREAD_BYTES: Final = 2**20


class Worker(GeventWorker):
    """A response of ``ALREADY_HANDLED`` ends gunicorn's part: no further request is read from that connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: Connections that have had an answer and no further request.
        self._idle: set[Any] = set()

    def init_process(self) -> None:
        """In the worker's own process, before it serves."""
        # gunicorn looks each setting up in three calls, some twenty of them for a request: 6 % of what it costs to
        # take a viewer in. Nothing changes them from here on.
        self.cfg.__dict__.update({name: setting.get() for name, setting in self.cfg.settings.items()})
        super().init_process()

    def is_already_handled(self, respiter: Any) -> bool:
        """Raises StopIteration, which is how gunicorn's handlers are told to let go."""
        if super().is_already_handled(respiter):
            raise StopIteration
        return False

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        """One connection."""
        try:
            super().handle(listener, client, addr)
        finally:
            self._idle.discard(client)

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> None:
        """One request. It returns only when the connection is kept for another."""
        self._idle.discard(sock)
        check_host(req)
        super().handle_request(listener_name, req, sock, addr)
        self._idle.add(sock)

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Answers a request that is none, or that nothing else has answered. gunicorn itself would send HTML."""
        refusal = refuse(exc, self.cfg)
        extra = {"fields": {"request_id": refusal.request_id, "client": addr[0] if addr else ""}}
        if refusal.status == 500:
            self.log.error("unexpected error", exc_info=exc, extra=extra)
        else:
            self.log.warning("refused with %d: %s", refusal.status, exc, extra=extra)
        metrics.REQUESTS_REFUSED.labels(refusal.status).inc()
        with contextlib.suppress(OSError):
            client.settimeout(REFUSAL_SECONDS)
            client.sendall(refusal.answer)
            client.shutdown(socket.SHUT_WR)
            client.setblocking(False)
            client.recv(UNREAD_BYTES)

    def run(self) -> None:
        """Serves until told to go, and until the streams have ended or their time is over.

        Not gunicorn's own loop, which goes on accepting for up to a second, although its answers can only be refusals
        then, and new workers wait at the same sockets.
        """
        services = self.wsgi.extensions["chronoverse"]
        services.outlets.answer = ALREADY_HANDLED
        servers = [self._serve(listener) for listener in self.sockets]
        while self.alive:
            self._beat(services)
        for server in servers:
            server.close()
        for sock in self._idle:
            # Or a proxy would send its next request here.
            half_close(sock)
        deadline = time.monotonic() + services.settings.drain_seconds + LINGER_SECONDS
        while time.monotonic() < deadline and (services.outlets.open or any(len(each.pool) for each in servers)):
            self._beat(services)
        services.tail.tell()
        if services.traces:
            services.traces.close()

    def _beat(self, services: Services) -> None:
        """Tells the master and the other workers what is due, and lets some time pass."""
        self.notify()
        if services.tail.watched:
            services.presence.tell()
        gevent.sleep(LOOK_SECONDS)

    def _serve(self, listener: Any) -> StreamServer:
        listener.setblocking(True)
        tls = {"ssl_context": ssl_context(self.cfg)} if self.cfg.is_ssl else {}
        pool = Pool(self.worker_connections)
        server = StreamServer(listener, handle=partial(self.handle, listener), spawn=pool, **tls)
        if self.cfg.workers > 1:
            # Or the first to wake would take a whole crowd.
            server.max_accept = 1
        server.start()
        return server
