"""What an agent shows of itself: its health and its metrics over HTTP, and messages, each only once in a while."""

import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

import click
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.registry import Collector

#: Seconds for which a message is not repeated, and messages that are remembered.
REPEAT_SECONDS: Final = 60.0
MAX_MESSAGES: Final = 1_000


class RepeatedMessages:
    """Passes messages on to ``say``, but none that it has passed on a short time ago. Any thread may call it."""

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._say = say
        self._clock = clock
        self._said: dict[str, float] = {}
        self._lock = threading.Lock()

    def __call__(self, text: str) -> None:
        now = self._clock()
        with self._lock:
            if now < self._said.get(text, 0.0):
                return
            if len(self._said) >= MAX_MESSAGES:
                self._said.clear()
            self._said[text] = now + REPEAT_SECONDS
        self._say(text)


def serve(address: str, metrics: Collector, is_healthy: Callable[[], bool]) -> None:
    """Serves ``/healthz`` and ``/metrics`` at HOST:PORT, in a thread. Raises click's error for a bad ``address``."""
    registry = CollectorRegistry()
    registry.register(metrics)
    ProcessCollector(registry=registry)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, kind, body = 404, "text/plain", b"not found\n"
            if self.path == "/metrics":
                status, kind, body = 200, CONTENT_TYPE_LATEST, generate_latest(registry)
            elif self.path == "/healthz":
                status, body = (200, b"ok\n") if is_healthy() else (503, b"the agent hangs\n")
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Requests are not logged."""

    host, _, port = address.rpartition(":")
    try:
        server = ThreadingHTTPServer((host.strip("[]") or "127.0.0.1", int(port)), Handler)
    except (ValueError, OSError, OverflowError) as error:
        raise click.BadParameter(f"--metrics {address}: {error}") from error
    threading.Thread(target=server.serve_forever, name="chronoverse-metrics", daemon=True).start()
