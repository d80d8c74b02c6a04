"""Serves files with the latency of S3: 15 ms per answer."""

import http.server
import time
from pathlib import Path
from typing import Any


def serve_slowly(directory: str, ports: Any) -> None:
    """Serves the files below ``directory`` like objects of an S3 bucket ``b``."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Headers and body are sent together: otherwise the body waits 40 ms for the acknowledgement of the headers.
        wbufsize = 2**20

        def do_GET(self) -> None:
            time.sleep(0.015)
            data = Path(directory, self.path.partition("?")[0].removeprefix("/b/")).read_bytes()
            span = self.headers.get("Range")
            if span is not None:
                first, last = map(int, span.removeprefix("bytes=").split("-"))
                data = data[first : last + 1]
            self.send_response(200 if span is None else 206)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    ports.put(server.server_port)
    server.serve_forever()
