"""What the routes need, handed to each blueprint as one argument; and who is asking."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from flask import g, request

from chronoverse.auth import Principal, Verifier
from chronoverse.embedded import Hold
from chronoverse.errors import JobNotFound
from chronoverse.joblog import Job, JobRef
from chronoverse.settings import Settings
from chronoverse.store import Store
from chronoverse.tail import Tail
from chronoverse.web.addresses import Proxies
from chronoverse.web.admission import Guest, Streams
from chronoverse.web.identity import request_id
from chronoverse.web.outlet import Outlets
from chronoverse.web.problems import problem
from chronoverse.web.schemas import Blueprint

#: Scopes by what a request does.
READ: Final = "logs:read"
WRITE: Final = "logs:write"


@dataclass(frozen=True, slots=True)
class Services:
    """Built once per worker by ``create_app``."""

    settings: Settings
    store: Store
    tail: Tail
    verifier: Verifier
    streams: Streams
    #: Ours on the embedded server, None where the store is somebody else's.
    hold: Hold | None = None
    outlets: Outlets = field(default_factory=Outlets)
    proxies: Proxies = field(default_factory=Proxies)
    wall_clock: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic

    def job(self, ref: JobRef) -> Job:
        """A fresh look at a job that must exist. Raises: :class:`JobNotFound`."""
        job = self.store.look(ref)
        if job is None:
            raise JobNotFound("no such job")
        return job

    def guard(self, blueprint: Blueprint) -> None:
        """Lets nothing into ``blueprint`` without a token for the workflow and the scope for the method.

        A workflow that the token may not see is answered like one that does not exist.
        """

        @blueprint.before_request
        def authorise() -> None:
            principal = self.verifier.verify(request.headers.get("Authorization"), self.wall_clock())
            principal.require(READ if request.method in ("GET", "HEAD") else WRITE)
            if not principal.may_see((request.view_args or {})["workflow_id"]):
                raise JobNotFound("no such job")
            g.principal = principal

        @blueprint.before_request
        def single_parameters() -> object:
            for name, values in request.args.lists():
                if len(values) > 1:
                    detail = "given more than once"
                    return problem(400, f"{name}: {detail}", [{"parameter": name, "detail": detail}])
            return None


def guest(services: Services) -> Guest:
    """Who is asking, as far as places for streams go."""
    address = services.proxies.client(request.remote_addr or "", request.headers.get("X-Forwarded-For"))
    return Guest(principal().subject, address, request_id() or "", services.monotonic())


def principal() -> Principal:
    """Who is asking; :meth:`Services.guard` has let them in."""
    asking: Principal = g.principal
    return asking
