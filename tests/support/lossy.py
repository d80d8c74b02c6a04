"""An HTTP proxy that loses, delays and repeats requests and answers, as networks and load balancers do."""

import contextlib
import http.client
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

#: Possible faults of a request.
FAULTS = ("request lost", "answer lost", "repeated", "delayed")


class LossyProxy(ThreadingHTTPServer):
    """Forwards each request to one of ``ports`` on this machine, and injects faults into a ``share`` of them.

    ``counts`` has the number of requests by fault.
    """

    daemon_threads = True

    def __init__(self, ports: Sequence[int], share: float, seed: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.ports = ports
        self.share = share
        self.rng = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def fault(self) -> str:
        """The next request's fault, or ``none``."""
        with self.lock:
            fault = self.rng.choice(FAULTS) if self.rng.random() < self.share else "none"
            self.counts[fault] += 1
        return fault


class _Handler(BaseHTTPRequestHandler):
    server: LossyProxy
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body, fault = b"".join(self._receive()), self.server.fault()
        if fault == "request lost":
            self.close_connection = True
            return
        if fault == "delayed":
            time.sleep(0.5)
        if fault == "repeated":
            self._forward(body)
        status, headers, answer = self._forward(body)
        if fault == "answer lost":
            self.close_connection = True
            return
        self.send_response(status)
        for name in ("Content-Type", "Retry-After"):
            if name in headers:
                self.send_header(name, headers[name])
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def _receive(self) -> Iterator[bytes]:
        """The parts of the body, which Node.js sends in chunks: https://www.rfc-editor.org/rfc/rfc9112#section-7.1"""
        if "Content-Length" in self.headers:
            yield self.rfile.read(int(self.headers["Content-Length"]))
            return
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _forward(self, body: bytes) -> tuple[int, http.client.HTTPMessage, bytes]:
        port = self.server.rng.choice(self.server.ports)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        own = ("connection", "transfer-encoding")
        headers = {name: value for name, value in self.headers.items() if name.lower() not in own}
        with contextlib.closing(connection):
            try:
                connection.request("POST", self.path, body, headers)
                response = connection.getresponse()
                return response.status, response.headers, response.read()
            except OSError:
                # The worker was killed. Load balancers answer with 502.
                return 502, http.client.HTTPMessage(), b""

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def lossy(*ports: int, share: float = 0.2, seed: int = 1) -> Iterator[LossyProxy]:
    """A running proxy in front of the nodes at ``ports``."""
    with LossyProxy(ports, share, seed) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
            thread.join()
