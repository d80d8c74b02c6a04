"""Traces as a collector receives them: one span per request, over OTLP/HTTP, from real workers."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from signal import SIGHUP, SIGTERM
from typing import Any, Final, NamedTuple

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from chronoverse.errors import SettingsError
from chronoverse.settings import Settings
from tests.support.receiver import Receiver
from tests.support.servers import RedisServer
from tests.support.service import ROOT, Service
from tests.support.waiting import wait_until
from tests.web.routes.foreign import Foreign
from tests.web.routes.wire import PATIENCE_SECONDS, Stream

#: Interval at which a worker sends its spans, in milliseconds.
GATHER_MS: Final = 100
TRACE_ID: Final = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT_ID: Final = "00f067aa0ba902b7"
EVENTS: Final = "GET /workflows/{workflow_id}/jobs/{job_id}/events"


class Span(NamedTuple):
    name: str
    trace_id: str
    parent_id: str
    seconds: float
    failed: bool
    attrs: Mapping[str, str | int]
    service: Mapping[str, str | int]


class Collector(Receiver):
    """An OTLP/HTTP receiver."""

    def __init__(self) -> None:
        super().__init__(200)

    @property
    def url(self) -> str:
        """The value for ``OTEL_EXPORTER_OTLP_ENDPOINT``."""
        return f"http://127.0.0.1:{self.port}"

    def spans(self) -> list[Span]:
        return [span for message in self.messages for span in _read(message.body)]

    def named(self, request_id: str) -> Span:
        """Waits for the request's single span."""

        def found() -> list[Span]:
            return [span for span in self.spans() if span.attrs.get("chronoverse.request_id") == request_id]

        wait_until(found, PATIENCE_SECONDS, f"the span of {request_id}")
        (span,) = found()
        return span


def _read(body: bytes) -> Iterator[Span]:
    for part in ExportTraceServiceRequest.FromString(body).resource_spans:
        service = _values(part.resource.attributes)
        for span in (span for scope in part.scope_spans for span in scope.spans):
            seconds = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9
            ids = span.trace_id.hex(), span.parent_span_id.hex()
            yield Span(span.name, *ids, seconds, span.status.code == 2, _values(span.attributes), service)


def _values(attributes: Any) -> dict[str, str | int]:
    return {each.key: each.value.string_value or each.value.int_value for each in attributes}


def environ_of(collector: Collector) -> dict[str, str]:
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": str(GATHER_MS)}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


@pytest.fixture(scope="module")
def client(collector: Collector, in_process: Callable[..., httpx.Client]) -> Iterator[httpx.Client]:
    """Of an application that sends its traces to ``collector``."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environ_of(collector).items():
            patch.setenv(name, value)
        client: Any = in_process(traces=True)
    yield client
    client._transport.app.extensions["chronoverse"].traces.close()


def ask(client: httpx.Client, path: str, request_id: str, method: str = "GET", **headers: str) -> httpx.Response:
    return client.request(method, path, headers={"X-Request-ID": request_id, **headers})


def test_a_stream_is_one_span_from_its_opening_to_its_end(
    client: httpx.Client, collector: Collector, job: Foreign
) -> None:
    """With the reason for the end."""
    job.lines(["x"] * 3)
    name = job.workflow_id
    with client.stream("GET", f"{job.path}/events", headers={"X-Request-ID": f"{name}-left"}) as left:
        assert next(left.iter_raw())
    job.end()
    assert ask(client, f"{job.path}/events?offset=1", name).status_code == 200

    span = collector.named(name)
    assert span.name == EVENTS
    assert span.attrs["http.route"] == EVENTS.removeprefix("GET ")
    assert (span.attrs["http.request.method"], span.attrs["http.response.status_code"]) == ("GET", 200)
    assert (span.attrs["chronoverse.workflow"], span.attrs["chronoverse.job"]) == (job.workflow_id, job.job_id)
    assert (span.attrs["chronoverse.after"], span.attrs["chronoverse.at"]) == (1, 3)
    assert (span.attrs["chronoverse.why"], span.failed) == ("end", False)
    assert 0 < span.seconds < PATIENCE_SECONDS
    assert span.service["service.name"] == "chronoverse"
    assert collector.named(f"{name}-left").attrs["chronoverse.why"] == "left"


def test_a_span_belongs_to_the_clients_trace(client: httpx.Client, collector: Collector, job: Foreign) -> None:
    """Of pages and streams, if they have a W3C header. A malformed header is ignored."""
    job.lines(["x"]).end()
    good = f"00-{TRACE_ID}-{PARENT_ID}-01"
    for number, parent in enumerate((good, good[:-3], "x" * 4000, good.replace(TRACE_ID, "0" * 32))):
        for kind in ("logs", "events"):
            name = f"{job.workflow_id}-{kind}-{number}"
            ask(client, f"{job.path}/{kind}", name, traceparent=parent)
            span = collector.named(name)
            assert (span.trace_id == TRACE_ID, span.parent_id) == ((True, PARENT_ID) if parent == good else (False, ""))
    # A tracestate of more than 512 characters is dropped.
    for size, letters in (("short", "ab"), ("long", "abcde")):
        state = ",".join(f"{letter}={size}{'x' * 120}" for letter in letters)
        ask(client, "/healthz", f"{job.workflow_id}-{size}", traceparent=good, tracestate=state)
        assert collector.named(f"{job.workflow_id}-{size}").parent_id == PARENT_ID
    sent = b"".join(message.body for message in collector.messages)
    assert (b"shortxxx" in sent, b"longxxx" in sent) == (True, False)


def test_every_other_request_is_a_span_too(
    client: Any, collector: Collector, job: Foreign, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Errors included. Its name is the route, never the path."""
    job.lines(["x"]).end()
    monkeypatch.setitem(client._transport.app.view_functions, "ops.get_sign_in", lambda: 1 / 0)
    page = "GET /workflows/{workflow_id}/jobs/{job_id}/logs"
    for path, after, named, status in (
        (f"{job.path}/logs", "", page, 200),
        ("/workflows/none/jobs/none/events", "", EVENTS, 404),
        (f"{job.path}/events", "2", EVENTS, 204),
        ("/nowhere/at/all", "", "GET", 404),
        ("/ui/static/page.css", "", "GET /ui/static/{name}", 200),
        (f"{job.path}/profile", "", "GET /workflows/{workflow_id}/jobs/{job_id}/profile", 503),
        ("/oidc", "", "GET /oidc", 500),
    ):
        name = f"{job.workflow_id}-{path.replace('/', '-')}"
        more = {"Last-Event-ID": after} if after else {}
        assert ask(client, path, name, **more).status_code == status
        span = collector.named(name)
        assert (span.name, span.attrs["http.response.status_code"], span.failed) == (named, status, status >= 500)
        assert ("http.route" in span.attrs) is (named != "GET")


def test_no_token_is_in_any_span(client: httpx.Client, collector: Collector, service: Service, job: Foreign) -> None:
    """Wherever the request contains the token, even one so short that it can be an id."""
    job.lines(["x"]).end()
    tokens = service.token(), "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl"
    for number, token in enumerate(tokens):
        ask(client, f"{job.path}/events?token={token}", f"one-{number}")
        ask(client, f"/{token}", f"two-{number}")
        ask(client, f"/workflows/{token}/jobs/{token}", f"three-{number}")
        ask(client, "/healthz", token[:120])
        ask(client, "/healthz", f"four-{number}", "BREW", tracestate=f"a={token}")
    ask(client, "/healthz", f"{job.workflow_id}-last")
    collector.named(f"{job.workflow_id}-last")

    sent = b"".join(message.body for message in collector.messages)
    assert b"three-1" in sent
    for part in (part for token in tokens for part in token.split(".")[1:]):
        assert part.encode() not in sent
    assert b"BREW" not in sent
    assert {message.path for message in collector.messages} == {"/v1/traces"}


@pytest.mark.long
def test_spans_of_drained_streams_are_sent_before_the_worker_exits(
    tmp_path: Path, redis_server: RedisServer, collector: Collector, job: Foreign
) -> None:
    """On SIGHUP and on SIGTERM. The spans of the next worker arrive, too."""
    job.line("x")
    environ = environ_of(collector)
    with Service(tmp_path, redis_server.url, environ=environ, traces="true", drain_seconds=1) as service:
        for name, order in (("replaced", SIGHUP), ("stopped", SIGTERM)):
            before = set(service.worker_pids())
            stream = Stream(
                service, f"{job.path}/events", {"Authorization": f"Bearer {service.token()}", "X-Request-ID": name}
            ).wait_for(b"id: 1\n\n")
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


def test_commands_do_not_import_the_packages_of_traces() -> None:
    """Although redis-py would import the SDK for its metrics if it is installed."""
    command = "import sys; sys.argv[1:] = ['--version']; import chronoverse.cli.main as cli; cli.main(); import redis"
    unused = "assert not {'opentelemetry.sdk', 'opentelemetry.exporter'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", f"{command}; {unused}"], cwd=ROOT, check=True)
