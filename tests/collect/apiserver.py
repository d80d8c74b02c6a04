"""A small Kubernetes API server: lists and watches pods, with bookmarks, expired versions and broken connections.

https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes
"""

import copy
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, Self
from urllib.parse import parse_qs, urlsplit

#: Interval of a watch's bookmarks, in seconds.
BOOKMARK_SECONDS: Final = 0.5


class ApiServer:
    """One cluster's pods. Every change has a version, and watchers get all changes after the version they name."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._pods: dict[str, dict[str, Any]] = {}
        self._events: list[tuple[int, dict[str, Any]]] = []
        self._version = 100
        self._oldest = 0
        self._cuts = 0
        self._is_closed = False
        #: The requested paths, with queries.
        self.requests: list[str] = []
        #: While set, every request is answered with this status.
        self.refuses: int | None = None
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                api.requests.append(self.path)
                query = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
                if api.refuses:
                    self.send_error(api.refuses)
                elif urlsplit(self.path).path != "/api/v1/pods":
                    self.send_error(404)
                elif query.get("watch"):
                    self._watch(query)
                else:
                    self._send(json.dumps(api.list(query)).encode())

            def _send(self, body: bytes) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def _watch(self, query: dict[str, str]) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                try:
                    for event in api.watch(query):
                        data = json.dumps(event).encode() + b"\n"
                        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
                    self.wfile.write(b"0\r\n\r\n")
                except OSError:
                    pass
                except _Cut:
                    self.close_connection = True

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A disconnected client is not an error."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._server.shutdown()
        self._server.server_close()

    def apply(self, pod: dict[str, Any], *, quietly: bool = False) -> None:
        """Creates or changes a pod; ``quietly`` without notifying watchers."""
        with self._changed:
            kind = "MODIFIED" if pod["metadata"]["uid"] in self._pods else "ADDED"
            self._put(kind, pod, quietly)

    def delete(self, pod: dict[str, Any], *, quietly: bool = False) -> None:
        """Deletes a pod, with its given final state."""
        with self._changed:
            self._put("DELETED", pod, quietly)
            del self._pods[pod["metadata"]["uid"]]

    def resend(self, count: int) -> None:
        """Sends the last events again to every watcher, newest first: a burst out of order."""
        with self._changed:
            self._version += 1
            for _, event in self._events[-count:][::-1]:
                self._events.append((self._version, event))
            self._changed.notify_all()

    def expire(self) -> None:
        """Discards all changes so far: requests for them get 410 Gone, running watches an event."""
        with self._changed:
            self._version += 1
            self._oldest = self._version
            self._events.clear()
            self._changed.notify_all()

    def cut(self) -> None:
        """Breaks off all watches midway."""
        with self._changed:
            self._cuts += 1
            self._changed.notify_all()

    def list(self, query: dict[str, str]) -> dict[str, Any]:
        with self._changed:
            found = [pod for pod in self._pods.values() if _is_selected(pod, query)]
            return {"kind": "PodList", "metadata": {"resourceVersion": str(self._version)}, "items": found}

    def watch(self, query: dict[str, str]) -> Any:
        after, end = int(query["resourceVersion"]), time.monotonic() + float(query.get("timeoutSeconds", 3600))
        cuts = self._cuts
        while time.monotonic() < end and not self._is_closed:
            with self._changed:
                if after < self._oldest:
                    status = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
                    yield {"type": "ERROR", "object": status}
                    return
                if after == self._version and cuts == self._cuts:
                    self._changed.wait(BOOKMARK_SECONDS)
                if after < self._oldest:
                    continue
                found = [event for version, event in self._events if version > after]
                after = self._version
            if cuts != self._cuts:
                raise _Cut
            yield from (event for event in found if _is_selected(event["object"], query))
            if not found and query.get("allowWatchBookmarks"):
                yield {"type": "BOOKMARK", "object": {"kind": "Pod", "metadata": {"resourceVersion": str(after)}}}

    def _put(self, kind: str, pod: dict[str, Any], quietly: bool) -> None:
        self._version += 1
        pod = copy.deepcopy(pod)
        pod["metadata"]["resourceVersion"] = str(self._version)
        self._pods[pod["metadata"]["uid"]] = pod
        if not quietly:
            self._events.append((self._version, {"type": kind, "object": pod}))
        self._changed.notify_all()


class _Cut(Exception):
    """Raised in a watch that breaks off."""


def _is_selected(pod: dict[str, Any], query: dict[str, str]) -> bool:
    node = query.get("fieldSelector", "").removeprefix("spec.nodeName=")
    labels = dict(each.split("=") for each in query.get("labelSelector", "").split(",") if each)
    is_here: bool = not node or pod["spec"].get("nodeName") == node
    return is_here and labels.items() <= pod["metadata"]["labels"].items()
