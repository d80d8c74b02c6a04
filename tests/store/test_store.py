"""What a runner does to the store: open, append, renew and finish, each also repeated, and each way to be refused.

Every operation on every kind of server and in both protocols: what it answers, and what a plain client finds then.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import pytest

from chronoverse.archive.job_objects import archive_lock
from chronoverse.archive.retention import apply_retention, delete_job
from chronoverse.errors import AppendRefused, Closed, CorruptLog, Deleted, Fenced, Held, SequenceGap
from chronoverse.joblog.values import Attempt, JobRef, Line, Status
from chronoverse.store import Store
from tests.support.bench import JOB, LEASE_MS, NOW, NOW_SECONDS, RETENTION_MS, TTL_TOLERANCE_MS, Bench, make_lines
from tests.support.waiting import wait_until

RefusedType = TypeVar("RefusedType", bound=AppendRefused)


@pytest.fixture
def store(bench: Bench) -> Store:
    """The bench's store."""
    return bench.store


@pytest.fixture
def looker(bench: Bench) -> Store:
    """One for which a lease is over as soon as it is gone."""
    return bench.new_store(lease_seconds=0.001)


@pytest.fixture
def attempt(store: Store) -> Attempt:
    """The job, opened."""
    return store.open(JOB, "token-1")


def refused(bench: Bench, error: type[RefusedType], operation: Callable[[], object]) -> RefusedType:
    """The refusal of ``operation``, which must not have changed anything."""
    before = bench.snapshot()
    with pytest.raises(error) as caught:
        operation()
    assert bench.snapshot() == before
    return caught.value


def finish(store: Store, attempt: Attempt, following: int = 1, status: Status = Status.COMPLETED) -> None:
    store.finish(attempt, status, 0, 0, following)


def status(store: Store, job: JobRef) -> Status | None:
    found = store.get_job(job)
    return found.status if found else None


def test_what_is_tested_in_a_protocol_speaks_it(request: pytest.FixtureRequest, bench: Bench, store: Store) -> None:
    """RESP2 and RESP3 are two, and both are here."""
    store.ping()
    clients = bench.ask("CLIENT", "LIST").decode().splitlines()
    spoken = {word for client in clients if " cmd=ping " in client for word in client.split() if "resp=" in word}

    assert f"resp={request.node.callspec.params['bench']}" in spoken


# Open


def test_open_starts_the_job_and_takes_the_lease(bench: Bench, store: Store) -> None:
    """A hash, a token, and a place in the workflow's listing; no log before its first line."""
    assert store.open(JOB, "token-1") == Attempt(JOB, "token-1", 1, 1)
    assert bench.snapshot() == {
        "{wf_1}:job_1:job": {"status": "RUNNING", "attempt": "1", "created_at": NOW, "started_at": NOW},
        "{wf_1}:job_1:lease": b"token-1",
        "{wf_1}:jobs": [b"job_1", b"%d" % round(NOW_SECONDS * 1000)],
    }


def test_only_the_lease_of_an_open_job_runs_out(bench: Bench, attempt: Attempt) -> None:
    """The hash and the listing stay."""
    assert LEASE_MS - TTL_TOLERANCE_MS < bench.ttl("lease") <= LEASE_MS
    assert (bench.ttl("job"), bench.ttl("jobs")) == (-1, -1)


def test_a_repeated_open_changes_nothing(bench: Bench, store: Store, attempt: Attempt) -> None:
    """It finds its own lease and answers the same."""
    before = bench.snapshot()

    assert store.open(JOB, "token-1") == attempt
    assert bench.snapshot() == before


def test_a_repeated_open_renews_the_lease(bench: Bench, store: Store, attempt: Attempt) -> None:
    """Its runner is alive."""
    bench.ask("PEXPIRE", bench.key("lease"), 10_000)
    store.open(JOB, "token-1")

    assert LEASE_MS - TTL_TOLERANCE_MS < bench.ttl("lease") <= LEASE_MS


def test_a_job_with_a_live_runner_is_held(bench: Bench, store: Store, attempt: Attempt) -> None:
    """The second of two runners is turned away, and leaves no trace."""
    refused(bench, Held, lambda: store.open(JOB, "token-2"))


def test_a_second_attempt_goes_on_behind_the_last_line(bench: Bench, store: Store, attempt: Attempt) -> None:
    """It has the next attempt's number; the job was created and started when it was."""
    store.append(attempt, make_lines(1, 3))
    bench.ask("DEL", bench.key("lease"))
    bench.ask("HSET", bench.key("job"), "created_at", "long ago", "started_at", "later")
    bench.ask("ZADD", bench.key("jobs"), 5, "job_1")

    assert store.open(JOB, "token-2") == Attempt(JOB, "token-2", 2, 4)
    assert store.listing.page("wf_1", None, 1) == [(5, "job_1")]
    assert bench.hash() == {"status": "RUNNING", "attempt": "2", "created_at": "long ago", "started_at": "later"}


def test_open_keeps_a_registered_job_for_good(bench: Bench, store: Store) -> None:
    """The time to live of the registration ends with it, also that of a log that somebody gave one."""
    store.register(JOB)
    bench.xadd("1-0", "message", "a")
    bench.ask("PEXPIRE", bench.key("log"), RETENTION_MS)

    store.open(JOB, "token-1")

    assert (bench.ttl("job"), bench.ttl("log")) == (-1, -1)


def test_open_goes_on_in_a_foreign_log(bench: Bench, store: Store) -> None:
    """Somebody with plain commands wrote the first two lines."""
    bench.xadd("1-0", "message", "a")
    bench.xadd("2-0", "message", "b")

    assert store.open(JOB, "token-1").next == 3


def test_open_after_the_end_is_closed(bench: Bench, store: Store, attempt: Attempt) -> None:
    """Also for the token that ended it."""
    finish(store, attempt)

    refused(bench, Closed, lambda: store.open(JOB, "token-1"))
    refused(bench, Closed, lambda: store.open(JOB, "token-2"))


def test_open_after_a_foreign_end_is_closed(bench: Bench, store: Store) -> None:
    """A terminal entry is enough."""
    bench.xadd("1-0", "event", "end")

    refused(bench, Closed, lambda: store.open(JOB, "token-1"))


@pytest.mark.parametrize("status", ["COMPLETED", "FAILED", "CANCELED", "LOST"])
def test_open_after_the_log_has_gone_is_closed(bench: Bench, store: Store, status: str) -> None:
    """The hash is enough, too."""
    bench.ask("HSET", bench.key("job"), "status", status)

    refused(bench, Closed, lambda: store.open(JOB, "token-1"))


@pytest.mark.parametrize("ids", [["1-0", "1-1"], ["*"], ["1-0", "3-0"], ["2-0"], ["0-1"]], ids=" ".join)
def test_open_of_a_log_out_of_shape_is_tainted(bench: Bench, store: Store, ids: list[str]) -> None:
    """Nothing could be appended to it safely."""
    for entry_id in ids:
        bench.xadd(entry_id, "message", "a")

    refused(bench, CorruptLog, lambda: store.open(JOB, "token-1"))


# Append


def test_append_stores_lines_as_the_contract_spells_them(bench: Bench, store: Store, attempt: Attempt) -> None:
    """Ids, fields and values; ``partial`` only on pieces."""
    lines = [Line(1, NOW, "a", "stdout"), Line(2, NOW, "b", "stderr", partial=True)]

    assert store.append(attempt, lines) == 3
    assert bench.log() == [
        ("1-0", {"timestamp": NOW, "message": "a", "stream": "stdout"}),
        ("2-0", {"timestamp": NOW, "message": "b", "stream": "stderr", "partial": "1"}),
    ]


@pytest.mark.parametrize(
    "message", ["", " ", "\0", "\r", "a\nb", "\u2028\x85", "é€😀", "%s %d", "\x1b[0m", "x" * 70_000]
)
def test_append_stores_any_text(bench: Bench, store: Store, attempt: Attempt, message: str) -> None:
    """As it is."""
    store.append(attempt, [Line(1, NOW, message, "stdout")])

    assert bench.log()[0][1]["message"] == message


def test_append_takes_thousands_of_lines(bench: Bench, store: Store, attempt: Attempt) -> None:
    """More than a script could unpack at once."""
    assert store.append(attempt, make_lines(1, 5000)) == 5001
    assert bench.ids() == [f"{number}-0" for number in range(1, 5001)]


def test_a_repeated_append_changes_nothing(bench: Bench, store: Store, attempt: Attempt) -> None:
    """No line twice, and the same answer."""
    lines = make_lines(1, 5)
    store.append(attempt, lines)
    before = bench.snapshot()

    assert store.append(attempt, lines) == 6
    assert store.append(attempt, lines[:2]) == 6
    assert bench.snapshot() == before


def test_append_skips_what_is_known(bench: Bench, store: Store, attempt: Attempt) -> None:
    """What is there stays as it is, the rest is added."""
    store.append(attempt, make_lines(1, 3, "first"))

    assert store.append(attempt, make_lines(2, 4, "second")) == 6
    messages = [fields["message"] for _, fields in bench.log()]
    assert messages == ["first 1", "first 2", "first 3", "second 4", "second 5"]


def test_append_beyond_the_next_number_is_a_gap(bench: Bench, store: Store, attempt: Attempt) -> None:
    """The runner is told where to go on."""
    store.append(attempt, make_lines(1, 3))

    assert refused(bench, SequenceGap, lambda: store.append(attempt, make_lines(5, 2))).expected == 4


def test_a_log_that_vanished_is_wanted_again_from_its_first_line(bench: Bench, store: Store, attempt: Attempt) -> None:
    """As after a store that lost its last seconds."""
    store.append(attempt, make_lines(1, 3))
    bench.ask("DEL", bench.key("log"))

    assert refused(bench, SequenceGap, lambda: store.append(attempt, make_lines(4, 1))).expected == 1
    assert store.append(attempt, make_lines(1, 4)) == 5


@pytest.mark.parametrize("left", [0, 1])
def test_append_goes_on_in_a_trimmed_log(bench: Bench, store: Store, attempt: Attempt, left: int) -> None:
    """Numbers do not begin anew, even when nothing is left; what was let go does not come back by a repetition."""
    store.append(attempt, make_lines(1, 3))
    bench.ask("XTRIM", bench.key("log"), "MAXLEN", left)

    assert store.append(attempt, make_lines(1, 4)) == 5
    assert bench.ids() == ["3-0", "4-0"][1 - left :]


def test_append_renews_the_lease(bench: Bench, store: Store, attempt: Attempt) -> None:
    """Also when it has nothing new to say."""
    for _ in range(2):
        bench.ask("PEXPIRE", bench.key("lease"), 10_000)
        store.append(attempt, make_lines(1, 1))
        assert bench.ttl("lease") > LEASE_MS - TTL_TOLERANCE_MS


def test_append_without_the_lease_is_fenced(bench: Bench, store: Store, attempt: Attempt) -> None:
    """Gone, or another's."""
    bench.ask("DEL", bench.key("lease"))
    refused(bench, Fenced, lambda: store.append(attempt, make_lines(1, 1)))

    store.open(JOB, "token-2")
    refused(bench, Fenced, lambda: store.append(attempt, make_lines(1, 1)))


def test_append_after_the_end_is_closed(bench: Bench, store: Store, attempt: Attempt) -> None:
    """New lines and repeated ones."""
    store.append(attempt, make_lines(1, 1))
    finish(store, attempt, 2)

    refused(bench, Closed, lambda: store.append(attempt, make_lines(1, 1)))
    refused(bench, Closed, lambda: store.append(attempt, make_lines(2, 1)))


def test_append_behind_a_foreign_end_is_closed(bench: Bench, store: Store, attempt: Attempt) -> None:
    """Although the lease is still held."""
    bench.xadd("1-0", "event", "end")

    refused(bench, Closed, lambda: store.append(attempt, make_lines(2, 1)))


@pytest.mark.parametrize("entry_id", ["2-1", "*", "4-0"])
def test_append_to_a_log_out_of_shape_is_tainted(bench: Bench, store: Store, attempt: Attempt, entry_id: str) -> None:
    """Somebody wrote into a runner's log."""
    store.append(attempt, make_lines(1, 2))
    bench.xadd(entry_id, "message", "a")

    refused(bench, CorruptLog, lambda: store.append(attempt, make_lines(3, 1)))


# Renew


def test_renew_extends_the_lease(bench: Bench, store: Store, attempt: Attempt) -> None:
    """To its full length, as often as it is asked."""
    bench.ask("PEXPIRE", bench.key("lease"), 10_000)
    before = bench.snapshot()

    store.renew(attempt)
    store.renew(attempt)

    assert LEASE_MS - TTL_TOLERANCE_MS < bench.ttl("lease") <= LEASE_MS
    assert bench.snapshot() == before


def test_renew_without_the_lease_is_fenced(bench: Bench, store: Store, attempt: Attempt) -> None:
    """Gone, or another's, whose time it does not prolong."""
    bench.ask("DEL", bench.key("lease"))
    refused(bench, Fenced, lambda: store.renew(attempt))

    store.open(JOB, "token-2")
    bench.ask("PEXPIRE", bench.key("lease"), 10_000)
    refused(bench, Fenced, lambda: store.renew(attempt))
    assert bench.ttl("lease") <= 10_000


# Finish


def test_finish_ends_the_job_at_once(bench: Bench, store: Store, attempt: Attempt) -> None:
    """Terminal entry, hash and lease, as the contract spells them."""
    store.append(attempt, make_lines(1, 2))
    store.finish(attempt, Status.FAILED, 137, 4, 3)

    assert bench.keys() == {bench.key("jobs"), bench.key("log"), bench.key("job")}
    assert bench.log()[2:] == [
        (
            "3-0",
            {"event": "end", "status": "FAILED", "lines": "2", "dropped": "4", "timestamp": NOW, "exit_code": "137"},
        )
    ]
    fields = bench.hash()
    seconds, _ = bench.ask("TIME")
    assert int(seconds) - 60 <= int(fields.pop("end_seen_ms")) / 1000 <= int(seconds) + 1
    assert fields == {
        "status": "FAILED",
        "attempt": "1",
        "created_at": NOW,
        "started_at": NOW,
        "finished_at": NOW,
        "exit_code": "137",
        "lines": "2",
        "dropped": "4",
    }


@pytest.mark.parametrize("status", [Status.COMPLETED, Status.FAILED, Status.CANCELED])
def test_an_unknown_exit_code_is_absent(bench: Bench, store: Store, attempt: Attempt, status: Status) -> None:
    """In the entry and in the hash, whatever the status is."""
    store.finish(attempt, status, None, 0, 1)

    assert bench.log() == [("1-0", {"event": "end", "status": status, "lines": "0", "dropped": "0", "timestamp": NOW})]
    assert "exit_code" not in bench.hash()


def test_an_ended_job_is_kept_for_its_retention(bench: Bench, store: Store, attempt: Attempt) -> None:
    """Log and hash together; its place in the listing goes when a listing meets it."""
    finish(store, attempt)

    for kind in ("log", "job"):
        assert RETENTION_MS - TTL_TOLERANCE_MS < bench.ttl(kind) <= RETENTION_MS
    assert bench.ttl("jobs") == -1


@pytest.mark.parametrize("own", [RETENTION_MS // 1000 - 100, RETENTION_MS // 1000 + 100])
def test_a_workflow_may_have_a_retention_of_its_own(
    bench: Bench, store: Store, attempt: Attempt, looker: Store, own: int
) -> None:
    """Shorter or longer: for a job that ends, one whose runner is lost, and one that nobody ever starts."""
    lost, pending = JobRef(JOB.workflow_id, "lost"), JobRef(JOB.workflow_id, "pending")
    store.catalog.set_retention(JOB.workflow_id, own)
    finish(store, store.open(JOB, attempt.token))
    store.append(store.open(lost, "token-1"), make_lines(1, 1))
    bench.ask("DEL", bench.key("lease", lost))
    wait_until(lambda: status(looker, lost) is Status.LOST, 5, "the runner is missed")
    store.register(pending)

    for kind, job in (("log", JOB), ("job", JOB), ("log", lost), ("job", lost), ("job", pending)):
        assert own * 1000 - TTL_TOLERANCE_MS < bench.ttl(kind, job) <= own * 1000


def test_a_retention_that_changes_is_that_of_ended_logs_too(bench: Bench, store: Store, attempt: Attempt) -> None:
    """Counted from their end; of those that run as well, when they end; and of no other workflow's."""
    running, other = JobRef(JOB.workflow_id, "running"), JobRef("wf_2", "job_1")
    finish(store, attempt)
    store.append(store.open(running, "token-1"), make_lines(1, 1))
    finish(store, store.open(other, "token-1"))

    bench.set_end_seen(1_000)
    assert apply_retention(store, JOB.workflow_id, 5_000, 9) == 2
    for kind in ("log", "job"):
        assert 4_000_000 - TTL_TOLERANCE_MS < bench.ttl(kind) <= 4_000_000
        assert bench.ttl(kind, other) <= RETENTION_MS
        assert bench.ttl(kind, running) == -1
    assert apply_retention(store, JOB.workflow_id, None, 900) == 2
    assert store.get_job(JOB) is None
    assert apply_retention(store, JOB.workflow_id, 700, 900) == 1
    store.finish(Attempt(running, "token-1", 1, 1), Status.COMPLETED, 0, 0, 2)
    assert bench.ttl("log", running) <= 700_000


def test_a_retention_that_changes_reaches_every_job(
    bench: Bench, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though others leave the listing meanwhile, and one has a key that is no log."""
    monkeypatch.setattr("chronoverse.archive.retention.PAGE_JOBS", 2)
    jobs = [JobRef(JOB.workflow_id, f"job_{number}") for number in range(7)]
    for job in jobs:
        finish(store, store.open(job, "token-1"))
    bench.ask("SET", bench.key("log", jobs[3]), "no stream")
    met, keep_job = [], store.catalog.apply_retention

    def leave(job: JobRef, *args: Any) -> bool:
        met.append(job)
        bench.ask("ZREM", bench.key("jobs"), job.job_id)
        return keep_job(job, *args)

    monkeypatch.setattr(store.catalog, "apply_retention", leave)
    assert apply_retention(store, JOB.workflow_id, 5_000, 9) == 6
    assert sorted(met) == jobs
    assert all(bench.ttl("job", job) > RETENTION_MS for job in jobs if job != jobs[3])


def test_a_repeated_finish_changes_nothing(bench: Bench, store: Store, attempt: Attempt) -> None:
    """It finds its own attempt ended as it asked, and says so."""
    store.append(attempt, make_lines(1, 2))
    finish(store, attempt, 3)
    before = bench.snapshot()

    finish(store, attempt, 3)

    assert bench.snapshot() == before


def test_a_job_ends_only_once(bench: Bench, store: Store, attempt: Attempt) -> None:
    """Whoever wants another end is fenced: with another status, or of another attempt."""
    finish(store, attempt)

    refused(bench, Fenced, lambda: finish(store, attempt, status=Status.FAILED))
    refused(bench, Fenced, lambda: finish(store, attempt._replace(token="token-2", attempt=2)))


def test_finish_without_the_lease_is_fenced(bench: Bench, store: Store, attempt: Attempt) -> None:
    """Gone, or another's."""
    bench.ask("DEL", bench.key("lease"))
    refused(bench, Fenced, lambda: finish(store, attempt))

    store.open(JOB, "token-2")
    refused(bench, Fenced, lambda: finish(store, attempt))


def test_finish_behind_a_foreign_end_is_fenced(bench: Bench, store: Store, attempt: Attempt) -> None:
    """There is one terminal entry."""
    bench.xadd("1-0", "event", "end")

    refused(bench, Fenced, lambda: finish(store, attempt, 2))


@pytest.mark.parametrize("following", [1, 2, 4])
def test_finish_at_another_place_is_a_gap(bench: Bench, store: Store, attempt: Attempt, following: int) -> None:
    """Lines are missing, or there are more than the runner knows of."""
    store.append(attempt, make_lines(1, 2))

    assert refused(bench, SequenceGap, lambda: finish(store, attempt, following)).expected == 3


def test_a_log_out_of_shape_can_be_ended(bench: Bench, store: Store, attempt: Attempt) -> None:
    """Behind whatever stands there: viewers must not wait for ever."""
    store.append(attempt, make_lines(1, 2))
    bench.xadd("5-1", "message", "a")

    finish(store, attempt, 3)

    assert (bench.ids()[-1], bench.hash()["status"]) == ("6-0", "COMPLETED")


# A deleted job


@pytest.fixture
def deleted(store: Store, attempt: Attempt) -> Attempt:
    """The attempt at a job that was deleted after it had ended."""
    store.append(attempt, make_lines(1, 2))
    finish(store, attempt, 3)
    delete_job(store, None, JOB, tombstone_ms=60_000)
    return attempt


def test_a_deleted_job_leaves_a_tombstone_that_expires(bench: Bench, deleted: Attempt) -> None:
    assert bench.keys() == {bench.key("deleted")}
    assert 60_000 - TTL_TOLERANCE_MS < bench.ttl("deleted") <= 60_000


@pytest.mark.parametrize(
    "operation",
    [
        lambda store, attempt: store.open(JOB, "token-1"),
        lambda store, attempt: store.register(JOB),
        lambda store, attempt: store.append(attempt, make_lines(3, 1)),
        lambda store, attempt: store.append(attempt, make_lines(1, 2)),
        lambda store, attempt: store.renew(attempt),
        lambda store, attempt: finish(store, attempt, 3),
    ],
    ids=["open", "register", "append", "append again", "renew", "finish again"],
)
def test_every_operation_on_a_deleted_job_is_refused(
    bench: Bench, store: Store, deleted: Attempt, operation: Callable[[Store, Attempt], object]
) -> None:
    """DELETED, also of one that was answered before and is repeated; nothing is written."""
    refused(bench, Deleted, lambda: operation(store, deleted))


def test_a_runner_of_a_job_that_is_being_deleted_is_told(bench: Bench, store: Store, attempt: Attempt) -> None:
    """The tombstone is there before the keys go. While a runner lives nothing of it is written."""
    with archive_lock(store, JOB) as token:
        refused(bench, Held, lambda: store.chunks.mark_deleting(JOB, token, 60_000))
        bench.expire_lease()
        store.chunks.mark_deleting(JOB, token, 60_000)
        refused(bench, Deleted, lambda: store.append(attempt, make_lines(1, 1)))
        refused(bench, Deleted, lambda: store.open(JOB, "token-2"))
        # What goes on under an id that is being deleted is for the deletion to take away.
        bench.xadd("1-0", "message", "a line")
        assert store.get_job(JOB) is None
        store.chunks.delete(JOB, token)
    assert bench.keys() == {bench.key("deleted")}


def test_a_job_whose_time_is_over_leaves_no_tombstone(bench: Bench, store: Store, attempt: Attempt) -> None:
    """Its id can be used again. One that stands already is left."""
    finish(store, attempt, 1)
    delete_job(store, None, JOB)
    assert bench.keys() == set()
    finish(store, store.open(JOB, "token-2"), 1)
    delete_job(store, None, JOB, tombstone_ms=60_000)
    delete_job(store, None, JOB)
    assert bench.keys() == {bench.key("deleted")}


def test_a_look_sweeps_what_was_written_under_a_deleted_id(bench: Bench, store: Store, deleted: Attempt) -> None:
    """Whatever a foreign runner wrote, of whatever type."""
    bench.xadd("1-0", "message", "a line")
    bench.ask("HSET", bench.key("job"), "status", "RUNNING", "attempt", "1")
    assert store.get_jobs([JOB]) == [None]
    assert bench.keys() == {bench.key("deleted")}
    bench.ask("SET", bench.key("log"), "no log")
    assert store.get_job(JOB) is None
    assert bench.keys() == {bench.key("deleted")}


def test_what_is_no_string_is_no_tombstone(bench: Bench, store: Store, attempt: Attempt) -> None:
    """A foreign runner, which may add to streams, cannot delete a job."""
    bench.ask("XADD", bench.key("deleted"), "1-0", "message", "a line")

    assert store.append(attempt, make_lines(1, 1)) == 2
    assert status(store, JOB) is Status.RUNNING
    assert not store.is_deleted(JOB)


def test_nothing_but_the_contracts_keys_is_written(bench: Bench, store: Store) -> None:
    """From the registration to the end, and two jobs share only their workflow's listing."""
    jobs, log, job, lease = (bench.key(kind) for kind in ("jobs", "log", "job", "lease"))
    assert bench.keys() == set()
    store.register(JOB)
    assert bench.keys() == {jobs, job}
    attempt = store.open(JOB, "token-1")
    assert bench.keys() == {jobs, job, lease}
    store.append(attempt, make_lines(1, 1))
    assert bench.keys() == {jobs, job, lease, log}
    store.renew(attempt)
    store.get_job(JOB)
    store.get_jobs([JOB])
    assert bench.keys() == {jobs, job, lease, log}
    finish(store, attempt, 2)
    assert bench.keys() == {jobs, job, log}
    assert log == f"{bench.prefix}:{{wf_1}}:job_1:log"
