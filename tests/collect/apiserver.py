"""A small Kubernetes API server: lists and watches pods. ``test_watcher.py`` has its faults.

https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes
"""

import copy
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit


class ApiServer:
    """One cluster's pods. Every change has a version, and watchers get all changes after the version they name."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._pods: dict[str, dict[str, Any]] = {}
        self._events: list[tuple[int, dict[str, Any]]] = []
        self._version = 100
        self._is_closed = False
        #: While set, every request is answered with this status.
        self.refuses: int | None = None
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                query = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
                if api.refuses or urlsplit(self.path).path != "/api/v1/pods":
                    self.send_error(api.refuses or 404)
                    return
                self.send_response(200)
                self.end_headers()
                for value in api.watch(query) if query.get("watch") else [api.list(query)]:
                    self.wfile.write(json.dumps(value).encode() + b"\n")

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

    def apply(self, pod: dict[str, Any]) -> None:
        """Creates or changes a pod."""
        self._put("MODIFIED" if pod["metadata"]["uid"] in self._pods else "ADDED", pod)

    def delete(self, pod: dict[str, Any]) -> None:
        """Deletes a pod, with its given final state."""
        self._put("DELETED", pod)

    def list(self, query: dict[str, str]) -> dict[str, Any]:
        with self._changed:
            found = [pod for pod in self._pods.values() if _is_selected(pod, query)]
            return {"kind": "PodList", "metadata": {"resourceVersion": str(self._version)}, "items": found}

    def watch(self, query: dict[str, str]) -> Iterator[dict[str, Any]]:
        after, end = int(query["resourceVersion"]), time.monotonic() + float(query["timeoutSeconds"])
        while time.monotonic() < end and not (self._is_closed or self.refuses):
            with self._changed:
                if after == self._version:
                    self._changed.wait(0.5)
                found = [event for version, event in self._events if version > after]
                after = self._version
            yield from (event for event in found if _is_selected(event["object"], query))

    def _put(self, kind: str, pod: dict[str, Any]) -> None:
        with self._changed:
            self._version += 1
            pod = copy.deepcopy(pod)
            pod["metadata"]["resourceVersion"] = str(self._version)
            self._pods[pod["metadata"]["uid"]] = pod
            self._events.append((self._version, {"type": kind, "object": pod}))
            if kind == "DELETED":
                del self._pods[pod["metadata"]["uid"]]
            self._changed.notify_all()


def _is_selected(pod: dict[str, Any], query: dict[str, str]) -> bool:
    return query["fieldSelector"] == f"spec.nodeName={pod['spec'].get('nodeName')}"
