"""What an agent shows of itself over HTTP: ``/healthz`` and ``/metrics``."""

import threading
import time
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from chronoverse.collect.agent import Agent

#: Containers that /metrics names, those with most to do first.
MAX_CONTAINERS: Final = 500
#: Seconds without a turn after which /healthz says that the agent hangs.
HANGS_SECONDS: Final = 30.0


class _Lags(Collector):
    """How far an agent is behind what was written."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def collect(self) -> Iterable[Metric]:
        names = ["namespace", "pod", "container"]
        in_bytes = GaugeMetricFamily("chronoverse_collect_lag_bytes", "Bytes not safe in the store.", labels=names)
        what = "Age of the oldest line that was read and is not safe in the store."
        in_seconds = GaugeMetricFamily("chronoverse_collect_lag_seconds", what, labels=names)
        logs = [(log.lag_bytes, log.lag_seconds, dict(log.labels)) for log in list(self._agent.logs.values())]
        for size, seconds, labels in sorted(logs, key=lambda each: each[:2], reverse=True)[:MAX_CONTAINERS]:
            values = [labels.get(name, "") for name in names]
            in_bytes.add_metric(values, size)
            in_seconds.add_metric(values, seconds)
        return in_bytes, in_seconds, GaugeMetricFamily("chronoverse_collect_containers", "Open logs.", len(logs))


def serve(host: str, port: int, agent: Agent) -> None:
    """Serves both in a thread. Raises OSError and OverflowError when it cannot listen there."""
    registry = CollectorRegistry()
    registry.register(_Lags(agent))
    ProcessCollector(registry=registry)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, kind, body = 404, "text/plain", b"not found\n"
            if self.path == "/metrics":
                status, kind, body = 200, CONTENT_TYPE_LATEST, generate_latest(registry)
            elif self.path == "/healthz":
                is_well = time.monotonic() - agent.turned_at < HANGS_SECONDS
                status, body = (200, b"ok\n") if is_well else (503, b"the agent hangs\n")
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Requests are not logged."""

    server = ThreadingHTTPServer((host, port), Handler)
    threading.Thread(target=server.serve_forever, name="chronoverse-metrics", daemon=True).start()
