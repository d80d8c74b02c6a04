"""Routes for operators: health, readiness, metrics, and the OpenAPI document."""

from functools import cache

import orjson
from flask import Response, jsonify
from werkzeug.exceptions import NotFound

from chronoverse import metrics
from chronoverse.auth.toml_file import TomlFile
from chronoverse.errors import AtCapacity, StoreRefused
from chronoverse.web.http.dependencies import Dependencies
from chronoverse.web.http.openapi import OpenApiDocument
from chronoverse.web.http.schemas import Blueprint, SignInSchema, StatusSchema


def blueprint(deps: Dependencies, document: OpenApiDocument) -> Blueprint:
    """The routes for operators. They need no token and reveal nothing about jobs."""
    routes = Blueprint("ops", __name__, description="For operators.")

    @cache
    def rendered() -> bytes:
        # Deferred to the first request, when all routes are registered.
        return orjson.dumps(document.render()) + b"\n"

    @routes.route("/healthz")
    @routes.doc(security=[])
    @routes.response(200, StatusSchema, description="The process is up.")
    def get_health() -> Response:
        """Check that the process is up."""
        return jsonify(status="ok")

    @routes.route("/readyz")
    @routes.doc(security=[])
    @routes.response(
        200, StatusSchema, description="The store answers, tokens can be checked, and the worker is not shutting down."
    )
    @routes.problem(503)
    def get_readiness() -> Response:
        """Check that the service is ready."""
        if deps.admission.is_draining:
            raise AtCapacity("This worker is shutting down; try again.")
        deps.verifier.check()
        warnings = ["Searches are unavailable."] if deps.scans.is_down else []
        try:
            deps.store.ping()
        except StoreRefused:
            # The store may be full. The node is still ready, as all nodes share the store and can serve readers.
            warnings.append("The store rejects writes; reads work.")
        return jsonify(status="ready", **({"warning": " ".join(warnings)} if warnings else {}))

    @routes.route("/oidc")
    @routes.doc(security=[])
    @routes.response(200, SignInSchema, description="The issuer and its public client.")
    @routes.problem(404)
    def get_sign_in() -> Response:
        """Return the OpenID Connect issuer and client for signing in."""
        if not deps.settings.oidc_issuer:
            raise NotFound("This service names no issuer.")
        return jsonify(deps.settings.sign_in)

    @routes.route("/metrics")
    @routes.doc(security=[])
    @routes.response(200, {"type": "string"}, content_type="text/plain", description="Prometheus's text format.")
    def get_metrics() -> Response:
        """Return metrics."""
        deps.tail.report_metrics()
        metrics.KEYS_AGE.set(max((each.age() for each in deps.verifier.published()), default=0))
        metrics.SCANS_UP.set(not deps.scans.is_down)
        metrics.WORKFLOWS_MAP_INVALID.set(not all(map(TomlFile.refresh, deps.verifier.files())))
        return Response(metrics.exposition(), content_type="text/plain; version=0.0.4; charset=utf-8")

    @routes.route("/openapi.json")
    @routes.doc(security=[])
    @routes.response(200, {"type": "object"}, description="OpenAPI 3.1.")
    def get_document() -> Response:
        """Return this document."""
        return Response(rendered(), content_type="application/json")

    return routes
