"""Several commands whose output is one job's log: ``run --continue``."""

from pathlib import Path

import pytest

from chronoverse.joblog.model import JobRef, Status
from chronoverse.runner.run import RunLimits, run
from chronoverse.runner.spool.spool_file import SpoolRoom
from chronoverse.store import Store
from tests.support.bench import JOB
from tests.support.commands import call_main
from tests.support.servers import RedisServer, running


def step(store: Store, code: str, *, last: bool = False, job: JobRef = JOB, **limits: object) -> int:
    """Runs one of several commands."""
    return run(["sh", "-c", code], store, job, more_follow=not last, limits=RunLimits(**limits))  # type: ignore[arg-type]


def ended(store: Store, job: JobRef = JOB) -> tuple[Status, int | None, int | None, int]:
    """How the job stands: its status, exit code, lines and attempt."""
    found = store.get_job(job)
    assert found is not None
    return found.status, found.exit_code, found.lines, found.attempt


@pytest.mark.parametrize(
    ("codes", "end"),
    [
        ([0, 0, 0], (Status.COMPLETED, 0)),
        ([0, 3, 0], (Status.FAILED, 3)),
        ([3, 1, 0], (Status.FAILED, 3)),
        ([1, 0, 3], (Status.FAILED, 3)),
    ],
)
def test_the_worst_exit_code_is_the_jobs(store: Store, codes: list[int], end: tuple[Status, int]) -> None:
    """Each command exits with its own, and is an attempt of the job, whose lines are one log."""
    for number, code in enumerate(codes, 1):
        assert step(store, f"echo step {number}; exit {code}", last=number == len(codes)) == code
        if number < len(codes):
            assert ended(store)[0] is Status.RUNNING
    assert ended(store) == (*end, 3, 3)
    assert [entry[1][3] for entry in store.read(JOB, 0, 3)] == [b"step 1", b"step 2", b"step 3"]


def test_a_repeated_end_is_the_same_end(store: Store) -> None:
    """The answer of an end that the runner sends may be lost. The store has ended the job otherwise than it says."""
    attempt = store.open(JOB, "a")
    store.finish(attempt, Status.PENDING, 3, 0, 1, counts=True)
    attempt = store.open(JOB, "b")
    for _ in range(2):
        store.finish(attempt, Status.COMPLETED, 0, 0, 1)
    assert ended(store)[:2] == (Status.FAILED, 3)
    # An attempt that is tried again has failed, and the job has not.
    attempt = store.open(JobRef("wf_1", "retried"), "a")
    store.finish(attempt, Status.PENDING, 3, 0, 1)
    attempt = store.open(JobRef("wf_1", "retried"), "b")
    store.finish(attempt, Status.COMPLETED, 0, 0, 1)
    assert ended(store, JobRef("wf_1", "retried"))[:2] == (Status.COMPLETED, 0)


def test_an_exit_code_that_was_not_delivered_counts_too(tmp_path: Path) -> None:
    """The next command delivers the lines of the one before it, and its exit code with its own."""
    room = SpoolRoom(tmp_path / "spool")
    with running(tmp_path / "store") as server:
        store = Store(server.url)
        server.stop()
        assert step(store, "echo one; exit 5", room=room, deliver_seconds=0.1) == 5
        server.start()
        assert step(store, "echo two", room=room, last=True) == 0
        assert ended(store) == (Status.FAILED, 5, 2, 1)
        store.close()


def test_the_options_say_what_they_need(server: RedisServer, tmp_path: Path) -> None:
    """And the command exits with 64 without running anything."""
    environ = {"CHRONOVERSE_REDIS_URL": server.url, "CHRONOVERSE_DATA_DIR": str(tmp_path)}
    file = tmp_path / "ran"
    for options in (["--last", "--job", "a"], ["--continue"], ["--continue", "--retry", "--job", "a"]):
        done = call_main("run", "--workflow", "wf_1", *options, "--", "touch", str(file), environ=environ)
        assert done.returncode == 64, done.stderr
    assert not file.exists()
