"""Quotas on the stored message bytes of a job, and of a workflow per day. Scripts enforce them for every runner."""

import contextlib
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from chronoverse.errors import QuotaReached
from chronoverse.joblog.entries import read_entries
from chronoverse.joblog.model import Attempt, End, Gap, JobRef, Line, Status
from chronoverse.store import Store
from chronoverse.store.catalog import WorkflowSettings
from chronoverse.store.records import RecordBatch, RecordRun
from tests.support.bench import JOB, NOW, Bench
from tests.support.servers import running
from tests.support.service import serving
from tests.support.waiting import wait_until

OTHER = JobRef("wf_1", "job_2")


def tens(first: int, last: int) -> list[Line]:
    return [Line(number, NOW, f"{number:010}", "stdout") for number in range(first, last + 1)]


def append(store: Store, attempt: Attempt, first: int, last: int) -> int:
    """Appends lines beyond the quota, and returns the next number."""
    with pytest.raises(QuotaReached) as reached:
        store.append(attempt, tens(first, last))
    return reached.value.expected


def shape(bench: Bench, job: JobRef = JOB) -> list[Any]:
    """A reader's view of the log: line numbers, gaps, and the end's number and dropped lines."""
    entries = read_entries(bench.ask("XRANGE", bench.key("log", job), "-", "+"), 0)
    return [
        entry.sequence_num
        if isinstance(entry, Line)
        else (entry.sequence_num, entry.dropped)
        if isinstance(entry, End)
        else entry
        for entry in entries
    ]


def test_a_job_is_stored_up_to_its_quota(bench: Bench, store: Store) -> None:
    """Further lines are omitted, covered by one gap, and added to the runner's own dropped lines."""
    store.catalog.change_settings("wf_1", job_bytes=35)
    attempt = store.open(JOB, "token")
    assert append(store, attempt, 1, 5) == 6
    assert shape(bench) == [1, 2, 3, Gap(4, 5, "quota")]
    assert append(store, attempt, 6, 8) == 9
    # Five bytes are left, but nothing is stored after the first omitted line.
    with pytest.raises(QuotaReached):
        store.append(attempt, [Line(9, NOW, "", "stderr")])
    assert store.open(JOB, "token").next == 10
    store.finish(attempt, Status.COMPLETED, 0, 2, 10)
    assert shape(bench) == [1, 2, 3, Gap(4, 9, "quota"), (10, 8)]
    job = store.require_job(JOB)
    assert (job.lines, job.dropped, job.last) == (9, 8, 9)


def test_an_archived_gap_is_not_replaced(bench: Bench, store: Store) -> None:
    """Lines omitted after it get a gap of their own."""
    store.catalog.change_settings("wf_1", job_bytes=35)
    attempt = store.open(JOB, "token")
    append(store, attempt, 1, 5)
    bench.ask("HSET", bench.key("job"), "archived", 5)
    append(store, attempt, 6, 8)
    append(store, attempt, 9, 9)
    store.finish(attempt, Status.COMPLETED, 0, 0, 10)
    assert shape(bench) == [1, 2, 3, Gap(4, 5, "quota"), Gap(6, 9, "quota"), (10, 6)]


def test_an_empty_line_counts_as_one_byte(bench: Bench, store: Store) -> None:
    """Otherwise a job of empty lines would be unlimited, from a runner as well as from log records."""
    store.catalog.change_settings("wf_1", job_bytes=3)
    attempt = store.open(JOB, "token")
    with pytest.raises(QuotaReached):
        store.append(attempt, [Line(number, NOW, "", "stdout") for number in range(1, 6)])
    assert shape(bench) == [1, 2, 3, Gap(4, 5, "quota")]
    batch = RecordBatch([RecordRun(NOW, "stdout", False, 0, 0, 0, [b""] * 5)], "digest")
    assert store.records.append(OTHER, batch).left_out == 2


def test_a_repeated_append_is_not_counted_twice(bench: Bench, store: Store) -> None:
    """Its lines already have numbers, stored or not."""
    store.catalog.change_settings("wf_1", job_bytes=25)
    attempt = store.open(JOB, "token")
    append(store, attempt, 1, 5)
    before = bench.snapshot()
    assert store.append(attempt, tens(1, 5)) == 6
    assert bench.snapshot() == before
    append(store, attempt, 4, 6)
    store.finish(attempt, Status.FAILED, 1, 0, 7)
    store.finish(attempt, Status.FAILED, 1, 0, 7)
    assert shape(bench) == [1, 2, Gap(3, 6, "quota"), (7, 4)]


def test_nothing_fits(bench: Bench, store: Store, judge: Store) -> None:
    """A log can begin with omitted lines. Its numbers are exact even if its runner is lost."""
    store.catalog.change_settings("wf_1", job_bytes=5)
    append(store, store.open(JOB, "token"), 1, 2)
    attempt = store.open(JOB, "token")
    append(store, attempt, 3, 4)
    bench.ask("DEL", bench.key("lease"))
    wait_until(lambda: (job := judge.get_job(JOB)) and job.status is Status.LOST, 10, "the job is lost")
    assert shape(bench) == [Gap(1, 4, "quota"), (5, 4)]


def test_quotas_change_while_a_job_runs(bench: Bench, store: Store) -> None:
    """A higher quota stores lines again, a lower one applies immediately, a workflow's own overrides the common one."""
    attempt = store.open(JOB, "token")
    store.catalog.set_common_bounds(20, 0, lambda: ["wf_1"])
    append(store, attempt, 1, 4)
    append(store, attempt, 5, 6)
    store.catalog.change_settings("wf_1", job_bytes=40)
    append(store, attempt, 7, 9)
    store.catalog.change_settings("wf_1", job_bytes=0)
    assert store.append(attempt, tens(10, 30)) == 31
    store.catalog.change_settings("wf_1", job_bytes=None)
    append(store, attempt, 31, 31)
    store.append_lost(attempt, 32, 33)
    append(store, attempt, 34, 34)
    store.finish(attempt, Status.COMPLETED, 0, 0, 35)
    assert shape(bench) == [
        *(1, 2, Gap(3, 6, "quota"), 7, 8, Gap(9, 9, "quota"), *range(10, 31)),
        *(Gap(31, 31, "quota"), Gap(32, 33, "lost"), Gap(34, 34, "quota"), (35, 7)),
    ]


def test_jobs_of_a_workflow_share_a_daily_quota(bench: Bench, store: Store) -> None:
    """The next day, lines are stored again."""
    store.catalog.change_settings("wf_1", day_bytes=55)
    attempt, other = store.open(JOB, "token"), store.open(OTHER, "token")
    elsewhere = store.open(JobRef("wf_2", "job_1"), "token")
    store.append(attempt, tens(1, 4))
    append(store, other, 1, 2)
    append(store, attempt, 5, 6)
    store.append(elsewhere, tens(1, 50))
    day = int(bench.ask("HGET", bench.key("settings"), "day"))
    assert store.catalog.bytes_today(["wf_1", "wf_2"], day) == {"wf_1": 55}
    assert store.catalog.bytes_today(["wf_1"], day + 1) == {}
    bench.ask("HSET", bench.key("settings"), "day", day - 1)
    store.append(attempt, tens(7, 9))
    assert shape(bench) == [1, 2, 3, 4, Gap(5, 6, "quota"), 7, 8, 9]
    assert shape(bench, OTHER) == [1, Gap(2, 2, "quota")]
    assert store.catalog.bytes_today(["wf_1"], day) == {"wf_1": 30}


def test_common_quotas_apply_to_new_workflows(bench: Bench, store: Store) -> None:
    """A job gets them from the store when it is opened. A service without quotas writes none."""
    store.catalog.set_common_bounds(0, 0, lambda: ["wf_1"])
    assert bench.keys() == set()
    assert store.catalog.common_bounds() is None
    store.catalog.set_common_bounds(10, 0, list)
    attempt = store.open(JOB, "token")
    append(store, attempt, 1, 2)
    assert (store.catalog.settings(["wf_1"])["wf_1"], store.catalog.common_bounds()) == (WorkflowSettings(), [10, 0])
    # A workflow whose first job was opened meanwhile.
    listed = iter(([], ["wf_2"]))
    store.catalog.set_common_bounds(20, 0, lambda: next(listed))
    assert bench.ask("HGET", bench.key("settings", JobRef("wf_2", "")), "common_job_bytes") == b"20"


def test_a_settings_key_of_another_type_sets_no_quota(bench: Bench, store: Store) -> None:
    """Lines are still stored."""
    store.catalog.set_common_bounds(10, 10, list)
    bench.ask("SET", bench.key("settings"), "foreign")
    attempt = store.open(JOB, "token")
    assert store.append(attempt, tens(1, 9)) == 10


@pytest.mark.parametrize("seed", range(8))
def test_every_number_is_a_line_or_in_a_gap(bench: Bench, store: Store, seed: int) -> None:
    """However lines are appended, repeated, reported as lost and reopened, and however quotas change meanwhile."""
    draw = random.Random(seed)
    attempt, last = store.open(JOB, "token"), 0
    for _ in range(40):
        if draw.random() < 0.2:
            name = draw.choice(["job_bytes", "day_bytes"])
            store.catalog.change_settings("wf_1", **{name: draw.choice([0, 100, 300, 700])})
        if draw.random() < 0.1:
            bench.ask("DEL", bench.key("lease"))
            attempt = store.open(JOB, f"token-{draw.random()}")
            assert attempt.next == last + 1
        if last and draw.random() < 0.1:
            store.append_lost(attempt, last + 1, last + 2)
            last += 2
        first, end = max(1, last + 1 - draw.randrange(3)), last + draw.randrange(1, 12)
        with contextlib.suppress(QuotaReached):
            store.append(attempt, tens(first, end))
        last = end
    store.finish(attempt, Status.COMPLETED, 0, 0, last + 1)
    *entries, end_entry = shape(bench)
    numbers = [n for e in entries for n in (range(e.first, e.last + 1) if isinstance(e, Gap) else [e])]
    assert numbers == list(range(1, last + 1))
    gaps = [entry for entry in entries if isinstance(entry, Gap)]
    assert {gap.reason for gap in gaps} <= {"quota", "lost"}
    left_out = sum(gap.last - gap.first + 1 for gap in gaps if gap.reason == "quota")
    assert end_entry == (last + 1, left_out)
    assert not any(a.reason == b.reason == "quota" and a.last + 1 == b.first for a, b in pairwise(gaps))


@pytest.mark.long
def test_an_emptied_store_gets_its_quotas_back(tmp_path: Path) -> None:
    """Without restarting the service. They apply to later jobs and to jobs that were opened again before."""
    with (
        running(tmp_path / "server") as server,
        serving(tmp_path / "service", server.url, max_job_bytes=1_000),
        contextlib.closing(Store(server.url)) as store,
    ):

        def wait_for(*fields: str) -> None:
            wait_until(lambda: server.ask("HGET", *fields) == b"1000", 30, "the service has set the quota")

        wait_for("chronoverse:limits", "job_bytes")
        store.open(JobRef("wf_3", "before"), "token")
        server.ask("FLUSHALL")
        before = store.open(JobRef("wf_3", "before"), "token")
        wait_for("chronoverse:{wf_3}:settings", "common_job_bytes")
        for attempt in (before, store.open(JobRef("wf_4", "after"), "token")):
            append(store, attempt, 1, 101)
