"""Builds a worker's dependencies, and the Flask application that uses them."""

import re
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Final

import gevent
from flask import Flask, Request, request
from werkzeug.exceptions import BadRequest, NotFound
from werkzeug.routing import Map, MapAdapter

from chronoverse import metrics
from chronoverse.archive.reader import ArchiveReader
from chronoverse.archive.schemes import open_object_store
from chronoverse.auth import jwks
from chronoverse.auth.tokens import Verifier
from chronoverse.embedded import server as embedded
from chronoverse.history.scans.client import ScanClient
from chronoverse.joblog.secret_forms import SecretForms
from chronoverse.live.replay_cache import ReplayCache
from chronoverse.live.tail import Tail
from chronoverse.settings import Settings
from chronoverse.store import Store
from chronoverse.web.guards.admission import AdmissionControl
from chronoverse.web.guards.event_loop import yield_to_loop
from chronoverse.web.guards.memory import UnreadAnswers, bound_unread_answers
from chronoverse.web.guards.rates import ReplayThrottle, new_job_throttle, publish_throttle
from chronoverse.web.guards.turns import Turns
from chronoverse.web.http import cors, openapi, problems, read_audit, request_id
from chronoverse.web.http.bodies import BodyReader
from chronoverse.web.http.dependencies import Dependencies
from chronoverse.web.http.logging import redact
from chronoverse.web.http.schemas import IdentifierConverter, NumberConverter
from chronoverse.web.http.tracing import Traces
from chronoverse.web.routes import (
    admin,
    events,
    jobs,
    logs,
    ops,
    otlp,
    publish,
    raw,
    ui,
    wait,
    watches,
    workflow_events,
    workflows,
)
from chronoverse.web.streaming.stream_writer import StreamWriters

_HOST: Final = re.compile(r"(?:[\w.~!$&'()*+,;=%-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?", re.ASCII)


#: The settings that gunicorn's master has read. A worker that starts while a file that they name is invalid would fail,
#: and gunicorn would then end the service.
inherited: Settings | None = None


def create_app(settings: Settings | None = None) -> Flask:
    """The WSGI application of a worker, by default with the environment's settings. Connects on first use."""
    return build_app(build_dependencies(settings or inherited or Settings.from_env()))


def build_dependencies(settings: Settings) -> Dependencies:
    """Creates the dependencies of all routes. Opens no connection."""
    server_lease = embedded.ServerLease(settings.data_dir) if settings.redis_url is None else None
    # The store gets no ``sync``, because syncing the disk would block the event loop.
    store = Store.of(settings, server_lease.url if server_lease else settings.redis_url or "")
    object_store = open_object_store(settings.archive_location) if settings.archive_location else None
    archive = ArchiveReader(object_store, store.chunks.chunk)
    scans = ScanClient()
    replay_cache = ReplayCache(
        store,
        archive,
        max_line_bytes=settings.max_line_bytes,
        pause=yield_to_loop,
        throttle=ReplayThrottle(settings.max_replay_rate),
        scan=scans.replay,
    )
    tail = Tail(store.for_tail(), lease_seconds=settings.lease_seconds, redacted=replay_cache.invalidate)
    metrics.WORKERS.set(1)
    metrics.STREAMS_LIMIT.set(settings.max_streams)
    metrics.ARCHIVE_CONFIGURED.set(settings.archive_location is not None)
    metrics.WEBHOOKS_CONFIGURED.set(bool(settings.webhook_hosts))
    return Dependencies(
        settings=settings,
        store=store,
        tail=tail,
        replay_cache=replay_cache,
        scans=scans,
        archive=archive,
        object_store=object_store,
        verifier=Verifier(settings, partial(_fetch_keys_in_time, settings.ca_file), store),
        admission=AdmissionControl(
            settings.max_streams, settings.max_streams_per_token, settings.max_streams_per_address
        ),
        turns=Turns(store.server_of, UnreadAnswers()),
        stream_writers=StreamWriters(tail),
        secret_forms=SecretForms(settings.mask_forms),
        body_reader=BodyReader(settings.max_body_bytes),
        server_lease=server_lease,
        publish_throttle=publish_throttle(settings.max_publish_rate_per_token),
        new_job_throttle=new_job_throttle(),
        traces=Traces(redact) if settings.traces else None,
    )


def _fetch_keys_in_time(ca_file: Path | None, url: str) -> bytes:
    """Like :func:`jwks.fetch_key_set`, with a timeout for the whole request, including DNS."""
    with gevent.Timeout(jwks.FETCH_SECONDS, TimeoutError("the issuer's keys were not fetched in time")):
        return jwks.fetch_key_set(url, ca_file)


class RouteAdapter(MapAdapter):
    """Matches one method and path. No route depends on the host, and none redirects."""

    _found: Any = None

    def __init__(self, routes: Map, method: str, path: str) -> None:
        super().__init__(routes, "", "/", None, "http", path.encode("latin-1").decode(errors="replace"), method)

    def match(self, *args: Any, return_rule: bool = False, **options: Any) -> Any:
        if not return_rule:
            return super().match(*args, **options)
        if self._found is None:
            self._found = super().match(return_rule=True)
        rule, arguments = self._found
        return rule, arguments.copy()


# Most viewers of a storm request the same path, and matching it would be 7 % of their CPU time.
_route_adapter = lru_cache(64)(RouteAdapter)


class Application(Flask):
    def create_url_adapter(self, request: Request | None) -> MapAdapter | None:
        if request is None:
            return None
        return _route_adapter(self.url_map, request.environ["REQUEST_METHOD"], request.environ["PATH_INFO"])


def build_app(deps: Dependencies) -> Flask:
    app = Application("chronoverse", static_folder=None)
    app.url_map.merge_slashes = False
    app.url_map.converters |= {"id": IdentifierConverter, "line": NumberConverter}
    request_id.register(app)
    app.before_request(partial(_wait_for_turn, deps.turns))
    if deps.settings.cors_origins:
        cors.register(app, deps.settings.cors_origins)
    document = openapi.create_document(app)
    for converter in (IdentifierConverter, NumberConverter):
        document.register_converter(converter, lambda each: {"type": "string", "pattern": f"^{each.regex}$"})
    for blueprint in logs.blueprints(deps):
        document.register_blueprint(blueprint)
    for module in (events, workflow_events, workflows, wait, raw, jobs, publish, admin, watches):
        document.register_blueprint(module.blueprint(deps))
    document.register_blueprint(otlp.blueprint(deps, otlp.is_installed()))
    document.register_blueprint(ops.blueprint(deps, document))
    app.register_blueprint(ui.blueprint(deps.settings))
    app.before_request(_refuse_odd_requests)
    bound_unread_answers(app, deps.turns.unread)
    problems.register(app)
    if deps.settings.audit_reads:
        read_audit.register(app)
    app.extensions["chronoverse"] = deps
    if deps.traces:
        deps.traces.register(app)
    return app


def _wait_for_turn(turns: Turns) -> None:
    """Makes each request for a stream wait for its turn. All other requests wait in ``Worker``.

    Opening a viewer costs 0.5 ms, so 100 that arrive together would delay all lines by 50 ms. When streams, too, waited
    in ``Worker``, before Flask, fewer were admitted per second.
    """
    if request.environ["PATH_INFO"].endswith("/events"):
        with turns.viewer.hold():
            pass


def _refuse_odd_requests() -> None:
    """Answers 400 without a valid Host header, and 404 for a path with a double or escaped slash.

    Only HTTP/1.0 requests may omit the host (RFC 9112 section 3.2). gunicorn has already unescaped ``PATH_INFO``, so
    this also checks the raw target, which can be absolute: ``GET http://h//x`` (section 3.2.2).
    """
    environ = request.environ
    host = environ.get("HTTP_HOST")
    if not _HOST.fullmatch(host) if host is not None else environ["SERVER_PROTOCOL"] != "HTTP/1.0":
        raise BadRequest("The Host header is required.")
    target = environ.get("RAW_URI", "").partition("?")[0].lower()
    if environ["PATH_INFO"].startswith("//") or "%2f" in target:
        raise NotFound
