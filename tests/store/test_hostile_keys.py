"""What is wrong with one job stays with that job, whatever somebody writes into its keys.

Whoever may write to the store may write anything there. Each test plants values of one kind, one in each of many jobs,
beside honest jobs of the same workflow and of another, and then does what the service does with all of them at once.
"""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NamedTuple

import pytest
import redis

from chronoverse.archive.object_store import StoredObject
from chronoverse.archive.reader import ArchiveReader
from chronoverse.archive.redaction import Redaction, RedactionRequest
from chronoverse.archive.retention import delete_job
from chronoverse.errors import ArchiveDamaged, ChronoverseError, NotALog
from chronoverse.history.tiered_log import TieredLog
from chronoverse.joblog.values import IDENTIFIER, Attempt, Job, JobRef, Status
from chronoverse.live.feed import Feed
from chronoverse.live.replay_cache import ReplayCache
from chronoverse.live.tail import Tail
from chronoverse.live.viewer import Viewer, ViewerRequest
from chronoverse.store import Store
from tests.support.archivers import DAY, append, archive
from tests.support.bench import Bench, make_lines
from tests.support.reading import Clock, Impatient
from tests.support.servers import RedisServer
from tests.support.waiting import wait_until

#: The workflow of the hostile jobs, which has honest ones too, and another.
SHARED, OTHER = "shared", "other"
#: Seconds until a job whose lease is gone may be declared LOST: nobody here renews one.
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
RIGHT_TYPES: Final = {
    "log": "stream",
    "job": "hash",
    "lease": "string",
    "archive": "zset",
    "sealer": "string",
    "audit": "list",
    "settings": "hash",
    "jobs": "zset",
    "deleted": "string",
    "garbage": "hash",
}
#: Texts that a number is read from somewhere, or that something breaks at.
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
#: Fields of a job's hash that scripts read numbers from, or decide by.
FIELDS: Final = (
    "status",
    "attempt",
    "archived",
    "archived_first",
    "deleting",
    "redactions",
    "retention_ms",
    "slow_until",
    "end_seen_ms",
)
#: Fields that are only shown, or compared.
SHOWN: Final = (
    "created_at",
    "started_at",
    "finished_at",
    "exit_code",
    "lines",
    "dropped",
    "archive_state",
    "archived_at",
    "archive_sha256",
    "swept",
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
#: Ids and fields of entries, behind the three lines that are there.
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


class Hostile(NamedTuple):
    """What somebody writes to a job, named after what it is."""

    name: str
    write: Callable[[Bench, JobRef], object]


def _asks(name: str, kind: str, command: str, *arguments: Any) -> Hostile:
    """One command on one key of the job."""
    return Hostile(name, lambda bench, job: bench.ask(command, bench.key(kind, job), *arguments))


def _each(kind: str, command: str, *arguments: Any, values: Iterable[Any]) -> Iterator[Hostile]:
    """The command once with each of the values behind its arguments."""
    for value in values:
        name = f"{kind}: {command} {arguments} {value[:40]!r}, {len(value)} long"
        yield _asks(name, kind, command, *arguments, value)


def other_types(kind: str) -> Iterator[Hostile]:
    """A key that is of each type but the right one."""

    def hostile(name: str, command: str, *arguments: Any) -> Hostile:
        def write(bench: Bench, job: JobRef) -> None:
            bench.ask("DEL", bench.key(kind, job))
            bench.ask(command, bench.key(kind, job), *arguments)

        return Hostile(f"{kind} is a {name}", write)

    return (hostile(name, *command) for name, command in TYPES.items() if name != RIGHT_TYPES[kind])


def of_the_log() -> Iterator[Hostile]:
    def hostile(entries: tuple[tuple[str, ...], ...]) -> Hostile:
        def write(bench: Bench, job: JobRef) -> None:
            for entry_id, *fields in entries:
                # A log that has ended already takes only ids that follow.
                with contextlib.suppress(redis.ResponseError):
                    bench.xadd(entry_id, *(field.encode("utf-8", "surrogatepass") for field in fields), job=job)

        return Hostile(f"entries {str(entries)[:60]}", write)

    yield from other_types("log")
    yield from map(hostile, ENTRIES)
    yield _asks("no entry is left", "log", "XTRIM", "MAXLEN", 0)
    yield _asks("another count", "log", "XSETID", "9-0", "ENTRIESADDED", 99)


def of_the_hash() -> Iterator[Hostile]:
    yield from other_types("job")
    for field in FIELDS:
        yield from _each("job", "HSET", field, values=TEXTS)
    yield from _each("job", "HSET", "status", values=Status)
    for text in TEXTS:
        shown = [each for field in SHOWN for each in (field, text)]
        yield _asks(f"all that is shown {text[:40]!r}, {len(text)} long", "job", "HSET", *shown)
    yield _asks("many fields", "job", "HSET", *map(str, range(20_000)))


def of_the_lease() -> Iterator[Hostile]:
    yield from other_types("lease")
    yield from _each("lease", "SET", values=LEASES)


def of_the_archive() -> Iterator[Hostile]:
    yield from other_types("archive")
    for score in (2, "inf"):
        yield from _each("archive", "ZADD", score, values=RECORDS)
    records = [each for number in range(20_000) for each in (number, f"no {number}")]
    yield _asks("many records", "archive", "ZADD", *records)


def of_the_archiver() -> Iterator[Hostile]:
    for kind in ("sealer", "deleted"):
        yield from other_types(kind)
        yield from _each(kind, "SET", values=TEXTS)


def of_the_garbage() -> Iterator[Hostile]:
    yield from other_types("garbage")
    for name in ("", "../../etc/passwd", f"{SHARED}/honest-ended/job.json", "x" * 2**20, b"\xff\x00"):
        yield from _each("garbage", "HSET", name, values=("", "0", "no number", "writer:token", "9" * 400))
    names = [each for number in range(20_000) for each in (f"no {number}", "writer:token")]
    yield _asks("many names", "garbage", "HSET", *names)


def of_redactions() -> Iterator[Hostile]:
    def hostile(value: Any, count: int) -> Hostile:
        def write(bench: Bench, job: JobRef) -> None:
            bench.ask("HSET", bench.key("job", job), "redactions", count)
            bench.ask("RPUSH", bench.key("audit", job), *([value] * min(count, 20_000)))

        return Hostile(f"{count} audits {value[:40]!r}", write)

    yield from other_types("audit")
    for value in AUDITS:
        yield hostile(value, 1)
    yield hostile("{}", 20_000)
    yield hostile("{}", 999_999_999_999_999)


KINDS: Final = {
    "log": of_the_log,
    "job": of_the_hash,
    "lease": of_the_lease,
    "archive": of_the_archive,
    "archiver": of_the_archiver,
    "garbage": of_the_garbage,
    "redactions": of_redactions,
}


class MemoryObjects:
    """An archive in memory: nothing here is about disks, which are slow."""

    def __init__(self) -> None:
        self._objects: dict[str, bytes] = {}

    def put(self, name: str, data: bytes) -> None:
        self._objects[name] = data

    def get(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        if name not in self._objects:
            raise ArchiveDamaged(f"{name} is gone from the archive")
        return self._objects[name][start:stop]

    def delete(self, name: str) -> None:
        self._objects.pop(name, None)

    def list(self, prefix: str) -> Iterator[StoredObject]:
        for name in sorted(self._objects):
            if name.startswith(prefix):
                yield StoredObject(name, len(self._objects[name]), time.time())


class Waiting:
    """Somebody who watches, and is never due."""

    due = float("inf")

    def wake(self) -> None:
        pass


class World:
    """Honest jobs in two workflows, hostile ones in one of them, and all that the service does with them."""

    def __init__(self, server: RedisServer, prefix: str) -> None:
        self.bench = Bench(server, prefix)
        self.store = Store(self.bench.url, prefix=prefix, lease_seconds=LEASE_SECONDS, sleep=lambda seconds: None)
        self.objects = MemoryObjects()
        self.clock = Clock()
        self.tail = Tail(Impatient(self.store), lease_seconds=LEASE_SECONDS, clock=self.clock)
        self.channels: dict[JobRef, Feed] = {}
        self.attempts: dict[JobRef, Attempt] = {}
        self.hostile: dict[JobRef, Hostile] = {}
        self.states: dict[JobRef, str] = {}

    def make(self, state: str, job: JobRef) -> JobRef:
        """A job with three lines in that state."""
        if state == "foreign":
            for line in make_lines(1, 3):
                self.bench.xadd(f"{line.sequence_num}-0", *line.to_fields(), job=job)
            self.bench.xadd("4-0", "event", "end", "status", "FAILED", job=job)
            return job
        attempt = self.attempts[job] = self.bench.store.open(job, "token")
        self.bench.store.append(attempt, make_lines(1, 3))
        if state == "large":
            append(self.bench.store, attempt, 4, MANY)
        if state == "unheard":
            self.bench.ask("DEL", self.bench.key("lease", job))
        if state in ("ended", "archived", "over"):
            self.bench.store.finish(attempt, Status.FAILED, 1, 0, 4)
        return job

    def honest(self, state: str) -> list[JobRef]:
        """The honest jobs in that state, one in each workflow."""
        return [JobRef(workflow, f"honest-{state}") for workflow in (SHARED, OTHER)]

    def populate(self, hostile: list[Hostile]) -> None:
        """Makes all jobs; what is hostile comes with :meth:`strike`."""
        states = list(itertools.islice(itertools.cycle(HOSTILE_STATES), len(hostile)))
        self.hostile = {JobRef(SHARED, f"hostile-{number}"): each for number, each in enumerate(hostile)}
        self.states = dict(zip(self.hostile, states, strict=True))
        for state in ("over", "archived"):
            self._make_all(state)
        assert self.archive() == 0
        for job in self.honest("over"):
            self.bench.set_end_seen(8 * DAY, job)
        for state in ("running", "large", "unheard", "ended", "foreign"):
            self._make_all(state)

    def _make_all(self, state: str) -> None:
        for job in (*self.honest(state), *(ref for ref in self.hostile if self.states[ref] == state)):
            self.make(state, job)

    def strike(self) -> None:
        """Somebody writes into the hostile jobs' keys."""
        for job, hostile in self.hostile.items():
            hostile.write(self.bench, job)

    def archive(self) -> int:
        """Does all that is due; how many jobs something is wrong with."""
        return archive(self.bench.store, self.objects, hot_bytes=HOT_BYTES, retention_seconds=7 * DAY)

    def watch(self) -> None:
        """The tail watches every job."""
        for job in (*self.hostile, *(ref for state in HONEST_STATES for ref in self.honest(state))):
            self.channels[job] = self.tail.join(job, self.store.get_job(job), Waiting())

    def follow(self) -> None:
        """What the tail does in some seconds."""
        for _ in range(2):
            self.clock.now += 11
            self.tail.housekeep_once()
            self.tail.read_once()

    def close(self) -> None:
        self.tail.stop()
        self.store.close()
        self.bench.close()


HONEST_STATES: Final = ("running", "large", "unheard", "ended", "archived", "over", "foreign")
HOSTILE_STATES: Final = ("running", "unheard", "ended", "archived", "foreign")
#: Bytes that a running log may take in the store.
HOT_BYTES: Final = 2**18


@pytest.fixture
def world(server: RedisServer, prefix: str) -> Iterator[World]:
    world = World(server, prefix)
    yield world
    world.close()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_wrong_with_a_job_stays_with_it(world: World, kind: str) -> None:
    """Its neighbours are looked at, listed, watched, archived, declared LOST and deleted as ever."""
    world.populate(list(KINDS[kind]()))
    world.watch()
    world.strike()
    world.follow()
    for job in world.honest("running"):
        world.bench.store.append(world.attempts[job], make_lines(4, 2))
    world.follow()
    unheard = world.honest("unheard")
    wait_until(lambda: all(_status(world, job) is Status.LOST for job in unheard), 5, "their runners are missed")
    world.follow()

    jobs = [*world.hostile, *world.honest("ended")]
    assert [job.end.lines for job in world.store.get_jobs(jobs)[-2:] if isinstance(job, Job) and job.end] == [3, 3]
    listed = {job_id for _, job_id in world.store.listing.page(SHARED, None, 10_000)}
    assert {job.job_id for job in world.honest("running")} <= listed
    for job in world.honest("running"):
        assert world.channels[job].cursor == 5
        assert world.channels[job].final is None
    for job in unheard:
        assert b"runner lost" in (world.channels[job].final or b"")

    world.archive()
    for job in (*world.honest("ended"), *world.honest("foreign"), *unheard):
        assert world.store.catalog.archive_state(job).complete
    for job in world.honest("large"):
        assert world.store.catalog.archive_state(job).archived > MANY // 2
    for job in world.honest("over"):
        assert world.store.get_job(job) is None
    for job in world.honest("running"):
        world.bench.ask("DEL", *(world.bench.key(key, job) for key in ("log", "job", "lease")))
    world.follow()
    for job in world.honest("running"):
        assert b"gone from the store" in (world.channels[job].final or b"")


def _status(world: World, ref: JobRef) -> Status | None:
    job = world.store.get_job(ref)
    return job.status if job else None


def _history(world: World, ref: JobRef) -> None:
    job = world.store.get_job(ref)
    if job is not None:
        history = TieredLog(world.store, ArchiveReader(world.objects, world.store.chunks), job)
        history.after(0, 10)
        history.before(job.last + 1, 10)


def _redact(world: World, ref: JobRef) -> None:
    wish = RedactionRequest(
        1, 2, lambda line: True, {"at": "", "subject": "", "reason": "", "request_id": ""}, exact=False
    )
    clock = itertools.count().__next__
    Redaction(world.bench.store, world.objects, ref, wish, clock=clock, sleep=lambda seconds: None).run()


def _view(world: World, ref: JobRef) -> None:
    viewer = Viewer(ViewerRequest(ref, world.store.get_job(ref), wait=1), ReplayCache(world.store), world.tail)
    for _ in range(3):
        viewer.next()
    viewer.disconnect()


#: All that anybody does with one job, what takes something from it last.
OPERATIONS: Final[dict[str, Callable[[World, JobRef], object]]] = {
    "look": lambda world, ref: world.store.get_job(ref),
    "survey": lambda world, ref: world.store.catalog.archive_state(ref),
    "read": lambda world, ref: world.store.read(ref, 0, 10),
    "history": _history,
    "view": _view,
    "audit": lambda world, ref: world.store.redaction_log.audit(ref),
    "ranges": lambda world, ref: world.store.redactions(ref, 5),
    "chunk": lambda world, ref: world.store.chunks.chunk(ref, 1),
    "chunks": lambda world, ref: world.store.chunks.chunks(ref),
    "register": lambda world, ref: world.store.register(ref),
    "slow": lambda world, ref: world.store.chunks.throttle_runner(ref, 1),
    "append": lambda world, ref: world.store.append(world.attempts[ref], make_lines(4, 1)),
    "open": lambda world, ref: world.store.open(ref, "token-2"),
    "open again": lambda world, ref: world.store.open(ref, "token-2"),
    "append again": lambda world, ref: world.store.append(Attempt(ref, "token-2", 2, 5), make_lines(5, 1)),
    "finish": lambda world, ref: world.store.finish(Attempt(ref, "token-2", 2, 5), Status.FAILED, 1, 0, 6),
    "garbage": lambda world, ref: world.store.chunks.garbage(ref),
    "keep": lambda world, ref: world.store.catalog.apply_retention(ref, 90 * 86_400, 5),
    "redact": _redact,
    "delete": lambda world, ref: delete_job(world.bench.store, world.objects, ref),
}


@pytest.mark.parametrize("kind", KINDS)
def test_who_works_with_a_hostile_job_gets_a_clear_error_or_none(world: World, kind: str) -> None:
    """One of ours, about this job: no script fails in its middle, and nothing unexpected is raised."""
    world.populate(list(KINDS[kind]()))
    world.strike()
    for (ref, hostile), (name, work) in itertools.product(world.hostile.items(), OPERATIONS.items()):
        if name == "append" and ref not in world.attempts:
            continue
        try:
            work(world, ref)
        except Exception as error:
            if not isinstance(error, ChronoverseError) or "script" in str(error):
                raise AssertionError(f"{name}: {hostile.name} ({world.states[ref]}): {error!r}") from error


def test_what_is_wrong_with_a_workflow_s_keys_stays_with_the_workflow(world: World) -> None:
    """Settings that cannot be read are none, or kept within bounds; a listing that is none stops no other workflow."""
    settings = [*other_types("settings"), *_each("settings", "HSET", "retention_seconds", values=TEXTS)]
    listings = [*other_types("jobs"), *_each("jobs", "ZADD", "inf", values=[text for text in TEXTS if text != "1"])]
    worlds = {f"wf_{number}": hostile for number, hostile in enumerate([*settings, *listings])}
    for workflow, hostile in worlds.items():
        world.make("ended", JobRef(workflow, "job_1"))
        hostile.write(world.bench, JobRef(workflow, "job_1"))
    world.make("ended", JobRef(OTHER, "job_1"))

    world.archive()

    assert world.store.catalog.archive_state(JobRef(OTHER, "job_1")).complete
    for number in range(len(settings)):
        job = JobRef(f"wf_{number}", "job_1")
        found = world.store.get_job(job)
        # Numbers that are numbers of seconds count, however small.
        assert found is None or world.store.catalog.archive_state(job).complete, settings[number].name
        assert world.store.register(JobRef(job.workflow_id, "job_2"))
        world.make("ended", JobRef(job.workflow_id, "job_3"))
    for workflow, hostile in worlds.items():
        with contextlib.suppress(NotALog):
            listed = [job_id for _, job_id in world.store.listing.page(workflow, None, 10)]
            assert all(map(IDENTIFIER.fullmatch, listed)), hostile.name
