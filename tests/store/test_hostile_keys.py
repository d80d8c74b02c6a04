"""Bad values in one job's keys do not affect other jobs.

Anybody with write access to the store can write anything there. Each test creates many jobs, and writes one bad value
of the same kind into each of them, next to good jobs in the same workflow and in another one. Then it does with all
jobs what the service does.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
import redis

from chronoverse.archive.object_store import FileObjectStore
from chronoverse.archive.reader import ArchiveReader
from chronoverse.archive.redaction import Redaction, RedactionRequest
from chronoverse.archive.retention import delete_job
from chronoverse.errors import ChronoverseError, NotALog
from chronoverse.history.tiered_log import TieredLog
from chronoverse.joblog.model import IDENTIFIER, Attempt, Job, JobRef, Status
from chronoverse.live.feed import Feed
from chronoverse.live.replay_cache import ReplayCache
from chronoverse.live.tail import Tail
from chronoverse.live.viewer import Viewer
from chronoverse.store import Store
from chronoverse.store.keys import JOB_KEYS, WORKFLOW_KEYS
from tests.support.archivers import DAY, append, archive, set_ended
from tests.support.bench import Bench, make_lines
from tests.support.reading import Bystander, Clock, ControlledStore, redis_fields
from tests.support.servers import RedisServer
from tests.support.waiting import wait_until

pytestmark = pytest.mark.long

#: The workflow of the bad jobs, which has good ones too, and a workflow of good jobs only.
SHARED, OTHER = "shared", "other"
#: Seconds until a job without a lease is declared LOST. These tests renew no lease.
LEASE_SECONDS: Final = 0.5
#: More lines than a running log may keep in the store.
MANY: Final = 3_000

TYPES: Final[dict[str, tuple[Any, ...]]] = {
    "string": ("SET", "no"),
    "list": ("RPUSH", "no"),
    "set": ("SADD", "no"),
    "zset": ("ZADD", 1, "no"),
    "hash": ("HSET", "no", "no"),
    "stream": ("XADD", "1-0", "no", "no"),
}
RIGHT_TYPES: Final = {**JOB_KEYS, **WORKFLOW_KEYS}
#: Invalid and extreme numbers, and texts that may break a parser.
TEXTS: Final[tuple[Any, ...]] = (
    "",
    "no number",
    "nan",
    "inf",
    "-0",
    "-1",
    "0",
    "1",
    "2",
    "1e400",
    "0x10",
    "007",
    "1.5",
    "999999999999999",
    "9007199254740993",
    "18446744073709551616",
    "9" * 400,
    "9999-12-31T23:59:59.999-23:59",
    b"\xff\xfe\x00",
    '{"first":1}',
    "[" * 10_000,
    b"x" * 2**20,
)
#: JSON, tested only in records: elsewhere it is one more invalid number.
JSON_TEXTS: Final = ('{"first":1}', "[" * 10_000)
#: Fields of a job's hash that scripts parse or compare.
FIELDS: Final = (
    *("status", "attempt", "archived", "archived_first", "deleting", "redactions", "retention_ms", "slow_until"),
    *("end_seen_ms", "end_id"),
)
#: Fields that are only returned.
SHOWN_FIELDS: Final = (
    *("created_at", "started_at", "finished_at", "exit_code", "lines", "dropped", "archive_state", "archived_at"),
    *("archive_sha256", "archive_shapes", "swept"),
)
RECORDS: Final[tuple[Any, ...]] = (
    *TEXTS,
    "null",
    "1",
    '"text"',
    "[]",
    "{}",
    '{"first":"1","last":"2","object":"x","bytes":1,"sha256":"","frames":[]}',
    '{"first":1,"last":3,"object":"x","bytes":1,"sha256":"","frames":[]}',
    '{"first":1,"last":3,"object":"x","bytes":1,"sha256":"","frames":[[]]}',
    '{"first":1,"last":3,"object":"x","bytes":1,"sha256":"","frames":[["a",{},null,[],1,2]]}',
    '{"first":1,"last":3,"object":"x","bytes":1,"sha256":"","frames":[[3,-1,-1,"","",1]]}',
    '{"first":1,"last":3,"object":"../other/x","bytes":1,"sha256":"","frames":[[3,10,10,"","",1]]}',
    '{"first":1,"last":3,"object":7,"bytes":"1","sha256":[],"frames":[[3,10,10,"","",1]]}',
    '{"first":-5,"last":-1,"object":"x","bytes":1,"sha256":"","frames":[[-1,10,10,"","",1]]}',
    '{"first":1e400,"last":1e400,"object":"x","bytes":1,"sha256":"","frames":[[3,10,10,"","",1]]}',
    '{"first":1.5,"last":2.5,"object":"x","bytes":1,"sha256":"","frames":[[2.5,10,10,"","",1]]}',
    '{"first":9007199254740993,"last":1,"object":"x","bytes":1,"sha256":"","frames":[[1,10,10,"","",1]]}',
    '{"first":1,"last":999999999999999,"object":"x","bytes":9e99,"sha256":"","frames":[[3,10,10,"","",1]]}',
)
AUDITS: Final[tuple[Any, ...]] = (
    *TEXTS,
    "null",
    "1",
    "{}",
    '{"from":"1","to":"2"}',
    '{"from":-1,"to":-2}',
    '{"from":1e400,"to":[]}',
    '{"from":2,"to":1}',
    '{"from":1,"to":18446744073709551616}',
)
LEASES: Final = (*TEXTS, *(f"grace:{text}" for text in TEXTS if isinstance(text, str)))
#: Ids and fields of entries appended to the three lines.
ENTRIES: Final[tuple[tuple[tuple[str, ...], ...], ...]] = (
    (("3-1", "message", "x"),),
    (("5-1", "event", "end"),),
    (("9-0", "message", "x"),),
    (("999999999999999-0", "message", "x"),),
    (("1000000000000000-0", "event", "end"),),
    (("9007199254740993-0", "message", "x"),),
    (("18446744073709551615-18446744073709551615", "message", "x"),),
    (("18446744073709551615-18446744073709551615", "event", "end"),),
    (("4-0", "event", "end", "event", "end", "status", "RUNNING", "exit_code", "nan", "lines", "-1"),),
    (("4-0", "event", "end", "status", "COMPLETED", "timestamp", "x" * 2**20, "lines", "9" * 400, "dropped", "1e400"),),
    (("4-0", "event", "end", "timestamp", "0001-01-01T00:00:00+23:59"),),
    (("4-0", "event", "end"), ("5-0", "message", "x"), ("6-0", "event", "end")),
    (("4-0", "timestamp", "\ud800"), ("5-0", "", "")),
    (("4-0", "message", "x" * 2**20, "message", "y", "stream", "nowhere", "partial", "no"),),
)


class BadValue(NamedTuple):
    """A value to write into a job's keys. ``name`` describes it."""

    name: str
    write: Callable[[Bench, JobRef], object]


def _command(name: str, kind: str, command: str, *arguments: Any) -> BadValue:
    return BadValue(name, lambda bench, job: bench.ask(command, bench.key(kind, job), *arguments))


def _commands(kind: str, command: str, *arguments: Any, values: Iterable[Any]) -> Iterator[BadValue]:
    """A command with each value as its last argument."""
    for value in values:
        name = f"{kind}: {command} {arguments} {value[:40]!r}, {len(value)} long"
        yield _command(name, kind, command, *arguments, value)


def other_types(kind: str) -> Iterator[BadValue]:
    def bad(name: str, command: str, *arguments: Any) -> BadValue:
        def write(bench: Bench, job: JobRef) -> None:
            bench.ask("DEL", bench.key(kind, job))
            bench.ask(command, bench.key(kind, job), *arguments)

        return BadValue(f"{kind} is a {name}", write)

    return (bad(name, *command) for name, command in TYPES.items() if name != RIGHT_TYPES[kind])


def log_values() -> Iterator[BadValue]:
    def bad(entries: tuple[tuple[str, ...], ...]) -> BadValue:
        def write(bench: Bench, job: JobRef) -> None:
            for entry_id, *fields in entries:
                # Redis refuses the entry if the log already has a higher id.
                with contextlib.suppress(redis.ResponseError):
                    bench.xadd(entry_id, *(field.encode("utf-8", "surrogatepass") for field in fields), job=job)

        return BadValue(f"entries {str(entries)[:60]}", write)

    yield from other_types("log")
    yield from map(bad, ENTRIES)
    yield _command("no entry is left", "log", "XTRIM", "MAXLEN", 0)
    yield _command("another count", "log", "XSETID", "9-0", "ENTRIESADDED", 99)


def hash_values() -> Iterator[BadValue]:
    yield from other_types("job")
    for field in FIELDS:
        yield from _commands("job", "HSET", field, values=[text for text in TEXTS if text not in JSON_TEXTS])
    yield from _commands("job", "HSET", "status", values=Status)
    for text in TEXTS:
        shown = [each for field in SHOWN_FIELDS for each in (field, text)]
        yield _command(f"all shown fields {text[:40]!r}, {len(text)} long", "job", "HSET", *shown)
    yield _command("many fields", "job", "HSET", *map(str, range(20_000)))


def lease_values() -> Iterator[BadValue]:
    yield from other_types("lease")
    yield from _commands("lease", "SET", values=LEASES)


def archive_values() -> Iterator[BadValue]:
    yield from other_types("archive")
    for score in (2, "inf"):
        yield from _commands("archive", "ZADD", score, values=RECORDS)
    records = [each for number in range(20_000) for each in (number, f"no {number}")]
    yield _command("many records", "archive", "ZADD", *records)


def archiver_values() -> Iterator[BadValue]:
    for kind in ("sealer", "deleted"):
        yield from other_types(kind)
        yield from _commands(kind, "SET", values=TEXTS)


def garbage_values() -> Iterator[BadValue]:
    yield from other_types("garbage")
    for name in ("", "../../etc/passwd", f"{SHARED}/good-ended/job.json", "x" * 2**20, b"\xff\x00"):
        yield from _commands("garbage", "HSET", name, values=("", "0", "no number", "writer:token", "9" * 400))
    names = [each for number in range(20_000) for each in (f"no {number}", "writer:token")]
    yield _command("many names", "garbage", "HSET", *names)


def redaction_values() -> Iterator[BadValue]:
    def bad(value: Any, count: int) -> BadValue:
        def write(bench: Bench, job: JobRef) -> None:
            bench.ask("HSET", bench.key("job", job), "redactions", count)
            bench.ask("RPUSH", bench.key("audit", job), *([value] * min(count, 20_000)))

        return BadValue(f"{count} audits {value[:40]!r}", write)

    yield from other_types("audit")
    for value in AUDITS:
        yield bad(value, 1)
    yield bad("{}", 20_000)
    yield bad("{}", 999_999_999_999_999)


KINDS: Final = {
    "log": log_values,
    "job": hash_values,
    "lease": lease_values,
    "archive": archive_values,
    "archiver": archiver_values,
    "garbage": garbage_values,
    "redactions": redaction_values,
}


class World:
    """Good jobs in two workflows, bad ones in one of them, and what the service does with them."""

    def __init__(self, server: RedisServer, prefix: str, directory: Path) -> None:
        self.bench = Bench(server, prefix)
        self.store = Store(self.bench.url, prefix=prefix, lease_seconds=LEASE_SECONDS, sleep=lambda seconds: None)
        self.objects = FileObjectStore(directory)
        self.clock = Clock()
        self.tail = Tail(ControlledStore(self.store), lease_seconds=LEASE_SECONDS, clock=self.clock)
        self.feeds: dict[JobRef, Feed] = {}
        self.attempts: dict[JobRef, Attempt] = {}
        self.bad_values: dict[JobRef, BadValue] = {}
        self.states: dict[JobRef, str] = {}

    def make(self, state: str, job: JobRef) -> JobRef:
        """Creates a job with three lines in this state."""
        if state == "foreign":
            for line in make_lines(1, 3):
                self.bench.xadd(f"{line.sequence_num}-0", *redis_fields(line), job=job)
            self.bench.xadd("4-0", "event", "end", "status", "FAILED", job=job)
            return job
        attempt = self.attempts[job] = self.bench.store.open(job, "token")
        self.bench.store.append(attempt, make_lines(1, 3))
        if state == "large":
            append(self.bench.store, attempt, 4, MANY)
        if state == "dead":
            self.bench.ask("DEL", self.bench.key("lease", job))
        if state in ("ended", "archived", "expired"):
            self.bench.store.finish(attempt, Status.FAILED, 1, 0, 4)
        return job

    def good(self, state: str) -> list[JobRef]:
        """The good jobs in this state, one per workflow."""
        return [JobRef(workflow, f"good-{state}") for workflow in (SHARED, OTHER)]

    def populate(self, values: list[BadValue]) -> None:
        """Creates all jobs; :meth:`write_bad_values` corrupts them."""
        self.bad_values = {JobRef(SHARED, f"bad-{number}"): each for number, each in enumerate(values)}
        self.states = dict(zip(self.bad_values, itertools.cycle(BAD_STATES), strict=False))
        for state in ("expired", "archived"):
            self._make_all(state)
        assert self.archive() == 0
        for job in self.good("expired"):
            set_ended(self.bench, self.objects, job, 8 * DAY)
        for state in ("running", "large", "dead", "ended", "foreign"):
            self._make_all(state)

    def _make_all(self, state: str) -> None:
        for job in (*self.good(state), *(ref for ref, each in self.states.items() if each == state)):
            self.make(state, job)

    def write_bad_values(self) -> None:
        for job, bad in self.bad_values.items():
            bad.write(self.bench, job)

    def archive(self) -> int:
        """Archives everything due, and returns the number of jobs with an error."""
        return archive(self.bench.store, self.objects, hot_bytes=HOT_BYTES, retention_seconds=7 * DAY)

    def watch(self) -> None:
        for job in (*self.bad_values, *(ref for state in GOOD_STATES for ref in self.good(state))):
            self.feeds[job] = self.tail.join(job, self.store.get_job(job), Bystander())

    def follow(self) -> None:
        """Does the tail's work of several seconds."""
        for _ in range(2):
            self.clock.now += 11
            self.tail.housekeep_once()
            self.tail.read_once()

    def close(self) -> None:
        self.tail.stop()
        self.store.close()
        self.bench.close()


GOOD_STATES: Final = ("running", "large", "dead", "ended", "archived", "expired", "foreign")
#: Archived jobs first, since all jobs that exist by then are archived.
BAD_STATES: Final = ("archived", "running", "dead", "ended", "foreign")
#: Size limit of a running log in the store, in bytes.
HOT_BYTES: Final = 2**18


@pytest.fixture
def world(server: RedisServer, prefix: str, tmp_path: Path) -> Iterator[World]:
    world = World(server, prefix, tmp_path)
    yield world
    world.close()


def _status(world: World, ref: JobRef) -> Status | None:
    job = world.store.get_job(ref)
    return job.status if job else None


def _history(world: World, ref: JobRef) -> None:
    job = world.store.get_job(ref)
    if job is not None:
        history = TieredLog(world.store, ArchiveReader(world.objects, world.store.chunks.chunk), job)
        history.after(0, 10)
        history.before(job.last + 1, 10)


def _redact(world: World, ref: JobRef) -> None:
    request = RedactionRequest(
        1, 2, lambda line: True, {"at": "", "subject": "", "reason": "", "request_id": ""}, exact=False
    )
    Redaction(world.bench.store, world.objects, ref, request, busy_seconds=0).run()


def _view(world: World, ref: JobRef) -> None:
    viewer = Viewer(ReplayCache(world.store), world.tail, ref, world.store.get_job(ref), wait=1)
    for _ in range(3):
        viewer.next()
    viewer.close()


#: All operations on one job, destructive ones last.
OPERATIONS: Final[dict[str, Callable[[World, JobRef], object]]] = {
    "get_job": lambda world, ref: world.store.get_job(ref),
    "archive_state": lambda world, ref: world.store.catalog.archive_state(ref),
    "read": lambda world, ref: world.store.read(ref, 0, 10),
    "history": _history,
    "view": _view,
    "audit": lambda world, ref: world.store.chunks.audit(ref),
    "ranges": lambda world, ref: world.store.redactions(ref, 5),
    "chunk": lambda world, ref: world.store.chunks.chunk(ref, 1),
    "chunks": lambda world, ref: world.store.chunks.chunks(ref),
    "register": lambda world, ref: world.store.register(ref),
    "throttle": lambda world, ref: world.store.chunks.throttle_runner(ref, 1),
    "append": lambda world, ref: world.store.append(world.attempts[ref], make_lines(4, 1)),
    "open": lambda world, ref: world.store.open(ref, "token-2"),
    "open again": lambda world, ref: world.store.open(ref, "token-2"),
    "append again": lambda world, ref: world.store.append(Attempt(ref, "token-2", 2, 5), make_lines(5, 1)),
    "finish": lambda world, ref: world.store.finish(Attempt(ref, "token-2", 2, 5), Status.FAILED, 1, 0, 6),
    "garbage": lambda world, ref: world.store.chunks.garbage(ref),
    "retention": lambda world, ref: world.store.catalog.apply_retention(ref, 90 * 86_400, 5),
    "redact": _redact,
    "delete": lambda world, ref: delete_job(world.bench.store, world.objects, ref),
}


@pytest.mark.parametrize("kind", KINDS)
def test_bad_values_of_one_job_do_not_affect_others(world: World, kind: str) -> None:
    """The good jobs are read, listed, watched, archived, declared LOST and deleted as usual.

    Operations on bad jobs raise only our errors: no script fails halfway.
    """
    world.populate(list(KINDS[kind]()))
    world.watch()
    world.write_bad_values()
    world.follow()
    for job in world.good("running"):
        world.bench.store.append(world.attempts[job], make_lines(4, 2))
    world.follow()
    dead = world.good("dead")
    wait_until(lambda: all(_status(world, job) is Status.LOST for job in dead), 5, "they are LOST")
    world.follow()

    jobs = [*world.bad_values, *world.good("ended")]
    assert [job.end.lines for job in world.store.get_jobs(jobs)[-2:] if isinstance(job, Job) and job.end] == [3, 3]
    listed = {job_id for _, job_id in world.store.listing.page(SHARED, None, 10_000)}
    assert {job.job_id for job in world.good("running")} <= listed
    for job in world.good("running"):
        assert world.feeds[job].cursor == 5
        assert world.feeds[job].final is None
    for job in dead:
        assert b"runner lost" in (world.feeds[job].final or b"")

    world.archive()
    for job in (*world.good("ended"), *world.good("foreign"), *dead):
        assert world.store.catalog.archive_state(job).complete
    for job in world.good("large"):
        assert world.store.catalog.archive_state(job).archived > MANY // 2
    for job in world.good("expired"):
        assert world.store.get_job(job) is None
    for (ref, bad), (name, work) in itertools.product(world.bad_values.items(), OPERATIONS.items()):
        if name == "append" and ref not in world.attempts:
            continue
        try:
            work(world, ref)
        except Exception as error:
            if not isinstance(error, ChronoverseError) or "script" in str(error):
                raise AssertionError(f"{name}: {bad.name} ({world.states[ref]}): {error!r}") from error
    for job in world.good("running"):
        world.bench.ask("DEL", *(world.bench.key(key, job) for key in ("log", "job", "lease")))
    world.follow()
    for job in world.good("running"):
        assert b"gone from the store" in (world.feeds[job].final or b"")


def test_bad_values_of_one_workflow_do_not_affect_others(world: World) -> None:
    """Bad settings are ignored or clamped, and a bad listing does not stop other workflows."""
    settings = [*other_types("settings"), *_commands("settings", "HSET", "retention_seconds", values=TEXTS)]
    listings = [*other_types("jobs"), *_commands("jobs", "ZADD", "inf", values=[text for text in TEXTS if text != "1"])]
    worlds = {f"wf_{number}": bad for number, bad in enumerate([*settings, *listings])}
    for workflow, bad in worlds.items():
        world.make("ended", JobRef(workflow, "job_1"))
        bad.write(world.bench, JobRef(workflow, "job_1"))
    world.make("ended", JobRef(OTHER, "job_1"))

    world.archive()

    assert world.store.catalog.archive_state(JobRef(OTHER, "job_1")).complete
    for number in range(len(settings)):
        job = JobRef(f"wf_{number}", "job_1")
        found = world.store.get_job(job)
        # A number that is valid as a retention may be so small that the job is gone.
        assert found is None or world.store.catalog.archive_state(job).complete, settings[number].name
        assert world.store.register(JobRef(job.workflow_id, "job_2"))
        world.make("ended", JobRef(job.workflow_id, "job_3"))
    for workflow, bad in worlds.items():
        with contextlib.suppress(NotALog):
            listed = [job_id for _, job_id in world.store.listing.page(workflow, None, 10)]
            assert all(map(IDENTIFIER.fullmatch, listed)), bad.name
