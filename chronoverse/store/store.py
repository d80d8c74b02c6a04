"""The class :class:`Store`: reads job logs, and writes them for runners."""

import contextlib
import copy
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import partial
from itertools import chain, islice
from operator import itemgetter
from typing import Any, Final, Self

import redis

from chronoverse.errors import Closed, JobNotFound, NotALog, QuotaReached, SettingsError, StoreError, StoreUnavailable
from chronoverse.joblog.entries import RawEntry
from chronoverse.joblog.labels import Labels
from chronoverse.joblog.model import (
    Attempt,
    Job,
    JobRef,
    Line,
    LineRun,
    ListingPosition,
    Status,
    count_lines,
    iso_timestamp,
    runs_of,
    split_runs,
)
from chronoverse.settings import Settings
from chronoverse.settings.redis_url import RedisUrl
from chronoverse.store import replies
from chronoverse.store.audit import AuditTrail
from chronoverse.store.catalog import JobCatalog
from chronoverse.store.changes import ChangesState
from chronoverse.store.chunk_index import ChunkIndex
from chronoverse.store.cluster import ClusterTopology
from chronoverse.store.commands import Commands
from chronoverse.store.driver import translate_errors
from chronoverse.store.durability import Durability, confirm
from chronoverse.store.keys import RUNNER_KEYS, KeyMap
from chronoverse.store.listing import JobListing, ListedJob
from chronoverse.store.live_reader import POLL_SECONDS, LiveReader
from chronoverse.store.records import RecordAppender
from chronoverse.store.sentinel import SentinelTopology
from chronoverse.store.sequential_reader import SequentialReader
from chronoverse.store.server_checks import loss_warnings, persistence_warnings, server_info
from chronoverse.store.topology import PoolKind, Topology
from chronoverse.store.watches import WatchStore
from chronoverse.store.workflows import WorkflowList

#: Minimum pause in seconds after an append while an archiver throttles the runner; lines wait in the spool. Pauses
#: after large appends are longer, for at most ``SLOW_BYTES_PER_SECOND``. An archiver moves 30 MB/s to files.
SLOW_SECONDS: Final = 0.1
SLOW_BYTES_PER_SECOND: Final = 4 * 2**20


# Its repr would contain the password in the URL.
@dataclass(eq=False, repr=False)
class Store:
    """Reads and writes job logs. Safe to share between threads or greenlets of one process.

    ``durability`` decides when a runner can discard its lines. ``sync`` forces a local server's files to disk.
    ``clock`` is Unix time in seconds.

    Every method can raise :class:`StoreUnavailable`, :class:`StoreRefused`, :class:`NotALog`, or another
    :class:`StoreError` for an unexpected reply.
    """

    #: For runners: lines per append, and appends sent before the first is answered.
    batch_lines = 5_000
    appends_ahead = 1

    url: str
    _: KW_ONLY
    prefix: str = "chronoverse"
    lease_seconds: float = 30
    retention_seconds: float = 604_800
    durability: Durability = Durability.ACKED
    sync: Callable[[], None] | None = None
    clock: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep

    @classmethod
    def of(cls, settings: Settings, url: str, sync: Callable[[], None] | None = None) -> Self:
        """The store at ``url``. Raises :class:`SettingsError` if an option of ``url`` is invalid."""
        try:
            return cls(
                url,
                prefix=settings.key_prefix,
                lease_seconds=settings.lease_seconds,
                retention_seconds=settings.retention_seconds,
                durability=Durability(settings.durability),
                sync=sync,
            )
        except ValueError as error:
            raise SettingsError(f"CHRONOVERSE_REDIS_URL has an {error}") from None

    def __post_init__(self) -> None:
        self._lease_ms, self._retention_ms = round(self.lease_seconds * 1000), round(self.retention_seconds * 1000)
        # The time from finding a lease expired to declaring its job LOST. A live runner pauses for less than 1 s.
        self._grace_ms = max(1, round(min(self.lease_seconds / 3, 1) * 1000))
        self._topology = _topology_of(self.url)
        self._keys = KeyMap(self.prefix)
        self._use(PoolKind.COMMANDS)

    def _use(self, pool: PoolKind) -> None:
        self._commands = commands = Commands(self._topology, self._keys, pool)
        self.listing = JobListing(commands, self.clock)
        self.workflows = WorkflowList(commands, self.listing, self.get_jobs)
        self.catalog = JobCatalog(commands, self.clock)
        self.chunks = ChunkIndex(commands)
        self.audit_trail = AuditTrail(commands, self.clock)
        # A workflow's watches are archived together with its settings, so a change marks the settings as changed.
        self.watches = WatchStore(commands, self.catalog.change_settings)
        self.records = RecordAppender(commands, self.catalog, self.workflows, self._retention_ms, self.clock)

    def for_tail(self) -> "Store":
        """A copy of this store for the tail reader, with connections that no other caller can use."""
        store = copy.copy(self)
        store._use(PoolKind.TAIL)
        return store

    @property
    def single_server(self) -> bool:
        return self._topology.is_single

    def server_of(self, job: JobRef) -> Hashable:
        """The server that has the job. Callers wait for each server separately, so that a slow one delays no others."""
        return self._topology.server_of(job.workflow_id)

    def get_job(self, job: JobRef) -> Job | None:
        """The job's current state, or None. Declares a RUNNING job LOST if its lease has expired.

        The first call that finds the lease expired waits for the grace period, in which the runner can return.
        """
        reply = self._get_job(job)
        if reply and reply[5] == 1:  # The lease has expired, but the grace period is not over.
            self.sleep(self._grace_ms / 1000)
            reply = self._get_job(job)
        found = replies.parse_job(job, reply)
        return self._list_foreign([found])[0] if found and replies.is_unlisted(reply) else found

    def require_job(self, job: JobRef) -> Job:
        """Like :meth:`get_job`. Raises :class:`JobNotFound` if the job does not exist."""
        found = self.get_job(job)
        if found is None:
            raise JobNotFound("no such job")
        return found

    def _get_job(self, job: JobRef) -> list[Any] | None:
        workflow_id, keys, args = self._get_job_call(job)
        reply: list[Any] | None = self._commands.script("settle_job", workflow_id, keys, *args)
        return reply

    def get_jobs(self, jobs: Sequence[JobRef]) -> list[Job | StoreError | None]:
        """Like :meth:`get_job` for many jobs, in a few round trips. Returns a job's error in the job's position.

        A reference without a job id returns the workflow's :class:`ChangesState`. Never waits: a job whose lease has
        just expired stays RUNNING until a call after the grace period. Raises :class:`StoreUnavailable` or
        :class:`StoreRefused` if every job has this error.
        """
        found = self._commands.by_server([job for job in jobs if job.job_id], self._get_jobs)
        found |= self._commands.by_server([job for job in jobs if not job.job_id], self._changes_states)
        return [found[job] for job in jobs]

    def newest_jobs(
        self, workflow_id: str, before: ListingPosition | None = None, count: int = 20
    ) -> Iterator[ListedJob]:
        """The workflow's jobs below position ``before``, newest first. See :meth:`listed_jobs`."""
        positions = self.listing.positions(workflow_id, before, count)
        return self.listed_jobs(((created, JobRef(workflow_id, job_id)) for created, job_id in positions), count)

    def listed_jobs(self, positions: Iterator[tuple[float, JobRef]], count: int = 20) -> Iterator[ListedJob]:
        """Yields the jobs at ``positions``, read ``count`` at a time. Raises :class:`StoreUnavailable`."""
        while listed := list(islice(positions, count)):
            jobs = self.get_jobs([ref for _, ref in listed])
            for (created_ms, ref), found in zip(listed, jobs, strict=True):
                if isinstance(found, StoreUnavailable):
                    raise found
                yield ListedJob(created_ms, ref, found if isinstance(found, Job) else None)

    def _changes_states(self, workflows: Sequence[JobRef]) -> list[Job | StoreError | None]:
        self.workflows.find_changes([ref.workflow_id for ref in workflows])
        answers = self._commands.scripts("changes", [(ref.workflow_id, [self._keys.log(ref)], ()) for ref in workflows])
        return [
            found if isinstance(found, StoreError) else ChangesState(ref, Status.RUNNING, first=found[0], last=found[1])
            for ref, found in zip(workflows, answers, strict=True)
        ]

    def _get_jobs(self, jobs: Sequence[JobRef]) -> list[Job | StoreError | None]:
        answers = self._commands.scripts("settle_job", [self._get_job_call(job) for job in jobs])
        found = [
            answer if isinstance(answer, StoreError) else replies.parse_job(job, answer)
            for job, answer in zip(jobs, answers, strict=True)
        ]
        pairs = zip(found, answers, strict=True)
        foreign = [job for job, answer in pairs if isinstance(job, Job) and replies.is_unlisted(answer)]
        listed = {job.ref: job for job in self._list_foreign(foreign)}
        return [listed.get(ref, job) for ref, job in zip(jobs, found, strict=True)]

    def relist(self, jobs: Sequence[JobRef]) -> None:
        """Adds existing ``jobs`` that are missing from their listings."""
        self._commands.by_server(jobs, self._relist)

    def _relist(self, jobs: Sequence[JobRef]) -> Sequence[None]:
        commands = [("ZMSCORE", self._keys.of(job, "jobs"), job.job_id) for job in jobs]
        scores = self._commands.pipeline(jobs[0].workflow_id, commands)
        missing = [job for job, score in zip(jobs, scores, strict=True) if score == [None]]
        self._list_foreign([job for job in self._get_jobs(missing) if isinstance(job, Job)])
        return [None] * len(jobs)

    def _list_foreign(self, jobs: Sequence[Job]) -> list[Job]:
        scores = self.listing.add_foreign(jobs) if jobs else {}
        newest = {ref.workflow_id: created_ms for ref, created_ms in sorted(scores.items(), key=itemgetter(1))}
        for workflow_id, created_ms in newest.items():
            if self._commands.pool is PoolKind.TAIL:
                # The list can be on another server, which may be unreachable. The tail reader must not wait for it.
                threading.Thread(target=self.workflows.add, args=(workflow_id, created_ms), daemon=True).start()
            else:
                self.workflows.add(workflow_id, created_ms)
        return [job.listed(scores[job.ref]) if job.ref in scores else job for job in jobs]

    def _get_job_call(self, job: JobRef) -> tuple[str, list[str], tuple[Any, ...]]:
        args = (iso_timestamp(self.clock()), self._lease_ms, self._retention_ms, self._grace_ms)
        return job.workflow_id, [self._keys.of(job, kind) for kind in RUNNER_KEYS], args

    def register(self, job: JobRef, labels: Labels = ()) -> bool:
        """Creates a PENDING job. Returns whether it is new. Raises :class:`Deleted`, :class:`LabelSet`."""
        now = self.clock()
        keep_ms = self.retention_ms(job.workflow_id)
        args = (iso_timestamp(now), _milliseconds(now), job.job_id, keep_ms, *chain.from_iterable(labels))
        new, created_ms = self._ask("register", job, ("job", "jobs"), *args)
        self.workflows.add(job.workflow_id, float(created_ms))
        return bool(new)

    def is_deleted(self, job: JobRef) -> bool:
        """Whether the job has a tombstone, which blocks its id."""
        # A key of another type is not a tombstone.
        with contextlib.suppress(NotALog):
            return self._commands.run(job.workflow_id, "GET", self._keys.of(job, "deleted")) is not None
        return False

    def retention_ms(self, workflow_id: str) -> int:
        """Milliseconds for which the workflow's ended jobs, and the tombstones of deleted jobs, are kept."""
        return 1000 * (self.catalog.settings_of(workflow_id).retention_seconds or 0) or self._retention_ms

    def read(self, job: JobRef, after: int, count: int) -> Sequence[RawEntry]:
        """Up to ``count`` entries after line ``after``."""
        return self.page(job, after=after, count=count)

    def page(self, job: JobRef, *, after: int = 0, before: int | None = None, count: int) -> Sequence[RawEntry]:
        """Up to ``count`` entries: ascending after line ``after``; with ``before``, descending before that line."""
        command: tuple[Any, ...]
        if before is None:
            command = ("XRANGE", self._keys.log(job), f"{after + 1}-0", "+", "COUNT", count)
        elif before > 1:
            command = ("XREVRANGE", self._keys.log(job), replies.id_after(before - 1), "-", "COUNT", count)
        else:
            return ()
        entries: Sequence[RawEntry] = self._commands.run(job.workflow_id, *command)
        return entries

    def sequential_reader(self, server: Hashable) -> SequentialReader:
        """A reader of jobs on ``server``, a value that :meth:`server_of` returned."""
        return SequentialReader(self._topology, server, self._keys.log, self.read)

    def redactions(self, job: JobRef, count: int) -> list[tuple[int, int]]:
        """The first and last line of each of the newest ``count`` redactions that the store still has."""
        return [(each["from"], each["to"]) for each in self.chunks.redactions(job, count)]

    def live_reader(self, block_seconds: float, poll_seconds: float = POLL_SECONDS) -> LiveReader:
        """A :class:`LiveReader` for the tail reader, with its own connections."""
        return LiveReader(self._topology, self._keys.log, self.read, block_seconds, poll_seconds)

    def open(self, job: JobRef, token: str, first: int | None = None, labels: Labels = ()) -> Attempt:
        """Acquires the job's lease for a new attempt. ``token`` is generated by the caller and must be unguessable.

        Raises :class:`Held`, :class:`Closed`, :class:`Deleted`, :class:`CorruptLog`, :class:`LabelSet`, and
        :class:`SequenceGap` if the attempt's first line would not be ``first``. A refused call changes nothing.
        """
        now = self.clock()
        times = (self._lease_ms, iso_timestamp(now), _milliseconds(now))
        retention = self.catalog.settings_of(job.workflow_id, PoolKind.APPENDS).retention_seconds
        args = (token, *times, job.job_id, 1000 * retention if retention else "", first or "")
        bounds = self.catalog.common_bounds(PoolKind.HEALTH)
        kinds = (*RUNNER_KEYS, "jobs", "settings") if bounds else (*RUNNER_KEYS, "jobs")
        args = (*args, *(bounds or ("", "")), *chain.from_iterable(labels))
        attempt, next_number, created_ms = self._ask("open", job, kinds, *args)
        self.workflows.add(job.workflow_id, float(created_ms))
        return Attempt(job, token, attempt, next_number)

    def append(self, attempt: Attempt, lines: Sequence[Line]) -> int:
        """Appends consecutive ``lines``, skips those already in the log, and renews the lease. Returns the next number.

        Stores up to 500 lines per atomic step; drops lines over quota. Pauses if an archiver throttles the job. Raises
        :class:`SequenceGap`, :class:`QuotaReached`, :class:`Fenced`, :class:`Closed`, :class:`Deleted`,
        :class:`CorruptLog`.
        """
        return self.append_runs(attempt, lines[0].sequence_num, runs_of(lines))

    def append_runs(self, attempt: Attempt, first: int, runs: Sequence[LineRun]) -> int:
        """Like :meth:`append`, in one round trip. ``first`` is the first line's number."""
        keys = [self._keys.of(attempt.job, kind) for kind in RUNNER_KEYS]
        calls, number = [], first
        # More lines would block the server for more than 1 or 2 ms.
        for part in split_runs(runs, 500):
            args: list[Any] = [attempt.token, attempt.attempt, self._lease_ms, number]
            for run in part:
                args += (run.timestamp, run.stream, "1" if run.partial else "", len(run.messages), *run.messages)
            calls.append((attempt.job.workflow_id, keys, args))
            number += count_lines(part)
        is_slow = has_quota = False
        for answer in self._commands.scripts("append", calls, PoolKind.APPENDS):
            if isinstance(answer, StoreError):
                raise answer
            try:
                first, *slow = replies.accepted(answer)
                is_slow = is_slow or bool(slow)
            except QuotaReached as error:
                first, has_quota = error.expected, True
        if is_slow:
            size = sum(len(message) for run in runs for message in run.messages)
            self.sleep(max(SLOW_SECONDS, size / SLOW_BYTES_PER_SECOND))
        if has_quota:
            raise QuotaReached(first)
        return first

    def append_ahead(self, attempt: Attempt, first: int, runs: Sequence[LineRun]) -> Callable[[], int]:
        """A function that calls :meth:`append_runs`. With a nearby store, sending ahead would gain nothing."""
        return partial(self.append_runs, attempt, first, runs)

    def append_lost(self, attempt: Attempt, first: int, last: int, reason: str = "lost") -> int:
        """Appends a gap (``lost`` or ``missing``) for lines ``first`` to ``last``. See :meth:`append`."""
        args = (attempt.token, attempt.attempt, self._lease_ms, first, last, iso_timestamp(self.clock()), reason)
        return int(self._ask("append_lost", attempt.job, RUNNER_KEYS, *args)[0])

    def durability_probe(self) -> "Store | None":
        """This store, for calls of :meth:`confirm`. None if acknowledged lines count as safe."""
        return None if self.durability is Durability.ACKED else self

    def confirm(self, attempt: Attempt, may_sync: bool = False) -> int | None:
        """Returns one past the number of the last safe entry, which can be the terminal entry. None after a timeout.

        ``may_sync`` allows forcing the files to disk instead of waiting for the server. Raises :class:`Fenced`,
        :class:`NotDurable`.
        """
        keys = [self._keys.of(attempt.job, kind) for kind in RUNNER_KEYS]
        args = (attempt.token, self._lease_ms, self._retention_ms, attempt.attempt)
        write = ("EVAL", self._commands.script_named("confirm").source, len(keys), *keys, *args)
        sync = self.sync if may_sync else None
        ask = partial(confirm, write=write, durability=self.durability, sync=sync)
        return self._commands.work(attempt.job.workflow_id, ask, PoolKind.WAITS)

    def renew(self, attempt: Attempt) -> None:
        """Extends the lease. Raises :class:`Fenced`, :class:`Deleted`."""
        self._ask("renew", attempt.job, ("job", "lease"), attempt.token, attempt.attempt, self._lease_ms)

    def finish(
        self,
        attempt: Attempt,
        status: Status,
        exit_code: int | None,
        dropped: int,
        next_number: int,
        *,
        counts: bool = False,
    ) -> None:
        """Ends the job after its last line, ``next_number`` - 1. All lines must already be safe.

        With PENDING, ends only the attempt. ``counts`` makes the job's final exit code at least this attempt's, unless
        the job becomes CANCELED or LOST. Raises :class:`Fenced`, :class:`SequenceGap`, :class:`Deleted`.
        """
        code = "" if exit_code is None else exit_code
        now = iso_timestamp(self.clock())
        # A job waits a week for its next attempt, and then becomes LOST.
        keep_ms = self._retention_ms if status.terminal else 604_800_000
        end = (status, code, dropped, keep_ms, next_number, attempt.attempt, "1" if counts else "")
        args = (attempt.token, now, *end)
        self._ask("finish", attempt.job, RUNNER_KEYS, *args)

    def end(self, ref: JobRef, status: Status, exit_code: int | None) -> Job:
        """Ends a job that no runner holds, and returns it. Idempotent.

        Raises :class:`JobNotFound`, :class:`Held`, :class:`Deleted`, and :class:`Closed` if the job has a different
        end.
        """
        self.get_job(ref)  # Declares the job LOST if its lease has expired.
        code = "" if exit_code is None else exit_code
        own = self.catalog.settings_of(ref.workflow_id, PoolKind.APPENDS).retention_seconds
        end = (status, code, 0, self._retention_ms, "", 1000 * own if own else "", "")
        had_ended = self._ask("finish", ref, RUNNER_KEYS, "", iso_timestamp(self.clock()), *end)
        job = self.require_job(ref)
        if had_ended and had_ended not in ([job.status.encode(), each] for each in (b"", str(job.exit_code).encode())):
            code = "" if job.exit_code is None else f", exit code {job.exit_code}"
            raise Closed(f"the job has already ended: {job.status}{code}")
        return job

    def _ask(self, script: str, job: JobRef, kinds: Sequence[str], *args: Any) -> list[Any]:
        return self._commands.ask(script, job, kinds, *args, pool=PoolKind.APPENDS)

    def load_key_set(self, name: str) -> bytes | None:
        """The key set that a node last saved under ``name`` with :meth:`save_key_set`, or None."""
        key = self._keys.key_set(name)
        found: bytes | None = self._commands.run(key, "GET", key, pool=PoolKind.HEALTH)
        return found

    def save_key_set(self, name: str, record: bytes, seconds: float) -> None:
        """Shares ``record`` with other nodes for ``seconds``."""
        key = self._keys.key_set(name)
        self._commands.run(key, "SET", key, record, "EX", round(seconds), pool=PoolKind.HEALTH)

    def warnings(self) -> list[str]:
        """Warnings about server settings that can lose logs."""
        found: list[str] = []
        with translate_errors():
            for client in self._topology.masters():
                found += [*loss_warnings(client, self._keys.prefix), *persistence_warnings(client)]
        return list(dict.fromkeys(found))

    def job_warnings(self, job: JobRef) -> list[str]:
        def check(client: redis.Redis) -> list[str]:
            return list(loss_warnings(client, self._keys.prefix))

        return self._commands.work(job.workflow_id, check, PoolKind.APPENDS)

    def server_infos(self) -> list[dict[str, str]]:
        """The sections ``memory`` and ``stats`` of each server's INFO."""
        with translate_errors():
            return [server_info(client, "memory", "stats") for client in self._topology.masters()]

    def ping(self) -> None:
        """Raises :class:`StoreUnavailable` unless the server answers, :class:`StoreRefused` while it rejects writes."""
        with translate_errors():
            self._topology.ping()

    def check_files(self) -> None:
        """Raises :class:`SettingsError` if a file that the URL names for TLS cannot be used."""
        try:
            self._topology.check_files()
        except ValueError as error:
            raise SettingsError(f"CHRONOVERSE_REDIS_URL has an invalid option: {error}") from None

    def close(self) -> None:
        """Closes all connections. The store can still be used."""
        self._topology.close()


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1_000_000) // 1000


def _topology_of(url: str) -> Topology:
    parsed = RedisUrl.parse(url)
    if parsed.kind == "sentinel":
        return SentinelTopology(parsed)
    return ClusterTopology(parsed) if parsed.kind == "cluster" else Topology(url)
