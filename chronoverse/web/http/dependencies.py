"""What the routes need, as one object that every blueprint gets; and who sent the current request.

Many of its members are locks. A worker serves all its requests and event streams on one event loop. So expensive work,
such as reading many lines or making pages, must be bounded. Each kind of work has a :class:`FairLock`. The lock bounds
how many requests do this work at a time, and the subjects of the tokens get it in turn. Going through many lines to
find a few is left to the scan server: see :mod:`chronoverse.history.scans`.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, MutableMapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from cachetools import TTLCache
from flask import Response, g, request

from chronoverse.archive.object_store import ObjectStore
from chronoverse.archive.reader import ArchiveReader
from chronoverse.auth.tokens import READ, WRITE, Principal, Verifier
from chronoverse.embedded.server import ServerLease
from chronoverse.errors import AtCapacity, JobNotFound, ShareExceeded
from chronoverse.history.scans.client import ScanClient
from chronoverse.history.tiered_log import MissingArchive
from chronoverse.joblog.values import Job, JobRef
from chronoverse.live.fair_lock import FairLock
from chronoverse.live.replay_cache import ReplayCache
from chronoverse.live.tail import Tail
from chronoverse.settings import Settings
from chronoverse.store import Store
from chronoverse.web.guards.admission import AdmissionControl, StreamTicket
from chronoverse.web.guards.event_loop import ACCEPT_SLICE_SECONDS, TimeSlice
from chronoverse.web.guards.memory import Shares
from chronoverse.web.guards.rates import TokenBuckets
from chronoverse.web.http.bodies import BodyReader
from chronoverse.web.http.client_ip import TrustedProxies
from chronoverse.web.http.problems import problem
from chronoverse.web.http.request_id import request_id
from chronoverse.web.http.schemas import Blueprint
from chronoverse.web.http.tracing import SPAN_KEY, Traces
from chronoverse.web.streaming.stream_writer import StreamWriters

#: Seconds that a request or a new viewer waits for its turn. Thousands that come together all begin within that time.
ACCEPT_WAIT_SECONDS: Final = 10.0
#: Requests that read stored lines or look at many jobs at the same moment, for each server of the store. A request
#: takes the lock again for each batch. So the store's other clients and the worker's live viewers wait for two batches
#: at most, however many requests there are.
MAX_SCANS: Final = 2
#: Requests for pages and listings of one server's jobs that a worker works on at the same time, and how many of those
#: may be of one token's subject. The others wait, and hold no memory, so the pages of one server have 48 MiB. Each
#: page has the event loop for a millisecond at a time, and a live line waits for all of them.
MAX_PAGES: Final = 12
MAX_SUBJECT_PAGES: Final = 2
#: Bytes of all answers of a worker that their clients have not read yet. One token's subject may have half of it, which
#: are four pages.
UNREAD_ANSWERS_BYTES: Final = 32 * 2**20
#: Seconds that a request waits for a lock, and again for the scan server to begin with its scan. A lock is released
#: after milliseconds, unless the store is away.
LOCK_WAIT_SECONDS: Final = 5.0
#: Seconds that a download waits for its turn to read further.
DOWNLOAD_WAIT_SECONDS: Final = 30.0
#: Seconds for which an ended job is cached. In that time the job may be deleted, expire or be redacted. Viewers are
#: still admitted then, and learn of it in their replay. A thousand viewers that come to a worker in two seconds cause
#: ten reads.
ENDED_JOB_SECONDS: Final = 0.2
#: Ended jobs that are cached, of some 1 KB each. The one that was not used for longest is dropped first.
MAX_ENDED_JOBS: Final = 1024

log = logging.getLogger(__name__)


def _accept_lock() -> FairLock:
    return FairLock(ACCEPT_WAIT_SECONDS, AtCapacity, TimeSlice(ACCEPT_SLICE_SECONDS).check)


def _locks_by_server(
    at_once: int, each: int | None = None, seconds: float = LOCK_WAIT_SECONDS
) -> dict[Hashable, FairLock]:
    """A lock for each server of the store. One that does not answer holds up only requests for its own jobs."""
    used_up = None if each is None else ShareExceeded
    return defaultdict(lambda: FairLock(seconds, AtCapacity, at_once=at_once, each=each, used_up=used_up))


@dataclass(frozen=True, slots=True)
class Dependencies:
    """What the routes of one worker need. :func:`chronoverse.web.app.build_dependencies` makes it."""

    settings: Settings
    store: Store
    tail: Tail
    replay_cache: ReplayCache
    archive: ArchiveReader | MissingArchive
    verifier: Verifier
    admission: AdmissionControl
    stream_writers: StreamWriters
    #: Reads request bodies.
    body_reader: BodyReader
    #: Our lease on the embedded server. None when the store is a server that others run.
    server_lease: ServerLease | None = None
    #: Where archived logs are stored. None when there is no archive.
    object_store: ObjectStore | None = None
    #: None unless the settings ask for traces.
    traces: Traces | None = None
    #: For reading many stored lines or looking at many jobs, by server of the store. See :meth:`scan_lock`.
    scan_locks: dict[Hashable, FairLock] = field(default_factory=partial(_locks_by_server, MAX_SCANS))
    #: For reading the next lines of a download, by server of the store. See :meth:`download_lock`.
    download_locks: dict[Hashable, FairLock] = field(
        default_factory=partial(_locks_by_server, MAX_SCANS, seconds=DOWNLOAD_WAIT_SECONDS)
    )
    #: Asks the scan server.
    scans: ScanClient = field(default_factory=ScanClient)
    #: For beginning a request, and for a new viewer. However many come together, the event loop also runs what else is
    #: due between some of them and the next. After a restart viewers come by the thousand. They have a lock of their
    #: own, so that other requests do not wait for them.
    request_lock: FairLock = field(default_factory=_accept_lock)
    accept_lock: FairLock = field(default_factory=_accept_lock)
    #: For making a page or a listing, by server of the store. See :meth:`page_lock`.
    page_locks: dict[Hashable, FairLock] = field(
        default_factory=partial(_locks_by_server, MAX_PAGES, MAX_SUBJECT_PAGES)
    )
    #: Bytes of answers that their clients have not read yet.
    answer_shares: Shares = field(default_factory=lambda: Shares(UNREAD_ANSWERS_BYTES, "answers that are not read yet"))
    #: How fast runners publish.
    token_buckets: TokenBuckets = field(default_factory=TokenBuckets)
    #: Jobs that have just been found ended. Of many viewers that come to an ended job, only a few read its state.
    ended_jobs: MutableMapping[JobRef, Job] = field(default_factory=lambda: TTLCache(MAX_ENDED_JOBS, ENDED_JOB_SECONDS))
    proxies: TrustedProxies = field(default_factory=TrustedProxies)
    wall_clock: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic

    def invalidate(self, ref: JobRef) -> None:
        """Drops what is cached of a job that was redacted or deleted."""
        self.replay_cache.invalidate(ref)
        self.ended_jobs.pop(ref, None)

    def require_job(self, ref: JobRef) -> Job:
        """The job as the store has it now. Raises :class:`JobNotFound` when there is none."""
        job = self.store.get_job(ref)
        if job is None:
            raise JobNotFound("no such job")
        return job

    def scan_lock(self, ref: JobRef, subject: str) -> AbstractContextManager[None]:
        """The lock for reading one batch of stored lines, or for looking at some jobs, of the server that has ``ref``.

        Subjects get it in turn: a token with many requests delays only its own. Raises :class:`AtCapacity`.
        """
        return self.scan_locks[self.store.server_of(ref)].hold(subject)

    def page_lock(self, ref: JobRef, subject: str) -> AbstractContextManager[None]:
        """The lock for making a page of ``ref``, or a listing of its workflow.

        Its holder may wait for :meth:`scan_lock`. Holders of that one must not wait for this one, or they might wait
        for each other.

        Raises :class:`AtCapacity`, or :class:`ShareExceeded` when the subject's own other requests held it too long.
        """
        return self.page_locks[self.store.server_of(ref)].hold(subject)

    def download_lock(self, ref: JobRef, subject: str) -> AbstractContextManager[None]:
        """As :meth:`scan_lock`, for a download. It waits longer, since a download that has begun cannot be refused."""
        return self.download_locks[self.store.server_of(ref)].hold(subject)

    def time_slice(self) -> TimeSlice:
        """A slice of work for a request that goes through many lines."""
        return TimeSlice(clock=self.monotonic)

    def guard(self, blueprint: Blueprint, scope: str | None = None) -> None:
        """Requires a token for every route of ``blueprint``: for the workflow in its path, if any, and with ``scope``.

        Without ``scope`` it is the one for the request's method. A workflow that the token may not see is answered like
        one that does not exist. A query parameter that is given twice is refused with 400.
        """

        blueprint.before_request(partial(self.check_request, scope))

    def check_request(self, scope: str | None = None) -> Response | None:
        """Checks the current request as :meth:`guard` describes. Returns an answer that refuses it, or None.

        Raises :class:`Unauthorized`, :class:`Forbidden`, :class:`JobNotFound` or :class:`SigningKeysUnavailable`.
        """
        environ = request.environ
        principal = self.verifier.verify(environ.get("HTTP_AUTHORIZATION"), self.wall_clock())
        principal.require(scope or (READ if environ["REQUEST_METHOD"] in ("GET", "HEAD") else WRITE))
        workflow_id = (request.view_args or {}).get("workflow_id")
        if workflow_id is not None and not principal.may_access(workflow_id):
            # The answer must not say so: it is the same as for a job that does not exist.
            log.info("refused with 404: the token is not for this workflow")
            raise JobNotFound("no such job")
        g.principal = principal
        if "&" in environ.get("QUERY_STRING", ""):
            for name, values in request.args.lists():
                if len(values) > 1:
                    detail = "given more than once"
                    return problem(400, f"{name}: {detail}", [{"parameter": name, "detail": detail}])
        return None


def stream_ticket(deps: Dependencies) -> StreamTicket:
    """Who asks for a stream, for :class:`AdmissionControl`."""
    environ = request.environ
    address = deps.proxies.client(environ.get("REMOTE_ADDR", ""), environ.get("HTTP_X_FORWARDED_FOR"))
    return StreamTicket(principal().subject, address, request_id() or "", deps.monotonic(), environ.get(SPAN_KEY))


def principal() -> Principal:
    """Who sent the current request. :meth:`Dependencies.guard` has verified it."""
    verified: Principal = g.principal
    return verified
