"""Where lines rest: Redis Streams. The only module that imports redis.

Keys, under a prefix, with the workflow as hash tag so that all of a workflow's keys share a cluster slot:

    {prefix}:{<workflow>}:jobs         zset    job ids by creation time (Unix ms)
                                               never expires; jobs that are gone leave it when a listing meets them
    {prefix}:{<workflow>}:<job>:log    stream  the lines as <sequence_num>-0, last the terminal entry
                                               expires RETENTION after the end
    {prefix}:{<workflow>}:<job>:job    hash    status, attempt, created_at, …
                                               expires with the log; PENDING: RETENTION after the registration
    {prefix}:{<workflow>}:<job>:lease  string  the live attempt's token
                                               expires LEASE after its runner was last heard

Whatever must be atomic is a script in ``lua/``. All of them may be repeated after a lost reply.
Foreign runners write the same keys with plain commands, so nothing read here is trusted to be in shape.
"""

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import redis
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry

from chronoverse.errors import (
    AppendRefused,
    Closed,
    Fenced,
    Held,
    NotALog,
    SequenceGap,
    StoreError,
    StoreRefused,
    StoreUnavailable,
    Tainted,
)
from chronoverse.joblog import (
    NO_TIMESTAMP,
    End,
    Job,
    JobRef,
    Line,
    RawEntry,
    Status,
    iso_timestamp,
    parse_exit_code,
    parse_number,
    read_terminal,
)

#: Seconds a command may take before the store counts as unavailable. Far above any of our commands' cost.
COMMAND_TIMEOUT_SECONDS: Final = 5.0
#: Seconds a connection may take to open.
CONNECT_TIMEOUT_SECONDS: Final = 2.0
#: Connections for commands, per process. Commands take well under a millisecond, so few serve many.
COMMAND_CONNECTIONS: Final = 6
#: Jobs looked at in one round trip.
LOOK_BATCH: Final = 500
#: The highest sub-number of an id: reading after ``7-<this>`` starts at line 8 whatever shape entry 7 has.
_LAST_PART: Final = 2**64 - 1

#: The first words of answers that mean "not now": no memory, no disk, no replica, not the master.
_REFUSALS: Final = frozenset({"OOM", "MISCONF", "NOREPLICAS", "READONLY"})

_LUA = Path(__file__).parent / "lua"


class Attempt(NamedTuple):
    """A runner's hold on a job: ``token`` in the lease, and the number its next line gets."""

    job: JobRef
    token: str
    attempt: int
    next: int


class _Script:
    """A server-side script: sent once, run by its hash, sent again when the server has forgotten it."""

    def __init__(self, name: str) -> None:
        self.source = (_LUA / "common.lua").read_text("utf-8") + (_LUA / f"{name}.lua").read_text("utf-8")
        self.sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()

    def run(self, client: redis.Redis, keys: Sequence[str], *args: Any) -> Any:
        try:
            return client.execute_command("EVALSHA", self.sha, len(keys), *keys, *args)
        except redis.exceptions.NoScriptError:
            return client.execute_command("EVAL", self.source, len(keys), *keys, *args)


class Store:
    """Every read and write of job logs. Safe to share between threads or greenlets of one process.

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
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._url = url
        self._prefix = prefix
        self._lease_ms = round(lease_seconds * 1000)
        self._retention_ms = round(retention_seconds * 1000)
        self._clock = clock
        self._commands = _client(url, retries=1)
        self._appends = _client(url, retries=0)
        names = ("open", "append", "renew", "finish", "look", "register")
        self._scripts = {name: _Script(name) for name in names}

    # What a job is

    def look(self, job: JobRef) -> Job | None:
        """The job as it is now, or None. A RUNNING job whose runner's lease is gone becomes LOST by this."""
        with _translated():
            reply = self._scripts["look"].run(self._commands, *self._look_arguments(job))
        return _job(job, reply)

    def look_many(self, jobs: Sequence[JobRef]) -> list[Job | StoreError | None]:
        """:meth:`look` for many jobs in few round trips; an error that is one job's own stands in its place."""
        found: list[Job | StoreError | None] = []
        for start in range(0, len(jobs), LOOK_BATCH):
            found += self._look_batch(jobs[start : start + LOOK_BATCH])
        return found

    def _look_batch(self, jobs: Sequence[JobRef]) -> list[Job | StoreError | None]:
        script = self._scripts["look"]
        pipeline = self._commands.pipeline(transaction=False)
        for job in jobs:
            keys, *args = self._look_arguments(job)
            pipeline.execute_command("EVALSHA", script.sha, len(keys), *keys, *args)
        with _translated():
            replies = pipeline.execute(raise_on_error=False)
        found: list[Job | StoreError | None] = []
        for job, reply in zip(jobs, replies, strict=True):
            try:
                if isinstance(reply, redis.exceptions.NoScriptError):
                    found.append(self.look(job))
                elif isinstance(reply, redis.RedisError):
                    raise _translate(reply) from reply
                else:
                    found.append(_job(job, reply))
            except NotALog as error:
                found.append(error)
        return found

    def _look_arguments(self, job: JobRef) -> tuple[Any, ...]:
        keys = (self._key(job, "log"), self._key(job, "job"), self._key(job, "lease"))
        return keys, iso_timestamp(self._clock()), self._lease_ms, self._retention_ms

    def register(self, job: JobRef) -> bool:
        """Makes a PENDING job. True when it is new."""
        now = self._clock()
        keys = (self._key(job, "job"), self._index(job.workflow_id))
        args = (iso_timestamp(now), round(now * 1000), job.job_id, self._retention_ms)
        with _translated():
            return bool(self._scripts["register"].run(self._commands, keys, *args))

    def jobs(self, workflow_id: str, before: tuple[int, str] | None, count: int) -> list[tuple[int, str]]:
        """Up to ``count`` jobs as (creation time in Unix ms, job id), newest first, strictly after ``before``."""
        highest = "+inf" if before is None else before[0]
        found: list[tuple[int, str]] = []
        skip = 0
        while len(found) < count:
            scores = (highest, "-inf", "WITHSCORES", "LIMIT", skip, count)
            with _translated():
                page = _scored(self._commands.execute_command("ZREVRANGEBYSCORE", self._index(workflow_id), *scores))
            found += [item for item in page if before is None or item < before]
            skip += count
            if len(page) < count:
                break
        return found[:count]

    def forget(self, workflow_id: str, job_ids: Sequence[str]) -> None:
        """Takes jobs that are gone out of the workflow's listing."""
        with _translated():
            self._commands.execute_command("ZREM", self._index(workflow_id), *job_ids)

    # What its log says

    def read(self, job: JobRef, after: int, count: int) -> Sequence[RawEntry]:
        """Up to ``count`` entries that follow line ``after``, at once: an XREAD that does not block."""
        key = self._key(job, "log")
        with _translated():
            reply = self._commands.execute_command("XREAD", "COUNT", count, "STREAMS", key, _after(after))
        for _, entries in _streams(reply):
            return entries
        return ()

    def page(self, job: JobRef, *, after: int = 0, before: int | None = None, count: int) -> Sequence[RawEntry]:
        """Up to ``count`` entries: upwards from line ``after``, or with ``before`` downwards from that line.

        Neither ``after`` nor ``before`` is itself among them. https://redis.io/docs/latest/commands/xrange/
        """
        command: tuple[Any, ...]
        if before is None:
            command = ("XRANGE", self._key(job, "log"), f"{after + 1}-0", "+", "COUNT", count)
        elif before > 1:
            command = ("XREVRANGE", self._key(job, "log"), f"{before - 1}-{_LAST_PART}", "-", "COUNT", count)
        else:
            return ()
        with _translated():
            entries: Sequence[RawEntry] = self._commands.execute_command(*command)
        return entries

    def reader(self, block_seconds: float) -> "BlockingReader":
        """A reader on a connection of its own, for the process's tail."""
        return BlockingReader(self, block_seconds)

    # What a runner does

    def open(self, job: JobRef, token: str) -> Attempt:
        """Takes the job's lease for a new attempt. ``token`` is the caller's own and unguessable.

        Raises: :class:`Held`, :class:`Closed`, :class:`Tainted`.
        """
        now = self._clock()
        keys = (self._key(job, "log"), self._key(job, "job"), self._key(job, "lease"), self._index(job.workflow_id))
        args = (token, self._lease_ms, iso_timestamp(now), round(now * 1000), job.job_id)
        attempt, following = self._answer("open", keys, *args)
        return Attempt(job, token, attempt, following)

    def append(self, attempt: Attempt, lines: Sequence[Line]) -> int:
        """Appends consecutive ``lines`` (one at least), skipping those the log already has; returns the next number.

        Stored whole or not at all. Renews the lease.
        Raises: :class:`SequenceGap`, :class:`Fenced`, :class:`Closed`, :class:`Tainted`.
        """
        job = attempt.job
        keys = (self._key(job, "log"), self._key(job, "job"), self._key(job, "lease"))
        fields: list[Any] = []
        for line in lines:
            fields += (line.timestamp, line.message, line.stream, "1" if line.partial else "")
        following: int = self._answer("append", keys, attempt.token, self._lease_ms, lines[0].sequence_num, *fields)[0]
        return following

    def renew(self, attempt: Attempt) -> None:
        """Extends the lease. Raises: :class:`Fenced`."""
        self._answer("renew", (self._key(attempt.job, "lease"),), attempt.token, self._lease_ms)

    def finish(self, attempt: Attempt, status: Status, exit_code: int | None, dropped: int, following: int) -> None:
        """Ends the job behind its last line, ``following`` - 1. Raises: :class:`Fenced`, :class:`SequenceGap`."""
        job = attempt.job
        keys = (self._key(job, "log"), self._key(job, "job"), self._key(job, "lease"))
        code = "" if exit_code is None else exit_code
        now = iso_timestamp(self._clock())
        args = (attempt.token, now, status, code, dropped, self._retention_ms, following, attempt.attempt)
        self._answer("finish", keys, *args)

    def _answer(self, script: str, keys: Sequence[str], *args: Any) -> list[Any]:
        with _translated():
            answer: list[Any] = self._scripts[script].run(self._appends, keys, *args)
        if answer[0] == b"OK":
            return answer[1:]
        raise _refusal(answer[0].decode(), answer[1:])

    # The server itself

    def ping(self) -> None:
        """Raises :class:`StoreUnavailable` unless the server answers."""
        with _translated():
            self._commands.execute_command("PING")

    def close(self) -> None:
        """Closes every connection. The store can be used again."""
        self._commands.close()
        self._appends.close()

    def _key(self, job: JobRef, kind: str) -> str:
        return f"{self._prefix}:{{{job.workflow_id}}}:{job.job_id}:{kind}"

    def _index(self, workflow_id: str) -> str:
        return f"{self._prefix}:{{{workflow_id}}}:jobs"


class BlockingReader:
    """One connection that waits for new entries of many jobs at once. One thread reads; any may interrupt."""

    def __init__(self, store: Store, block_seconds: float) -> None:
        self._store = store
        self._block_ms = round(block_seconds * 1000)
        # The socket must outwait BLOCK, or an idle log would look like a dead server.
        client = _client(store._url, retries=0, timeout=block_seconds + COMMAND_TIMEOUT_SECONDS)
        self._connection = client.connection_pool.make_connection()
        self._id: int | None = None

    def read(self, cursors: Mapping[JobRef, int], count: int) -> list[tuple[JobRef, Sequence[RawEntry]]]:
        """Waits until any job has entries after its cursor; up to ``count`` of each. Empty when none came in time.

        Raises :class:`NotALog` when one of the jobs' keys is no stream: Redis does not say whose.
        """
        jobs = {self._store._key(job, "log"): job for job in cursors}
        command = ("XREAD", "COUNT", count, "BLOCK", self._block_ms, "STREAMS", *jobs, *map(_after, cursors.values()))
        with _translated():
            if self._id is None:
                self._connection.send_command("CLIENT", "ID")
                self._id = self._connection.read_response()
            try:
                self._connection.send_command(*command)
                reply = self._connection.read_response()
            except (redis.ConnectionError, redis.TimeoutError):
                self._id = None
                raise
        return [(jobs[key.decode()], entries) for key, entries in _streams(reply)]

    def interrupt(self) -> None:
        """Makes a waiting :meth:`read` return empty. Does nothing when none is waiting."""
        if self._id is not None:
            with _translated():
                self._store._commands.execute_command("CLIENT", "UNBLOCK", self._id)

    def close(self) -> None:
        """Closes the connection; the next read opens it again."""
        self._id = None
        self._connection.disconnect()


def _client(url: str, *, retries: int, timeout: float = COMMAND_TIMEOUT_SECONDS) -> redis.Redis:
    pool = redis.BlockingConnectionPool.from_url(
        url,
        max_connections=COMMAND_CONNECTIONS,
        timeout=COMMAND_TIMEOUT_SECONDS,
        socket_timeout=timeout,
        socket_connect_timeout=CONNECT_TIMEOUT_SECONDS,
        socket_read_size=262_144,
        decode_responses=False,
        # Retrying hides the first answer, so only what may be repeated blindly is, and once: a pooled
        # connection that the server closed long ago costs exactly one.
        retry=Retry(NoBackoff(), retries),
        maint_notifications_config=MaintNotificationsConfig(enabled=False),
    )
    client = redis.Redis(connection_pool=pool)
    # Replies as the parser made them: redis-py's reshaping costs half of a replay's time.
    client.response_callbacks.clear()
    return client


def _after(number: int) -> str:
    return f"{number}-{_LAST_PART}"


def _streams(reply: Any) -> Iterator[tuple[bytes, Sequence[RawEntry]]]:
    """An XREAD reply's (key, entries): a map in RESP3, pairs in RESP2, null when nothing came."""
    if isinstance(reply, dict):
        yield from reply.items()
    elif reply:
        yield from reply


def _scored(reply: list[Any]) -> list[tuple[int, str]]:
    """A WITHSCORES reply's (score, member): pairs in RESP3, flat in RESP2."""
    pairs = reply if reply and isinstance(reply[0], list) else zip(reply[::2], reply[1::2], strict=True)
    return [(int(float(score)), _text(member)) for member, score in pairs]


def _job(ref: JobRef, reply: list[Any] | None) -> Job | None:
    """A job out of ``look.lua``'s reply. The terminal entry is believed first, then the hash, then the stream."""
    if reply is None:
        return None
    flat, first_id, last_id, first_timestamp, terminal = reply
    named = {_text(name): _text(value) for name, value in zip(flat[::2], flat[1::2], strict=True)}
    last = int(last_id.partition(b"-")[0]) if last_id else 0
    status = named.get("status", "")
    end: End | None = None
    if terminal:
        end = read_terminal(last, terminal)
    elif status in Status.__members__ and Status(status).terminal:
        end = _end_from_hash(named, last, holds_entries=bool(first_id))
    if end:
        last = end.sequence_num - 1
    return Job(
        ref=ref,
        status=end.status if end else Status.RUNNING if last_id or status == "RUNNING" else Status.PENDING,
        attempt=parse_number(named.get("attempt", "")) or (1 if last_id else 0),
        created_at=named.get("created_at"),
        started_at=named.get("started_at") or _text(first_timestamp) or None,
        finished_at=end.timestamp if end else None,
        exit_code=end.exit_code if end else None,
        lines=end.lines if end else None,
        dropped=end.dropped if end else 0,
        first=int(first_id.partition(b"-")[0]) if first_id else last + 1,
        last=last,
        end=end,
    )


def _end_from_hash(named: dict[str, str], last: int, *, holds_entries: bool) -> End:
    """The end of a job whose log does not hold it: expired before its hash, trimmed away, or never written."""
    lines = parse_number(named.get("lines", "")) or (last if holds_entries else max(last - 1, 0))
    return End(
        max(lines, last if holds_entries else 0) + 1,
        Status(named["status"]),
        parse_exit_code(named.get("exit_code", "")),
        lines,
        parse_number(named.get("dropped", "")) or 0,
        named.get("finished_at", NO_TIMESTAMP),
    )


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


def _refusal(word: str, rest: list[Any]) -> AppendRefused:
    """The error behind a script's answer."""
    if word == "GAP":
        return SequenceGap(rest[0])
    return {
        "HELD": Held("another live runner holds this job"),
        "CLOSED": Closed("the job has already ended"),
        "FENCED": Fenced("this runner's lease is gone: it expired, or another runner took the job over"),
        "TAINTED": Tainted("the log holds entry ids that are not 1-0, 2-0, 3-0, …"),
    }[word]


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except redis.RedisError as error:
        raise _translate(error) from error


def _translate(error: redis.RedisError) -> StoreError:
    """Our error for redis-py's. Redis names a refusal by the first word of its message."""
    text = str(error)
    word = text.partition(" ")[0]
    if "WRONGTYPE" in text:
        return NotALog("the job's key in the store holds something that is not a log")
    if isinstance(error, redis.OutOfMemoryError | redis.ReadOnlyError) or word in _REFUSALS:
        return StoreRefused(f"the store will not write: {text}")
    if isinstance(error, redis.ConnectionError | redis.TimeoutError) or word == "UNBLOCKED":
        return StoreUnavailable(f"the store cannot be reached: {text}")
    return StoreError(f"the store gave an unexpected answer: {text}")
