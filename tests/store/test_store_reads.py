"""What the store says of a job and its log, whoever wrote them, and in whatever state they were left."""

import contextlib
import itertools
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from chronoverse.errors import NotALog, StoreUnavailable
from chronoverse.joblog.entries import RawEntry, read_entries
from chronoverse.joblog.values import End, Job, JobRef, Status
from chronoverse.store import Store
from chronoverse.store.keys import KeyMap
from chronoverse.store.listing import LISTED_SECONDS, JobListing
from chronoverse.store.live_reader import TRACKING_THRESHOLDS, LiveReader
from chronoverse.store.store import GET_JOBS_BATCH
from chronoverse.store.topology import SingleServer
from tests.support.bench import JOB, NOW, NOW_SECONDS, RETENTION_MS, TTL_TOLERANCE_MS, Bench, make_lines
from tests.support.servers import running
from tests.support.waiting import wait_until

OTHER: Final = JobRef("wf_1", "job_2")
#: Seconds a read blocks that is to be woken, and one that is not.
LONG, SHORT = 20.0, 0.01


@pytest.fixture
def store(bench: Bench) -> Store:
    """The bench's store."""
    return bench.store


#: When a reader is told of changes: never with a handful of jobs, or always.
TRACKED: Final = pytest.mark.parametrize("tracked_jobs", [TRACKING_THRESHOLDS, (1, 1)], ids=["waits", "is told"])


@pytest.fixture
def reader(store: Store, tracked_jobs: tuple[int, int]) -> Iterator[LiveReader]:
    """A reader that hardly waits."""
    reader = store.live_reader(SHORT, tracked_jobs)
    assert isinstance(reader, LiveReader)
    yield reader
    reader.close()


def ids(entries: Sequence[RawEntry]) -> list[str]:
    return [entry_id.decode() for entry_id, _ in entries]


def write_job(store: Store, count: int, job: JobRef = JOB) -> None:
    """A job of our own runner, with ``count`` lines, that failed with code 3."""
    attempt = store.open(job, "token-1")
    following = store.append(attempt, make_lines(1, count))
    store.finish(attempt, Status.FAILED, 3, 1, following)


# Look


def test_an_unknown_job_is_none(bench: Bench, store: Store) -> None:
    """And looking for it writes nothing."""
    assert store.get_job(JOB) is None
    assert store.get_jobs([JOB, OTHER]) == [None, None]
    assert bench.keys() == set()


def test_a_registered_job_is_pending(bench: Bench, store: Store) -> None:
    """It has a hash that expires should no runner come, and a place in the listing."""
    assert store.register(JOB)
    assert store.get_job(JOB) == Job(JOB, Status.PENDING, created_at=NOW)
    assert bench.snapshot() == {
        "{wf_1}:job_1:job": {"status": "PENDING", "created_at": NOW},
        "{wf_1}:jobs": [b"job_1", b"%d" % round(NOW_SECONDS * 1000)],
    }
    assert RETENTION_MS - TTL_TOLERANCE_MS < bench.ttl("job") <= RETENTION_MS


def test_a_job_is_registered_once(bench: Bench, store: Store) -> None:
    """A repetition says that it was there, and changes nothing."""
    store.register(JOB)
    before = bench.snapshot()

    assert not store.register(JOB)
    assert bench.snapshot() == before


def test_registering_a_job_that_runs_changes_nothing(bench: Bench, store: Store) -> None:
    """Neither its state nor how long it is kept."""
    store.open(JOB, "token-1")
    before = bench.snapshot()

    assert not store.register(JOB)
    assert bench.snapshot() == before
    assert bench.ttl("job") == -1


def test_a_running_job(store: Store) -> None:
    """What is known while its lines come."""
    attempt = store.open(JOB, "token-1")
    assert store.get_job(JOB) == Job(JOB, Status.RUNNING, 1, NOW, NOW)

    store.append(attempt, make_lines(1, 3))
    assert store.get_job(JOB) == Job(JOB, Status.RUNNING, 1, NOW, NOW, first=1, last=3)


def test_an_ended_job(store: Store) -> None:
    """Everything."""
    write_job(store, 3)

    end = End(4, Status.FAILED, 3, 3, 1, NOW)
    assert store.get_job(JOB) == Job(JOB, Status.FAILED, 1, NOW, NOW, NOW, 3, 3, 1, 1, 3, end)


def test_a_job_without_a_line(store: Store) -> None:
    """It ended behind line 0."""
    store.finish(store.open(JOB, "token-1"), Status.COMPLETED, 0, 0, 1)

    job = store.get_job(JOB)
    assert job
    assert (job.first, job.last, job.lines, job.end and job.end.sequence_num) == (1, 0, 0, 1)


# Foreign runners


def test_a_foreign_runner_needs_nothing_but_xadd(bench: Bench, store: Store) -> None:
    """Its job runs from its first line on, and began then."""
    bench.xadd("1-0", "timestamp", NOW, "message", "a", "stream", "stdout")
    bench.xadd("2-0", "timestamp", "later", "message", "b", "stream", "stdout")

    assert store.get_job(JOB) == Job(JOB, Status.RUNNING, 1, started_at=NOW, first=1, last=2)


def test_a_foreign_end_ends_the_job(bench: Bench, store: Store) -> None:
    """Status, code and time are the entry's; what it leaves out is filled in."""
    bench.xadd("1-0", "timestamp", NOW, "message", "a", "stream", "stdout")
    bench.xadd("2-0", "event", "end", "status", "CANCELED", "exit_code", "130", "timestamp", "later")

    end = End(2, Status.CANCELED, 130, 1, 0, "later")
    assert store.get_job(JOB) == Job(JOB, Status.CANCELED, 1, None, NOW, "later", 130, 1, 0, 1, 1, end)


def test_the_first_look_at_a_foreign_end_remembers_when_that_was(bench: Bench, store: Store) -> None:
    """By the server's clock, once; it is forgotten when another log is written under the job's name."""
    bench.xadd("1-0", "message", "a", "timestamp", NOW)
    store.get_job(JOB)
    assert bench.hash() == {}
    bench.xadd("2-0", "event", "end", "timestamp", NOW)
    before = int(bench.ask("TIME")[0])
    found = store.get_jobs([JOB])

    seen = bench.hash()
    assert before * 1_000 <= int(seen["end_seen_ms"]) <= (before + 60) * 1_000
    assert 0 < bench.ttl("job") <= RETENTION_MS
    assert store.get_jobs([JOB]) == found
    assert bench.hash() == seen
    bench.ask("DEL", bench.key("log"))
    assert store.get_job(JOB) is None
    bench.xadd("1-0", "message", "another")
    store.get_job(JOB)
    assert bench.hash() == {"end_seen_ms": ""}


def test_a_foreign_end_without_a_word_is_a_completion(bench: Bench, store: Store) -> None:
    """Its code and its time are not known."""
    bench.xadd("1-0", "message", "a")
    bench.xadd("2-0", "event", "end")

    end = End(2, Status.COMPLETED, None, 1, 0, None)
    assert store.get_job(JOB) == Job(JOB, Status.COMPLETED, 1, None, None, None, None, 1, 0, 1, 1, end)


def test_a_registered_job_that_a_foreign_runner_writes_is_running(bench: Bench, store: Store) -> None:
    """Its lines say so, its hash does not."""
    store.register(JOB)
    bench.xadd("1-0", "timestamp", NOW, "message", "a")

    assert store.get_job(JOB) == Job(JOB, Status.RUNNING, 1, NOW, NOW, first=1, last=1)


def test_a_foreign_hash_is_not_trusted(bench: Bench, store: Store) -> None:
    """Whatever is in it, the job can be looked at."""
    fields = ("status", b"\xff", "attempt", "-1", "created_at", b"\xff", "exit_code", "x", "lines", "", "odd", "1")
    bench.ask("HSET", bench.key("job"), *fields)

    assert store.get_job(JOB) == Job(JOB, Status.PENDING, created_at="\ufffd")


# Logs that are not whole any more


def test_a_trimmed_log_begins_later(bench: Bench, store: Store) -> None:
    """``first`` is the first line that can still be had."""
    store.append(store.open(JOB, "token-1"), make_lines(1, 10))
    bench.ask("XTRIM", bench.key("log"), "MINID", 7)

    job = store.get_job(JOB)
    assert job
    assert (job.status, job.first, job.last, job.started_at) == (Status.RUNNING, 7, 10, NOW)


def test_a_log_trimmed_to_nothing_keeps_its_numbers(bench: Bench, store: Store) -> None:
    """There is no line to be had, and the next one has a number."""
    store.append(store.open(JOB, "token-1"), make_lines(1, 10))
    bench.ask("XTRIM", bench.key("log"), "MAXLEN", 0)

    job = store.get_job(JOB)
    assert job
    assert (job.status, job.first, job.last) == (Status.RUNNING, 11, 10)


def test_an_ended_log_trimmed_to_its_end(bench: Bench, store: Store) -> None:
    """The end is still in its place."""
    write_job(store, 10)
    bench.ask("XTRIM", bench.key("log"), "MAXLEN", 1)

    job = store.get_job(JOB)
    assert job
    assert (job.first, job.last, job.end) == (11, 10, End(11, Status.FAILED, 3, 10, 1, NOW))


@pytest.mark.parametrize("how", [("XTRIM", "MAXLEN", "0"), ("DEL",)], ids=" ".join)
def test_an_end_that_left_the_log_is_in_the_hash(bench: Bench, store: Store, how: tuple[str, ...]) -> None:
    """It has the same number."""
    write_job(store, 10)
    bench.ask(how[0], bench.key("log"), *how[1:])

    job = store.get_job(JOB)
    assert job
    assert (job.status, job.lines, job.exit_code, job.dropped) == (Status.FAILED, 10, 3, 1)
    assert (job.first, job.last, job.end) == (11, 10, End(11, Status.FAILED, 3, 10, 1, NOW))


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("how", [("XTRIM", "MAXLEN", "0"), ("DEL",)], ids=" ".join)
def test_a_short_log_that_has_gone(bench: Bench, store: Store, count: int, how: tuple[str, ...]) -> None:
    """No line, or one: counted right."""
    attempt = store.open(JOB, "token-1")
    if count:
        store.append(attempt, make_lines(1, count))
    store.finish(attempt, Status.COMPLETED, 0, 0, count + 1)
    bench.ask(how[0], bench.key("log"), *how[1:])

    job = store.get_job(JOB)
    assert job
    assert (job.first, job.last, job.lines, job.end and job.end.sequence_num) == (count + 1, count, count, count + 1)


def test_the_log_of_a_running_job_has_gone(bench: Bench, store: Store) -> None:
    """The job is there, and no line of it."""
    store.append(store.open(JOB, "token-1"), make_lines(1, 3))
    bench.ask("DEL", bench.key("log"))

    assert store.get_job(JOB) == Job(JOB, Status.RUNNING, 1, NOW, NOW, first=1, last=0)


def test_a_log_that_outlived_its_hash(bench: Bench, store: Store) -> None:
    """Its own entries say how it went."""
    write_job(store, 3)
    bench.ask("DEL", bench.key("job"))

    end = End(4, Status.FAILED, 3, 3, 1, NOW)
    assert store.get_job(JOB) == Job(JOB, Status.FAILED, 1, None, NOW, NOW, 3, 3, 1, 1, 3, end)


def test_a_log_out_of_shape_can_be_looked_at(bench: Bench, store: Store) -> None:
    """Its last number counts, whatever follows the dash."""
    bench.xadd("5-1", "message", "a")
    bench.xadd("5-2", "message", "b")

    job = store.get_job(JOB)
    assert job
    assert (job.status, job.first, job.last) == (Status.RUNNING, 5, 5)


# Look at many


def test_many_jobs_are_looked_at_in_their_order(bench: Bench, store: Store) -> None:
    """More than fit into one round trip, known and unknown."""
    jobs = [JobRef("wf_1", f"job_{number}") for number in range(GET_JOBS_BATCH + 2)]
    for job in jobs[::100]:
        store.register(job)

    found = store.get_jobs(jobs)

    assert [job.ref.job_id if isinstance(job, Job) else job for job in found] == [
        job.job_id if number % 100 == 0 else None for number, job in enumerate(jobs)
    ]
    assert store.get_jobs([]) == []


def test_a_job_that_is_no_log_does_not_spoil_the_others(bench: Bench, store: Store) -> None:
    """The error stands in its place."""
    write_job(store, 1)
    bench.ask("SET", bench.key("log", OTHER), "no stream")

    first, broken, unknown, last = store.get_jobs([JOB, OTHER, JobRef("wf_2", "job_1"), JOB])

    assert isinstance(broken, NotALog)
    assert first == last == store.get_job(JOB)
    assert unknown is None


def test_many_jobs_after_the_server_forgot_its_scripts(bench: Bench, store: Store) -> None:
    """They are sent again."""
    store.register(JOB)
    bench.ask("SCRIPT", "FLUSH")

    assert store.get_jobs([JOB, OTHER]) == [Job(JOB, Status.PENDING, created_at=NOW), None]


# The listing


@pytest.fixture
def listed(bench: Bench) -> list[tuple[int, str]]:
    """A workflow's jobs, newest first: many with the same time, ids that sort before and after each other."""
    created = [
        (3, "c"),
        (2, "B"),
        (2, "a"),
        (2, "a.b"),
        (2, "a_b"),
        (2, "b"),
        (2, "b-1"),
        (2, "b1"),
        (1, "z"),
        (0, "y"),
    ]
    for score, job_id in created:
        bench.ask("ZADD", bench.key("jobs"), score, job_id)
    return sorted(created, reverse=True)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 10, 11])
def test_pages_of_the_listing_are_the_whole_listing(store: Store, listed: list[tuple[float, str]], size: int) -> None:
    """Each job once, newest first, however many have the same time."""
    found: list[tuple[float, str]] = []
    while page := store.listing.page("wf_1", found[-1] if found else None, size):
        assert len(page) <= size
        found += page

    assert found == listed


def test_a_page_behind_very_many_jobs_of_one_time_takes_few_commands(bench: Bench, store: Store) -> None:
    """Whether the job that it goes on from is still there or not."""
    names = sorted((f"job_{number}" for number in range(5_000)), reverse=True)
    bench.ask("ZADD", bench.key("jobs"), *itertools.chain.from_iterable((7, name) for name in names))
    bench.ask("ZADD", bench.key("jobs"), 6, "older")
    bench.ask("CONFIG", "RESETSTAT")

    for place in (names[4_000], f"{names[4_000]}-gone"):
        found = store.listing.page("wf_1", (7.0, place), 3)
        following = names[4_000:4_003] if place not in names else names[4_001:4_004]
        assert found == [(7.0, name) for name in following]
    assert store.listing.page("wf_1", (7.0, names[-1]), 3) == [(6.0, "older")]
    calls = re.search(rb"cmdstat_zrevrangebyscore:calls=(\d+)", bench.ask("INFO", "commandstats"))
    assert calls
    assert int(calls[1]) < 3 * 40


@pytest.mark.parametrize("before", [None, (30_000.0, "z")])
def test_members_that_are_no_jobs_cost_a_listing_few_commands(
    bench: Bench, store: Store, before: tuple[float, str] | None
) -> None:
    """They all come before the only job. A listing that reads them holds up others."""
    strange = [each for number in range(10_000) for each in (number + 10, f"no job's id {number}")]
    bench.ask("ZADD", bench.key("jobs"), 1, "job", *strange)
    bench.ask("CONFIG", "RESETSTAT")
    assert store.listing.page(JOB.workflow_id, before, 25) == [(1.0, "job")]
    assert bench.ask("ZCARD", bench.key("jobs")) == 1
    calls = re.search(rb"cmdstat_zrevrangebyscore:calls=(\d+)", bench.ask("INFO", "commandstats"))
    assert calls
    assert int(calls[1]) < 300


def test_a_job_that_comes_meanwhile_moves_no_page(bench: Bench, store: Store, listed: list[tuple[int, str]]) -> None:
    """The next page goes on behind the last job of the one before, also where that has gone."""
    page = store.listing.page("wf_1", None, 4)
    bench.ask("ZADD", bench.key("jobs"), 9, "new")
    bench.ask("ZREM", bench.key("jobs"), page[-1][1])

    assert store.listing.page("wf_1", page[-1], 100) == listed[4:]


def test_times_in_the_listing_are_exact(bench: Bench, store: Store) -> None:
    """In milliseconds, in both protocols."""
    store.register(JOB)

    assert store.listing.page("wf_1", None, 1) == [(1_772_532_005_123, "job_1")]
    assert store.listing.page("wf_2", None, 1) == []


def test_forgotten_jobs_leave_the_listing(store: Store, listed: list[tuple[int, str]]) -> None:
    """And nothing else does."""
    store.listing.unlist("wf_1", ["c", "y", "never there"])

    assert store.listing.page("wf_1", None, 100) == listed[1:-1]


def test_a_job_that_begins_after_the_look_stays_listed(bench: Bench, store: Store) -> None:
    """A listing looks at jobs, and then takes those out that it did not find: this one has begun in between."""
    begun, foreign, gone = (JobRef("wf_1", name) for name in ("begun", "foreign", "gone"))
    for job in (begun, foreign, gone):
        bench.ask("ZADD", bench.key("jobs"), 1, job.job_id)
    assert store.get_jobs([begun, foreign, gone]) == [None, None, None]
    store.open(begun, "token-1")
    bench.xadd("1-0", "message", "a line", job=foreign)

    store.listing.unlist("wf_1", ["begun", "foreign", "gone"])

    assert {job_id for _, job_id in store.listing.page("wf_1", None, 100)} == {"begun", "foreign"}


# Foreign jobs


def test_a_foreign_job_is_listed_by_its_creation(bench: Bench, store: Store) -> None:
    """That is what its hash says, or else its first entry; or now, where neither is a time. A known time stays."""
    by_hash, by_entry, by_clock, known = jobs = [JobRef("wf_1", name) for name in ("hash", "entry", "clock", "known")]
    for job in jobs:
        bench.xadd("1-0", "timestamp", "not a time", "message", "a line", job=job)
    bench.ask("HSET", bench.key("job", by_hash), "created_at", "1970-01-01T00:00:07Z")
    bench.ask("DEL", bench.key("log", by_entry))
    bench.xadd("1-0", "timestamp", "1970-01-01T00:00:09.5Z", "message", "a line", job=by_entry)
    bench.ask("ZADD", bench.key("jobs"), 3, known.job_id)

    store.get_jobs(jobs)

    expected = [(1000 * NOW_SECONDS, by_clock), (9_500, by_entry), (7_000, by_hash), (3, known)]
    assert store.listing.page("wf_1", None, 9) == [(score, job.job_id) for score, job in expected]


def test_a_foreign_job_is_listed_once_in_a_while(bench: Bench) -> None:
    """And not by each of the many looks at it."""
    now = [0.0]
    listing = JobListing(SingleServer(bench.url), KeyMap(bench.prefix), monotonic=lambda: now[0])
    job = Job(JOB, Status.RUNNING, created_at=NOW)
    listed = []
    for now[0] in (0.0, LISTED_SECONDS - 0.1, LISTED_SECONDS):
        listing.add_foreign([job])
        listed.append(bench.ask("ZREM", bench.key("jobs"), JOB.job_id))

    assert listed == [1, 0, 1]


def test_a_job_of_our_own_runner_is_listed_by_its_runner_alone(bench: Bench, store: Store) -> None:
    """Looks at it cost no further command."""
    write_job(store, 1)
    bench.ask("ZREM", bench.key("jobs"), JOB.job_id)
    store.get_job(JOB)
    store.get_jobs([JOB])

    assert store.listing.page("wf_1", None, 1) == []


@pytest.mark.parametrize("refusal", ["full", "replica", "another type"])
def test_a_foreign_job_that_cannot_be_listed_is_read_all_the_same(tmp_path: Path, refusal: str) -> None:
    """A server that is full, or a replica, refuses the write; the listing may be a key of another type."""
    with running(tmp_path) as server, contextlib.closing(Store(server.url)) as store:
        server.ask("XADD", "chronoverse:{wf_1}:job_1:log", "1-0", "message", "a line")
        if refusal == "full":
            server.ask("CONFIG", "SET", "maxmemory", "1")
        elif refusal == "replica":
            server.ask("REPLICAOF", "127.0.0.1", "1")
        else:
            server.ask("SET", "chronoverse:{wf_1}:jobs", "no zset")

        looked = store.get_job(JOB)

        assert looked
        assert store.get_jobs([JOB]) == [looked]
        assert looked.last == 1


# Read and page


def test_read_gives_what_follows(store: Store) -> None:
    """Strictly, and no more than was asked for."""
    write_job(store, 5)

    assert ids(store.read(JOB, 0, 3)) == ["1-0", "2-0", "3-0"]
    assert ids(store.read(JOB, 3, 100)) == ["4-0", "5-0", "6-0"]
    assert ids(store.read(JOB, 6, 100)) == []
    assert ids(store.read(JOB, 10**15 - 1, 100)) == []
    assert ids(store.read(OTHER, 0, 100)) == []


def test_read_and_page_give_what_was_appended(store: Store) -> None:
    """In either protocol, entries are lines again."""
    lines = make_lines(1, 5)
    store.append(store.open(JOB, "token-1"), lines)

    assert list(read_entries(store.read(JOB, 0, 100), 0)) == lines
    assert list(read_entries(store.page(JOB, count=100), 0)) == lines


@pytest.fixture
def holes(bench: Bench) -> None:
    """A foreign log with holes and ids of every make."""
    for entry_id in ("1-0", "2-0", "5-0", "5-1", "6-3", "9-0"):
        bench.xadd(entry_id, "message", "a")


@pytest.mark.usefixtures("holes")
@pytest.mark.parametrize(
    ("after", "count", "found"),
    [
        (0, 100, ["1-0", "2-0", "5-0", "5-1", "6-3", "9-0"]),
        (0, 2, ["1-0", "2-0"]),
        (2, 1, ["5-0"]),
        (3, 100, ["5-0", "5-1", "6-3", "9-0"]),
        (5, 100, ["6-3", "9-0"]),
        (6, 100, ["9-0"]),
        (9, 100, []),
        (10**15 - 1, 100, []),
    ],
)
def test_upwards_around_holes(store: Store, after: int, count: int, found: list[str]) -> None:
    """A page and a read start strictly behind their offset, whatever is there."""
    assert ids(store.page(JOB, after=after, count=count)) == found
    assert ids(store.read(JOB, after, count)) == found


@pytest.mark.usefixtures("holes")
@pytest.mark.parametrize(
    ("before", "count", "found"),
    [
        (10**15 - 1, 100, ["9-0", "6-3", "5-1", "5-0", "2-0", "1-0"]),
        (10, 2, ["9-0", "6-3"]),
        (9, 1, ["6-3"]),
        (6, 100, ["5-1", "5-0", "2-0", "1-0"]),
        (5, 100, ["2-0", "1-0"]),
        (4, 1, ["2-0"]),
        (2, 100, ["1-0"]),
        (1, 100, []),
        (0, 100, []),
    ],
)
def test_downwards_around_holes(store: Store, before: int, count: int, found: list[str]) -> None:
    """A page starts strictly before its offset, whatever is there."""
    assert ids(store.page(JOB, before=before, count=count)) == found


def test_a_page_of_an_unknown_job_is_empty(store: Store) -> None:
    """Both ways."""
    assert ids(store.page(JOB, count=5)) == ids(store.page(JOB, before=5, count=5)) == []


# Keys that hold something else

OPERATIONS: Final[dict[str, Callable[[Store], Any]]] = {
    "look": lambda store: store.get_job(JOB),
    "read": lambda store: store.read(JOB, 0, 1),
    "page up": lambda store: store.page(JOB, count=1),
    "page down": lambda store: store.page(JOB, before=9, count=1),
    "open": lambda store: store.open(JOB, "token-1"),
    "register": lambda store: store.register(JOB),
    "jobs": lambda store: store.listing.page("wf_1", None, 1),
}


@pytest.mark.parametrize(
    ("kind", "operation"),
    [("log", name) for name in ("look", "read", "page up", "page down", "open")]
    + [("job", name) for name in ("look", "open", "register")]
    + [("lease", "open"), ("jobs", "jobs"), ("jobs", "register")],
)
def test_a_key_of_another_type_is_no_log(bench: Bench, store: Store, kind: str, operation: str) -> None:
    """A clear error, of every operation that needs the key."""
    bench.ask("RPUSH", bench.key(kind), "a list")

    with pytest.raises(NotALog, match="not a log"):
        OPERATIONS[operation](store)


def test_a_runner_whose_log_was_replaced(bench: Bench, store: Store) -> None:
    """It learns that it need not try again."""
    attempt = store.open(JOB, "token-1")
    bench.ask("SET", bench.key("log"), "no stream")

    with pytest.raises(NotALog):
        store.append(attempt, make_lines(1, 1))
    with pytest.raises(NotALog):
        store.finish(attempt, Status.COMPLETED, 0, 0, 1)


# The live reader


@TRACKED
def test_a_reader_reads_many_jobs_at_once(store: Store, reader: LiveReader) -> None:
    """Each from its own cursor, up to a number of entries; jobs with nothing new are left out."""
    write_job(store, 5)
    write_job(store, 2, OTHER)
    unknown = JobRef("wf_2", "job_1")

    found = {job: ids(entries) for job, entries in reader.read({JOB: 2, OTHER: 0, unknown: 0}, 2)}

    assert found == {JOB: ["3-0", "4-0"], OTHER: ["1-0", "2-0"]}


@TRACKED
def test_a_reader_gives_the_same_entries_as_a_read(store: Store, reader: LiveReader) -> None:
    """In either protocol."""
    write_job(store, 3)

    [(job, entries)] = reader.read({JOB: 1}, 100)

    assert (job, list(entries)) == (JOB, list(store.read(JOB, 1, 100)))


@TRACKED
def test_a_reader_with_nothing_to_read_comes_back_empty(store: Store, reader: LiveReader) -> None:
    """When its time is over."""
    write_job(store, 1)

    assert reader.read({JOB: 2, OTHER: 0}, 100) == []


def waits(bench: Bench) -> bool:
    """Whether a reader waits for the server, which blocks it or is to tell it of changes."""
    clients = bench.ask("CLIENT", "LIST").splitlines()
    return any(b" flags=b" in line or (b" flags=t" in line and b" cmd=xread " in line) for line in clients)


def woken(bench: Bench, reader: LiveReader, wake: Callable[[], object]) -> list[Any]:
    """What a read that waits for the job gives when it is woken by ``wake``."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(reader.read({OTHER: 0, JOB: 0}, 100)))
    thread.start()
    try:
        wait_until(lambda: waits(bench), LONG, "the read waits")
        woken_at = time.monotonic()
        wake()
    finally:
        thread.join()
    assert time.monotonic() - woken_at < LONG / 4
    return found


@pytest.fixture
def patient(store: Store, tracked_jobs: tuple[int, int]) -> Iterator[LiveReader]:
    """A reader that waits longer than a test may take."""
    reader = store.live_reader(LONG, tracked_jobs)
    assert isinstance(reader, LiveReader)
    yield reader
    reader.close()


@TRACKED
def test_an_entry_wakes_a_waiting_reader(bench: Bench, patient: LiveReader) -> None:
    """Also the first one of a job that was not there before."""
    [[(job, entries)]] = woken(bench, patient, lambda: bench.xadd("1-0", "message", "a"))

    assert (job, ids(entries)) == (JOB, ["1-0"])


@TRACKED
def test_an_interrupt_wakes_a_waiting_reader(bench: Bench, patient: LiveReader) -> None:
    """It comes back empty, long before its time."""
    assert woken(bench, patient, patient.interrupt) == [[]]


@TRACKED
def test_an_interrupt_finds_a_reader_on_its_new_connection(bench: Bench, patient: LiveReader) -> None:
    """The one before was cut."""
    bench.xadd("1-0", "message", "a", job=OTHER)
    patient.read({OTHER: 0}, 100)
    bench.ask("CLIENT", "KILL", "TYPE", "normal")
    with pytest.raises(StoreUnavailable):
        patient.read({OTHER: 0}, 100)
    bench.ask("DEL", bench.key("log", OTHER))

    assert woken(bench, patient, patient.interrupt) == [[]]


@TRACKED
def test_an_interrupt_with_nobody_waiting_does_nothing(store: Store, reader: LiveReader) -> None:
    """Before the first read, and between two."""
    write_job(store, 1)
    reader.interrupt()
    assert len(reader.read({JOB: 0}, 100)) == 1
    reader.interrupt()
    assert len(reader.read({JOB: 0}, 100)) == 1


@TRACKED
def test_a_reader_survives_a_key_of_another_type(bench: Bench, store: Store, reader: LiveReader) -> None:
    """It says so, and reads the others as soon as that one is left out."""
    write_job(store, 1)
    bench.ask("SET", bench.key("log", OTHER), "no stream")

    with pytest.raises(NotALog):
        reader.read({JOB: 0, OTHER: 0}, 100)
    assert len(reader.read({JOB: 0}, 100)) == 1


@TRACKED
def test_a_closed_reader_opens_again(store: Store, reader: LiveReader) -> None:
    """With the next read."""
    write_job(store, 1)
    reader.read({JOB: 0}, 100)
    reader.close()

    assert len(reader.read({JOB: 0}, 100)) == 1
