"""A runner's operations (open, append, renew, finish), repeated and refused.

Each test runs on Valkey with RESP3 and on Redis with RESP2, and checks the result and what a plain client reads.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import pytest

from chronoverse.archive.job_objects import archive_lock
from chronoverse.archive.retention import apply_retention, delete_job
from chronoverse.errors import AppendRefused, CorruptLog, Deleted, Held
from chronoverse.joblog.entries import read_entries
from chronoverse.joblog.model import Attempt, JobRef, Line, Status
from chronoverse.store import Store
from tests.support.bench import JOB, LEASE_MS, NOW, NOW_SECONDS, RETENTION_MS, TTL_TOLERANCE_MS, Bench, make_lines
from tests.support.waiting import wait_until

RefusedType = TypeVar("RefusedType", bound=AppendRefused)


def refused(bench: Bench, error: type[RefusedType], operation: Callable[[], object]) -> RefusedType:
    """The error of ``operation``, after asserting that nothing has changed."""
    before = bench.snapshot()
    with pytest.raises(error) as caught:
        operation()
    assert bench.snapshot() == before
    return caught.value


def finish(store: Store, attempt: Attempt, next_number: int = 1, status: Status = Status.COMPLETED) -> None:
    store.finish(attempt, status, 0, 0, next_number)


def status(store: Store, job: JobRef) -> Status | None:
    found = store.get_job(job)
    return found.status if found else None


# Open


def test_open_starts_the_job_and_takes_the_lease(bench: Bench, store: Store) -> None:
    """Writes the hash, the lease and the listing, of which only the lease expires. The first line creates the log."""
    assert store.open(JOB, "token-1") == Attempt(JOB, "token-1", 1, 1)
    written = bench.snapshot()
    del written["{wf_1}:changes"]
    assert written == {
        "{wf_1}:job_1:job": {
            "status": "RUNNING",
            "attempt": "1",
            "created_at": NOW,
            "started_at": NOW,
            "told": "RUNNING 1  ",
        },
        "{wf_1}:job_1:lease": b"token-1",
        "{wf_1}:jobs": [b"job_1", b"%d" % round(NOW_SECONDS * 1000)],
        "{wf_1}:running": [b"job_1"],
        "workflows": [b"wf_1", b"%d" % round(NOW_SECONDS * 1000)],
    }
    assert LEASE_MS - TTL_TOLERANCE_MS < bench.ttl("lease") <= LEASE_MS
    assert (bench.ttl("job"), bench.ttl("jobs")) == (-1, -1)


def test_a_second_attempt_continues_after_the_last_line(bench: Bench, store: Store, attempt: Attempt) -> None:
    """With the next attempt number. The job's times are unchanged."""
    store.append(attempt, make_lines(1, 3))
    bench.ask("DEL", bench.key("lease"))
    bench.ask("HSET", bench.key("job"), "created_at", "long ago", "started_at", "later")
    bench.ask("ZADD", bench.key("jobs"), 5, "job_1")

    assert store.open(JOB, "token-2") == Attempt(JOB, "token-2", 2, 4)
    assert store.listing.page("wf_1", None, 1) == [(5, "job_1")]
    times = {"created_at": "long ago", "started_at": "later"}
    assert bench.hash() == {"status": "RUNNING", "attempt": "2", **times, "told": "RUNNING 2  "}


def test_open_continues_a_registered_foreign_log(bench: Bench, store: Store) -> None:
    """Its keys no longer expire."""
    store.register(JOB)
    bench.xadd("1-0", "message", "a")
    bench.ask("PEXPIRE", bench.key("log"), RETENTION_MS)

    assert store.open(JOB, "token-1").next == 2
    assert (bench.ttl("job"), bench.ttl("log")) == (-1, -1)


@pytest.mark.parametrize("ids", [["1-0", "1-1"], ["*"], ["1-0", "3-0"], ["2-0"], ["0-1"]], ids=" ".join)
def test_open_of_a_corrupt_log_is_refused(bench: Bench, store: Store, ids: list[str]) -> None:
    """Appending to a log with such ids is unsafe."""
    for entry_id in ids:
        bench.xadd(entry_id, "message", "a")

    refused(bench, CorruptLog, lambda: store.open(JOB, "token-1"))


# Append


def test_append_stores_lines_with_the_documented_fields(bench: Bench, store: Store, attempt: Attempt) -> None:
    """With any text. Only partial lines have a ``partial`` field. They are read back in both protocols."""
    messages = ["", " ", "\0", "\r", "a\nb", "\u2028\x85", "é€😀", "%s %d", "\x1b[0m", "x" * 70_000]
    plain = [Line(number, NOW, message, "stdout") for number, message in enumerate(messages, 1)]
    lines = [*plain, Line(11, NOW, "b", "stderr", partial=True)]

    assert store.append(attempt, lines) == 12
    assert bench.log() == [
        *((f"{number}-0", {"timestamp": NOW, "message": each, "stream": "stdout"}) for number, _, each, *_ in plain),
        ("11-0", {"timestamp": NOW, "message": "b", "stream": "stderr", "partial": "1"}),
    ]
    for entries in (store.read(JOB, 0, 100), store.page(JOB, count=100)):
        assert list(read_entries(entries, 0)) == lines


def test_append_accepts_thousands_of_lines(bench: Bench, store: Store, attempt: Attempt) -> None:
    """More arguments than Lua's unpack() accepts."""
    assert store.append(attempt, make_lines(1, 5000)) == 5001
    assert bench.ids() == [f"{number}-0" for number in range(1, 5001)]


def test_append_skips_stored_lines(bench: Bench, store: Store, attempt: Attempt) -> None:
    """They are unchanged, and the rest of the batch is added."""
    store.append(attempt, make_lines(1, 3, "first"))
    assert store.append(attempt, make_lines(1, 2, "again")) == 4, "an answer was lost, and the batch is repeated"

    assert store.append(attempt, make_lines(2, 4, "second")) == 6
    messages = [fields["message"] for _, fields in bench.log()]
    assert messages == ["first 1", "first 2", "first 3", "second 4", "second 5"]


# Finish


@pytest.mark.parametrize(
    ("status", "code"), [("FAILED", 137), ("FAILED", -9), ("FAILED", None), ("COMPLETED", None), ("CANCELED", None)]
)
def test_finish_writes_the_end_and_deletes_the_lease(
    bench: Bench, store: Store, attempt: Attempt, status: str, code: int | None
) -> None:
    """Terminal entry and hash have the documented fields. An unknown exit code is absent."""
    store.append(attempt, make_lines(1, 2))
    store.finish(attempt, Status(status), code, 4, 3)
    shown = {} if code is None else {"exit_code": str(code)}

    assert bench.keys() == {*map(bench.key, ("jobs", "changes", "log", "job")), f"{bench.prefix}:workflows"}
    end = {"status": status, "lines": "2", "dropped": "4", **shown}
    assert bench.log()[2:] == [("3-0", {"event": "end", "timestamp": NOW, **end})]
    fields = bench.hash()
    seconds, _ = bench.ask("TIME")
    assert int(seconds) - 60 <= int(fields.pop("end_seen_ms")) / 1000 <= int(seconds) + 1
    assert fields.pop("told") == f"{status} 1 {'' if code is None else code} "
    assert fields == {"attempt": "1", "created_at": NOW, "started_at": NOW, "finished_at": NOW, **end}


@pytest.mark.parametrize("command", [("DEL",), ("SET", "grace:9999999999999")], ids=["over", "grace without end"])
def test_a_job_without_its_next_attempt_is_lost(
    bench: Bench, store: Store, judge: Store, attempt: Attempt, command: tuple[str, ...]
) -> None:
    """Normally after a week, here as soon as the lease is gone. Setting the clock back does not extend the wait."""
    finish(store, attempt, 1, Status.PENDING)
    assert bench.ttl("lease") > RETENTION_MS
    bench.ask(command[0], bench.key("lease"), *command[1:])

    wait_until(lambda: status(judge, JOB) is Status.LOST, 60, "the job is LOST")


@pytest.mark.parametrize("own", [None, RETENTION_MS // 1000 - 100, RETENTION_MS // 1000 + 100])
def test_a_workflow_can_have_its_own_retention(
    bench: Bench, store: Store, attempt: Attempt, judge: Store, own: int | None
) -> None:
    """Applied to jobs that end, are LOST, or are never started. The listing does not expire."""
    lost, pending = JobRef(JOB.workflow_id, "lost"), JobRef(JOB.workflow_id, "pending")
    store.catalog.change_settings(JOB.workflow_id, retention_seconds=own)
    bench.ask("HSET", bench.key("job"), "retention_ms", 1)
    finish(store, store.open(JOB, attempt.token))
    store.append(store.open(lost, "token-1"), make_lines(1, 1))
    bench.ask("DEL", bench.key("lease", lost))
    wait_until(lambda: status(judge, lost) is Status.LOST, 5, "the job is LOST")
    store.register(pending)

    for kind, job in (("log", JOB), ("job", JOB), ("log", lost), ("job", lost), ("job", pending)):
        keep_ms = 1000 * own if own else RETENTION_MS
        assert keep_ms - TTL_TOLERANCE_MS < bench.ttl(kind, job) <= keep_ms
    assert bench.ttl("jobs") == -1


def test_a_changed_retention_applies_to_existing_jobs(bench: Bench, store: Store, attempt: Attempt) -> None:
    """Ended jobs: counted from their end. Running jobs: once they end. Other workflows are unchanged."""
    running, other = JobRef(JOB.workflow_id, "running"), JobRef("wf_2", "job_1")
    foreign = JobRef(JOB.workflow_id, "foreign")
    finish(store, attempt)
    bench.xadd("1-0", "event", "end", job=foreign)
    store.require_job(foreign)
    store.append(store.open(running, "token-1"), make_lines(1, 1))
    finish(store, store.open(other, "token-1"))

    for job in (JOB, foreign):
        bench.set_end_seen(1_000, job)
    assert apply_retention(store, JOB.workflow_id, 5_000, 9) == 3
    for kind in ("log", "job"):
        assert 4_000_000 - TTL_TOLERANCE_MS < bench.ttl(kind) <= 4_000_000
        assert 4_000_000 - TTL_TOLERANCE_MS < bench.ttl(kind, foreign) <= 4_000_000
        assert bench.ttl(kind, other) <= RETENTION_MS
        assert bench.ttl(kind, running) == -1
    assert apply_retention(store, JOB.workflow_id, None, 900) == 3
    assert store.get_jobs([JOB, foreign]) == [None, None]
    assert apply_retention(store, JOB.workflow_id, 700, 900) == 1
    store.finish(Attempt(running, "token-1", 1, 1), Status.COMPLETED, 0, 0, 2)
    assert bench.ttl("log", running) <= 700_000


def test_a_changed_retention_is_applied_to_every_job(
    bench: Bench, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if jobs leave the listing meanwhile, and one log has another type."""
    read_page = store.listing.page
    monkeypatch.setattr(type(store.listing), "page", lambda _, workflow, before, count: read_page(workflow, before, 2))
    jobs = [JobRef(JOB.workflow_id, f"job_{number}") for number in range(7)]
    for job in jobs:
        finish(store, store.open(job, "token-1"))
    bench.ask("SET", bench.key("log", jobs[3]), "no stream")
    applied, apply_to_job = [], store.catalog.apply_retention

    def unlist_and_apply(job: JobRef, *args: Any) -> bool:
        applied.append(job)
        bench.ask("ZREM", bench.key("jobs"), job.job_id)
        return apply_to_job(job, *args)

    monkeypatch.setattr(store.catalog, "apply_retention", unlist_and_apply)
    assert apply_retention(store, JOB.workflow_id, 5_000, 9) == 6
    assert sorted(applied) == jobs
    assert all(bench.ttl("job", job) > RETENTION_MS for job in jobs if job != jobs[3])


# Deleted jobs


@pytest.fixture
def deleted(store: Store, attempt: Attempt) -> Attempt:
    store.append(attempt, make_lines(1, 2))
    finish(store, attempt, 3)
    delete_job(store, None, JOB, tombstone_ms=60_000)
    return attempt


def test_a_runner_of_a_job_that_is_being_deleted_is_refused(bench: Bench, store: Store, attempt: Attempt) -> None:
    """The tombstone precedes the deletion of the keys, and is refused while a runner is alive."""
    with archive_lock(store, JOB) as token:
        refused(bench, Held, lambda: store.chunks.mark_deleting(JOB, token, 60_000))
        bench.expire_lease()
        store.chunks.mark_deleting(JOB, token, 60_000)
        refused(bench, Deleted, lambda: store.append(attempt, make_lines(1, 1)))
        refused(bench, Deleted, lambda: store.open(JOB, "token-2"))
        # get_job leaves this entry in place: the deletion removes the whole key.
        bench.xadd("1-0", "message", "a line")
        assert store.get_job(JOB) is None
        store.chunks.delete(JOB, token)
        store.workflows.job_deleted(JOB.workflow_id)
    assert bench.keys() == {bench.key("deleted"), bench.key("changes")}


def test_a_job_beyond_its_retention_leaves_no_tombstone(bench: Bench, store: Store, attempt: Attempt) -> None:
    """Its id can be reused. An existing tombstone stays, and what a foreign runner writes meanwhile goes."""
    finish(store, attempt, 1)
    delete_job(store, None, JOB)
    assert bench.keys() == {bench.key("changes")}
    finish(store, store.open(JOB, "token-2"), 1)
    delete_job(store, None, JOB, tombstone_ms=60_000)
    delete_job(store, None, JOB, on_hidden=lambda: bench.xadd("1-0", "message", "a line"))
    assert bench.keys() == {bench.key("deleted"), bench.key("changes")}
    assert 60_000 - TTL_TOLERANCE_MS < bench.ttl("deleted") <= 60_000


def test_get_job_removes_what_was_written_under_a_deleted_id(bench: Bench, store: Store, deleted: Attempt) -> None:
    """A foreign runner may have written keys of any type."""
    bench.xadd("1-0", "message", "a line")
    bench.ask("HSET", bench.key("job"), "status", "RUNNING", "attempt", "1")
    assert store.get_jobs([JOB]) == [None]
    assert bench.keys() == {bench.key("deleted"), bench.key("changes")}
    bench.ask("SET", bench.key("log"), "no log")
    assert store.get_job(JOB) is None
    assert bench.keys() == {bench.key("deleted"), bench.key("changes")}


def test_only_a_string_is_a_tombstone(bench: Bench, store: Store, attempt: Attempt) -> None:
    """Foreign runners that may only append to streams cannot delete a job."""
    bench.ask("XADD", bench.key("deleted"), "1-0", "message", "a line")

    assert store.append(attempt, make_lines(1, 1)) == 2
    assert status(store, JOB) is Status.RUNNING
    assert not store.is_deleted(JOB)
