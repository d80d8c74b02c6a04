"""One run of a container in this process, step by step, with a real store."""

import contextlib
import gzip
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis

from chronoverse.client.service_connection import ServiceConnection
from chronoverse.collect import agent, container_log
from chronoverse.collect.checkpoints import Checkpoints
from chronoverse.collect.container_log import ContainerLog, RunKey, Surroundings
from chronoverse.collect.files import READ_BYTES
from chronoverse.collect.pods import ContainerEnd, Pod
from chronoverse.collect.watcher import PodWatcher
from chronoverse.errors import StoreUnavailable
from chronoverse.joblog.entries import read_entries
from chronoverse.joblog.model import MAX_NUMBER, Attempt, Gap, JobRef, Line, Status, iso_timestamp
from chronoverse.joblog.secret_forms import SecretForms
from chronoverse.settings import Settings
from chronoverse.store import Store
from chronoverse.store.durability import Durability
from tests.collect.node import SOON, ContainerWriter, cri_line, ended, pod, rotate, texts, with_state
from tests.support.secret_keys import GITHUB
from tests.support.servers import RedisServer
from tests.support.waiting import wait_until

JOB = JobRef("shop.one", "one.main")
KEY = RunKey("uid-one", "main", 0)
DONE = ContainerEnd(0, "Completed")
AT = 1_772_532_005  # 2026-03-03T10:00:05Z


class SlowStore(Store):
    """Accepts lines at once. They are safe when the test says so."""

    is_safe = True
    renewals = 0
    was_asked = threading.Event()

    def renew(self, attempt: Attempt) -> None:
        self.renewals += 1
        super().renew(attempt)

    def confirm(self, attempt: Attempt, may_sync: bool = False) -> int | None:
        self.was_asked.set()
        return super().confirm(attempt, may_sync) if self.is_safe else None


class Run:
    """The run, what writes its log, and what its agents share. It ends at once with the container."""

    def __init__(self, store: SlowStore, directory: Path) -> None:
        self.store, self._path = store, directory / "checkpoints.json"
        self.writer = ContainerWriter(directory, pod("one"))
        #: Messages of the agents; and errors that reading the log raises next.
        self.said: list[str] = []
        self.failures: list[Exception] = []
        checkpoints = Checkpoints(self._path, self.said.append)
        settings = Settings(data_dir=directory, lease_seconds=1)
        self.around = Surroundings(
            lambda: store, self._read_end, checkpoints, self.said.append, settings, SecretForms()
        )

    def _read_end(self, job: JobRef, count: int) -> tuple[str, Sequence[Line]]:
        if self.failures:
            raise self.failures.pop()
        entries = read_entries(self.store.page(job, before=MAX_NUMBER, count=count)[::-1], 0)
        return self.store.require_job(job).status, [each for each in entries if isinstance(each, Line)]

    @property
    def checkpoint(self) -> dict[str, Any]:
        return self.around.checkpoints[str(KEY)]

    def begin(self, started: str | None = None) -> ContainerLog:
        """Begins or resumes the run."""
        new: dict[str, Any] = {"job": JOB, "path": str(self.writer.path), "labels": {}, "started": started}
        return ContainerLog(KEY, self.around, new | self.around.checkpoints.get(str(KEY), {}), None)

    def step_until(self, log: ContainerLog, condition: Callable[[], object]) -> None:
        wait_until(lambda: (log.step(agent.MOST_BYTES), condition())[1], SOON, "a step brings this about")

    def publish(self, *lines: bytes) -> None:
        """An agent publishes these lines, and stops when they are safe."""
        log = self.begin()
        self.writer.write(*lines)
        number = log_length(self.store) + len(lines) + 1
        self.step_until(log, lambda: self.checkpoint.get("next", 0) >= number)
        self.stop(log)

    def stop(self, log: ContainerLog) -> None:
        """Stops, as an agent does, when the lines are delivered."""
        log.suspend()
        log.close(SOON)

    def finish(self, log: ContainerLog | None = None, end: ContainerEnd = DONE) -> None:
        """Reads the log to its end, and ends the job."""
        log = log or self.begin()
        log.end = end
        self.step_until(log, lambda: log.is_done)

    def kill(self, log: ContainerLog) -> None:
        """Abandons a run. What is not in the file of checkpoints is forgotten."""
        log.close(0.0)
        self.around.checkpoints.clear()
        self.around.checkpoints.update(Checkpoints(self._path, print))

    def log(self, ending: str = "") -> list[str | Gap]:
        """The texts and gaps of the job whose id has this ending."""
        page = self.store.page(JOB._replace(job_id=f"one.main{ending}"), count=1_000)
        entries = [each for each in read_entries(page, 0) if isinstance(each, Line | Gap)]
        return [each.message if isinstance(each, Line) else each for each in entries]


def log_length(store: Store) -> int:
    job = store.get_job(JOB)
    return job.last if job else 0


def printed(*messages: str) -> list[bytes]:
    return [cri_line(each) for each in messages]


@pytest.fixture
def store(server: RedisServer, prefix: str) -> Iterator[SlowStore]:
    slow = SlowStore(server.url, prefix=prefix, durability=Durability.FSYNCED, lease_seconds=600)
    with contextlib.closing(slow) as store:
        store.was_asked = threading.Event()
        yield store


@pytest.fixture
def run(store: SlowStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(container_log, "QUIET_SECONDS", 0.0)
    return Run(store, tmp_path)


def test_lines_after_the_containers_status_precede_the_end(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime writes the last lines while the kubelet reports the end."""
    monkeypatch.setattr(container_log, "QUIET_SECONDS", 2 * SOON)
    log = run.begin()
    run.writer.print("first")
    run.step_until(log, lambda: run.log() == ["first"])
    log.end = DONE
    for _ in range(10):
        log.step(agent.MOST_BYTES)
    run.writer.print("last")
    run.step_until(log, lambda: run.log() == ["first", "last"])
    monkeypatch.setattr(container_log, "QUIET_SECONDS", 0.0)
    run.step_until(log, lambda: log.is_done)
    assert run.store.require_job(JOB).status == Status.COMPLETED
    assert (log.lag_bytes, log.lag_seconds) == (0, 0)


def test_why_a_container_did_not_start_is_one_masked_line(run: Run) -> None:
    """An image's URL can contain a password. A container that has printed something did start."""
    end = ContainerEnd(128, "StartError", f"StartError: no\n {GITHUB}")
    run.finish(end=end)
    assert run.log() == ["StartError: no [masked]"]
    run.around.checkpoints.clear()
    run.writer.print("second")
    run.finish(end=end)
    assert run.log("-uid-one") == ["second"]


def test_a_checkpoint_counts_safe_lines_only(run: Run) -> None:
    """The store can lose acknowledged lines. Then they are read again."""
    run.store.is_safe = False
    log = run.begin()
    run.writer.print("line")
    run.step_until(log, run.store.was_asked.is_set)  # only for acknowledged lines
    for _ in range(10):
        log.step(agent.MOST_BYTES)
    assert run.checkpoint["next"] == 1
    assert (log.lag_bytes > 0, log.lag_seconds > 0) == (True, True)
    run.store.is_safe = True
    run.step_until(log, lambda: run.checkpoint["next"] == 2)
    log.close(0.0)


def test_a_killed_agent_continues_where_it_stopped(run: Run) -> None:
    """At once, although the killed one has the lease: its token was recorded before it opened the job."""
    log = run.begin()
    wait_until(lambda: run.store.get_job(JOB), SOON, "the job is open")
    run.kill(log)
    log = run.begin()
    run.writer.print(*texts(3))
    run.step_until(log, lambda: len(run.log()) == 3)
    run.kill(log)
    run.writer.print(*texts(5, 3))
    run.finish()
    assert run.log() == texts(5)


def test_the_lease_of_a_quiet_container_is_renewed(run: Run) -> None:
    """Three times in the time that is set for it."""
    log = run.begin()
    wait_until(lambda: run.store.renewals > 6, SOON, "the lease is renewed")
    log.close(0.0)


def test_a_file_whose_lines_are_safe_can_be_removed(run: Run) -> None:
    """An agent killed before it publishes the next file's first line misses nothing."""
    log = run.begin(iso_timestamp(time.time()))
    run.writer.print(*texts(3))
    run.step_until(log, lambda: run.checkpoint.get("next") == 4)
    rotate(run.writer)
    run.writer.print(*texts(4, 3))
    inode = run.writer.path.stat().st_ino
    # A step without room reads nothing.
    run.step_until(log, lambda: log.step(-1) or run.checkpoint["position"][0] == inode)
    run.kill(log)
    (rotated,) = run.writer.path.parent.glob("0.log.*")
    rotated.unlink()
    run.finish()
    assert run.log() == texts(4)


def test_lines_that_the_store_has_lost_are_published_again(run: Run, server: RedisServer, prefix: str) -> None:
    """It was restored from a backup, so the log ends before the checkpoint."""
    run.publish(*printed(*texts(3)))
    with redis.Redis.from_url(server.url) as client:
        backup = {key: client.dump(key) for key in client.scan_iter(f"{prefix}*")}
        run.publish(*printed(*texts(5, 3)))
        for key, value in backup.items():
            client.restore(key, 0, value, replace=True)
    run.finish()
    assert run.log() == texts(5)


@pytest.mark.parametrize(("step", "gaps"), [(1, [4]), (-100, [4, 5])], ids=["clock", "clock goes back"])
def test_times_tell_what_is_published_if_texts_have_changed(run: Run, step: int, gaps: list[int]) -> None:
    """As after a redaction. What lies between the files cannot be known."""
    run.publish(*(cri_line(text, at=AT) for text in texts(3)))
    rotate(run.writer, now=AT + 1)
    run.around.checkpoints.clear()
    (rotated,) = run.writer.path.parent.glob("0.log.*")
    rotated.write_bytes(rotated.read_bytes().replace(b"line 2", b"secret"))
    run.writer.write(cri_line("line 3", at=AT + step))
    run.finish()
    assert run.log() == [*texts(3), *(Gap(each, each, "missing") for each in gaps), "line 3"]


def test_a_redacted_line_is_still_found(run: Run) -> None:
    """An agent killed before its checkpoint neither skips a later line of the same time nor reports a gap."""
    run.publish(*(cri_line(text, at=AT) for text in texts(3)))
    run.around.checkpoints.clear()

    def read_redacted(job: JobRef, count: int) -> tuple[str, Sequence[Line]]:
        status, lines = run._read_end(job, count)
        return status, [each._replace(message="[redacted]") if each.sequence_num == 2 else each for each in lines]

    run.around = run.around._replace(read_end=read_redacted)
    run.writer.write(cri_line("line 3", at=AT))
    run.finish()
    assert run.log() == texts(4)


def test_an_unfinished_line_is_not_skipped_by_its_time(run: Run) -> None:
    """The agent was killed before its checkpoint; the next one masks the last published line, so does not find it."""
    log = run.begin()
    run.step_until(log, lambda: run.checkpoint.get("next") == 1)
    recorded = dict(run.checkpoint)
    run.writer.write(cri_line("begun, ", at=AT, tag="P"), cri_line("secret", "stderr", at=AT))
    run.step_until(log, lambda: run.log() == ["secret"])
    run.stop(log)
    run.around.checkpoints[str(KEY)] = recorded
    masked = Line(1, "2026-03-03T10:00:05.000Z", "***", "stderr")
    run.around = run.around._replace(read_end=lambda job, count: (run._read_end(job, count)[0], [masked]))
    log = run.begin()
    run.step_until(log, lambda: run.checkpoint["next"] != 1)
    run.writer.write(cri_line("ended", at=AT + 1))
    run.finish(log)
    assert run.log() == ["secret", Gap(2, 2, "missing"), "begun, ended"]


@pytest.mark.parametrize("rotations", [0, 2])
def test_an_agent_without_its_checkpoint_compares(run: Run, rotations: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Identical lines do not confuse it. If the log cannot be read, it retries."""
    monkeypatch.setattr(container_log, "RETRY_SECONDS", 0.01)
    blank = [cri_line("", at=time.time() + 60)] * 150
    log = run.begin(iso_timestamp(time.time()))
    run.writer.print(*texts(100))
    for number in range(rotations):
        rotate(run.writer, now=AT + number)
        run.writer.write(*blank)
    run.step_until(log, lambda: len(run.log()) == 100 + 150 * rotations)
    run.stop(log)
    run.around.checkpoints.clear()
    run.writer.write(*blank)
    run.writer.print(*texts(200, 100))
    run.failures.append(StoreUnavailable("away"))
    run.finish()
    assert run.log() == [*texts(100), *[""] * (150 * (rotations + 1)), *texts(200, 100)]
    assert sum("cannot compare its files with its log, retrying: away" in text for text in run.said) == 1


def test_a_gap_that_was_not_recorded_is_not_repeated(run: Run) -> None:
    """It has a number but no line. The agent was killed before its checkpoint."""
    run.writer.write(cri_line("early", at=AT))
    rotate(run.writer, now=AT + 1)
    run.writer.write(cri_line("last", at=AT + 2))
    log = run.begin("2026-03-03T10:00:00Z")
    run.step_until(log, lambda: run.checkpoint.get("next") == 4)
    run.stop(log)
    (first,) = run.writer.path.parent.glob("0.log.*")
    position = [first.stat().st_ino, first.read_bytes()[:64].hex(), 0, run.checkpoint["position"][3]]
    run.around.checkpoints[str(KEY)] |= {"next": 1, "position": position}
    run.writer.print("more")
    run.finish()
    assert run.log() == [Gap(1, 1, "missing"), "early", "last", "more"]


@pytest.mark.parametrize("is_last", [False, True])
def test_a_torn_line_belongs_to_the_gap(run: Run, is_last: bool) -> None:
    """The compressed file that ends within it was truncated. Without its checkpoint, an agent skips the gap, too."""
    whole = [os.urandom(500).hex() for _ in range(20)]
    content = gzip.compress(b"".join(cri_line(each, at=AT) for each in whole))
    run.writer.path.with_name("0.log.20260303-100005.gz").write_bytes(content[:-1_000])
    if is_last:
        run.writer.path.unlink()
    else:
        run.writer.write(cri_line("last", at=AT + 2))
    if not is_last:
        log = run.begin("2026-03-03T10:00:04Z")
        run.step_until(log, lambda: run.checkpoint.get("next", 0) > 10 and not log.lag_bytes)
        run.stop(log)
        run.around.checkpoints.clear()
        run.writer.write(cri_line("more", at=AT + 3))
    run.finish(run.begin("2026-03-03T10:00:04Z"))
    found, following = run.log(), [] if is_last else ["last", "more"]
    number = len(found) - len(following)
    assert found == [*whole[: number - 1], Gap(number, number, "missing"), *following]
    assert number > 10


@pytest.mark.parametrize(("tag", "stop"), [("F", None), ("P", None), ("F", -1)])
def test_an_ended_job_is_not_changed_again(run: Run, tag: str, stop: int | None) -> None:
    """The agent was killed before recording the end, which also ended an unfinished line."""
    run.writer.print(*texts(2))
    run.writer.write(cri_line("line 2", tag=tag)[:stop])
    run.finish()
    assert run.checkpoint["ended"]
    run.around.checkpoints.clear()
    run.finish()
    assert (run.log(), run.store.get_job(JOB._replace(job_id="one.main-uid-one"))) == (texts(3), None)
    assert not any("not published" in text for text in run.said)
    run.writer.write(b"\n" * bool(stop), cri_line("late", tag=tag)[:-1])
    run.around.checkpoints.clear()
    run.finish()
    assert tag == "P" or any("not published" in text for text in run.said)


@pytest.mark.parametrize("has_ended", [True, False])
def test_another_pod_of_the_same_name_has_its_own_job(run: Run, has_ended: bool) -> None:
    """Its id includes the pod's UID."""
    attempt = run.store.open(JOB, "0" * 32)
    run.store.append(attempt, [Line(1, "2026-03-03T10:00:05.000Z", "first", "stdout")])
    run.store.finish(attempt, Status.COMPLETED if has_ended else Status.PENDING, 0, 0, 2)
    run.writer.print("second")
    run.finish()
    assert (run.log(), run.log("-uid-one")) == (["first"], ["second"])


def test_a_long_id_is_cut_before_its_ending(run: Run) -> None:
    other = JOB._replace(job_id="j" * 128)
    run.store.register(other)
    run.store.end(other, Status.LOST, None)
    run.around.checkpoints[str(KEY)] = {"job": other}
    run.writer.print("first")
    run.finish()
    assert run.store.require_job(JOB._replace(job_id=f"{'j' * 120}-uid-one")).status == Status.COMPLETED


@pytest.mark.parametrize("printed_lines", [3, 5])
@pytest.mark.parametrize("is_recorded", [True, False])
def test_a_lost_job_is_continued_after_its_last_line(run: Run, printed_lines: int, is_recorded: bool) -> None:
    """Also if the agent was killed before it recorded that line, and if no line follows."""
    log = run.begin()
    run.step_until(log, lambda: run.checkpoint.get("next") == 1)
    recorded = dict(run.checkpoint)
    run.writer.print(*texts(3))
    run.step_until(log, lambda: len(run.log()) == 3 and (run.checkpoint["next"] == 4 or not is_recorded))
    run.stop(log)
    run.store.end(JOB, Status.LOST, None)
    if not is_recorded:
        run.around.checkpoints[str(KEY)] = recorded
    run.writer.print(*texts(printed_lines, 3))
    run.finish(end=ContainerEnd(3, "Error"))

    job = run.store.require_job(JOB._replace(job_id="one.main-from-4"))
    labels = {"continues": JOB.job_id, "reason": "Error"}
    assert (job.status, job.exit_code, dict(job.labels)) == (Status.FAILED, 3, labels)
    assert (run.log(), run.log("-from-4")) == (texts(3), texts(printed_lines, 3))


@pytest.mark.parametrize("lines", [0, 2])
def test_a_continued_job_that_was_lost_too_is_continued(run: Run, lines: int) -> None:
    """Its id ends with the first line's number in all of them. A job without lines counts as one line."""
    run.publish(*printed(*texts(3)))
    second = JOB._replace(job_id="one.main-from-4")
    run.store.end(JOB, Status.LOST, None)
    if lines:
        run.writer.print(*texts(5, 3))
        log = run.begin()
        run.step_until(log, lambda: run.log("-from-4") == texts(5, 3) and run.checkpoint["next"] == 3)
        run.stop(log)
    else:
        run.store.register(second)
    run.store.end(second, Status.LOST, None)
    run.writer.print(*texts(7, 3 + lines))
    run.finish()
    assert (run.log(), run.log(f"-from-{6 if lines else 5}")) == (texts(3), texts(7, 3 + lines))


@pytest.mark.parametrize("text", ["{", "[1]", '["ab"]', '"text"', "1", "null", '{"a":1}'])
def test_a_file_that_has_no_checkpoints_counts_as_missing(tmp_path: Path, text: str) -> None:
    (tmp_path / "checkpoints.json").write_text(text)
    assert Checkpoints(tmp_path / "checkpoints.json", print) == {}


def test_checkpoints_that_cannot_be_written_are_written_later(tmp_path: Path) -> None:
    """The earlier ones are kept until then. Unchanged ones are not written again."""
    path, said = tmp_path / "checkpoints.json", list[str]()
    checkpoints = Checkpoints(path, said.append)
    checkpoints["a"] = {"next": 1}
    checkpoints.write()
    checkpoints["a"] = {"next": 2}
    (tmp_path / "checkpoints.draft").mkdir()
    for _ in range(2):
        checkpoints.write()
    assert (Checkpoints(path, print), said) == (
        {"a": {"next": 1}},
        ["checkpoints cannot be written: Is a directory"] * 2,
    )
    (tmp_path / "checkpoints.draft").rmdir()
    checkpoints.write()
    assert Checkpoints(path, print) == {"a": {"next": 2}}
    path.unlink()
    checkpoints.write()
    assert not path.exists()


@pytest.mark.parametrize(("has_checkpoint", "is_lost"), [(True, False), (False, False), (True, True)])
def test_removed_lines_are_reported(run: Run, has_checkpoint: bool, is_lost: bool) -> None:
    """All files that the agent knew are gone when it returns. The next agent does not report them again."""
    run.publish(*printed(*texts(3)))
    for number in range(3):
        run.writer.print(f"unseen {number}")
        rotate(run.writer, max_files=2, now=AT + number)
    run.writer.print("last")
    if not has_checkpoint:
        run.around.checkpoints.clear()
    if is_lost:
        run.store.end(JOB, Status.LOST, None)
        log = run.begin()
        run.step_until(log, lambda: run.log("-from-4")[-1:] == ["last"] and run.checkpoint["next"] > 3)
        run.stop(log)
    run.finish()
    found = run.log() + (run.log("-from-4") if is_lost else [])
    number = 1 if is_lost else 4
    assert found == [*texts(3), Gap(number, number, "missing"), "unseen 2", "last"]


@pytest.mark.parametrize(
    ("started", "may_lack"), [("2026-03-03T10:00:03Z", True), ("2026-03-03T10:00:04Z", False), (None, True)]
)
def test_lines_that_may_be_removed_before_the_first_scan_are_reported(
    run: Run, started: str | None, may_lack: bool
) -> None:
    """A rotated log whose first line is two seconds later than its container's start may have lost lines."""
    run.writer.write(cri_line("early", at=AT))
    rotate(run.writer, now=AT + 1)
    run.writer.write(cri_line("last", at=AT + 2))
    run.finish(run.begin(started))
    assert run.log() == [*[Gap(1, 1, "missing")] * may_lack, "early", "last"]


@pytest.fixture
def collecting(run: Run, tmp_path: Path) -> Iterator[agent.Agent]:
    """An agent that cannot reach the API server."""
    connection = ServiceConnection("http://127.0.0.1:1", None, ca_file=None, connect_seconds=1, read_seconds=1)
    with contextlib.closing(connection):
        watcher = PodWatcher(connection, "node-1", None, print)
        yield agent.Agent(tmp_path, watcher, run.around, threading.Event())


@contextlib.contextmanager
def running(collecting: agent.Agent) -> Iterator[None]:
    thread = threading.Thread(target=collecting.run, args=(0.0,))
    thread.start()
    try:
        yield
    finally:
        collecting.stop.set()
        thread.join()


def wait_for_turns(collecting: agent.Agent, count: int) -> None:
    turns = {collecting.turned_at}

    def have_passed() -> bool:
        turns.add(collecting.turned_at)
        return len(turns) > count

    wait_until(have_passed, SOON, f"{count} turns")


def test_what_is_delivered_at_the_end_is_in_the_checkpoints(
    collecting: agent.Agent, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, delivered = ContainerLog.close, {str(KEY): {"next": 7}}

    def close(log: ContainerLog, seconds: float) -> None:
        stop(log, seconds)
        run.around.checkpoints.update(delivered)

    run.publish(*printed(*texts(1)))
    monkeypatch.setattr(ContainerLog, "close", close)
    collecting.stop.set()
    collecting.run(0.0)
    assert Checkpoints(run._path, print) == delivered


def test_a_pod_that_is_gone_when_the_agent_returns_is_lost(collecting: agent.Agent, run: Run) -> None:
    """Nobody knows what it printed meanwhile. Records are kept until the pods are known.

    Otherwise, an agent that starts during an outage of the API server would compare every ended log.
    """
    run.publish(*printed(*texts(3)))
    shutil.rmtree(run.writer.path.parents[1])
    other = str(KEY._replace(uid="uid-other"))
    run.around.checkpoints[other] = {"ended": True}
    with running(collecting):
        wait_for_turns(collecting, 2)
        assert run.around.checkpoints.keys() == {str(KEY), other}
        collecting.watcher.is_synced = True
        wait_until(lambda: not run.around.checkpoints, SOON, "the records are dropped")
    assert run.store.require_job(JOB).status == Status.LOST
    assert run.log() == [*texts(3), Gap(4, 4, "missing")]


def test_a_container_that_does_not_start_is_reported_after_half_a_minute(collecting: agent.Agent, run: Run) -> None:
    """At once if its pod has ended, later if it seemed to start meanwhile, and never if it has run."""
    shutil.rmtree(run.writer.path.parents[1])
    waiting = {"reason": "ImagePullBackOff"}
    stuck, starting = Pod(with_state(pod("one"), waiting=waiting)), Pod(pod("one"))
    steps = [
        (stuck, 0.0, 0),
        (stuck, 29.9, 0),
        (starting, 30.0, 0),
        (stuck, 31.0, 0),
        (stuck, 60.9, 0),
        (stuck, 61.0, 1),
    ]
    for found, at, count in steps:
        collecting._look_at(found, at)
        assert len(collecting.active()) == count, at
    collecting._look_at(
        Pod(with_state(pod("two", phase="Failed"), waiting=waiting) | {"status": {"phase": "Failed"}}), 0
    )
    assert len(collecting.active()) == 2
    collecting._look_at(Pod(ended(pod("three"), 3)), 0)
    assert len(collecting.active()) == 2
    for log in collecting.active():
        log.close(0.0)


def test_an_ended_log_is_not_begun_again(collecting: agent.Agent, run: Run) -> None:
    """Though its file or its pod are still there, even if the pod has failed since."""
    run.writer.print("first")
    collecting._logs[KEY] = None
    failed = with_state(pod("one"), waiting={"reason": "ImagePullBackOff"}) | {"status": {"phase": "Failed"}}
    collecting._look_at(Pod(failed), 0.0)
    run.writer.path.unlink()
    collecting._look_at(Pod(failed), 0.0)
    assert collecting._logs == {KEY: None}


def test_the_logs_with_the_longest_lag_are_shown_unless_the_agent_hangs(collecting: agent.Agent) -> None:
    for size in range(501):
        log: Any = SimpleNamespace(lag_bytes=size, lag_seconds=size / 2, labels={"pod": "one"}.items())
        collecting._logs[KEY._replace(uid=str(size))] = log
    found = {each.name: [sample.value for sample in each.samples] for each in collecting.collect()}
    assert found == {
        "chronoverse_collect_lag_bytes": [*range(500, 0, -1)],
        "chronoverse_collect_lag_seconds": [size / 2 for size in range(500, 0, -1)],
    }
    collecting.turned_at -= 31
    with pytest.raises(RuntimeError):
        collecting.collect()


def test_all_logs_share_a_bound(
    run: Run, collecting: agent.Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond what each can always have in flight."""
    monkeypatch.setattr(agent, "TOTAL_BYTES", 1_048_576)
    run.store.is_safe = False
    for name in ("one", "two"):
        ContainerWriter(tmp_path, pod(name)).write(*[cri_line("x" * 1_000)] * 4_000)
        collecting.watcher.pods[f"uid-{name}"] = Pod(pod(name))

    def cost() -> int:
        return sum(log.cost for log in collecting.active())

    with running(collecting):
        wait_until(lambda: cost() >= agent.TOTAL_BYTES, SOON, "the bound is reached")
        wait_for_turns(collecting, 10)
        assert cost() <= agent.TOTAL_BYTES + 2 * (agent.LEAST_BYTES + 2 * READ_BYTES)
