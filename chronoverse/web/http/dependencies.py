"""The dependencies of all routes, in one object; and the sender of the current request."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from flask import Response, g, request

from chronoverse.archive.object_store import ObjectStore
from chronoverse.archive.reader import ArchiveReader
from chronoverse.auth.rights import READ, WRITE
from chronoverse.auth.tokens import Principal, Verifier
from chronoverse.embedded.server import ServerLease
from chronoverse.errors import JobNotFound
from chronoverse.history.scans.client import ScanClient
from chronoverse.joblog.secret_forms import SecretForms
from chronoverse.live.replay_cache import ReplayCache
from chronoverse.live.tail import Tail
from chronoverse.settings import Settings
from chronoverse.store import Store
from chronoverse.web.guards.admission import AdmissionControl, StreamTicket
from chronoverse.web.guards.rates import Throttle
from chronoverse.web.guards.turns import Turns
from chronoverse.web.http.bodies import BodyReader
from chronoverse.web.http.client_ip import TrustedProxies
from chronoverse.web.http.problems import problem
from chronoverse.web.http.request_id import request_id
from chronoverse.web.http.schemas import Blueprint
from chronoverse.web.http.tracing import SPAN_KEY, Traces
from chronoverse.web.streaming.stream_writer import StreamWriters

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Dependencies:
    settings: Settings
    store: Store
    tail: Tail
    replay_cache: ReplayCache
    archive: ArchiveReader
    verifier: Verifier
    admission: AdmissionControl
    turns: Turns
    stream_writers: StreamWriters
    secret_forms: SecretForms
    body_reader: BodyReader
    scans: ScanClient
    publish_throttle: Throttle
    new_job_throttle: Throttle
    #: The worker's lease on the embedded server. None with another store.
    server_lease: ServerLease | None
    object_store: ObjectStore | None
    traces: Traces | None
    proxies: TrustedProxies = field(default_factory=TrustedProxies)
    wall_clock: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic

    def blueprint(self, name: str, description: str, scope: str | None = None) -> Blueprint:
        """A blueprint whose routes :meth:`check_request` guards."""
        blueprint = Blueprint(name, __name__, description=description)
        blueprint.before_request(partial(self.check_request, scope))
        return blueprint

    def check_request(self, scope: str | None = None) -> Response | None:
        """Requires ``scope`` for the path's workflow, or for any workflow if the path has none.

        Without ``scope``, requires read or write, by method. Returns the 400 for a parameter given more than once, else
        None. Raises what :meth:`Verifier.verify` and :meth:`Principal.require` raise, such as :class:`JobNotFound` if
        the workflow does not exist, or if the token cannot access it.
        """
        environ = request.environ
        principal = self.verifier.verify(environ.get("HTTP_AUTHORIZATION"), self.wall_clock())
        scope = scope or (READ if environ["REQUEST_METHOD"] in ("GET", "HEAD") else WRITE)
        try:
            principal.require(scope, (request.view_args or {}).get("workflow_id"))
        except JobNotFound as error:
            log.info("refused with 404: %s", error)
            raise
        g.principal = principal
        if "&" in environ.get("QUERY_STRING", ""):
            for name, values in request.args.lists():
                if len(values) > 1 and name not in ("label", "against_label"):
                    detail = "given more than once"
                    return problem(400, f"{name}: {detail}", [{"parameter": name, "detail": detail}])
        return None


def stream_ticket(deps: Dependencies) -> StreamTicket:
    """The ticket of a stream request, for :class:`AdmissionControl`."""
    environ = request.environ
    address = deps.proxies.client(environ.get("REMOTE_ADDR", ""), environ.get("HTTP_X_FORWARDED_FOR"))
    return StreamTicket(principal().subject, address, request_id() or "", deps.monotonic(), environ.get(SPAN_KEY))


def principal() -> Principal:
    """The verified sender of the current request."""
    verified: Principal = g.principal
    return verified
