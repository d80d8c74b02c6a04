"""Lines that a runner could not deliver: it saves them to a file, and prints the command that delivers it later."""

import contextlib
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from chronoverse.errors import Closed
from chronoverse.joblog.entries import read_entries
from chronoverse.joblog.line_splitter import LineBatch
from chronoverse.joblog.model import End, Gap, JobRef, Line, Status
from chronoverse.runner.api import JobLog
from chronoverse.runner.publisher import Publisher
from chronoverse.runner.resend import resend_spool
from chronoverse.runner.spool.spool import Spool
from chronoverse.runner.spool.spool_file import SpoolRoom, orphaned_spools
from chronoverse.store import Store
from tests.support.jobs import JOB, RunningJob, key, outcome, read_end, read_lines, read_log
from tests.support.servers import RedisServer
from tests.support.waiting import wait_until

#: Time limit of prompt events on a busy machine, in seconds.
SOON = 30.0

NUMBERS = "def say(first, last):\n    for number in range(first, last): print(number)\n    sys.stdout.flush()\n"


@pytest.fixture
def room(tmp_path: Path) -> SpoolRoom:
    """Capacity of a spool that can have a file."""
    return SpoolRoom(tmp_path / "spool", "job_1")


def numbers(stop: int) -> list[str]:
    return [str(number) for number in range(stop)]


def left_file(room: SpoolRoom) -> Path:
    """The only file that runners have left."""
    assert room.directory is not None
    (path,) = orphaned_spools(room.directory)
    return path


def leave_spool(server: RedisServer, store: Store, tmp_path: Path, room: SpoolRoom) -> Path:
    """The spool file of a job with 3,000 lines that failed with 9. The server was killed after the first ten.

    Those are in the stream, but the runner possibly does not know that they are durable.
    """
    code = NUMBERS + "say(0, 10); wait(); say(10, 3000); sys.exit(9)"
    with RunningJob(code, store, tmp_path, room=room, deliver_seconds=0.3) as job:
        wait_until(lambda: server.ask("XLEN", key("log")) == 10, SOON, "ten lines in the stream")
        server.kill()
        job.release()
        assert job.result() == 9
    path = left_file(room)
    acked = orphaned_spools(path.parent)[path]["acked"]
    assert 0 <= acked <= 10
    said = f"chronoverse: {3_000 - acked} lines were not delivered to the store\n"
    assert job.stderr_text.endswith(f"{said}chronoverse: deliver later: chronoverse deliver {path}\n")
    return path


@pytest.mark.parametrize("is_expired", [False, True], ids=["same attempt", "next attempt"])
def test_a_spool_file_is_delivered_later(
    is_expired: bool, server: RedisServer, store: Store, tmp_path: Path, room: SpoolRoom
) -> None:
    """While the store is unavailable, the file stays. Then every line is delivered, and the command's outcome."""
    path = leave_spool(server, store, tmp_path, room)
    said: list[str] = []
    for _ in range(2):  # the count is the runner's, each time
        left = 3_000 - next(iter(orphaned_spools(path.parent).values()))["acked"]
        assert not resend_spool(path, lambda _: store, said.append, seconds=0.3)
        assert said[-2:] == [
            f"{left} lines were not delivered to the store",
            f"deliver later: chronoverse deliver {path}",
        ]
    server.start()
    if is_expired:
        server.ask("DEL", key("lease"))
    assert resend_spool(path, lambda _: store, said.append)
    assert read_lines(server) == numbers(3000)
    assert (outcome(server), read_end(server)["lines"]) == (("FAILED", "9"), "3000")
    assert not path.exists()
    assert said[-1] == f"3000 lines of wf_1/job_1 are in the store; removed {path}"
    assert server.ask("HGET", key("job"), "attempt") == (b"2" if is_expired else b"1")


def leave_attempt(server: RedisServer, room: SpoolRoom) -> Path:
    """The file of an attempt that will be followed by another one. The server is down."""
    server.kill()
    options: dict[str, Any] = {"open_seconds": 0.1, "deliver_seconds": 0.1, "room": room, "say": lambda text: None}
    with contextlib.closing(Store(server.url)) as store:
        log = JobLog.open(store, *JOB, labels={"branch": "main"}, **options)
        log.write("stdout", "first")
        assert not log.finish("PENDING", None)
    server.start()
    return left_file(room)


def test_an_attempt_is_delivered_before_the_next_one(server: RedisServer, store: Store, room: SpoolRoom) -> None:
    """The job then waits for its next attempt."""
    path = leave_attempt(server, room)
    assert resend_spool(path, lambda _: store, print)
    with JobLog.open(store, *JOB) as log:
        log.write("stdout", "second")
    assert (read_lines(server), path.exists()) == (["first", "second"], False)


def test_an_attempt_after_the_jobs_end_gets_its_own_log(server: RedisServer, store: Store, room: SpoolRoom) -> None:
    """There the job has its labels, and is FAILED, since no attempt will follow."""
    path = leave_attempt(server, room)
    JobLog.open(store, *JOB).finish()
    with pytest.raises(Closed, match="has ended without"):
        resend_spool(path, lambda _: store, print)
    assert resend_spool(path, lambda _: store, print, retry=True)
    job = JobRef("wf_1", "job_1.2")
    assert (read_lines(server, job), outcome(server, job)) == (["first"], ("FAILED", None))
    assert server.ask("HGET", key("job", job), "label:branch") == b"main"


@pytest.mark.parametrize("is_away", [False, True])
def test_a_killed_runner_had_sent_more_than_its_file_contains(
    store: Store, tmp_path: Path, room: SpoolRoom, is_away: bool
) -> None:
    """Its newest lines were only in memory and in the store. The job's next runner continues after them.

    So do that runner's lines if the store was away until it ended, and they are delivered later.
    """
    spool = Spool(room)
    publisher = Publisher(lambda: store, JOB, spool, print, lease_seconds=3)
    publisher.start(SOON)
    for text, spills in (("in the file", True), ("in memory", False)):
        spool.force_spill(spills)
        spool.put(LineBatch("stdout", "2026-03-03T10:00:05.123Z", text.encode(), 1))
        wait_until(lambda: spool.acked == spool.end, SOON, "it is in the store")
    assert spool.path is not None
    left = tmp_path / "left" / spool.path.name
    left.parent.mkdir()
    shutil.copy(spool.path, left)
    publisher.stop()
    assert publisher.join(SOON)
    at, room = Store("redis://127.0.0.1:1") if is_away else store, SpoolRoom(left.parent, room.name)
    seconds = 0.1 if is_away else SOON
    with RunningJob("print('of the next runner')", at, tmp_path, room=room, deliver_seconds=seconds) as job:
        assert job.result() == 0
    assert "publishing stopped" not in job.stderr_text
    if is_away:
        assert resend_spool(left, lambda _: store, print)
    assert [entry[1][3] for entry in store.read(JOB, 0, 3)] == [b"in the file", b"in memory", b"of the next runner"]


DRIVER = """
import sys
from pathlib import Path
from chronoverse.joblog.model import JobRef
from chronoverse.runner.run import run
from chronoverse.runner.spool.spool_file import SpoolRoom
from chronoverse.store import Store
room = SpoolRoom(Path(sys.argv[2]), "job_1")
sys.exit(run(sys.argv[3:], Store(sys.argv[1]), JobRef("wf_1", "job_1"), room=room))
"""


def kill_runner(server: RedisServer, room: SpoolRoom) -> Path:
    """The file of a runner that was killed during an outage, after its job had printed 3,000 lines."""
    code = "import sys, time\nfor i in range(3000): print(i)\nsys.stdout.flush(); time.sleep(0.2); print('printed', "
    code += "file=sys.stderr, flush=True)\nsys.stdin.read()"
    command = [sys.executable, "-c", DRIVER, server.url, str(room.directory), sys.executable, "-c", code]
    server.kill()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as runner:
        assert runner.stderr is not None
        while b"printed" not in (line := runner.stderr.readline()):
            assert line, "the runner is gone"
        runner.kill()
    server.start()
    return left_file(room)


def test_a_killed_runner_keeps_its_lines(server: RedisServer, store: Store, tmp_path: Path, room: SpoolRoom) -> None:
    """Nobody knows how the job ended, so it is LOST, even if the file begins with an earlier command's outcome."""
    leave_spool(server, store, tmp_path, room)
    server.start()
    path = kill_runner(server, room)
    assert resend_spool(path, lambda _: store, print)
    lines = [line["message"] for line in read_log(server)[0] if line["stream"] == "stdout"]
    assert (lines, outcome(server)) == ([*numbers(3000), *numbers(3000)], ("LOST", None))


def test_a_later_runner_of_the_job_delivers_the_lines(
    server: RedisServer, store: Store, tmp_path: Path, room: SpoolRoom
) -> None:
    """Its own lines follow."""
    path = kill_runner(server, room)
    with RunningJob("print('again')", store, tmp_path, room=room) as job:
        assert job.result() == 0
    lines = [line["message"] for line in read_log(server)[0] if line["stream"] == "stdout"]
    assert (lines, outcome(server)) == ([*numbers(3000), "again"], ("COMPLETED", "0"))
    assert re.search("first delivering 300[01] lines of an earlier runner of this job", job.stderr_text)
    assert not path.exists()


def test_lines_dropped_before_the_job_was_opened_are_reported(
    server: RedisServer, store: Store, tmp_path: Path
) -> None:
    """The store was down from the start, and the runner was killed. The numbers begin with the lost ones."""
    spool = Spool(SpoolRoom(tmp_path, "job_1", 10_000, 200_000, 0))
    spool.save_state(workflow=JOB.workflow_id, job=JOB.job_id, token="a" * 32)
    for number in range(1, 3_001):
        spool.put(LineBatch("stdout", "2026-03-03T10:00:05.123Z", b"%d" % number, 1))
    path = spool.preserve()
    assert path is not None
    said: list[str] = []
    assert resend_spool(path, lambda _: store, said.append)
    assert f"{spool.dropped} lines were dropped: the spool was full" in said
    gap, *lines, end = read_entries(server.ask("XRANGE", key("log"), "-", "+"), 0)
    assert gap == Gap(1, spool.dropped, "lost")
    assert isinstance(end, End)
    assert (end.status, end.lines, end.dropped) == (Status.LOST, 3_000, spool.dropped)
    assert [line.message for line in lines if isinstance(line, Line)] == [
        str(number) for number in range(spool.dropped + 1, 3_001)
    ]
