"""Makes one OpenTelemetry span per request, if the settings enable traces. A stream's span ends with the stream.

The SDK's ``OTEL_…`` variables decide which spans are sent, and where to. Texts that look like tokens are redacted.
"""

import re
import threading
from collections.abc import Callable
from http import HTTPMethod
from typing import TYPE_CHECKING, Any, Final

from flask import Flask, Response, request
from werkzeug.wsgi import ClosingIterator

from chronoverse.web.http.request_id import request_id

if TYPE_CHECKING:
    from opentelemetry.trace import Span

SPAN_KEY: Final = "chronoverse.span"
_PARAMETER: Final = re.compile(r"<(?:\w+:)?(\w+)>", re.ASCII)


class RequestSpan:
    """The span of one request. Ends when the answer is sent; for a stream, when :meth:`stream_ended` is called."""

    __slots__ = ("is_stream", "span")

    def __init__(self, span: "Span") -> None:
        self.span = span
        self.is_stream = False

    def stream_opened(self, after: int) -> None:
        self.is_stream = True
        self.span.set_attribute("chronoverse.after", after)

    def stream_ended(self, why: str, at: int) -> None:
        """Ends a stream's span. ``why``: the reason for its end; ``at``: the last line number sent."""
        self.span.set_attributes({"chronoverse.why": why, "chronoverse.at": at})
        self.span.end()


class Traces:
    """Makes a worker's spans, with tokens removed by ``redact``. Create it after the fork, as it starts a thread."""

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
        # A batch of 64 spans is encoded in 2 ms. The SDK's default, 512, would delay live lines by 15 ms.
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(), max_export_batch_size=64))
        self._tracer = self._provider.get_tracer("chronoverse")
        self._kind = SpanKind.SERVER
        self._propagator = TraceContextTextMapPropagator()
        self._redact = redact

    def register(self, app: Flask) -> None:
        app.after_request(self._record_response)
        inner = app.wsgi_app

        def traced(environ: dict[str, Any], start_response: Any) -> Any:
            environ[SPAN_KEY] = request_span = self._begin(environ)
            try:
                answer = inner(environ, start_response)
            except BaseException:
                if not request_span.is_stream:
                    request_span.span.end()
                raise
            return answer if request_span.is_stream else ClosingIterator(answer, request_span.span.end)

        app.wsgi_app = traced  # type: ignore[method-assign]

    def close(self) -> None:
        # In a thread, because the SDK could wait up to 30 s.
        thread = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        thread.start()
        thread.join(2.0)

    def _begin(self, environ: dict[str, Any]) -> RequestSpan:
        method = _method(environ)
        headers = {name: environ.get(f"HTTP_{name.upper()}", "") for name in ("traceparent", "tracestate")}
        # Only headers of up to 512 characters are read: https://www.w3.org/TR/trace-context/#tracestate-limits
        parent = self._propagator.extract({name: text for name, text in headers.items() if len(text) <= 512})
        return RequestSpan(self._tracer.start_span(method, parent, self._kind, {"http.request.method": method}))

    def _record_response(self, response: Response) -> Response:
        """Adds the answer's attributes to the span."""
        span: Span = request.environ[SPAN_KEY].span
        span.set_attribute("http.response.status_code", response.status_code)
        view_args = request.view_args or {}
        ids = {"request_id": request_id(), "workflow": view_args.get("workflow_id"), "job": view_args.get("job_id")}
        span.set_attributes({f"chronoverse.{key}": self._redact(text) for key, text in ids.items() if text})
        if request.url_rule:
            route = _PARAMETER.sub(r"{\1}", request.url_rule.rule)
            span.set_attribute("http.route", route)
            span.update_name(f"{_method(request.environ)} {route}")
        if response.status_code >= 500:
            from opentelemetry.trace import StatusCode

            span.set_status(StatusCode.ERROR)
        return response


def _method(environ: dict[str, Any]) -> str:
    """The method name to record: https://opentelemetry.io/docs/specs/semconv/http/http-spans/"""
    method: str = environ["REQUEST_METHOD"]
    return method if method in HTTPMethod.__members__ else "_OTHER"
