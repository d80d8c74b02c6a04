"""CORS: lets pages of other origins read responses. https://fetch.spec.whatwg.org/#http-cors-protocol

Allows only the origins in the settings. Allows no cookies, since pages send the bearer token themselves.
"""

from collections.abc import Collection

from flask import Flask, Response, request


def register(app: Flask, origins: Collection[str]) -> None:
    """Adds CORS headers to every answer of ``app``. Register it before the hooks that require a token."""

    @app.before_request
    def answer_preflight() -> Response | None:
        """Answers a browser's preflight request, which has no token."""
        headers = request.headers
        if request.method != "OPTIONS" or not ("Origin" in headers and "Access-Control-Request-Method" in headers):
            return None
        response = Response(status=204)
        adapter = app.create_url_adapter(request)
        if headers["Origin"] in origins and adapter is not None:
            response.headers["Access-Control-Allow-Methods"] = ", ".join(sorted(adapter.allowed_methods()))
            # The wildcard does not include Authorization, so it is listed.
            response.headers["Access-Control-Allow-Headers"] = "*, Authorization"
            # Seconds for which a browser caches the answer to a preflight.
            response.headers["Access-Control-Max-Age"] = "600"
        return response

    @app.after_request
    def allow_origin(response: Response) -> Response:
        response.vary.add("Origin")
        origin = request.headers.get("Origin")
        if origin is not None and origin in origins:
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Expose-Headers"] = "*"
        return response
