"""One run of a container in this process, step by step, with a real store."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
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
from chronoverse.joblog.entries import read_entries
from chronoverse.joblog.model import MAX_NUMBER, Attempt, Gap, JobRef, Line, Status, iso_timestamp
from chronoverse.joblog.secret_forms import SecretForms
from chronoverse.settings import Settings
from chronoverse.store import Store
from chronoverse.store.durability import Durability
from tests.collect.node import SOON, ContainerWriter, cri_line, pod, rotate, texts
from tests.support.secret_keys import GITHUB
from tests.support.servers import RedisServer
from tests.support.waiting import wait_until

JOB = JobRef("shop.one", "one.main")
KEY = RunKey("uid-one", "main", 0)
DONE = ContainerEnd(0, "Completed")


class SlowStore(Store):
    """Accepts lines at once. They are safe when the test says so."""

    is_safe = True
    was_asked = threading.Event()

    def confirm(self, attempt: Attempt, may_sync: bool = False) -> int | None:
        self.was_asked.set()
        return super().confirm(attempt, may_sync) if self.is_safe else None


def log_of(store: Store, job: JobRef = JOB) -> list[str | Gap]:
    entries = [each for each in read_entries(store.page(job, count=1_000), 0) if isinstance(each, Line | Gap)]
    return [each.message if isinstance(each, Line) else each for each in entries]


@pytest.fixture
def store(server: RedisServer, prefix: str) -> Iterator[SlowStore]:
    with contextlib.closing(
        SlowStore(server.url, prefix=prefix, durability=Durability.FSYNCED, lease_seconds=600)
    ) as store:
        store.was_asked = threading.Event()
        yield store


@pytest.fixture
def around(store: SlowStore, tmp_path: Path) -> Surroundings:
    def read_end(job: JobRef, count: int) -> tuple[str, Sequence[Line]]:
        entries = read_entries(store.page(job, before=MAX_NUMBER, count=count)[::-1], 0)
        return store.require_job(job).status, [each for each in entries if isinstance(each, Line)]

    checkpoints = Checkpoints(tmp_path / "checkpoints.json", print)
    return Surroundings(lambda: store, read_end, checkpoints, print, Settings(data_dir=tmp_path), SecretForms())


@pytest.fixture
def writer(tmp_path: Path) -> ContainerWriter:
    return ContainerWriter(tmp_path, pod("one"))


Begin = Callable[..., ContainerLog]


@pytest.fixture
def begin(around: Surroundings, writer: ContainerWriter, monkeypatch: pytest.MonkeyPatch) -> Begin:
    """Begins or resumes the run, which ends at once with the container."""
    monkeypatch.setattr(container_log, "QUIET_SECONDS", 0.0)

    def begin(started: str | None = None) -> ContainerLog:
        new: dict[str, Any] = {"job": JOB, "path": str(writer.path), "labels": {}, "started": started}
        return ContainerLog(KEY, around, new | around.checkpoints.get(str(KEY), {}), None)

    return begin


def step_until(log: ContainerLog, condition: Callable[[], object]) -> None:
    wait_until(lambda: (log.step(agent.MOST_BYTES), condition())[1], SOON, "a step brings this about")


def finish(log: ContainerLog, end: ContainerEnd) -> None:
    log.end = end
    step_until(log, lambda: log.is_done)


def stop(log: ContainerLog) -> None:
    log.suspend()
    log.close(SOON)


@pytest.fixture
def kill(around: Surroundings, tmp_path: Path) -> Callable[[ContainerLog], None]:
    """Abandons a run. What is not in the file of checkpoints is forgotten."""

    def kill(log: ContainerLog) -> None:
        log.close(0.0)
        around.checkpoints.clear()
        around.checkpoints.update(Checkpoints(tmp_path / "checkpoints.json", print))

    return kill


def next_number(around: Surroundings) -> int | None:
    return around.checkpoints[str(KEY)].get("next")


def test_lines_after_the_containers_status_precede_the_end(
    store: SlowStore, begin: Begin, writer: ContainerWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A runtime writes the last lines while the kubelet reports the end."""
    monkeypatch.setattr(container_log, "QUIET_SECONDS", 2 * SOON)
    log = begin()
    writer.print("first")
    step_until(log, lambda: log_of(store) == ["first"])
    log.end = DONE
    for _ in range(10):
        log.step(agent.MOST_BYTES)
    writer.print("last")
    step_until(log, lambda: log_of(store) == ["first", "last"])
    monkeypatch.setattr(container_log, "QUIET_SECONDS", 0.0)
    step_until(log, lambda: log.is_done)

    assert store.require_job(JOB).status == Status.COMPLETED


def test_why_a_container_did_not_start_is_one_masked_line(store: SlowStore, begin: Begin) -> None:
    """An image's URL can contain a password."""
    finish(begin(), ContainerEnd(128, "StartError", f"StartError: no\n {GITHUB}"))

    assert log_of(store) == ["StartError: no [masked]"]


def test_a_checkpoint_counts_safe_lines_only(
    store: SlowStore, around: Surroundings, begin: Begin, writer: ContainerWriter
) -> None:
    """The store can lose acknowledged lines. Then they are read again."""
    store.is_safe = False
    log = begin()
    writer.print(*texts(3))
    step_until(log, store.was_asked.is_set)  # only for acknowledged lines
    for _ in range(10):
        log.step(agent.MOST_BYTES)
    assert next_number(around) == 1
    store.is_safe = True
    step_until(log, lambda: next_number(around) == 4)
    stop(log)


def test_a_killed_agent_continues_where_it_stopped(
    store: SlowStore, begin: Begin, kill: Callable[[ContainerLog], None], writer: ContainerWriter
) -> None:
    """At once, although the killed one has the lease: its token was recorded before it opened the job."""
    log = begin()
    wait_until(lambda: store.get_job(JOB), SOON, "the job is open")
    kill(log)
    log = begin()
    writer.print(*texts(3))
    step_until(log, lambda: len(log_of(store)) == 3)
    kill(log)
    writer.print(*texts(5, 3))
    finish(begin(), DONE)

    assert log_of(store) == texts(5)


def test_a_file_whose_lines_are_safe_can_be_removed(
    store: SlowStore,
    around: Surroundings,
    begin: Begin,
    kill: Callable[[ContainerLog], None],
    writer: ContainerWriter,
) -> None:
    """An agent killed before it publishes the next file's first line misses nothing."""
    log = begin(iso_timestamp(time.time()))
    writer.print(*texts(3))
    step_until(log, lambda: next_number(around) == 4)
    rotate(writer)
    writer.print(*texts(4, 3))
    inode = writer.path.stat().st_ino
    # A step without room reads nothing.
    step_until(log, lambda: log.step(-1) or around.checkpoints[str(KEY)]["position"][0] == inode)
    kill(log)
    (rotated,) = writer.path.parent.glob("0.log.*")
    rotated.unlink()
    finish(begin(), DONE)

    assert log_of(store) == texts(4)


def test_lines_that_the_store_has_lost_are_published_again(
    store: SlowStore, server: RedisServer, prefix: str, around: Surroundings, begin: Begin, writer: ContainerWriter
) -> None:
    """It was restored from a backup, so the log ends before the checkpoint."""
    log = begin()
    writer.print(*texts(3))
    step_until(log, lambda: next_number(around) == 4)
    stop(log)
    with redis.Redis.from_url(server.url) as client:
        backup = {key: client.dump(key) for key in client.scan_iter(f"{prefix}*")}
        writer.print(*texts(5, 3))
        log = begin()
        step_until(log, lambda: next_number(around) == 6)
        stop(log)
        for key, value in backup.items():
            client.restore(key, 0, value, replace=True)
    finish(begin(), DONE)

    assert log_of(store) == texts(5)


@pytest.mark.parametrize(("step", "gaps"), [(1, [4]), (-100, [4, 5])], ids=["clock", "clock goes back"])
def test_times_tell_what_is_published_if_texts_have_changed(
    store: SlowStore, around: Surroundings, begin: Begin, writer: ContainerWriter, step: int, gaps: list[int]
) -> None:
    """As after a redaction. What lies between the files cannot be known."""
    at = 1_772_532_005
    writer.write(*(cri_line(text, at=at) for text in texts(3)))
    log = begin()
    step_until(log, lambda: next_number(around) == 4)
    stop(log)
    rotate(writer, now=at + 1)
    around.checkpoints.clear()
    (rotated,) = writer.path.parent.glob("0.log.*")
    rotated.write_bytes(rotated.read_bytes().replace(b"line 2", b"secret"))
    writer.write(cri_line("line 3", at=at + step))
    finish(begin(), DONE)

    assert log_of(store) == [*texts(3), *(Gap(each, each, "missing") for each in gaps), "line 3"]


@pytest.mark.parametrize("rotations", [0, 2])
def test_an_agent_without_its_checkpoint_compares(
    store: SlowStore, around: Surroundings, begin: Begin, writer: ContainerWriter, rotations: int
) -> None:
    """Identical lines do not confuse it."""
    blank = [cri_line("", at=time.time() + 60)] * 150
    log = begin(iso_timestamp(time.time()))
    writer.print(*texts(100))
    for number in range(rotations):
        rotate(writer, now=1_772_532_005 + number)
        writer.write(*blank)
    step_until(log, lambda: len(log_of(store)) == 100 + 150 * rotations)
    stop(log)
    around.checkpoints.clear()
    writer.write(*blank)
    writer.print(*texts(200, 100))
    finish(begin(), DONE)

    assert log_of(store) == [*texts(100), *[""] * (150 * (rotations + 1)), *texts(200, 100)]


def test_an_ended_job_is_not_changed_again(
    store: SlowStore, around: Surroundings, begin: Begin, writer: ContainerWriter
) -> None:
    """The agent was killed before recording the end."""
    writer.print(*texts(3))
    finish(begin(), DONE)
    around.checkpoints.clear()
    finish(begin(), DONE)

    assert log_of(store) == texts(3)
    assert store.get_job(JOB._replace(job_id="one.main-uid-one")) is None


@pytest.mark.parametrize("has_ended", [True, False])
def test_another_pod_of_the_same_name_has_its_own_job(
    store: SlowStore, around: Surroundings, begin: Begin, writer: ContainerWriter, has_ended: bool
) -> None:
    """Its id includes the pod's UID."""
    attempt = store.open(JOB, "0" * 32)
    store.append(attempt, [Line(1, "2026-03-03T10:00:05.000Z", "first", "stdout")])
    store.finish(attempt, Status.COMPLETED if has_ended else Status.PENDING, 0, 0, 2)
    writer.print("second")
    finish(begin(), DONE)

    assert (log_of(store), log_of(store, JOB._replace(job_id="one.main-uid-one"))) == (["first"], ["second"])


@pytest.mark.parametrize("printed", [3, 5])
@pytest.mark.parametrize("is_recorded", [True, False])
def test_a_lost_job_is_continued_after_its_last_line(
    store: SlowStore, around: Surroundings, begin: Begin, writer: ContainerWriter, printed: int, is_recorded: bool
) -> None:
    """Also if the agent was killed before it recorded that line, and if no line follows."""
    log = begin()
    step_until(log, lambda: next_number(around) == 1)
    recorded = dict(around.checkpoints[str(KEY)])
    writer.print(*texts(3))
    step_until(log, lambda: len(log_of(store)) == 3 and (next_number(around) == 4 or not is_recorded))
    stop(log)
    store.end(JOB, Status.LOST, None)
    if not is_recorded:
        around.checkpoints[str(KEY)] = recorded
    writer.print(*texts(printed, 3))
    finish(begin(), ContainerEnd(3, "Error"))

    other = JOB._replace(job_id="one.main-from-4")
    job = store.require_job(other)
    labels = {"continues": JOB.job_id, "reason": "Error"}
    assert (job.status, job.exit_code, dict(job.labels)) == (Status.FAILED, 3, labels)
    assert (log_of(store), log_of(store, other)) == (texts(3), texts(printed, 3))


def test_a_job_lost_before_its_first_line_is_continued(
    store: SlowStore, around: Surroundings, begin: Begin, writer: ContainerWriter
) -> None:
    """The agent that continued another job was killed after opening this one."""
    log = begin()
    writer.print(*texts(3))
    step_until(log, lambda: next_number(around) == 4)
    stop(log)
    empty = JOB._replace(job_id="one.main-from-4")
    store.register(empty)
    for job in (JOB, empty):
        store.end(job, Status.LOST, None)
    writer.print(*texts(5, 3))
    finish(begin(), DONE)

    assert (log_of(store), log_of(store, JOB._replace(job_id="one.main-from-5"))) == (texts(3), texts(5, 3))


@pytest.mark.parametrize("text", ["{", "[1]", '["ab"]', '"text"', "1", "null", '{"a":1}'])
def test_a_file_that_has_no_checkpoints_counts_as_missing(tmp_path: Path, text: str) -> None:
    (tmp_path / "checkpoints.json").write_text(text)
    assert Checkpoints(tmp_path / "checkpoints.json", print) == {}


@pytest.mark.parametrize(("has_checkpoint", "is_lost"), [(True, False), (False, False), (True, True)])
def test_removed_lines_are_reported(
    store: SlowStore, around: Surroundings, begin: Begin, writer: ContainerWriter, has_checkpoint: bool, is_lost: bool
) -> None:
    """All files that the agent knew are gone when it returns."""
    log = begin()
    writer.print(*texts(3))
    step_until(log, lambda: next_number(around) == 4)
    stop(log)
    for number in range(3):
        writer.print(f"unseen {number}")
        rotate(writer, max_files=2, now=1_772_532_005 + number)
    writer.print("last")
    if not has_checkpoint:
        around.checkpoints.clear()
    if is_lost:
        store.end(JOB, Status.LOST, None)
    finish(begin(), DONE)

    found = log_of(store) + (log_of(store, JOB._replace(job_id="one.main-from-4")) if is_lost else [])
    assert found == [*texts(3), Gap(1, 1, "missing") if is_lost else Gap(4, 4, "missing"), "unseen 2", "last"]


@pytest.mark.parametrize("started", ["2026-03-03T10:00:02Z", None])
def test_lines_that_may_be_removed_before_the_first_scan_are_reported(
    store: SlowStore, begin: Begin, writer: ContainerWriter, started: str | None
) -> None:
    """A rotated log whose first line is later than its container's start may have lost lines."""
    writer.write(cri_line("early", at=1_772_532_005.0))
    rotate(writer, now=1_772_532_006)
    writer.write(cri_line("last", at=1_772_532_007.0))
    finish(begin(started), DONE)

    assert log_of(store) == [Gap(1, 1, "missing"), "early", "last"]


@pytest.fixture
def collecting(around: Surroundings, tmp_path: Path) -> Iterator[agent.Agent]:
    """An agent that cannot reach the API server."""
    connection = ServiceConnection("http://127.0.0.1:1", None, ca_file=None, connect_seconds=1, read_seconds=1)
    with contextlib.closing(connection):
        watcher = PodWatcher(connection, "node-1", None, print)
        yield agent.Agent(tmp_path, watcher, around, threading.Event())


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


def test_records_are_kept_until_the_pods_are_known(collecting: agent.Agent, around: Surroundings) -> None:
    """Otherwise, an agent that starts during an outage of the API server would compare every ended log."""
    around.checkpoints[str(KEY)] = {"ended": True}
    with running(collecting):
        wait_for_turns(collecting, 2)
        assert str(KEY) in around.checkpoints
        collecting.watcher.is_synced = True
        wait_until(lambda: str(KEY) not in around.checkpoints, SOON, "the record is dropped")


def test_all_logs_share_a_bound(
    store: SlowStore, collecting: agent.Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond what each can always have in flight."""
    monkeypatch.setattr(agent, "TOTAL_BYTES", 1_048_576)
    store.is_safe = False
    for name in ("one", "two"):
        ContainerWriter(tmp_path, pod(name)).write(*[cri_line("x" * 1_000)] * 4_000)
        collecting.watcher.pods[f"uid-{name}"] = Pod(pod(name))

    def cost() -> int:
        return sum(log.cost for log in collecting.active())

    with running(collecting):
        wait_until(lambda: cost() >= agent.TOTAL_BYTES, SOON, "the bound is reached")
        wait_for_turns(collecting, 10)
        assert cost() <= agent.TOTAL_BYTES + 2 * (agent.LEAST_BYTES + 2 * READ_BYTES)
