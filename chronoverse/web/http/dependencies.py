"""What the routes need, handed to each blueprint as one argument; and who is asking."""

import time
from collections import defaultdict
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Final, TypeVar

from flask import g, request

from chronoverse.archive.object_store import ObjectStore
from chronoverse.archive.reader import ArchiveReader
from chronoverse.auth.tokens import READ, WRITE, Principal, Verifier
from chronoverse.embedded.server import ServerLease
from chronoverse.errors import AtCapacity, JobNotFound, ShareExceeded
from chronoverse.history.tiered_log import MissingArchive
from chronoverse.joblog.values import Job, JobRef
from chronoverse.live.fair_lock import FairLock
from chronoverse.live.replay_cache import ReplayCache
from chronoverse.live.tail import Tail
from chronoverse.settings import Settings
from chronoverse.store import Store
from chronoverse.web.http.bodies import BodyReader
from chronoverse.web.http.client_ip import TrustedProxies
from chronoverse.web.http.event_loop import (
    ACCEPT_SLICE_SECONDS,
    SEARCH_SLICE_SECONDS,
    TimeSlice,
    run_in_thread,
    wait_until_idle,
    yield_to_loop,
)
from chronoverse.web.http.page_budget import ALL_PAGES_BYTES
from chronoverse.web.http.problems import problem
from chronoverse.web.http.request_id import request_id
from chronoverse.web.http.schemas import Blueprint
from chronoverse.web.http.shares import Shares
from chronoverse.web.http.token_bucket import TokenBuckets
from chronoverse.web.http.tracing import SPAN_KEY, Traces
from chronoverse.web.streaming.admission import AdmissionControl, StreamTicket
from chronoverse.web.streaming.ended_jobs import EndedJobCache
from chronoverse.web.streaming.presence import Presence
from chronoverse.web.streaming.stream_writer import StreamWriters

#: Seconds a viewer that comes waits for its turn: a crowd of some thousands is let in within that.
ACCEPT_WAIT_SECONDS: Final = 10.0
#: Requests that read stored logs, or look at many jobs, at the same moment. Each waits for its turn batch by batch, so
#: that however many there are, the store's other connections and the worker's live viewers never wait for more than
#: these.
MAX_SCANS: Final = 2
#: Requests for pages and listings of one server's jobs that a worker works on at the same time, and those of one
#: token's subject. The others wait, and hold no memory. Each of them has the event loop for a millisecond in its turn,
#: and a live line waits for them all.
MAX_PAGES: Final = 12
MAX_SUBJECT_PAGES: Final = 2
#: Bytes of all answers of a worker that their clients have not taken yet. One token's subject may have half of it: four
#: pages.
UNREAD_ANSWERS_BYTES: Final = 32 * 2**20
#: Searches of the archive at the same moment. Each holds some 2 MiB; they work one after the other.
MAX_SEARCHES: Final = 4
#: Seconds a request waits for its turn: longer than a turn takes, which is milliseconds unless the store is away.
LOCK_WAIT_SECONDS: Final = 5.0
#: Seconds after which a request does not stand back any more, and only lets others go on: in a worker that has no rest
#: many searches at once would keep each other waiting. Less than others wait for their turn.
IDLE_SLOT_SECONDS: Final = 2.0

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Dependencies:
    """Built once per worker by ``create_app``."""

    settings: Settings
    store: Store
    tail: Tail
    replay_cache: ReplayCache
    ended_jobs: EndedJobCache
    archive: ArchiveReader | MissingArchive
    verifier: Verifier
    admission: AdmissionControl
    stream_writers: StreamWriters
    #: Reads what requests send.
    body_reader: BodyReader
    #: For viewers that come.
    accept_lock: FairLock
    #: Ours on the embedded server, None where the store is somebody else's.
    server_lease: ServerLease | None = None
    #: Where archived logs lie; None where there is no archive.
    object_store: ObjectStore | None = None
    #: Where they are asked for.
    traces: Traces | None = None
    #: Turns at reading many stored lines or looking at many jobs; see :meth:`scanning`.
    scan_locks: dict[Hashable, FairLock] = field(default_factory=lambda: _locks_by_server(MAX_SCANS))
    #: The same at searching the archive, of which the store has the index; see :meth:`searching`.
    search_locks: dict[Hashable, FairLock] = field(default_factory=lambda: _locks_by_server(MAX_SEARCHES))
    #: The moments in which the worker has nothing else to do; see :meth:`stand_back`.
    idle_lock: FairLock = field(default_factory=lambda: FairLock(LOCK_WAIT_SECONDS, AtCapacity, wait_until_idle))
    #: The same for who has waited for them long enough: one in a round of the event loop.
    loop_lock: FairLock = field(default_factory=lambda: FairLock(LOCK_WAIT_SECONDS, AtCapacity, yield_to_loop))
    #: Turns at beginning a request: however many come together, the event loop goes round between some of them and the
    #: next.
    request_lock: FairLock = field(
        default_factory=lambda: FairLock(ACCEPT_WAIT_SECONDS, AtCapacity, TimeSlice(ACCEPT_SLICE_SECONDS).check)
    )
    #: Turns at a processor for heavy expressions; see :meth:`heavy_work`.
    heavy_lock: FairLock = field(default_factory=lambda: FairLock(LOCK_WAIT_SECONDS, AtCapacity))
    #: Bytes of pages that are being made.
    page_shares: Shares = field(default_factory=lambda: Shares(ALL_PAGES_BYTES, "pages that are being made"))
    #: Turns at making a page or a listing; see :meth:`paging`.
    page_locks: dict[Hashable, FairLock] = field(default_factory=lambda: _locks_by_server(MAX_PAGES, MAX_SUBJECT_PAGES))
    #: Bytes of answers that their clients have not taken yet.
    answer_shares: Shares = field(default_factory=lambda: Shares(UNREAD_ANSWERS_BYTES, "answers that are not read yet"))
    #: How fast runners publish.
    token_buckets: TokenBuckets = field(default_factory=TokenBuckets)
    #: Whether anybody watches something live, here or in another worker.
    presence: Presence = field(default_factory=Presence)
    proxies: TrustedProxies = field(default_factory=TrustedProxies)
    wall_clock: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic

    def invalidate(self, ref: JobRef) -> None:
        """Lets go what was read of a job that is not what it was."""
        self.replay_cache.forget(ref)
        self.ended_jobs.forget(ref)

    def require_job(self, ref: JobRef) -> Job:
        """A fresh look at a job that must exist. Raises: :class:`JobNotFound`."""
        job = self.store.get_job(ref)
        if job is None:
            raise JobNotFound("no such job")
        return job

    def run_heavy(self, work: Callable[[], _Result], subject: str | None = None) -> _Result:
        """Has a thread do ``work``, for which RE2 may need long; one at a time in a worker, each subject in its turn.

        So searches use one processor at most, and the event loop has another. ``subject`` is the token's; it has to be
        given where the request's context is gone. Raises: :class:`AtCapacity`, and what ``work`` raises.
        """
        with self.heavy_lock.turn(subject or principal().subject):
            return run_in_thread(work)

    def scan_lock(self, ref: JobRef, subject: str) -> AbstractContextManager[None]:
        """A turn at reading a batch of stored lines, or at looking at many jobs, of the server that has ``ref``.

        Each token's ``subject`` has its turn: one with many requests delays its own. Raises: :class:`AtCapacity`.
        """
        return self.scan_locks[self.store.server_of(ref)].turn(subject)

    def page_lock(self, ref: JobRef, subject: str) -> AbstractContextManager[None]:
        """A turn at making a page of ``ref``, or a listing of its workflow.

        Raises: :class:`AtCapacity`, or :class:`ShareExceeded` when ``subject``'s other requests kept this one waiting.

        Whoever has one may wait for :meth:`scanning`, :meth:`searching` and :meth:`heavy_work`, and nobody who has one
        of those waits for this.
        """
        return self.page_locks[self.store.server_of(ref)].turn(subject)

    def search_lock(self, ref: JobRef, subject: str) -> AbstractContextManager[None]:
        """The same at searching the archive, which may take as long as others let it. Raises: :class:`AtCapacity`."""
        return self.search_locks[self.store.server_of(ref)].turn(subject)

    def wait_for_idle_slot(self) -> None:
        """Lets everybody go first: see :func:`when_idle`. Whoever searches has such moments in turns.

        :data:`LEISURE_SECONDS` after a request was first here it is only a round of the event loop.
        Raises: :class:`AtCapacity` when too many search.
        """
        now = self.monotonic()
        late = now > g.setdefault("leisure_until", now + IDLE_SLOT_SECONDS)
        with (self.loop_lock if late else self.idle_lock).turn(principal().subject):
            pass

    def time_slice(self) -> TimeSlice:
        """A slice of work for a request that goes through many lines."""
        return TimeSlice(clock=self.monotonic)

    def search_slice(self) -> TimeSlice:
        """A slice of work for a search, which goes on only when the event loop is idle."""
        return TimeSlice(SEARCH_SLICE_SECONDS, self.wait_for_idle_slot, self.monotonic)

    def guard(self, blueprint: Blueprint, scope: str | None = None) -> None:
        """Lets nothing into ``blueprint`` without a token for the workflow and ``scope``, or else that for the method.

        A workflow that the token may not see is answered like one that does not exist.
        """

        @blueprint.before_request
        def authorise() -> None:
            principal = self.verifier.verify(request.headers.get("Authorization"), self.wall_clock())
            principal.require(scope or (READ if request.method in ("GET", "HEAD") else WRITE))
            if not principal.may_access((request.view_args or {})["workflow_id"]):
                raise JobNotFound("no such job")
            g.principal = principal

        @blueprint.before_request
        def single_parameters() -> object:
            for name, values in request.args.lists():
                if len(values) > 1:
                    detail = "given more than once"
                    return problem(400, f"{name}: {detail}", [{"parameter": name, "detail": detail}])
            return None


def _locks_by_server(at_once: int, each: int | None = None) -> dict[Hashable, FairLock]:
    """Turns for each server of the store: one that does not answer holds up requests for its own jobs only."""
    used_up = None if each is None else ShareExceeded
    return defaultdict(lambda: FairLock(LOCK_WAIT_SECONDS, AtCapacity, at_once=at_once, each=each, used_up=used_up))


def stream_ticket(deps: Dependencies) -> StreamTicket:
    """Who is asking, as far as places for streams go."""
    address = deps.proxies.client(request.remote_addr or "", request.headers.get("X-Forwarded-For"))
    span = request.environ.get(SPAN_KEY)
    return StreamTicket(principal().subject, address, request_id() or "", deps.monotonic(), span)


def principal() -> Principal:
    """Who is asking; :meth:`Dependencies.guard` has let them in."""
    asking: Principal = g.principal
    return asking
