"""The fault matrix, row by row, each with viewers watching through the real service: what is lost is announced."""

import contextlib
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from chronoverse.joblog.values import JobRef
from tests.faults.emitter import EXIT_CODE, line
from tests.faults.oracle import dropped
from tests.faults.runner import Runner
from tests.faults.testbed import FaultTestbed, frozen, sleep
from tests.faults.watching import Watcher, silence
from tests.support.tools import unavailable
from tests.support.waiting import wait_until

#: Seconds after the end of a fault in which the next line must come, of a store that is back at once.
RECOVERY_SECONDS: Final = 5.0
#: Bytes of a small disk.
DISK: Final = "3m"


def job(name: str) -> JobRef:
    """A job of the matrix."""
    return JobRef("matrix", name)


def finish(testbed: FaultTestbed, runner: Runner) -> None:
    """Ends the job. The runner must have shown every line, and every viewer must receive the end."""
    runner.end()
    assert runner.wait() == EXIT_CODE, runner.stderr_text
    assert runner.shown == [line(runner.writer, number, runner.padding) for number in range(1, runner.begun + 1)]
    testbed.over(runner.job)
    assert [each.ending for each in testbed.watchers[runner.job]] == ["end"] * len(testbed.watchers[runner.job])
    assert testbed.status(runner.job)["status"] == "FAILED", runner.stderr_text
    assert testbed.status(runner.job)["exit_code"] == str(EXIT_CODE)


def attempts(watcher: Watcher) -> list[object]:
    """The attempt numbers that a viewer received, in order."""
    return list(dict.fromkeys(state["attempt"] for state in watcher.states))


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultTestbed]:
    """A testbed on which nothing is done to the store, with a lease of two seconds."""
    with FaultTestbed(tmp_path_factory.mktemp("calm")) as testbed:
        yield testbed


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultTestbed]:
    """As ``calm``, with a service that declares nobody LOST in its first minute."""
    with FaultTestbed(tmp_path_factory.mktemp("patient"), judge_after=60) as testbed:
        yield testbed


@pytest.fixture(scope="module")
def rough(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultTestbed]:
    """A testbed whose store is killed again and again, and comes back; nobody is declared LOST in its first minute."""
    with FaultTestbed(tmp_path_factory.mktemp("rough"), judge_after=60) as testbed:
        yield testbed


@contextlib.contextmanager
def small_disk(directory: Path) -> Iterator[Path]:
    """A file system of DISK bytes. Skips the test where none can be had, and fails it where it has to be (``CI``)."""
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
    """Takes all that is left of a file system; the file that does."""
    filler = directory / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"\0" * 4096):
            pass
    return filler


def test_row_1_a_runner_killed_in_the_middle_of_a_line(calm: FaultTestbed) -> None:
    """All that was in the log stays, nothing of the half line is there, and the job is LOST in time."""
    runner, watchers = calm.play(job("row-1"))
    runner.print_half_line()
    wait_until(lambda: runner.shown and len(runner.shown[-1]) == 20, 5, "half a line is out")
    wait_until(lambda: calm.last_id(runner.job) == runner.begun, 5, "all whole lines are in the log")
    runner.process.kill()
    killed = time.monotonic()
    calm.over(runner.job)

    assert time.monotonic() - killed <= calm.lease + 3
    verdict = calm.verdict(runner.job)
    assert verdict.clean, verdict
    assert calm.status(runner.job)["status"] == "LOST"
    assert watchers[0].states[-1]["last_sequence_num"] == runner.begun


@pytest.mark.long
def test_row_2_a_runner_cut_off_for_less_than_its_lease(tmp_path: Path) -> None:
    """The job goes on, its lines wait, and then come in order and fast."""
    with FaultTestbed(tmp_path, lease=8) as testbed:
        runner, watchers = testbed.play(job("row-2"), rate=700)
        runner.proxy.refuse()
        runner.proxy.cut()
        sleep(2)
        lines_waiting, healed = runner.begun - watchers[0].highest, time.monotonic()
        aim = runner.begun
        runner.proxy.heal()
        testbed.seen(watchers, aim)
        took = time.monotonic() - healed - silence(watchers[0].seen, healed)
        recovery = silence(watchers[0].seen, healed)
        finish(testbed, runner)
        verdict = testbed.verdict(runner.job)

        assert verdict.clean, verdict
        assert lines_waiting > 1000
        assert recovery <= RECOVERY_SECONDS
        assert lines_waiting / took >= 5 * 700
        assert attempts(watchers[0]) == [1]


@pytest.mark.long
def test_row_2_a_runner_cut_off_for_longer_than_its_lease_unjudged(patient: FaultTestbed) -> None:
    """The runner opens its job again as a new attempt, and no line is missing."""
    runner, watchers = patient.play(job("row-2-again"))
    runner.proxy.refuse()
    runner.proxy.cut()
    wait_until(lambda: not patient.redis.ask("EXISTS", patient.key("lease", runner.job)), 10, "the lease is gone")
    sleep(0.5)
    runner.proxy.heal()
    healed = time.monotonic()
    patient.more(watchers, 20)
    assert silence(watchers[0].seen, healed) <= RECOVERY_SECONDS
    finish(patient, runner)

    verdict = patient.verdict(runner.job)
    assert verdict.clean, verdict
    assert attempts(watchers[0]) == [1, 2]


@pytest.mark.long
def test_row_2_a_runner_cut_off_for_longer_than_its_lease_and_declared_lost(calm: FaultTestbed) -> None:
    """It finds its job LOST: it says so, keeps what it could not deliver, and its job is not hurt."""
    runner, watchers = calm.play(job("row-2-lost"))
    runner.proxy.refuse()
    runner.proxy.cut()
    calm.over(runner.job)
    log = calm.last_id(runner.job)
    runner.proxy.heal()
    wait_until(lambda: "publishing stopped" in runner.stderr_text, 10, "the runner says so")
    runner.end()

    assert runner.wait() == EXIT_CODE
    assert f"{runner.begun - log + 1} lines were not delivered" in runner.stderr_text
    assert len(runner.shown) == runner.begun
    assert calm.last_id(runner.job) == log
    verdict = calm.verdict(runner.job, a=log - 1)
    assert verdict.clean, verdict
    assert watchers[0].states[-1]["status"] == "LOST"


def test_row_3_a_frozen_runner_is_replaced_and_wakes(patient: FaultTestbed) -> None:
    """The second runner continues where the log ends. The first is fenced and adds nothing."""
    first, watchers = patient.play(job("row-3"))
    with frozen(first.process):
        before = patient.last_id(first.job)
        wait_until(lambda: not patient.redis.ask("EXISTS", patient.key("lease", first.job)), 10, "the lease is gone")
        second = patient.run(first.job, "b")
        patient.more(watchers, 20)
    wait_until(lambda: "publishing stopped" in first.stderr_text, 10, "the first runner is fenced")
    first.end()
    assert first.wait() == EXIT_CODE
    patient.more(watchers, 5)
    finish(patient, second)

    verdict = patient.verdict(first.job, a=before)
    assert verdict.clean, verdict
    assert attempts(watchers[0]) == [1, 2]


def test_row_15_a_lease_that_expires_at_once(calm: FaultTestbed) -> None:
    """As if the store's clock had jumped: the runner goes on as a new attempt, whoever watches."""
    runner, watchers = calm.play(job("row-15"))
    for _ in range(2):
        calm.redis.ask("DEL", calm.key("lease", runner.job))
        calm.more(watchers, 20)
    finish(calm, runner)

    verdict = calm.verdict(runner.job)
    assert verdict.clean, verdict
    assert attempts(watchers[0])[-1] == 3


def test_row_4a_a_store_that_is_killed(rough: FaultTestbed) -> None:
    """The store is killed three times. No line is lost, and the viewers stay connected."""
    runner, watchers = rough.play(job("row-4a"), rate=1000)
    for _ in range(3):
        rough.redis.kill()
        rough.redis.start()
        back = time.monotonic()
        rough.more(watchers, 20)
        assert silence(watchers[0].seen, back) <= 3
    finish(rough, runner)

    verdict = rough.verdict(runner.job)
    assert verdict.clean, verdict
    assert [each.connections for each in watchers] == [1, 1]


def test_row_4b_a_power_cut_that_the_runner_survives(rough: FaultTestbed) -> None:
    """What the disk lost is sent again, though viewers had seen it: nobody sees it twice."""
    runner, watchers = rough.play(job("row-4b"), rate=500)
    safe = rough.freeze_disk()
    rough.more(watchers, 400)
    seen = watchers[0].highest
    assert rough.cut_power(safe) > 0
    rough.redis.start()
    back, refill_from = time.monotonic(), rough.last_id(runner.job)
    rough.more(watchers, 50)
    finish(rough, runner)

    verdict = rough.verdict(runner.job)
    assert verdict.clean, verdict
    assert seen - refill_from >= 300
    assert silence(watchers[0].seen, back) <= RECOVERY_SECONDS
    assert [each.connections for each in watchers] == [1, 1]


def test_row_4b_a_power_cut_that_takes_an_attempt_back(rough: FaultTestbed) -> None:
    """The lease that the disk brings back is of the runner's own earlier attempt: it goes on all the same."""
    runner, watchers = rough.play(job("row-4b-attempt"), rate=500, lease_seconds=5)
    safe = rough.freeze_disk()
    rough.redis.ask("DEL", rough.key("lease", runner.job))
    rough.more(watchers, 50)
    assert rough.status(runner.job)["attempt"] == "2"
    rough.cut_power(safe)
    rough.redis.start()
    wait_until(
        lambda: "the store is back" in runner.stderr_text or "stopped" in runner.stderr_text,
        10,
        "the runner is answered",
    )
    assert "publishing stopped" not in runner.stderr_text
    finish(rough, runner)

    verdict = rough.verdict(runner.job)
    assert verdict.clean, verdict


def test_row_4b_a_power_cut_behind_the_last_line(rough: FaultTestbed) -> None:
    """A runner whose job has ended stays until the end is on the disk, and writes it again when it was not."""
    runner, watchers = rough.play(job("row-4b-end"), rate=500)
    safe = rough.freeze_disk()
    rough.more(watchers, 20)
    runner.end()
    rough.over(runner.job)
    assert runner.process.poll() is None
    rough.cut_power(safe)
    rough.redis.start()
    finish(rough, runner)

    verdict = rough.verdict(runner.job)
    assert verdict.clean, verdict
    assert len(watchers[0].lines) == runner.begun


def test_row_4b_a_power_cut_that_takes_the_end_alone(rough: FaultTestbed) -> None:
    """All lines are safe and only the terminal entry is not: it is written again."""
    runner, _ = rough.play(job("row-4b-end-alone"), rate=0.1, lines=1)
    safe = rough.freeze_disk()
    runner.end()
    rough.over(runner.job)
    rough.cut_power(safe)
    rough.redis.start()
    finish(rough, runner)

    verdict = rough.verdict(runner.job)
    assert verdict.clean, verdict


@pytest.mark.long
def test_row_4c_a_power_cut_that_the_runner_does_not_survive(tmp_path: Path) -> None:
    """What nobody has any more is not passed over in silence: the job is LOST, and says where its log ends."""
    with FaultTestbed(tmp_path, lease=1) as testbed:
        runner, watchers = testbed.play(job("row-4c"), rate=500)
        safe = testbed.freeze_disk()
        testbed.more(watchers, 300)
        runner.process.kill()
        testbed.cut_power(safe)
        testbed.redis.start()
        left = testbed.last_id(runner.job)
        testbed.over(runner.job)

        seen = max(each.highest for each in watchers)
        assert seen - left >= 200
        assert f"the store lost lines {left + 1} to {seen} of this log" in watchers[0].troubles
        assert testbed.status(runner.job)["status"] == "LOST"
        assert testbed.status(runner.job)["lines"] == str(left)
        verdict = testbed.verdict(runner.job, a=left)
        assert verdict.clean, verdict


@pytest.mark.long
def test_row_6_a_store_without_memory(tmp_path: Path) -> None:
    """For longer than a lease: appends fail whole, the lease is renewed all the same, reads go on."""
    with FaultTestbed(tmp_path) as testbed:
        runner, watchers = testbed.play(job("row-6"))
        testbed.redis.ask("CONFIG", "SET", "maxmemory", "1")
        held = testbed.last_id(runner.job)
        sleep(testbed.lease * 1.5)
        assert testbed.last_id(runner.job) <= held + 1
        assert len(testbed.history(runner.job)) == testbed.last_id(runner.job)
        testbed.redis.ask("CONFIG", "SET", "maxmemory", "0")
        healed = time.monotonic()
        testbed.more(watchers, 20)
        assert silence(watchers[0].seen, healed) <= RECOVERY_SECONDS
        finish(testbed, runner)

        verdict = testbed.verdict(runner.job)
        assert verdict.clean, verdict
        assert attempts(watchers[0]) == [1]
        assert [each.connections for each in watchers] == [1, 1]


@pytest.mark.long
def test_row_7_a_store_that_takes_longer_than_a_command_may(rough: FaultTestbed) -> None:
    """What was sent again after the time-out is there once; then a pause of writes."""
    runner, watchers = rough.play(job("row-7"), lease_seconds=12)
    with frozen(rough.redis):
        sleep(5.3)
    healed = time.monotonic()
    rough.more(watchers, 20)
    assert silence(watchers[0].seen, healed) <= RECOVERY_SECONDS
    rough.redis.ask("CLIENT", "PAUSE", 500, "WRITE")
    rough.more(watchers, 20)
    assert int(rough.redis.ask("INFO", "clients").split(b"connected_clients:")[1].split(b"\r")[0]) <= 12
    finish(rough, runner)

    verdict = rough.verdict(runner.job)
    assert verdict.clean, verdict
    assert attempts(watchers[0]) == [1]
    assert [each.connections for each in watchers] == [1, 1]


@pytest.mark.long
def test_row_7_a_store_that_stands_still_for_longer_than_a_lease(tmp_path: Path) -> None:
    """No runner could renew, so none is declared LOST when the store wakes, whoever asks it first."""
    with FaultTestbed(tmp_path) as testbed:
        runner, watchers = testbed.play(job("row-7-long"))
        with frozen(testbed.redis):
            sleep(testbed.lease * 1.5)
        aim = runner.begun
        wait_until(lambda: watchers[0].ending or watchers[0].highest > aim, 10, "the viewers go on")
        assert not watchers[0].ending
        finish(testbed, runner)

        verdict = testbed.verdict(runner.job)
        assert verdict.clean, verdict


@pytest.mark.long
def test_row_16_no_room_on_the_runners_disk(tmp_path: Path) -> None:
    """The job is not hurt; what was dropped is marked where it was, and the numbers are exact."""
    with small_disk(tmp_path / "disk") as disk, FaultTestbed(tmp_path / "stage", lease=20) as testbed:
        runner, watchers = testbed.play(job("row-16"), data_dir=disk, rate=20_000, padding=500, count=40_000)
        runner.proxy.refuse()
        runner.proxy.cut()
        wait_until(lambda: runner.begun > watchers[0].highest + 20_000, 20, "more was printed than there is room for")
        runner.proxy.heal()
        testbed.more(watchers, 100)
        finish(testbed, runner)

        verdict = testbed.verdict(runner.job)
        assert verdict.clean, verdict
        assert verdict.dropped > 0
        assert testbed.status(runner.job)["dropped"] == str(verdict.dropped)
        shown = [seen for seen in watchers[0].lines if not dropped(seen.message)]
        assert len(shown) + verdict.dropped == runner.begun


@pytest.mark.long
def test_row_17_no_room_on_the_stores_disk(tmp_path: Path) -> None:
    """For less than a lease: it refuses writes and renewals, reads go on, and nothing is lost."""
    with (
        small_disk(tmp_path / "disk") as disk,
        FaultTestbed(tmp_path / "stage", lease=8, redis_dir=str(disk)) as testbed,
    ):
        runner, watchers = testbed.play(job("row-17"), rate=500)
        filler = fill(disk)
        wait_until(lambda: "the store will not write" in runner.stderr_text, 10, "the store refuses")
        sleep(1)
        assert testbed.history(runner.job)
        filler.unlink()
        healed = time.monotonic()
        testbed.more(watchers, 20)
        assert silence(watchers[0].seen, healed) <= RECOVERY_SECONDS
        finish(testbed, runner)

        verdict = testbed.verdict(runner.job)
        assert verdict.clean, verdict
        assert [each.connections for each in watchers] == [1, 1]


def test_row_18_foreign_entries_of_every_kind(calm: FaultTestbed) -> None:
    """The tail lives: what can be shown is shown, what cannot is named, and other jobs do not notice."""
    other, others = calm.play(job("row-18-other"))
    odd = job("row-18")
    key = calm.key("log", odd)
    calm.redis.ask("XADD", key, "1-0", "message", "first")
    watchers = calm.watch(odd, 2)
    calm.seen(watchers, 1)
    calm.redis.ask("XADD", key, "2-0", "timestamp", "x", "message", b"\xff\xfe", "stream", "y", "more", "z")
    calm.redis.ask("XADD", key, "3-0", "nothing", "to see")
    calm.redis.ask("XADD", key, "4-0", "message", b"M" * 2_000_000)
    calm.redis.ask("XADD", key, "4-1", "message", "without a number of its own")
    calm.redis.ask("XADD", key, "5-0", "message", '{"a": NaN}')
    calm.seen(watchers, 5)
    calm.redis.ask("SET", calm.key("log", job("row-18-string")), "no stream")
    calm.redis.ask("XADD", key, "*", "message", "by the clock")
    wait_until(lambda: watchers[0].highest > 5, 10, "the last entry is shown")
    calm.more(others, 20)
    finish(calm, other)

    assert [seen.message[:20] for seen in watchers[0].lines] == [
        *("first", "\ufffd\ufffd", "M" * 20, '{"a": NaN}', "by the clock"),
    ]
    gaps = [(seen.number, seen.last, seen.message) for seen in watchers[0].seen if seen.kind == "gap"]
    assert gaps == [(3, 3, "malformed"), (6, watchers[0].highest - 1, "missing")]
    assert calm.verdict(other.job).clean


def test_row_18_a_foreign_entry_in_a_runners_log(calm: FaultTestbed) -> None:
    """The runner says that it is TAINTED and stops publishing; the entries before it and itself are shown."""
    runner, watchers = calm.play(job("row-18-tainted"))
    calm.redis.ask("XADD", calm.key("log", runner.job), "*", "message", "foreign")
    wait_until(lambda: "publishing stopped" in runner.stderr_text, 10, "the runner says so")
    wait_until(lambda: watchers[0].highest > 1_000_000, 10, "the foreign entry is shown")
    runner.end()
    assert runner.wait() == EXIT_CODE
    calm.over(runner.job)

    ours = max(seen.number for seen in watchers[0].lines[:-1])
    assert [seen.number for seen in watchers[0].lines[:-1]] == list(range(1, ours + 1))
    verdict = calm.verdict(runner.job, frozenset({"foreign"}), a=ours)
    assert verdict.clean, verdict
    assert calm.status(runner.job)["status"] == "LOST"


@pytest.mark.long
def test_row_19_two_runners_at_the_same_time(calm: FaultTestbed) -> None:
    """One has the job; the other starts nothing, says why, and exits with 75."""
    both = [calm.run(job("row-19"), writer) for writer in "ab"]
    watchers = calm.watch(job("row-19"), 2)
    calm.seen(watchers, 20)
    wait_until(lambda: any(each.process.poll() is not None for each in both), 20, "one of them gives way")
    winner, loser = sorted(both, key=lambda each: each.process.poll() is not None)
    finish(calm, winner)

    assert loser.wait() == 75
    assert (loser.begun, loser.shown) == (0, [])
    assert "another live runner" in loser.stderr_text
    verdict = calm.verdict(winner.job)
    assert verdict.clean, verdict
    assert loser.process.returncode != -signal.SIGKILL
