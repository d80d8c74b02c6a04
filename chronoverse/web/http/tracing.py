"""Traces, where they are asked for: one OpenTelemetry span a request, and that of a stream lasts until its end.

Where they are sent, which are sampled and what the service is called is the SDK's to read, from its own ``OTEL_…``
variables. OpenTelemetry is imported here alone, and not before somebody asks for traces. What a client says of itself
is told without anything that looks like a token.
"""

import re
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from flask import Flask, Response, request
from werkzeug.wsgi import ClosingIterator

from chronoverse.web.http.request_id import request_id

if TYPE_CHECKING:
    from opentelemetry.trace import Span

#: In a request's environ: its :class:`RequestSpan`.
SPAN_KEY: Final = "chronoverse.span"
#: Seconds that a worker which goes waits for its last spans to be taken. A collector that is away must not hold it up.
FLUSH_SECONDS: Final = 2.0
#: Spans sent in one go, encoded in 2 ms. The SDK's own 512 would keep live lines for 15.
BATCH_SPANS: Final = 64
#: Bytes of a W3C header that is read. https://www.w3.org/TR/trace-context/#tracestate-limits
MAX_HEADER: Final = 512
#: The methods that are told by name. https://opentelemetry.io/docs/specs/semconv/http/http-spans/
METHODS: Final = frozenset(["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT"])

_EVENTS: Final = "/workflows/{workflow_id}/jobs/{job_id}/events"
_PARAMETER: Final = re.compile(r"<(?:\w+:)?(\w+)>", re.ASCII)


class RequestSpan:
    """One request's span. A stream's is ended by :meth:`ended`, any other when its answer has been sent."""

    __slots__ = ("_method", "_redact", "_span", "is_stream")

    def __init__(self, span: "Span", method: str, clean: Callable[[str], str]) -> None:
        self._span = span
        self._method = method
        self._redact = clean
        self.is_stream = False

    def set_response(
        self, status: int, name: str | None, route: str | None, workflow: str | None, job: str | None
    ) -> None:
        """What is known once there is an answer; ``name`` is the request's."""
        self._span.set_attribute("http.response.status_code", status)
        told = {"request_id": name, "workflow": workflow, "job": job}
        self._span.set_attributes({f"chronoverse.{key}": self._redact(text) for key, text in told.items() if text})
        if route:
            self._span.set_attribute("http.route", route)
            self._span.update_name(f"{self._method} {route}")
        if status >= 500:
            from opentelemetry.trace import StatusCode

            self._span.set_status(StatusCode.ERROR)

    def stream_opened(self, name: str, workflow: str, job: str, after: int) -> None:
        """It is a stream, which begins behind ``after``."""
        self.is_stream = True
        self.set_response(200, name, _EVENTS, workflow, job)
        self._span.set_attribute("chronoverse.after", after)

    def stream_ended(self, why: str, at: int) -> None:
        """The stream has ended, ``at`` its last number."""
        self._span.set_attributes({"chronoverse.why": why, "chronoverse.at": at})
        self._span.end()

    def end(self) -> None:
        """The request has."""
        self._span.end()


class Traces:
    """A worker's spans: to be made behind the fork, since they are sent by a thread. ``clean`` takes tokens out."""

    def __init__(self, redact: Callable[[str], str]) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        resource = Resource.create()
        if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: "chronoverse"}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(), max_export_batch_size=BATCH_SPANS))
        self._tracer = self._provider.get_tracer("chronoverse")
        self._kind = SpanKind.SERVER
        self._propagator = TraceContextTextMapPropagator()
        self._clean = redact

    def register(self, app: Flask) -> None:
        """Has every request of ``app`` traced, those too that are answered in front of it."""
        app.after_request(_describe)
        inner = app.wsgi_app

        def traced(environ: dict[str, Any], start_response: Any) -> Any:
            environ[SPAN_KEY] = span = self._begin(environ)
            try:
                answer = inner(environ, start_response)
            except BaseException:
                if not span.is_stream:
                    span.end()
                raise
            return answer if span.is_stream else ClosingIterator(answer, span.end)

        app.wsgi_app = traced  # type: ignore[method-assign]

    def close(self) -> None:
        """Sends what there is, for at most :data:`FLUSH_SECONDS`."""
        # The SDK itself would wait for 30 s.
        thread = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        thread.start()
        thread.join(FLUSH_SECONDS)

    def _begin(self, environ: dict[str, Any]) -> RequestSpan:
        method = environ["REQUEST_METHOD"] if environ["REQUEST_METHOD"] in METHODS else "_OTHER"
        headers = {name: environ.get(f"HTTP_{name.upper()}", "") for name in ("traceparent", "tracestate")}
        parent = self._propagator.extract({name: text for name, text in headers.items() if len(text) <= MAX_HEADER})
        attributes = {"http.request.method": method}
        span = self._tracer.start_span(method, parent, self._kind, attributes)
        return RequestSpan(span, method, self._clean)


def _describe(response: Response) -> Response:
    span: RequestSpan = request.environ[SPAN_KEY]
    route = _PARAMETER.sub(r"{\1}", request.url_rule.rule) if request.url_rule else None
    ids = request.view_args or {}
    span.set_response(response.status_code, request_id(), route, ids.get("workflow_id"), ids.get("job_id"))
    return response
