"""The route for OpenTelemetry log records. Loads its code only if the extra ``otlp`` is installed."""

from importlib.util import find_spec

from flask import Response

from chronoverse.auth.rights import WRITE
from chronoverse.web.http.dependencies import Dependencies
from chronoverse.web.http.problems import NOT_FOUND, problem
from chronoverse.web.http.schemas import SHARE_USED, Blueprint

_PATH = "/v1/logs"


def is_installed() -> bool:
    """Whether the packages of the extra ``otlp``, and our ``web.otlp``, are available."""
    try:
        return None not in map(find_spec, ("opentelemetry.proto.collector.logs.v1", "chronoverse.web.otlp.requests"))
    except ModuleNotFoundError:
        return False


def blueprint(deps: Dependencies, installed: bool) -> Blueprint:
    """The route. If the extra is not ``installed``, the answer is a 404 that names the extra."""
    if not installed:
        return _without_extra()
    from chronoverse.web.otlp import decoding, requests

    routes = deps.blueprint("otlp", "For OpenTelemetry.", WRITE)

    @routes.after_request
    def as_protocol_says(response: Response) -> Response:
        return requests.refusal(response) if response.status_code >= 400 else response

    answers = {
        mimetype: {"schema": {"type": "object"} if mimetype == decoding.JSON else {"type": "string"}}
        for mimetype in (decoding.JSON, decoding.PROTOBUF)
    }

    @routes.route(_PATH, methods=["POST"])
    @routes.doc(
        requestBody={
            "required": True,
            "description": "An ExportLogsServiceRequest. May be sent with `Content-Encoding: gzip`.",
            "content": answers,
        },
        responses={
            "200": {"description": "An ExportLogsServiceResponse. Its `partial_success` is final.", "content": answers},
            "401": {"description": "A google.rpc.Status.", "content": answers},
            "403": {"description": "A google.rpc.Status: the token lacks the scope.", "content": answers},
            "429": {"description": f"Publish rate exceeded. Or: {SHARE_USED}", "content": answers},
            "503": {"description": "Retry. Earlier records may be missing.", "content": answers},
            "default": {
                "description": "A google.rpc.Status; for methods other than POST, a problem document.",
                "content": {**answers, "application/problem+json": {"schema": {"type": "object"}}},
            },
        },
    )
    def post_otlp_logs() -> Response:
        """Append log records."""
        return requests.handle(deps)

    return routes


def _without_extra() -> Blueprint:
    routes = Blueprint("otlp", __name__, description="For OpenTelemetry.")

    @routes.route(_PATH, methods=["POST"])
    @routes.doc(security=[])
    @routes.problem(404, "The extra `otlp` is not installed.")
    def post_otlp_logs() -> Response:
        """Append log records. Needs the extra `otlp`."""
        title = "Not Found: this service lacks the extra otlp (docs/installing.md)"
        return problem(404, NOT_FOUND, title=title)

    return routes
