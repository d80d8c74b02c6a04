"""Reading jobs and logs in every state, whoever wrote them."""

import contextlib
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from chronoverse.errors import NotALog, StoreUnavailable
from chronoverse.joblog.entries import RawEntry
from chronoverse.joblog.model import Attempt, End, Job, JobRef, Status
from chronoverse.store import Store
from chronoverse.store.commands import JOBS_AT_ONCE
from tests.support.bench import JOB, LEASE_MS, NOW, NOW_SECONDS, RETENTION_MS, TTL_TOLERANCE_MS, Bench, make_lines
from tests.support.servers import running
from tests.support.waiting import deadline

OTHER: Final = JobRef("wf_1", "job_2")


def ids(entries: Sequence[RawEntry]) -> list[str]:
    return [entry_id.decode() for entry_id, _ in entries]


def write_job(store: Store, count: int, job: JobRef = JOB) -> None:
    """Writes a job of our own runner with ``count`` lines and exit code 3."""
    attempt = store.open(job, "token-1")
    if count:
        store.append(attempt, make_lines(1, count))
    store.finish(attempt, Status.FAILED, 3, 1, count + 1)


# One job


def test_an_unknown_job_is_none(bench: Bench, store: Store) -> None:
    """The lookup writes nothing."""
    assert store.get_job(JOB) is None
    assert store.get_jobs([JOB, OTHER]) == [None, None]
    assert ids(store.read(JOB, 0, 5)) == ids(store.page(JOB, before=5, count=5)) == []
    assert bench.keys() == set()


def test_jobs_that_ended_with_another_status(bench: Bench, store: Store) -> None:
    """Excludes jobs that can still change and foreign jobs: a listing reads those."""
    write_job(store, 1, OTHER)
    store.register(JobRef("wf_1", "pending"))
    store.open(JobRef("wf_1", "running"), "token-1")
    bench.xadd("1-0", "event", "end", "status", "COMPLETED", job=JobRef("wf_1", "foreign"))
    assert store.get_job(JobRef("wf_1", "foreign")).status is Status.COMPLETED  # type: ignore[union-attr]
    bench.ask("SET", bench.key("job", JobRef("wf_1", "text")), "no hash")
    jobs = [OTHER.job_id, "pending", "running", "foreign", "text", "unknown"]

    assert store.listing.ended_otherwise("wf_1", jobs, Status.LOST) == {OTHER.job_id}
    assert store.listing.ended_otherwise("wf_1", jobs, Status.FAILED) == set()
    assert store.listing.ended_otherwise("wf_1", jobs, Status.RUNNING) == {OTHER.job_id}


def test_a_registered_job_is_pending(bench: Bench, store: Store) -> None:
    """It is listed, and its hash expires unless a runner opens the job. A second call changes nothing."""
    assert store.register(JOB)
    assert store.get_job(JOB) == Job(JOB, Status.PENDING, created_at=NOW)
    written = bench.snapshot()
    del written["{wf_1}:changes"]
    assert written == {
        "{wf_1}:job_1:job": {"status": "PENDING", "created_at": NOW, "labels": "0", "told": "PENDING   "},
        "{wf_1}:jobs": [b"job_1", b"%d" % round(NOW_SECONDS * 1000)],
        "workflows": [b"wf_1", b"%d" % round(NOW_SECONDS * 1000)],
    }
    assert RETENTION_MS - TTL_TOLERANCE_MS < bench.ttl("job") <= RETENTION_MS
    bench.ask("PEXPIRE", bench.key("job"), 30_000)
    before = bench.snapshot()
    assert not store.register(JOB)
    assert bench.snapshot() == before
    assert bench.ttl("job") <= 30_000


def runs(last: int, first: int = 1) -> Job:
    return Job(JOB, Status.RUNNING, 1, NOW, NOW, first=first, last=last, first_stored=first)


def ended(lines: int, first: int = 1) -> Job:
    """A job as :func:`write_job` ends it."""
    end = End(lines + 1, Status.FAILED, 3, lines, 1, NOW)
    job = Job(JOB, Status.FAILED, 1, NOW, NOW, NOW, 3, lines, 1, first, lines, end)
    return replace(job, first_stored=first)


def foreign(status: Status, exit_code: int | None = None, at: str | None = None) -> Job:
    """A job of a foreign runner, with one line and this end."""
    end = End(2, status, exit_code, 1, 0, at)
    return Job(JOB, status, 1, NOW, NOW, at, exit_code, 1, 0, 1, 1, end)


#: Commands of a foreign runner, and of someone who deletes parts of a log.
LINE: Final = ("XADD", "log", "1-0", "timestamp", NOW, "message", "a")
END: Final = ("XADD", "log", "2-0", "event", "end")
HOSTILE: Final = ("status", b"\xff", "attempt", "-1", "created_at", b"\xff", "exit_code", "x", "lines", "", "odd", "1")
NO_LOG: Final = ("DEL", "log")


def trim(count: int) -> tuple[str | int, ...]:
    return ("XTRIM", "log", "MAXLEN", count)


@pytest.mark.parametrize(
    ("begin", "lines", "commands", "expected"),
    [
        ("open", 0, [], runs(0)),
        ("open", 3, [], runs(3)),
        ("finish", 3, [], ended(3)),
        ("finish", 0, [], ended(0)),
        ("finish", 2, [("XADD", "log", "4-0", "message", "after the end")], ended(2)),
        ("", 0, [LINE, ("XADD", "log", "2-0", "timestamp", "later", "message", "b")], runs(2)),
        ("register", 0, [LINE], runs(1)),
        ("", 0, [("HSET", "job", *HOSTILE)], Job(JOB, Status.PENDING)),
        # An end without a number of its own is none. Of a corrupt log, the first part of the last id counts.
        ("", 0, [LINE, ("XADD", "log", "1-1", "event", "end"), ("XADD", "log", "2-0", "message", "b")], runs(2)),
        ("", 0, [("XADD", "log", "5-1", *LINE[3:]), ("XADD", "log", "5-2", "message", "b")], runs(5, 5)),
        (
            "",
            0,
            [LINE, (*END, "status", "CANCELED", "exit_code", "130", "timestamp", "2026-03-03T10:00:06Z")],
            foreign(Status.CANCELED, 130, "2026-03-03T10:00:06.000Z"),
        ),
        # Exit code and time are unknown; the retention starts when the end is first read.
        ("", 0, [(*LINE[:4], "yesterday", *LINE[5:]), (*END, "timestamp", "today")], foreign(Status.COMPLETED)),
        # Logs without some or all of their entries. The next number is still known, also of an ended log.
        ("open", 10, [("XTRIM", "log", "MINID", 7)], runs(10, 7)),
        ("open", 10, [trim(0)], runs(10, 11)),
        ("open", 3, [NO_LOG], runs(0)),
        ("finish", 10, [trim(1)], ended(10, 11)),
        *(("finish", count, [how], ended(count, count + 1)) for count in (0, 1, 10) for how in (trim(0), NO_LOG)),
        # Everything is derived from the log's entries.
        ("finish", 3, [("DEL", "job")], ended(3)),
    ],
)
def test_a_job_in_each_of_its_states(
    bench: Bench, store: Store, begin: str, lines: int, commands: list[tuple[Any, ...]], expected: Job
) -> None:
    """All fields are checked. A foreign runner needs only XADD, and its values are not trusted."""
    if begin == "register":
        store.register(JOB)
    elif begin == "finish":
        write_job(store, lines)
    elif begin:
        attempt = store.open(JOB, "token-1")
        if lines:
            store.append(attempt, make_lines(1, lines))
    for command, kind, *values in commands:
        bench.ask(command, bench.key(kind), *values)
    assert store.get_job(JOB) == expected


# Foreign runners


def test_the_time_when_a_foreign_end_was_first_seen_is_stored(bench: Bench, store: Store) -> None:
    """By the server's clock, and only once. A new log under the same id clears it.

    A time in the future is replaced; otherwise the job would be kept until then.
    """
    bench.xadd("1-0", "message", "a", "timestamp", NOW)
    store.get_job(JOB)
    assert bench.hash() == {}
    bench.xadd("2-0", "event", "end", "timestamp", NOW)
    before = int(bench.ask("TIME")[0])
    found = store.get_jobs([JOB])

    seen = bench.hash()
    assert before * 1_000 <= int(seen["end_seen_ms"]) <= (before + 60) * 1_000
    for kind in ("log", "job"):
        assert 0 < bench.ttl(kind) <= RETENTION_MS
    assert store.get_jobs([JOB]) == found
    assert bench.hash() == seen
    bench.set_end_seen(-3_600)
    store.get_job(JOB)
    assert before * 1_000 <= int(bench.hash()["end_seen_ms"]) <= (before + 60) * 1_000
    bench.ask("DEL", bench.key("log"))
    assert store.get_job(JOB) is None
    bench.xadd("1-0", "message", "another")
    store.get_job(JOB)
    assert bench.hash() == {"end_seen_ms": "", "end_id": "", "told": "RUNNING 1  "}


@pytest.mark.parametrize("is_seen", [True, False])
def test_the_first_end_of_a_foreign_log_is_its_end(bench: Bench, store: Store, is_seen: bool) -> None:
    """Whether or not the job was read before more entries were added, and however many there are."""
    bench.xadd("1-0", "timestamp", NOW, "message", "a", "stream", "stdout")
    bench.xadd("2-0", "event", "end", "status", "CANCELED", "timestamp", NOW)
    end = End(2, Status.CANCELED, None, 1, 0, NOW)
    job = Job(JOB, Status.CANCELED, 1, NOW, NOW, NOW, None, 1, 0, 1, 1, end)
    if is_seen:
        assert store.get_job(JOB) == job
    bench.xadd("3-0", "message", "b")
    bench.xadd("3-1", "event", "end", "status", "FAILED")
    bench.xadd("4-0", "event", "end", "status", "FAILED")
    assert store.get_job(JOB) == job
    assert bench.ttl("log") > 0
    for number in range(5, 105):
        bench.xadd(f"{number}-0", "message", "c")
    assert store.get_jobs([JOB]) == [job]


def test_only_the_beginning_of_a_long_end_is_read(bench: Bench, store: Store) -> None:
    """A page reads a thousand jobs in one round trip."""

    def sent() -> int:
        return int(bench.ask("INFO", "stats").split(b"total_net_output_bytes:")[1].split()[0])

    bench.xadd("1-0", "event", "end", "status", "FAILED", "timestamp", "x" * 2**20)
    before = sent()
    assert store.get_jobs([JOB])
    assert sent() - before < 2**18


def test_a_foreign_job_has_its_workflows_retention(bench: Bench, store: Store) -> None:
    """An expiry that its runner has set is kept."""
    store.catalog.change_settings(JOB.workflow_id, retention_seconds=9)
    other = JobRef(JOB.workflow_id, "job_2")
    for job in (JOB, other):
        bench.xadd("1-0", "event", "end", job=job)
    bench.ask("PEXPIRE", bench.key("log", other), 99_000)
    store.get_jobs([JOB, other])

    assert 0 < bench.ttl("log") <= 9_000
    assert 9_000 < bench.ttl("log", other) <= 99_000


def test_a_foreign_runner_with_a_lease_is_listed_and_can_be_lost(bench: Bench, store: Store) -> None:
    """RUNNING until its lease expires."""
    bench.ask("SET", bench.key("lease"), "me", "PX", LEASE_MS)
    bench.ask("HSET", bench.key("job"), "status", "RUNNING", "attempt", 1)
    bench.xadd("1-0", "message", "a")
    hasty = bench.new_store(lease_seconds=1)
    found = hasty.require_job(JOB)
    assert found.status is Status.RUNNING
    assert [job_id for _, job_id in store.listing.page(JOB.workflow_id, None, 9)] == [JOB.job_id]
    bench.expire_lease()

    lost = hasty.require_job(JOB)
    assert lost.status is Status.LOST
    assert bench.ids() == ["1-0", "2-0"]


@pytest.mark.parametrize(
    ("fields", "status"),
    [(("status", "CANCELED"), Status.CANCELED), (("exit_code", "3"), Status.FAILED), ((), Status.COMPLETED)],
    ids=["status", "code", "neither"],
)
def test_a_foreign_job_that_had_a_lease_is_not_lost_when_its_log_expires(
    bench: Bench, fields: tuple[str, ...], status: Status
) -> None:
    """Its log has ended, but foreign runners do not update the hash."""
    hasty = bench.new_store(lease_seconds=1)
    bench.ask("HSET", bench.key("job"), "status", "RUNNING", "attempt", 1)
    bench.xadd("1-0", "event", "end", *fields)
    hasty.get_job(JOB)
    bench.ask("DEL", bench.key("log"))
    bench.expire_lease()

    assert 0 < bench.ttl("job") <= RETENTION_MS
    found = hasty.require_job(JOB)
    assert found.status is status


# Many jobs


def test_get_jobs_keeps_the_order(bench: Bench, store: Store) -> None:
    """More jobs than fit into one round trip, some of them unknown. An error about one does not affect the others."""
    jobs = [JobRef("wf_1", f"job_{number}") for number in range(JOBS_AT_ONCE + 2)]
    for job in jobs[::100]:
        store.register(job)
    bench.ask("SET", bench.key("log", jobs[7]), "no stream")

    found = store.get_jobs(jobs)

    assert isinstance(found.pop(7), NotALog)
    assert [job.ref if isinstance(job, Job) else job for job in found] == [
        job if number % 100 == 0 else None for number, job in enumerate(jobs) if number != 7
    ]
    assert store.get_jobs([]) == []


@pytest.mark.parametrize("away", [{"a"}, {"a", "b"}])
def test_jobs_of_a_server_that_is_away_have_its_error(
    store: Store, monkeypatch: pytest.MonkeyPatch, away: set[str]
) -> None:
    """If no server answers, the call raises it."""
    jobs = [JobRef("wf_1", name) for name in "ab"]
    monkeypatch.setattr(store._commands.topology, "group_by_node", lambda jobs: [[job] for job in jobs])

    def ask(jobs: Sequence[JobRef]) -> list[str]:
        if jobs[0].job_id in away:
            raise StoreUnavailable("away")
        return [job.job_id for job in jobs]

    if len(away) == 2:
        with pytest.raises(StoreUnavailable):
            store._commands.by_server(jobs, ask)
    else:
        found = store._commands.by_server(jobs, ask)
        assert isinstance(found[jobs[0]], StoreUnavailable)
        assert found[jobs[1]] == "b"


# The listing


@pytest.fixture
def listed(bench: Bench) -> list[tuple[float, str]]:
    """A workflow's jobs, newest first. Many share a time, and their ids collate differently. Any score is possible."""
    created: list[tuple[float, str]] = [
        (float("inf"), "c"),
        (2, "B"),
        (2, "a"),
        (2, "a.b"),
        (2, "a_b"),
        (2, "b"),
        (2, "b-1"),
        (2, "b1"),
        (1.7, "z"),
        (1.2, "x"),
        (float("-inf"), "y"),
    ]
    for score, job_id in created:
        bench.ask("ZADD", bench.key("jobs"), score, job_id)
    return sorted(created, reverse=True)


@pytest.mark.parametrize("size", [1, 3, 11, 12])
def test_pages_of_the_listing_are_the_whole_listing(store: Store, listed: list[tuple[float, str]], size: int) -> None:
    """Each job appears exactly once, newest first, even if many share a time."""
    found: list[tuple[float, str]] = []
    in_time = deadline(30, "the last page")
    while in_time() and (page := store.listing.page("wf_1", found[-1] if found else None, size)):
        assert len(page) <= size
        found += page

    assert found == listed


@pytest.mark.parametrize(
    ("before", "is_found"),
    [(None, 1), ((9e99, "a"), 1), ((1.9, ""), 1), ((2.0, "b2"), 1), ((2.0, "b1"), 0), ((2.0, "a"), 0), ((1.0, "a"), 1)],
)
def test_the_newest_jobs_of_many_workflows(
    bench: Bench, store: Store, listed: list[tuple[float, str]], before: tuple[float, str] | None, is_found: bool
) -> None:
    """Left to the pages: where other jobs with the same time, or invalid members, precede the job."""
    bench.ask("ZADD", bench.key("jobs", JobRef("wf_2", "")), "1", "no job's id")
    bench.ask("SET", bench.key("jobs", JobRef("wf_3", "")), "text")
    found = store.listing.newest(dict.fromkeys(["wf_1", "wf_2", "wf_3", "wf_4"], before))

    expected = {"wf_1": next(store.listing.positions("wf_1", before), None)} if is_found else {}
    assert found == {**expected, "wf_4": None}


def range_queries(bench: Bench) -> int:
    (calls,) = re.findall(rb"cmdstat_zrevrangebyscore:calls=(\d+)", bench.ask("INFO", "commandstats"))
    return int(calls)


def test_a_page_after_many_jobs_with_the_same_time_takes_few_commands(bench: Bench, store: Store) -> None:
    """Whether or not the job before the page still exists."""
    names = sorted((f"job_{number}" for number in range(5_000)), reverse=True)
    bench.ask("ZADD", bench.key("jobs"), *itertools.chain.from_iterable((7, name) for name in names))
    bench.ask("ZADD", bench.key("jobs"), 6, "older")
    bench.ask("CONFIG", "RESETSTAT")

    for before in (names[4_000], f"{names[4_000]}-gone"):
        found = store.listing.page("wf_1", (7.0, before), 3)
        expected = names[4_000:4_003] if before not in names else names[4_001:4_004]
        assert found == [(7.0, name) for name in expected]
    assert store.listing.page("wf_1", (7.0, names[-1]), 3) == [(6.0, "older")]
    assert range_queries(bench) < 3 * 40


@pytest.mark.parametrize("before", [None, (30_000.0, "z")])
def test_invalid_members_cost_a_listing_few_commands(
    bench: Bench, store: Store, before: tuple[float, str] | None
) -> None:
    """They all precede the only job, and other requests wait while a listing skips them."""
    invalid = [each for number in range(10_000) for each in (number + 10, f"no job's id {number}")]
    bench.ask("ZADD", bench.key("jobs"), 1, "job", *invalid)
    bench.ask("CONFIG", "RESETSTAT")
    assert store.listing.page(JOB.workflow_id, before, 25) == [(1.0, "job")]
    assert bench.ask("ZCARD", bench.key("jobs")) == 1
    assert range_queries(bench) < 300


def test_unlist_removes_jobs_that_do_not_exist(bench: Bench, store: Store, listed: list[tuple[float, str]]) -> None:
    """Not those that began after the caller's read. Removed ones no longer count as running."""
    bench.ask("SADD", bench.key("running"), "never there", "b")
    store.open(JobRef("wf_1", "a"), "token-1")
    bench.xadd("1-0", "message", "a line", job=JobRef("wf_1", "z"))
    store.listing.unlist("wf_1", ["c", "y", "a", "z", "never there"])

    assert {job_id for _, job_id in store.listing.page("wf_1", None, 100)} == {each for _, each in listed[1:-1]}
    assert set(bench.ask("SMEMBERS", bench.key("running"))) == {b"a", b"b"}


# Foreign jobs


def test_a_foreign_job_is_listed_by_its_creation_time(bench: Bench, store: Store) -> None:
    """The hash's creation time, else the first entry's time, else the current time. An existing score is kept.

    Reading a listed job writes nothing; one that was removed from the listing is added again.
    """
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
    before = bench.snapshot()
    store.get_jobs(jobs)
    store.get_job(by_hash)
    assert bench.snapshot() == before
    bench.ask("ZREM", bench.key("jobs"), by_hash.job_id)
    store.get_jobs([by_hash])
    assert bench.snapshot() == before


@pytest.mark.parametrize("reason", ["full", "replica", "another type"])
def test_a_foreign_job_that_cannot_be_listed_can_be_read(tmp_path: Path, reason: str) -> None:
    """The write is refused by a full server or a replica, or fails because the listing has another type."""
    with running(tmp_path) as server, contextlib.closing(Store(server.url)) as store:
        server.ask("XADD", "chronoverse:{wf_1}:job_1:log", "1-0", "message", "a line")
        if reason == "full":
            server.ask("CONFIG", "SET", "maxmemory", "1")
        elif reason == "replica":
            server.ask("REPLICAOF", "127.0.0.1", "1")
        else:
            server.ask("SET", "chronoverse:{wf_1}:jobs", "no zset")

        job = store.require_job(JOB)

        assert store.get_jobs([JOB]) == [job]
        assert job.last == 1


# Page and read


@pytest.fixture
def gaps(bench: Bench) -> None:
    """A foreign log with gaps and unusual ids."""
    for entry_id in ("1-0", "2-0", "5-0", "5-1", "6-3", "9-0"):
        bench.xadd(entry_id, "message", "a")


@pytest.mark.usefixtures("gaps")
@pytest.mark.parametrize(
    ("bound", "number", "count", "found"),
    [
        ("after", 0, 100, ["1-0", "2-0", "5-0", "5-1", "6-3", "9-0"]),
        ("after", 0, 2, ["1-0", "2-0"]),
        ("after", 2, 1, ["5-0"]),
        ("after", 3, 100, ["5-0", "5-1", "6-3", "9-0"]),
        ("after", 5, 100, ["6-3", "9-0"]),
        ("after", 6, 100, ["9-0"]),
        ("after", 9, 100, []),
        ("after", 10**15 - 1, 100, []),
        ("before", 10**15 - 1, 100, ["9-0", "6-3", "5-1", "5-0", "2-0", "1-0"]),
        ("before", 10, 2, ["9-0", "6-3"]),
        ("before", 9, 1, ["6-3"]),
        ("before", 6, 100, ["5-1", "5-0", "2-0", "1-0"]),
        ("before", 5, 100, ["2-0", "1-0"]),
        ("before", 4, 1, ["2-0"]),
        ("before", 2, 100, ["1-0"]),
        ("before", 1, 100, []),
        ("before", 0, 100, []),
    ],
)
def test_reading_over_gaps(store: Store, bound: str, number: int, count: int, found: list[str]) -> None:
    """Pages and reads start at the number, whether or not an entry has it."""
    assert ids(store.page(JOB, count=count, **{bound: number})) == found
    if bound == "after":
        assert ids(store.read(JOB, number, count)) == found


# Keys of another type

ATTEMPT: Final = Attempt(JOB, "token-1", 1, 1)
OPERATIONS: Final[dict[str, Callable[[Store], Any]]] = {
    "get_job": lambda store: store.get_job(JOB),
    "read": lambda store: store.read(JOB, 0, 1),
    "page up": lambda store: store.page(JOB, count=1),
    "page down": lambda store: store.page(JOB, before=9, count=1),
    "open": lambda store: store.open(JOB, "token-1"),
    "register": lambda store: store.register(JOB),
    "append": lambda store: store.append(ATTEMPT, make_lines(1, 2)),
    "finish": lambda store: store.finish(ATTEMPT, Status.COMPLETED, 0, 0, 2),
    "jobs": lambda store: store.listing.page("wf_1", None, 1),
}


@pytest.mark.parametrize(
    ("kind", "operation"),
    [("log", name) for name in ("get_job", "read", "page up", "page down", "open", "append", "finish")]
    + [("job", name) for name in ("get_job", "open", "register", "append", "finish")]
    + [(kind, "open") for kind in ("lease", "jobs")]
    + [("jobs", name) for name in ("jobs", "register")],
)
def test_a_key_of_another_type_raises_not_a_log(bench: Bench, store: Store, kind: str, operation: str) -> None:
    """From every operation that needs the key, before it writes anything. The error is permanent."""
    store.append(store.open(JOB, "token-1"), make_lines(1, 1))
    bench.ask("DEL", *({bench.key(kind)} | ({bench.key("job")} if operation == "register" else set())))
    bench.ask("RPUSH", bench.key(kind), "a list")
    before = bench.snapshot()
    with pytest.raises(NotALog, match="not a log"):
        OPERATIONS[operation](store)
    assert bench.snapshot() == before
