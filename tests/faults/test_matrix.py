"""The fault matrix's rows about runners and the store (see ``docs/faults.md``).

Viewers watch each job through the real service. No line may be missing unless the log reports it.
"""

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from chronoverse.joblog.model import JobRef
from tests.faults.emitter import EXIT_CODE, line
from tests.faults.runner import PATIENCE_SECONDS, Runner
from tests.faults.testbed import FaultTestbed, frozen, sleep
from tests.faults.watching import Watcher, seconds_to_next_line
from tests.support.tools import unavailable
from tests.support.waiting import wait_until

#: Time limit of the next line after the end of a fault, if the store is back immediately, in seconds.
RECOVERY_SECONDS: Final = 15.0
#: Size of a small disk in bytes.
DISK: Final = "3m"


def job(name: str) -> JobRef:
    """One row's job."""
    return JobRef("matrix", name)


def finish(testbed: FaultTestbed, runner: Runner) -> None:
    """Ends the job. The runner must have printed every line, and every viewer must receive the end."""
    runner.end_job()
    assert runner.wait() == EXIT_CODE, runner.stderr_text
    assert runner.output_lines == [line(runner.writer, number, runner.padding) for number in range(1, runner.begun + 1)]
    testbed.wait_for_end(runner.job)
    assert [each.ending for each in testbed.watchers[runner.job]] == ["end"] * len(testbed.watchers[runner.job])
    assert testbed.status(runner.job)["status"] == "FAILED", runner.stderr_text
    assert testbed.status(runner.job)["exit_code"] == str(EXIT_CODE)


def attempts(watcher: Watcher) -> list[object]:
    """The attempt numbers that a viewer received, in order."""
    return list(dict.fromkeys(state["attempt"] for state in watcher.states))


@pytest.fixture(scope="module")
def short_lease(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultTestbed]:
    """A testbed with a lease of two seconds for runners and service."""
    with FaultTestbed(tmp_path_factory.mktemp("short_lease")) as testbed:
        yield testbed


@pytest.fixture(scope="module")
def nobody_lost(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultTestbed]:
    """Like ``short_lease``, but its service declares no job LOST before its store has been up for a minute."""
    with FaultTestbed(tmp_path_factory.mktemp("nobody_lost"), service_lease=60) as testbed:
        yield testbed


@contextlib.contextmanager
def small_disk(directory: Path) -> Iterator[Path]:
    """Mounts a file system of DISK bytes at ``directory``. Skips the test where this is not allowed."""
    directory.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK},mode=0700", "tmpfs", str(directory)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
        reason = done.stderr.strip() if done.returncode else ""
    except FileNotFoundError as error:
        reason = str(error)
    if reason:
        unavailable(f"no small file system can be mounted: {reason}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


def fill(directory: Path) -> Path:
    """Fills a file system. Returns the file that occupies all of the free space."""
    filler = directory / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"\0" * 4096):
            pass
    return filler


@pytest.mark.long
def test_row_1_a_runner_killed_in_the_middle_of_a_line(short_lease: FaultTestbed) -> None:
    """All lines stay in the log, the half line is not in it, and the job is declared LOST in time."""
    runner, watchers = short_lease.start_job(job("row-1"))
    runner.print_half_line()
    wait_until(
        lambda: runner.output_lines and len(runner.output_lines[-1]) == 20, PATIENCE_SECONDS, "half a line is printed"
    )
    wait_until(
        lambda: short_lease.last_id(runner.job) == runner.begun, PATIENCE_SECONDS, "all whole lines are in the log"
    )
    runner.process.kill()
    killed = time.monotonic()
    short_lease.wait_for_end(runner.job)

    assert time.monotonic() - killed <= short_lease.lease + 3
    verdict = short_lease.verdict(runner.job)
    assert verdict.clean, verdict
    assert short_lease.status(runner.job)["status"] == "LOST"
    assert watchers[0].states[-1]["last_sequence_num"] == runner.begun


@pytest.mark.long
def test_row_3_a_frozen_runner_is_replaced_and_resumes(nobody_lost: FaultTestbed) -> None:
    """The second runner continues where the log ends. The first is fenced and adds nothing."""
    first, watchers = nobody_lost.start_job(job("row-3"))
    with frozen(first.process):
        before = nobody_lost.last_id(first.job)
        wait_until(
            lambda: not nobody_lost.redis.ask("EXISTS", nobody_lost.key("lease", first.job)),
            PATIENCE_SECONDS,
            "the lease is gone",
        )
        second = nobody_lost.start_runner(first.job, "b")
        nobody_lost.wait_for_more(watchers, 20)
    wait_until(lambda: "publishing stopped" in first.stderr_text, PATIENCE_SECONDS, "the first runner is fenced")
    first.end_job()
    assert first.wait() == EXIT_CODE
    nobody_lost.wait_for_more(watchers, 5)
    finish(nobody_lost, second)

    verdict = nobody_lost.verdict(first.job, a=before)
    assert verdict.clean, verdict
    assert attempts(watchers[0]) == [1, 2]


@pytest.mark.long
def test_row_4b_a_power_failure_that_the_runner_survives(nobody_lost: FaultTestbed) -> None:
    """The runner resends what the disk lost. Viewers that have these lines do not receive them again."""
    runner, watchers = nobody_lost.start_job(job("row-4b"), rate=500)
    safe = nobody_lost.freeze_disk()
    # On a busy machine, the viewers can lag behind the store.
    nobody_lost.wait_for_line(watchers, nobody_lost.last_id(runner.job) + 400)
    # All 400 lines of some 60 bytes each are cut off.
    assert nobody_lost.cut_power(safe) > 400 * 50
    nobody_lost.redis.start()
    back = time.monotonic()
    nobody_lost.wait_for_more(watchers, 50)
    finish(nobody_lost, runner)

    verdict = nobody_lost.verdict(runner.job)
    assert verdict.clean, verdict
    assert seconds_to_next_line(watchers[0].seen, back) <= RECOVERY_SECONDS
    assert [each.connections for each in watchers] == [1, 1]


@pytest.mark.long
def test_row_4c_a_power_failure_that_the_runner_does_not_survive(short_lease: FaultTestbed) -> None:
    """Nobody has the lost lines. The job is declared LOST, and viewers receive an error that names these lines."""
    runner, watchers = short_lease.start_job(job("row-4c"), rate=500)
    safe = short_lease.freeze_disk()
    short_lease.wait_for_line(watchers, short_lease.last_id(runner.job) + 300)
    runner.process.kill()
    short_lease.cut_power(safe)
    short_lease.redis.start()
    left = short_lease.last_id(runner.job)
    short_lease.wait_for_end(runner.job)

    seen = max(each.highest for each in watchers)
    assert seen - left >= 200
    assert f"the store lost lines {left + 1} to {seen} of this log" in watchers[0].errors
    assert short_lease.status(runner.job)["status"] == "LOST"
    assert short_lease.status(runner.job)["lines"] == str(left)
    verdict = short_lease.verdict(runner.job, a=left)
    assert verdict.clean, verdict


@pytest.mark.long
def test_row_16_the_runners_disk_is_full(nobody_lost: FaultTestbed, tmp_path: Path) -> None:
    """The command is not affected. A gap names exactly the dropped lines."""
    with small_disk(tmp_path / "disk") as disk:
        runner, watchers = nobody_lost.start_job(
            job("row-16"), lease_seconds=20, data_dir=disk, rate=1_400, padding=8_000
        )
        runner.proxy.refuse()
        runner.proxy.cut()
        # The disk has room for 390 lines, the memory for 2,080.
        wait_until(lambda: runner.begun > watchers[0].highest + 3_200, 30, "more was printed than the disk can hold")
        runner.proxy.heal()
        nobody_lost.wait_for_more(watchers, 100)
        finish(nobody_lost, runner)

    verdict = nobody_lost.verdict(runner.job)
    assert verdict.clean, verdict
    assert verdict.named > 0
    assert nobody_lost.status(runner.job)["dropped"] == str(verdict.named)
    assert len(watchers[0].lines) + verdict.named == runner.begun


@pytest.mark.long
def test_row_17_the_stores_disk_is_full(tmp_path: Path) -> None:
    """The store rejects writes and renewals for less than a lease. Reads work, and no line is lost."""
    with (
        small_disk(tmp_path / "disk") as disk,
        FaultTestbed(tmp_path / "testbed", lease=8, redis_dir=str(disk)) as testbed,
    ):
        runner, watchers = testbed.start_job(job("row-17"), rate=500)
        filler = fill(disk)
        wait_until(lambda: "the store rejects writes" in runner.stderr_text, PATIENCE_SECONDS, "the store refuses")
        sleep(1)
        assert testbed.history(runner.job)
        filler.unlink()
        healed = time.monotonic()
        testbed.wait_for_more(watchers, 20)
        assert seconds_to_next_line(watchers[0].seen, healed) <= RECOVERY_SECONDS
        finish(testbed, runner)

        verdict = testbed.verdict(runner.job)
        assert verdict.clean, verdict
        assert [each.connections for each in watchers] == [1, 1]


@pytest.mark.long
def test_row_18_foreign_entries_of_every_kind(short_lease: FaultTestbed) -> None:
    """The tail reader does not fail. Viewers receive each readable entry, and gaps for the others. Other jobs work."""
    other, others = short_lease.start_job(job("row-18-other"))
    odd = job("row-18")
    key = short_lease.key("log", odd)
    short_lease.redis.ask("XADD", key, "1-0", "message", "first")
    watchers = short_lease.start_watchers(odd, 2)
    short_lease.wait_for_line(watchers, 1)
    short_lease.redis.ask("XADD", key, "2-0", "timestamp", "x", "message", b"\xff\xfe", "stream", "y", "more", "z")
    short_lease.redis.ask("XADD", key, "3-0", "nothing", "to see")
    short_lease.redis.ask("XADD", key, "4-0", "message", b"M" * 2_000_000)
    short_lease.redis.ask("XADD", key, "4-1", "message", "without a number of its own")
    short_lease.redis.ask("XADD", key, "5-0", "message", '{"a": NaN}')
    short_lease.wait_for_line(watchers, 5)
    short_lease.redis.ask("SET", short_lease.key("log", job("row-18-string")), "no stream")
    short_lease.redis.ask("XADD", key, "*", "message", "by the clock")
    wait_until(lambda: watchers[0].highest > 5, PATIENCE_SECONDS, "the last entry arrives")
    short_lease.wait_for_more(others, 20)
    finish(short_lease, other)

    assert [seen.message[:20] for seen in watchers[0].lines] == [
        *("first", "\ufffd\ufffd", "M" * 20, '{"a": NaN}', "by the clock"),
    ]
    gaps = [(seen.number, seen.last, seen.message) for seen in watchers[0].seen if seen.kind == "gap"]
    assert gaps == [(3, 3, "malformed"), (6, watchers[0].highest - 1, "missing")]
    assert short_lease.verdict(other.job).clean


@pytest.mark.long
def test_row_18_a_foreign_entry_in_a_runners_log(short_lease: FaultTestbed) -> None:
    """The runner reports a corrupt log and stops publishing. Viewers receive its lines and the foreign entry."""
    runner, watchers = short_lease.start_job(job("row-18-tainted"))
    short_lease.redis.ask("XADD", short_lease.key("log", runner.job), "*", "message", "foreign")
    wait_until(
        lambda: "publishing stopped" in runner.stderr_text,
        PATIENCE_SECONDS,
        "the runner reports that its log is corrupt",
    )
    wait_until(lambda: watchers[0].highest > 1_000_000, PATIENCE_SECONDS, "the foreign entry arrives")
    runner.end_job()
    assert runner.wait() == EXIT_CODE
    short_lease.wait_for_end(runner.job)

    ours = max(seen.number for seen in watchers[0].lines[:-1])
    assert [seen.number for seen in watchers[0].lines[:-1]] == list(range(1, ours + 1))
    verdict = short_lease.verdict(runner.job, frozenset({"foreign"}), a=ours)
    assert verdict.clean, verdict
    assert short_lease.status(runner.job)["status"] == "LOST"


@pytest.mark.long
def test_row_19_two_concurrent_runners(short_lease: FaultTestbed) -> None:
    """One gets the job. The other reports why it publishes nothing, runs its command, and keeps its lines."""
    both = [short_lease.start_runner(job("row-19"), writer) for writer in "ab"]
    watchers = short_lease.start_watchers(job("row-19"), 2)
    short_lease.wait_for_line(watchers, 20)
    refusal = "nothing is published: another live runner"
    wait_until(lambda: any(refusal in each.stderr_text for each in both), PATIENCE_SECONDS, "one of them is refused")
    winner, loser = sorted(both, key=lambda each: refusal in each.stderr_text)
    wait_until(lambda: loser.begun >= 20, PATIENCE_SECONDS, "the refused runner's command runs")
    loser.end_job()
    finish(short_lease, winner)

    assert loser.wait() == EXIT_CODE
    assert len(loser.output_lines) == loser.begun
    assert f"{loser.begun} lines were not delivered" in loser.stderr_text
    verdict = short_lease.verdict(winner.job, frozenset(), **{loser.writer: 0})
    assert verdict.clean, verdict
