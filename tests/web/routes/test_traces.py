"""Traces as a collector receives them: one span per request, over OTLP/HTTP, from real workers."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from signal import SIGHUP, SIGTERM
from typing import Any, Final, NamedTuple, Self

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from chronoverse.errors import SettingsError
from chronoverse.settings import Settings
from tests.support.servers import RedisServer
from tests.support.service import ROOT, Service
from tests.support.waiting import wait_until
from tests.web.routes.foreign import Foreign
from tests.web.routes.wire import PATIENCE_SECONDS, Stream, exchange, request_bytes

pytestmark = pytest.mark.long

#: Interval at which a worker sends its spans, in milliseconds.
GATHER_MS: Final = 100
TRACE_ID: Final = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT_ID: Final = "00f067aa0ba902b7"
EVENTS: Final = "GET /workflows/{workflow_id}/jobs/{job_id}/events"


class Span(NamedTuple):
    """A span as the collector receives it."""

    name: str
    trace_id: str
    parent_id: str
    seconds: float
    failed: bool
    attrs: Mapping[str, str | int]
    service: Mapping[str, str | int]


class Collector:
    """An OTLP/HTTP receiver. ``posts`` are the received paths and bodies."""

    def __init__(self) -> None:
        self.posts: list[tuple[str, bytes]] = []
        posts = self.posts

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                posts.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *words: Any) -> None:
                """Logs nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    @property
    def url(self) -> str:
        """The value for ``OTEL_EXPORTER_OTLP_ENDPOINT``."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def spans(self) -> list[Span]:
        """All received spans."""
        return [span for _, body in self.posts for span in _read(body)]

    def named(self, request_id: str) -> Span:
        """Waits for the request's single span."""
        wait_until(lambda: self._of(request_id), PATIENCE_SECONDS, f"the span of {request_id}")
        (span,) = self._of(request_id)
        return span

    def _of(self, request_id: str) -> list[Span]:
        return [span for span in self.spans() if span.attrs.get("chronoverse.request_id") == request_id]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _read(body: bytes) -> Iterator[Span]:
    for part in ExportTraceServiceRequest.FromString(body).resource_spans:
        service = _values(part.resource.attributes)
        for span in (span for scope in part.scope_spans for span in scope.spans):
            seconds = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9
            ids = span.trace_id.hex(), span.parent_span_id.hex()
            yield Span(span.name, *ids, seconds, span.status.code == 2, _values(span.attributes), service)


def _values(attributes: Any) -> dict[str, str | int]:
    return {each.key: each.value.string_value or each.value.int_value for each in attributes}


def traced(directory: Path, redis_url: str, endpoint: str, **settings: Any) -> Service:
    """A service that sends its traces to ``endpoint``."""
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_BSP_SCHEDULE_DELAY": str(GATHER_MS)}
    return Service(directory, redis_url, traces="true", environ=environ, **settings)


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    """The collector of the shared service."""
    with Collector() as collector:
        yield collector


@pytest.fixture(scope="module")
def service(
    tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer, collector: Collector
) -> Iterator[Service]:
    """A service with two workers."""
    directory = tmp_path_factory.mktemp("traced")
    with traced(directory, redis_server.url, collector.url, workers=2) as service:
        wait_until(lambda: len(service.worker_pids()) == 2, PATIENCE_SECONDS, "the second worker is there too")
        yield service


def headers(service: Service, request_id: str, **more: str) -> dict[str, str]:
    """Headers with a token for everything."""
    return {"Authorization": f"Bearer {service.token()}", "X-Request-ID": request_id, **more}


def test_a_stream_is_one_span_from_its_opening_to_its_end(service: Service, collector: Collector, job: Foreign) -> None:
    """With the reason for the end, through any worker."""
    job.lines(["x"] * 3)
    with ExitStack() as stack:
        names = [f"{job.workflow_id}-{number}" for number in range(8)]
        for name in names:
            path = f"{job.path}/events?offset=1"
            stack.enter_context(Stream(service, path, headers(service, name))).wait_for(b"id: 3\n\n")
        gone = stack.enter_context(Stream(service, f"{job.path}/events", headers(service, "leaves")))
        gone.wait_for(b"id: 3\n\n").close()
        left = collector.named("leaves")
        assert {*names} & {str(span.attrs.get("chronoverse.request_id")) for span in collector.spans()} == set()
        job.end()
        spans = [collector.named(name) for name in names]

    for span in spans:
        assert span.name == EVENTS
        assert span.attrs["http.route"] == EVENTS.removeprefix("GET ")
        assert (span.attrs["http.request.method"], span.attrs["http.response.status_code"]) == ("GET", 200)
        assert (span.attrs["chronoverse.workflow"], span.attrs["chronoverse.job"]) == (job.workflow_id, job.job_id)
        assert (span.attrs["chronoverse.after"], span.attrs["chronoverse.at"]) == (1, 3)
        assert span.attrs["chronoverse.why"] == "end"
        assert 0 < span.seconds < PATIENCE_SECONDS
        assert span.service["service.name"] == "chronoverse"
    assert (left.attrs["chronoverse.why"], left.attrs["chronoverse.at"]) == ("left", 3)


def test_a_span_belongs_to_the_client_s_trace(service: Service, collector: Collector, job: Foreign) -> None:
    """Pages and streams join the trace of the W3C header. A malformed header is ignored."""
    job.lines(["x"]).end()
    parent = f"00-{TRACE_ID}-{PARENT_ID}-01"
    for kind in ("logs", "events"):
        name = f"{job.workflow_id}-{kind}"
        httpx.get(f"{service.url}{job.path}/{kind}", headers=headers(service, name, traceparent=parent), verify=False)
        span = collector.named(name)
        assert (span.trace_id, span.parent_id) == (TRACE_ID, PARENT_ID)
    for number, malformed in enumerate([f"00-{TRACE_ID}-{PARENT_ID}", "x" * 4000, f"00-{'0' * 32}-{PARENT_ID}-01"]):
        name = f"{job.workflow_id}-{number}"
        httpx.get(f"{service.url}{job.path}/logs", headers=headers(service, name, traceparent=malformed), verify=False)
        span = collector.named(name)
        assert (span.trace_id != TRACE_ID, span.parent_id) == (True, "")


def test_every_other_request_is_a_span_too(service: Service, collector: Collector, job: Foreign) -> None:
    """Errors included. Its name is the route, never the path."""
    job.lines(["x"]).end()
    asked = {
        "page": (f"{job.path}/logs", "GET /workflows/{workflow_id}/jobs/{job_id}/logs", 200),
        "none": ("/workflows/none/jobs/none/events", EVENTS, 404),
        "over": (f"{job.path}/events", EVENTS, 204),
        "unknown": ("/nowhere/at/all", "GET", 404),
        "file": ("/ui/static/page.css", "GET /ui/static/{name}", 200),
    }
    for name, (path, _, status) in asked.items():
        more = {"Last-Event-ID": "2"} if name == "over" else {}
        mine = headers(service, f"{job.workflow_id}-{name}", **more)
        assert httpx.get(service.url + path, headers=mine, verify=service.verify).status_code == status

    for name, (_, named, status) in asked.items():
        span = collector.named(f"{job.workflow_id}-{name}")
        assert (span.name, span.attrs["http.response.status_code"], span.failed) == (named, status, False)
        assert ("http.route" in span.attrs) is (named != "GET")


def test_no_token_is_in_any_span(service: Service, collector: Collector, job: Foreign) -> None:
    """Wherever the request contains the token."""
    good = service.token()
    job.lines(["x"]).end()
    exchange(service, request_bytes(f"{job.path}/events?token={good}".encode(), good))
    exchange(service, request_bytes(f"/{good}".encode(), good))
    exchange(service, request_bytes(f"/workflows/{good}/jobs/{good}".encode(), good))
    exchange(service, request_bytes(b"/healthz", good, b"X-Request-ID: " + good[:120].encode()))
    exchange(service, request_bytes(b"/healthz", good, b"tracestate: a=" + good.encode(), method=b"BREW"))
    httpx.get(f"{service.url}/healthz", headers={"X-Request-ID": f"{job.workflow_id}-last"}, verify=service.verify)
    collector.named(f"{job.workflow_id}-last")

    sent = b"".join(body for _, body in collector.posts)
    for part in good.split(".")[1:]:
        assert part.encode() not in sent
    assert b"BREW" not in sent
    assert {path for path, _ in collector.posts} == {"/v1/traces"}


def test_spans_of_drained_streams_are_sent_before_the_worker_exits(
    tmp_path: Path, redis_server: RedisServer, collector: Collector, job: Foreign
) -> None:
    """On SIGHUP and on SIGTERM. The spans of the next worker arrive, too."""
    job.line("x")
    with traced(tmp_path, redis_server.url, collector.url, drain_seconds=1) as service:
        for name, order in (("replaced", SIGHUP), ("stopped", SIGTERM)):
            before = set(service.worker_pids())
            stream = Stream(service, f"{job.path}/events", headers(service, name)).wait_for(b"id: 1\n\n")
            service.signal(order)
            stream.wait_end()
            wait_until(lambda: not before & {*service.worker_pids()}, PATIENCE_SECONDS, "it has gone")  # noqa: B023
            assert collector.named(name).attrs["chronoverse.why"] == "drain"
        assert service.wait(PATIENCE_SECONDS) == 0


def test_missing_packages_are_named_at_startup(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are only needed with traces."""
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http", None)
    environ = {"HOME": "/home/ada"}

    with pytest.raises(
        SettingsError, match=re.escape("CHRONOVERSE_TRACES needs OpenTelemetry: install the extra otel")
    ):
        Settings.from_env({**environ, "CHRONOVERSE_TRACES": "true"})
    assert Settings.from_env({**environ, "CHRONOVERSE_TRACES": "false"}) == Settings.from_env(environ)


def test_without_traces_their_packages_are_not_imported(tmp_path: Path) -> None:
    """By the service or by commands, although redis-py would import the SDK for its metrics if it is installed."""
    service = "import runpy; runpy.run_path('gunicorn.conf.py'); import chronoverse.web.app"
    command = "sys.argv[1:] = ['--version']; import chronoverse.cli.main as cli; cli.main(); import redis"
    unused = "assert not {'opentelemetry.sdk', 'opentelemetry.exporter'} & {*sys.modules}"
    own = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "CHRONOVERSE_DATA_DIR": str(tmp_path)}
    # With traces, the service can still import the SDK's metrics afterwards.
    for code in (f"{service}; {unused}; import opentelemetry.sdk.metrics", f"{command}; {unused}"):
        subprocess.run([sys.executable, "-c", f"import sys; {code}"], cwd=ROOT, env={**os.environ, **own}, check=True)
