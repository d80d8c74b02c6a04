"""The store's front door: every read and write of job logs."""

import contextlib
import copy
import time
from bisect import bisect_left
from collections.abc import Callable, Hashable, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, Final

from chronoverse.errors import NotALog, StoreError, StoreRefused, StoreUnavailable
from chronoverse.joblog.entries import RawEntry
from chronoverse.joblog.values import IDENTIFIER, Attempt, Job, JobRef, Line, LineRun, Status, iso_timestamp
from chronoverse.settings.redis_url import Form, RedisUrl
from chronoverse.store import replies
from chronoverse.store import server_checks
from chronoverse.store.append_connection import Appends, Keys, arguments
from chronoverse.store.blocking_reader import BlockingReader
from chronoverse.store.catalog import JobCatalog
from chronoverse.store.chunk_index import ChunkIndex
from chronoverse.store.cluster import ClusterTopology, slot_of
from chronoverse.store.driver import Ask, Client, DriverError, Script, ScriptForgotten, translate, translated
from chronoverse.store.durability import Durability, StoreDurabilityProbe
from chronoverse.store.listing import ForeignJobs
from chronoverse.store.live_reader import TRACKED_JOBS, LiveReader
from chronoverse.store.slot_readers import NodeReaders
from chronoverse.store.prefetch import PrefetchReader
from chronoverse.store.redaction_log import RedactionLog
from chronoverse.store.sentinel import SentinelTopology
from chronoverse.store.topology import PoolKind, SingleServer, Topology

#: Seconds, at most, between finding a lease gone and declaring its job LOST. Above a runner's longest pause.
GRACE_SECONDS: Final = 1.0
#: Jobs of one workflow's listing, at most; a bound for a search in it, which takes 31 commands.
MOST_JOBS: Final = 2**31
#: Members of a listing read at once, at most, where the first of them are no jobs: some 2 ms of the server's time.
LISTED_MEMBERS: Final = 5_000
#: Jobs looked at in one round trip.
LOOK_BATCH: Final = 500


class Store:
    """Every read and write of job logs. Safe to share between threads or greenlets of one process.

    ``durability`` is when a runner may forget its lines; ``sync`` makes a server's files on this machine safe.

    Raises of any method: :class:`StoreUnavailable`, :class:`StoreRefused`, :class:`NotALog`, or another
    :class:`StoreError` for an answer nobody expected.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "chronoverse",
        lease_seconds: float = 30,
        retention_seconds: float = 604_800,
        durability: Durability = Durability.ACKED,
        sync: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._durability = durability
        self._sync = sync
        self._prefix = prefix
        self._lease_ms = round(lease_seconds * 1000)
        self._retention_ms = round(retention_seconds * 1000)
        self._grace_ms = max(1, round(min(lease_seconds / 3, GRACE_SECONDS) * 1000))
        self._clock = clock
        self._sleep = sleep
        self._topology = topology_of(url)
        self._use = PoolKind.COMMANDS
        #: Where the master may change, or there are many, no connection is kept for a log's past.
        self._prefetch = PrefetchReader(self._topology.connection(""), self._key) if self._topology.fixed else None
        self.chunks: Final = ChunkIndex(self._topology, self._key, self._index)
        self.redaction_log: Final = RedactionLog(self._topology, self._key)
        self.catalog: Final = JobCatalog(self._topology, prefix, self._key)
        self._foreign = ForeignJobs(self._topology, self._index, clock)
        names = ("open", "append", "renew", "finish", "get_job", "register", "unlist", "lose")
        self._scripts = {name: Script(name) for name in names}

    def for_tail(self) -> "Store":
        """This store for the process's tail: its commands have connections that no other caller can take."""
        store = copy.copy(self)
        store._use = PoolKind.TAIL
        return store

    @property
    def one_server(self) -> bool:
        """Whether all jobs are on one server."""
        return self._topology.one

    def server(self, job: JobRef) -> Hashable:
        """Which server has the job. Whoever waits for one must not hold up the jobs of the others."""
        return self._topology.server(job.workflow_id)

    # What a job is

    def get_job(self, job: JobRef) -> Job | None:
        """The job as it is now, or None. A RUNNING job whose runner's lease is gone becomes LOST by this.

        When this is the first look that finds it gone, it takes as long as the runner is given to come back.
        """
        reply = self._get_job(job)
        if replies.lease_expired(reply):
            self._sleep(self._grace_ms / 1000)
            reply = self._get_job(job)
        found = replies.job(job, reply)
        if found and replies.is_foreign(reply):
            self._foreign.list_jobs([found], self._use)
        return found

    def _get_job(self, job: JobRef) -> list[Any] | None:
        reply: list[Any] | None = self._script("get_job", job.workflow_id, *self._look_arguments(job))
        return reply

    def get_jobs(self, jobs: Sequence[JobRef]) -> list[Job | StoreError | None]:
        """:meth:`get_job` for many jobs in few round trips. What a look at one of them raises stands in its place.

        Raises :class:`StoreUnavailable` or :class:`StoreRefused` when the store answers so for every job.
        It never waits: a suspected runner's job is RUNNING until a later look.
        """
        found: dict[JobRef, Job | StoreError | None] = {}
        for start in range(0, len(jobs), LOOK_BATCH):
            with translated():
                parts = self._topology.group_by_node(jobs[start : start + LOOK_BATCH])
            for part in parts:
                try:
                    found.update(zip(part, self._get_jobs(part), strict=True))
                except StoreUnavailable as error:
                    found.update(dict.fromkeys(part, error))
        away = [answer for answer in found.values() if isinstance(answer, StoreUnavailable | StoreRefused)]
        if away and len(away) == len(found):
            raise away[0]
        return [found[job] for job in jobs]

    def _get_jobs(self, jobs: Sequence[JobRef]) -> list[Job | StoreError | None]:
        """The same for jobs on one server."""
        script = self._scripts["get_job"]

        def ask(client: Client) -> list[Any]:
            pipeline = client.pipeline(transaction=False)
            for job in jobs:
                keys, *args = self._look_arguments(job)
                pipeline.execute_command("EVALSHA", script.sha, len(keys), *keys, *args)
            return pipeline.execute(raise_on_error=False)

        with translated():
            answers = self._topology.run(jobs[0].workflow_id, ask, self._use)
        looked = [self._looked(job, answer) for job, answer in zip(jobs, answers, strict=True)]
        pairs = zip(looked, answers, strict=True)
        self._foreign.list_jobs(
            [job for job, answer in pairs if isinstance(job, Job) and replies.is_foreign(answer)], self._use
        )
        return looked

    def _looked(self, job: JobRef, answer: Any) -> Job | StoreError | None:
        try:
            if isinstance(answer, ScriptForgotten | Ask):
                answer = self._get_job(job)
            if isinstance(answer, DriverError):
                raise translate(answer) from answer
            return replies.job(job, answer)
        except StoreError as error:
            return error

    def _look_arguments(self, job: JobRef) -> tuple[Any, ...]:
        return self._keys(job), iso_timestamp(self._clock()), self._lease_ms, self._retention_ms, self._grace_ms

    def register(self, job: JobRef) -> bool:
        """Makes a PENDING job. True when it is new. Raises: :class:`Deleted`."""
        now = self._clock()
        keys = (self._key(job, "job"), self._index(job.workflow_id))
        args = (iso_timestamp(now), round(now * 1000), job.job_id, self.retention_ms(job.workflow_id))
        answer = self._script("register", job.workflow_id, keys, *args)
        if answer < 0:
            raise replies.refusal("DELETED", [])
        return bool(answer)

    def deleted(self, job: JobRef) -> bool:
        """Whether somebody deleted the job, so that for now none can come under its id."""
        # Another type of key is not our tombstone.
        with contextlib.suppress(NotALog):
            return self._command(job.workflow_id, "GET", self._key(job, "deleted")) is not None
        return False

    def retention_ms(self, workflow_id: str) -> int:
        """Milliseconds for which a job of the workflow is kept behind its end, and its tombstone when it is deleted."""
        return self.catalog.retention_ms(workflow_id) or self._retention_ms

    def jobs(self, workflow_id: str, before: tuple[float, str] | None, count: int) -> list[tuple[float, str]]:
        """Up to ``count`` jobs as (creation time in Unix ms, job id), newest first, strictly after ``before``.

        Members that are no job's id leave the listing by this, whoever wrote them: so each is met once.
        """
        highest = "+inf" if before is None else repr(before[0])

        def listed(skip: int, count: int) -> list[tuple[float, bytes]]:
            scores = (highest, "-inf", "WITHSCORES", "LIMIT", skip, count)
            return replies.scored(self._command(workflow_id, "ZREVRANGEBYSCORE", self._index(workflow_id), *scores))

        def is_behind(skip: int) -> bool:
            if before is None or not (page := listed(skip, 1)):
                return True
            score, member = page[0]
            return (score, member.decode("utf-8", "replace")) < before

        found: list[tuple[float, str]] = []
        skip, size = 0, count
        while len(found) < count:
            page = listed(skip, size)
            strange = {member for _, member in page if not IDENTIFIER.fullmatch(member.decode("ascii", "replace"))}
            if strange:
                self._command(workflow_id, "ZREM", self._index(workflow_id), *strange)
            jobs = [(score, member.decode()) for score, member in page if member not in strange]
            found += [item for item in jobs if before is None or item < before]
            skip += size - len(strange)
            if len(page) < size:
                break
            if not found:
                # Somebody may have written millions that are no jobs.
                size = min(2 * size, LISTED_MEMBERS)
                # Many jobs have the time of ``before``: going through all of them could take thousands of commands.
                skip = bisect_left(range(MOST_JOBS), True, lo=skip, key=is_behind)
        return found[:count]

    def unlist(self, workflow_id: str, job_ids: Sequence[str]) -> None:
        """Takes those of the jobs out of the workflow's listing that have neither a log nor a hash."""
        keys = [self._index(workflow_id)]
        for job_id in job_ids:
            keys += self._keys(JobRef(workflow_id, job_id))[:2]
        self._script("unlist", workflow_id, keys, *job_ids)

    # What its log says

    def read(self, job: JobRef, after: int, count: int) -> Sequence[RawEntry]:
        """Up to ``count`` entries that follow line ``after``, at once: an XREAD that does not block."""
        key = self._key(job, "log")
        reply = self._command(job.workflow_id, "XREAD", "COUNT", count, "STREAMS", key, replies.after(after))
        for _, entries in replies.streams(reply):
            return entries
        return ()

    def read_sequential(self, job: JobRef, after: int, count: int) -> Sequence[RawEntry]:
        """:meth:`read`, for whoever will go on behind these entries: a single server is asked for the next ahead."""
        return self._prefetch.read(job, after, count) if self._prefetch else self.read(job, after, count)

    def page(self, job: JobRef, *, after: int = 0, before: int | None = None, count: int) -> Sequence[RawEntry]:
        """Up to ``count`` entries: upwards from line ``after``, or with ``before`` downwards from that line.

        Neither ``after`` nor ``before`` is itself among them. https://redis.io/docs/latest/commands/xrange/
        """
        command: tuple[Any, ...]
        if before is None:
            command = ("XRANGE", self._key(job, "log"), f"{after + 1}-0", "+", "COUNT", count)
        elif before > 1:
            command = ("XREVRANGE", self._key(job, "log"), f"{before - 1}-{replies.LAST_PART}", "-", "COUNT", count)
        else:
            return ()
        entries: Sequence[RawEntry] = self._command(job.workflow_id, *command)
        return entries

    def redactions(self, job: JobRef, count: int) -> list[tuple[int, int]]:
        """What the newest ``count`` redactions covered."""
        if self._prefetch:
            self._prefetch.forget()
        return self.redaction_log.ranges(job, count, self._use)

    def reader(self, block_seconds: float, tracked_jobs: tuple[int, int] = TRACKED_JOBS) -> LiveReader | NodeReaders:
        """A reader on connections of its own, for the process's tail. ``tracked_jobs``: see :class:`LiveReader`."""
        if self._topology.one:
            return LiveReader(self._topology, self._key, block_seconds, tracked_jobs)
        place = self._topology
        return NodeReaders(
            lambda: BlockingReader(place, self._key, block_seconds), slot_of, place.server, self.read, block_seconds
        )

    # What a runner does

    def open(self, job: JobRef, token: str, first: int | None = None) -> Attempt:
        """Takes the job's lease for a new attempt. ``token`` is the caller's own and unguessable.

        Raises: :class:`Held`, :class:`Closed`, :class:`Deleted`, :class:`CorruptLog`; :class:`SequenceGap`, with
        nothing changed, when the attempt's first line would not get the number ``first``.
        """
        now = self._clock()
        keys = (self._key(job, "log"), self._key(job, "job"), self._key(job, "lease"), self._index(job.workflow_id))
        own_ms = self.catalog.retention_ms(job.workflow_id, PoolKind.APPENDS) or ""
        args = (token, self._lease_ms, iso_timestamp(now), round(now * 1000), job.job_id, own_ms, first or "")
        attempt, following = self._answer("open", job, keys, *args)
        return Attempt(job, token, attempt, following)

    def append(self, attempt: Attempt, lines: Sequence[Line]) -> int:
        """Appends consecutive ``lines`` (one at least), skipping those the log already has; returns the next number.

        Stored whole or not at all. Renews the lease.
        Raises: :class:`SequenceGap`, :class:`Fenced`, :class:`Closed`, :class:`Deleted`, :class:`CorruptLog`.
        """
        runs = [
            LineRun(timestamp, stream, partial, [line.message.encode() for line in alike])
            for (timestamp, stream, partial), alike in groupby(lines, key=itemgetter(1, 3, 4))
        ]
        args = arguments(attempt, self._lease_ms, lines[0].sequence_num, runs)
        following: int = self._answer("append", attempt.job, self._keys(attempt.job), *args)[0]
        return following

    def lose(self, attempt: Attempt, first: int, last: int) -> int:
        """Names lines ``first`` to ``last`` as lost; returns the next number. Renews the lease.

        Raises: :class:`SequenceGap`, :class:`Fenced`, :class:`Closed`, :class:`Deleted`, :class:`CorruptLog`.
        """
        args = (attempt.token, self._lease_ms, first, last, iso_timestamp(self._clock()))
        following: int = self._answer("lose", attempt.job, self._keys(attempt.job), *args)[0]
        return following

    def appends(self) -> Appends:
        """A connection on which appends need not wait for each other."""
        return Appends(self._topology, self._lease_ms, self._keys, self._sleep)

    def durability_probe(self) -> StoreDurabilityProbe | None:
        """Who can say what is safe, on a connection of its own; None where that is what was answered."""
        if self._durability is Durability.ACKED:
            return None
        return StoreDurabilityProbe(
            self._topology, self._durability, self._lease_ms, self._retention_ms, self._keys, self._sync
        )

    def renew(self, attempt: Attempt) -> None:
        """Extends the lease. Raises: :class:`Fenced`, :class:`Deleted`."""
        keys = (self._key(attempt.job, "lease"),)
        self._answer("renew", attempt.job, keys, attempt.token, self._lease_ms)

    def finish(self, attempt: Attempt, status: Status, exit_code: int | None, dropped: int, following: int) -> None:
        """Ends the job behind its last line, ``following`` - 1.

        Raises: :class:`Fenced`, :class:`SequenceGap`, :class:`Deleted`.
        """
        keys = self._keys(attempt.job)
        code = "" if exit_code is None else exit_code
        now = iso_timestamp(self._clock())
        args = (attempt.token, now, status, code, dropped, self._retention_ms, following, attempt.attempt)
        self._answer("finish", attempt.job, keys, *args)

    def _answer(self, script: str, job: JobRef, keys: Sequence[str], *args: Any) -> list[Any]:
        answer: list[Any] = self._script(script, job.workflow_id, keys, *args, use=PoolKind.APPENDS)
        if answer[0] == b"OK":
            return answer[1:]
        raise replies.refusal(answer[0].decode(), answer[1:])

    # The server itself

    def warnings(self) -> list[str]:
        """What an operator should know of the servers' settings. Empty when no log is in danger."""
        with translated():
            masters = self._topology.masters()
            found = [each for client in masters for each in (*settings.eviction(client), *settings.persistence(client))]
        return list(dict.fromkeys(found))

    def eviction_warnings(self, job: JobRef) -> list[str]:
        """The same, of whether the job's server may throw its log away."""
        with translated():
            return self._topology.run(job.workflow_id, settings.eviction, PoolKind.APPENDS)

    def evicted_keys(self) -> int:
        """Keys that the servers have thrown away since they started, to make room."""
        with translated():
            return sum(settings.evicted_keys(client) for client in self._topology.masters())

    def ping(self) -> None:
        """Raises :class:`StoreUnavailable` unless the server answers."""
        with translated():
            self._topology.ping()

    def close(self) -> None:
        """Closes every connection. The store can be used again."""
        self._topology.close()
        if self._prefetch:
            self._prefetch.close()

    def _command(self, workflow_id: str, *command: Any) -> Any:
        with translated():
            return self._topology.run(workflow_id, lambda client: client.execute_command(*command), self._use)

    def _script(self, name: str, workflow_id: str, keys: Sequence[str], *args: Any, use: PoolKind | None = None) -> Any:
        script = self._scripts[name]
        with translated():
            return self._topology.run(workflow_id, lambda client: script.run(client, keys, *args), use or self._use)

    def _keys(self, job: JobRef) -> Keys:
        return self._key(job, "log"), self._key(job, "job"), self._key(job, "lease")

    def _key(self, job: JobRef, kind: str = "log") -> str:
        return f"{self._prefix}:{{{job.workflow_id}}}:{job.job_id}:{kind}"

    def _index(self, workflow_id: str) -> str:
        return f"{self._prefix}:{{{workflow_id}}}:jobs"


def topology_of(url: str) -> Topology:
    """Where ``url`` leads. Raises ValueError for a bad one."""
    read = RedisUrl.read(url)
    if read.form is Form.SENTINEL:
        return SentinelTopology(read)
    return ClusterTopology(read) if read.form is Form.CLUSTER else SingleServer(url)
