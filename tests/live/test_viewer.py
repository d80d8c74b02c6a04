"""A viewer on a clock that the tests move: first frames, replay, live lines, and every way in which a stream ends."""

import math
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Final

import pytest

from chronoverse.errors import ShareExceeded, StoreError, StoreUnavailable
from chronoverse.joblog.line_filter import LineFilter
from chronoverse.joblog.model import Attempt, Job, JobRef, Line, Status
from chronoverse.live.feed import SLICE_BYTES, FilterBudget
from chronoverse.live.replay_cache import ReplayCache
from chronoverse.live.tail import CHECK_SECONDS, RING_SECONDS, Tail
from chronoverse.live.viewer import CURSOR_SECONDS, RETRY_READ_SECONDS, STORE_PATIENCE_SECONDS, Viewer
from chronoverse.live.workflow_viewer import WorkflowViewer
from chronoverse.store import Store
from tests.support.reading import Clock, ControlledStore, drain, drained, events, redis_fields
from tests.support.servers import RedisServer
from tests.support.waiting import wait_until

#: The lease time that readers assume. They decide that a runner is lost only when the server has run for longer.
LEASE_SECONDS: Final = 1.0
STAMP = "2026-03-03T10:00:05.123Z"
JOB = JobRef("wf_1", "job_1")
OTHER = JobRef("wf_1", "job_2")

CONNECTED = b'event: connected\ndata: {"status":"connected"}\nretry: 2417\n\n'
GONE = "the log is gone from the store: it expired or was deleted"
NO_LOG = "the job's key in the store is not a log"


class Rig:
    """The reading side of a worker without its threads, on a real store, and a foreign runner."""

    def __init__(self, server: RedisServer, store: Store, reader_store: Store, prefix: str) -> None:
        self.store = store
        self.source = ControlledStore(reader_store)
        self.clock = Clock()
        self.replay_cache = ReplayCache(self.source, clock=self.clock)
        redacted = self.replay_cache.invalidate
        self.tail = Tail(self.source, lease_seconds=LEASE_SECONDS, redacted=redacted, clock=self.clock)
        self._server = server
        self._prefix = prefix

    def key(self, kind: str, job: JobRef = JOB) -> str:
        return f"{self._prefix}:{{{job.workflow_id}}}:{job.job_id}:{kind}"

    def ask(self, *command: Any) -> Any:
        return self._server.ask(*command)

    def write(self, first: int, last: int, stream: str = "stdout", job: JobRef = JOB) -> None:
        """Adds lines as a foreign runner does."""
        for number in range(first, last + 1):
            fields = redis_fields(Line(number, STAMP, f"line {number}", stream))
            self.ask("XADD", self.key("log", job), f"{number}-0", *fields)

    def end(self, number: int, status: str = "COMPLETED", job: JobRef = JOB) -> None:
        """Adds the terminal entry as a foreign runner does."""
        self.ask("XADD", self.key("log", job), f"{number}-0", "event", "end", "status", status, "exit_code", "0")

    def viewer(self, job: JobRef = JOB, **options: Any) -> Viewer:
        """A viewer of the job as it is now."""
        return Viewer(self.replay_cache, self.tail, job, self.store.get_job(job), retry_ms=2417, **options)

    def run_tail_once(self) -> None:
        """Runs one round of each of the tail's threads."""
        for step in (self.tail.read_once, self.tail.housekeep_once):
            try:
                step()
            except StoreError:
                continue

    def wait(self, seconds: int) -> None:
        """Lets seconds pass, with a round of the tail in each."""
        for _ in range(seconds):
            self.clock.now += 1
            self.run_tail_once()


@pytest.fixture
def rig(server: RedisServer, store: Store, prefix: str) -> Iterator[Rig]:
    """A rig with an empty prefix, on a server that has run long enough to decide that a runner is lost."""
    wait_until(lambda: b"uptime_in_seconds:0\r" not in server.ask("INFO", "server"), 5, "the server is a second old")
    reader_store = Store(server.url, prefix=prefix, lease_seconds=LEASE_SECONDS)
    rig = Rig(server, store, reader_store, prefix)
    yield rig
    rig.tail.stop()
    reader_store.close()


def started(rig: Rig, **options: Any) -> Viewer:
    """A viewer that has sent its first frames and all lines so far."""
    viewer = rig.viewer(**options)
    drained(viewer)
    return viewer


def event_data(chunk: bytes) -> list[tuple[str, str]]:
    return [(event.event, event.data) for event in events(chunk)]


def names(chunk: bytes) -> list[str]:
    """The name of each event, with the numbers of lines and gaps."""
    found = []
    for event in events(chunk):
        if event.event == "log":
            found.append(f"log {event.id}")
        elif event.event == "gap":
            found.append(f"gap {event.data.split(',')[0].split(':')[1]} {event.data.split(',')[1].split(':')[1]}")
        else:
            found.append(event.event)
    return found


def write_as_own_runner(rig: Rig, lines: int) -> Attempt:
    attempt = rig.store.open(JOB, "token")
    rig.store.append(attempt, [Line(number, STAMP, f"line {number}", "stdout") for number in range(1, lines + 1)])
    return attempt


def test_connected_and_job_come_first(rig: Rig) -> None:
    """With the reconnection time and the job's state, and even if the store has just become unavailable."""
    rig.write(1, 2)
    viewer, awaiting = rig.viewer(), rig.viewer(OTHER, wait=5)
    rig.source.fault = StoreUnavailable("gone")
    job = b'{"status":"RUNNING","attempt":1,"first_sequence_num":1,"last_sequence_num":2,"started_at":"%b","labels":{}}'
    assert viewer.next() == CONNECTED + b"event: job\ndata: " + job % STAMP.encode() + b"\n\n"
    assert awaiting.next() == CONNECTED


def test_replay_then_live_then_the_end(rig: Rig) -> None:
    """Lines from before and after the connect come in order, and the job's final state comes just before the end."""
    rig.write(1, 3)
    viewer = rig.viewer()
    before = drained(viewer)
    for number in (4, 5):
        rig.write(number, number)
        rig.tail.read_once()
    known = rig.tail.known_job(JOB)
    assert known
    assert known.last == 5
    rig.end(6)
    rig.run_tail_once()
    assert rig.tail.known_job(JOB) is None, "it may have been deleted since"
    assert names(before + drained(viewer)) == [
        "connected", "job", "log 1", "log 2", "log 3", "log 4", "log 5", "job", "end",
    ]  # fmt: skip
    assert (viewer.done, viewer.reason) == (True, "end")


def test_a_filter_moves_the_cursor_over_skipped_lines(rig: Rig) -> None:
    """With `stream=stderr`, a block with only an id replaces the skipped lines, in the replay and live."""
    rig.write(1, 2)
    viewer = rig.viewer(line_filter=LineFilter("stderr"))
    assert drained(viewer).endswith(b"\n\nid: 2\n\n")
    rig.write(3, 3, "stderr")
    rig.write(4, 5)
    rig.run_tail_once()
    live = drained(viewer)
    assert names(live) == ["log 3"]
    assert live.endswith(b"\n\nid: 5\n\n")


def test_a_query_moves_the_cursor_once_in_a_while(rig: Rig) -> None:
    """One block for many lines that do not match. The end comes after a block, too."""
    rig.write(1, 1)
    viewer = rig.viewer(line_filter=LineFilter(None, "line 9"))
    assert drained(viewer).endswith(b"\n\nid: 1\n\n")
    for number in range(2, 6):
        rig.write(number, number)
        rig.run_tail_once()
        assert drained(viewer) == b""
    rig.clock.now += CURSOR_SECONDS
    assert viewer.due <= rig.clock.now
    follower = started(rig, line_filter=LineFilter(None, "line 9"))
    follower.follow(viewer)
    for each in (viewer, follower):
        assert drained(each) == b"id: 5\n\n"
    rig.clock.now += CURSOR_SECONDS
    assert drained(viewer) == b""
    rig.write(6, 9)
    rig.run_tail_once()
    assert names(drained(viewer)) == ["log 9"]
    rig.write(10, 10)
    rig.end(11)
    rig.run_tail_once()
    assert drained(viewer).startswith(b"id: 10\n\nevent: job\n")


def test_a_gap_comes_after_the_cursor_of_lines_that_were_left_out(rig: Rig) -> None:
    """A gap has no id. Without that block, a client that is cut after it would get the lines before it again."""
    rig.write(1, 1)
    viewer = rig.viewer(line_filter=LineFilter(None, "nowhere"))
    drained(viewer)
    rig.write(2, 2)
    rig.run_tail_once()
    assert drained(viewer) == b""
    rig.write(5, 5)
    rig.run_tail_once()
    assert drained(viewer).startswith(b"id: 2\n\nevent: gap\n")
    rig.clock.now += CURSOR_SECONDS
    assert drained(viewer) == b""


def test_an_offset_beyond_the_log_waits_for_its_line(rig: Rig) -> None:
    """A viewer with an offset beyond the log gets no line up to that offset, even if they are written later."""
    rig.write(1, 2)
    viewer = started(rig, after=4)
    rig.write(3, 4)
    rig.run_tail_once()
    assert viewer.next() is None
    rig.write(5, 5)
    rig.run_tail_once()
    assert names(drained(viewer)) == ["log 5"]


def test_viewers_share_their_bytes(rig: Rig) -> None:
    """A line is encoded once, and viewers at the same position get the same bytes object."""
    rig.write(1, 1)
    one, other = started(rig), started(rig)
    rig.write(2, 3)
    rig.run_tail_once()
    chunk = one.next()
    assert chunk
    assert chunk is other.next()


def test_a_heartbeat_after_silence(rig: Rig) -> None:
    """A line with a colon after every 15 s without a byte. It says that the stream works: none while the store is away.

    Nor is an hour without any watched job a failure of the store.
    """
    rig.write(1, 1)
    rig.clock.now += 3600
    viewer = started(rig)
    for _ in range(2):
        assert viewer.due == rig.clock.now + 15
        rig.wait(14)
        assert viewer.next() is None
        rig.wait(1)
        assert viewer.next() == b":\n"
        assert viewer.next() is None
    rig.wait(10)
    rig.write(2, 2)
    rig.run_tail_once()
    assert names(drained(viewer)) == ["log 2"]
    rig.wait(14)
    assert viewer.next() is None
    rig.source.fault = StoreUnavailable("gone")
    rig.wait(6)
    assert viewer.next() is None
    rig.source.fault = None
    rig.run_tail_once()
    assert viewer.next() == b":\n"
    rig.source.fault = StoreUnavailable("gone")
    rig.wait(20)
    rig.write(3, 4)
    rig.source.fault = None
    rig.run_tail_once()
    assert names(drained(viewer)) == ["log 3", "log 4"]


def test_a_store_that_stays_away_ends_the_stream(rig: Rig) -> None:
    """With one error after 30 s, live and in a replay of a finished job, which no tail reads. The replay is retried."""
    rig.write(1, 1)
    rig.write(1, 1, job=OTHER)
    rig.end(2, job=OTHER)
    live, behind = started(rig), rig.viewer(OTHER)
    rig.source.fault = StoreUnavailable("gone")
    assert names(drained(behind)) == ["connected", "job"]
    for _ in range(3):
        assert behind.due == rig.clock.now + RETRY_READ_SECONDS
        rig.clock.now = behind.due
        assert behind.next() is None
    rig.clock.now -= 3 * RETRY_READ_SECONDS
    rig.wait(int(STORE_PATIENCE_SECONDS) - 1)
    assert (live.next(), behind.next()) == (None, None)
    rig.wait(1)
    for viewer in (live, behind):
        assert event_data(drained(viewer)) == [("error", "the store has been unavailable for 30 s")]
        assert (viewer.done, viewer.reason) == (True, "error")


def test_a_query_without_time_left_is_retried_soon(rig: Rig) -> None:
    """Each time, also if the viewer has no heartbeats, as in a wait."""
    write_as_own_runner(rig, 1)
    rig.tail._filter_budget = budget = FilterBudget(rig.clock)
    viewer = started(rig, line_filter=LineFilter(q="late"), heartbeat_seconds=math.inf)
    with budget.spend(""):
        rig.clock.now += 100
    rig.write(2, 2)
    rig.run_tail_once()
    for _ in range(3):
        assert (viewer.next(), viewer.due) == (None, rig.clock.now + 0.1)
        rig.clock.now = viewer.due


def test_a_store_that_was_away_and_came_back_counts_anew(rig: Rig) -> None:
    """A replay that has gone on since gives it the same patience again."""
    rig.write(1, 200)
    rig.end(201)
    viewer = rig.viewer()
    sent = viewer.next() or b""
    for _ in range(3):
        rig.source.fault = StoreUnavailable("gone")
        assert viewer.next() is None
        rig.clock.now += STORE_PATIENCE_SECONDS / 2
        assert viewer.next() is None
        rig.source.fault = None
        rig.wait(1)
        sent += viewer.next() or b""
    sent += drained(viewer)
    numbers = [name for name in names(sent) if name.startswith("log")]
    assert (numbers, viewer.reason) == ([f"log {number}" for number in range(1, 201)], "end")


def test_who_was_helped_by_another_viewers_read_has_not_failed(rig: Rig) -> None:
    """Their own read had failed, and the store has long been back. With another filter they are not helped."""
    rig.write(1, 3)
    viewer, other = rig.viewer(), rig.viewer(line_filter=LineFilter("stderr"))
    viewer.next(), other.next()
    rig.source.fault = StoreUnavailable("gone")
    assert viewer.next() is None
    rig.source.fault = None
    started(rig)
    assert other.take_cached() == rig.viewer().take_cached() == b"", "another's first bytes are `connected`"
    assert names(viewer.take_cached()) == ["log 1", "log 2", "log 3"]
    assert viewer.next() is None
    rig.wait(int(STORE_PATIENCE_SECONDS) + 5)
    assert viewer.next() == b":\n"


def test_a_stalled_viewer_of_an_ended_job_harms_no_other_job(rig: Rig) -> None:
    """While a viewer of an ended job stalls, the tail stays healthy for jobs that are watched later."""
    rig.write(1, 1)
    stalled = rig.viewer()
    rig.end(2)
    rig.wait(40)
    rig.write(1, 1, job=OTHER)
    assert names(drained(rig.viewer(OTHER))) == ["connected", "job", "log 1"]
    assert names(drained(stalled))[-1] == "end"


@pytest.mark.parametrize(
    ("limit", "frame", "reason"),
    [("expires_at", b"event: error\ndata: token expired\n\n", "expired"), ("closes_at", b"retry: 2417\n\n", "age")],
)
def test_a_stream_ends_in_time(rig: Rig, limit: str, frame: bytes, reason: str) -> None:
    """With its token. At its maximum age without `end` or error, so the client reconnects by itself."""
    rig.write(1, 1)
    viewer = started(rig, **{limit: rig.clock.now + 5})
    rig.wait(4)
    assert viewer.next() is None
    assert viewer.due == rig.clock.now + 1
    rig.wait(1)
    assert viewer.next() == frame
    assert (viewer.done, viewer.reason) == (True, reason)


def test_a_drained_stream_ends_with_a_retry_time(rig: Rig) -> None:
    rig.write(1, 1)
    viewer = started(rig)
    due: list[float] = []
    viewer.on_wake = lambda: due.append(viewer.due)
    viewer.close_with_retry(1234)
    assert due == [float("-inf")]
    assert viewer.next() == b"retry: 1234\n\n"
    assert (viewer.done, viewer.reason) == (True, "drain")


def test_a_wait_for_a_job_ends_with_an_error(rig: Rig) -> None:
    """If the job does not exist within 20 s. One that becomes PENDING sends its state at the next check."""
    viewer, registered = started(rig, wait=20), started(rig, job=OTHER, wait=20)
    rig.wait(15)
    assert viewer.next() == registered.next() == b":\n"
    rig.wait(4)
    assert viewer.next() is None
    assert viewer.due == rig.clock.now + 1
    rig.store.register(OTHER)
    rig.wait(1)
    assert event_data(drained(viewer)) == [("error", "the job did not appear within 20 s")]
    assert [data[:19] for _, data in event_data(drained(registered))] == ['{"status":"PENDING"']
    rig.wait(10)
    assert registered.next() is None


@pytest.mark.parametrize("kind", ["unheard of", "registered", "ended"])
def test_an_awaited_jobs_state_comes_before_its_lines(rig: Rig, kind: str) -> None:
    """Even if the job has ended before the tail's first check. Its lines come from 1."""
    if kind == "registered":
        rig.store.register(JOB)
    viewer = started(rig, wait=20)
    rig.write(1, 2)
    if kind == "ended":
        rig.end(3)
    rig.run_tail_once()
    assert names(drained(viewer)) == ["job", "log 1", "log 2", *(["job", "end"] if kind == "ended" else [])]


def test_a_server_that_hangs_delays_only_checks_of_its_own_jobs(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not asked again meanwhile."""
    for job in (JOB, OTHER):
        rig.write(1, 1, job=job)
    viewers = [rig.viewer(JOB), rig.viewer(OTHER)]
    for each in viewers:
        drained(each)
    answers, asked, get_jobs = threading.Event(), list[JobRef](), rig.source.get_jobs

    def hang(jobs: Sequence[JobRef]) -> list[Job | StoreError | None]:
        asked.extend(jobs)
        assert JOB not in jobs or answers.wait(60)
        return get_jobs(jobs)

    monkeypatch.setattr(type(rig.source), "single_server", False)
    monkeypatch.setattr(rig.source, "server_of", lambda ref: ref.job_id)
    monkeypatch.setattr(rig.source, "get_jobs", hang)

    def is_checked() -> bool:
        rig.tail.housekeep_once()
        return drained(viewers[1]).startswith(b"event: job\n")

    for number in (2, 3):
        rig.ask("HSET", rig.key("job", OTHER), "status", "RUNNING", "attempt", number)
        rig.clock.now += CHECK_SECONDS
        wait_until(is_checked, 20, "the other job is checked")
    assert asked.count(JOB) == 1
    answers.set()
    wait_until(lambda: not rig.tail._checkers[JOB.job_id].is_alive(), 20, "the server has answered")


def test_a_deleted_log_is_an_error(rig: Rig) -> None:
    """A replay finds it by itself. The tail's next check wakes live viewers: a blocked read does not return."""
    rig.write(1, 9)
    viewer, behind = started(rig), rig.viewer()
    rig.wait(5)
    woken: list[float] = []
    viewer.on_wake = lambda: woken.append(rig.clock.now)
    rig.ask("DEL", rig.key("log"))
    assert event_data(drained(behind))[2:] == [("error", GONE)]
    rig.wait(int(CHECK_SECONDS))
    assert woken
    assert event_data(drained(viewer)) == [("error", GONE)]


def test_a_key_that_is_no_log_is_an_error(rig: Rig) -> None:
    """The same whether the tail or a replay finds it. The other jobs of the same read continue."""
    rig.write(1, 3)
    rig.write(1, 1, job=OTHER)
    live, behind, other = started(rig), rig.viewer(), started(rig, job=OTHER)
    rig.ask("SET", rig.key("log"), "not a stream")
    rig.write(2, 2, job=OTHER)
    rig.run_tail_once()
    rig.run_tail_once()
    assert event_data(drained(live)) == [("error", NO_LOG)]
    assert event_data(drained(behind))[2:] == [("error", NO_LOG)]
    assert names(drained(other)) == ["log 2"]
    rig.wait(15)
    assert other.next() == b":\n"


def test_a_lost_runner_ends_the_stream(rig: Rig) -> None:
    """The job becomes LOST, and the closing error has the id after the last line, so that no client reconnects.

    A viewer that connects later gets the same after the lines.
    """
    write_as_own_runner(rig, 2)
    viewer = started(rig)
    rig.ask("DEL", rig.key("lease"))
    received: list[bytes] = []

    def lost() -> bool:
        rig.wait(int(CHECK_SECONDS))
        received.append(drained(viewer))
        return viewer.done

    wait_until(lost, 5, "the grace is over and the job LOST")
    job, error = events(b"".join(received))
    assert (job.event, job.data[:16]) == ("job", '{"status":"LOST"')
    assert error == ("error", "runner lost: nothing heard from it for 1 s", "3")
    late = drained(rig.viewer())
    assert names(late) == ["connected", "job", "log 1", "log 2", "job", "error"]
    assert events(late)[-1].id == "3"


def test_a_finished_job_whose_log_expired(rig: Rig) -> None:
    """The job's hash still has the number of lines, so one gap names all of them, and the end follows."""
    attempt = write_as_own_runner(rig, 3)
    rig.store.finish(attempt, Status.FAILED, 7, 0, 4)
    rig.ask("DEL", rig.key("log"))
    chunk = drained(rig.viewer())
    assert names(chunk) == ["connected", "job", "gap 1 3", "job", "end"]
    assert events(chunk)[-1].id == "4"


def test_a_log_trimmed_to_nothing_while_it_runs(rig: Rig) -> None:
    """Viewers from before and after the trim get a gap for the trimmed lines, and then the next line."""
    rig.write(1, 5)
    behind = rig.viewer()
    rig.ask("XTRIM", rig.key("log"), "MAXLEN", 0)
    assert names(drained(behind)) == ["connected", "job", "gap 1 5"]
    rig.write(6, 6)
    rig.run_tail_once()
    assert names(drained(behind)) == ["log 6"]
    assert names(drained(rig.viewer())) == ["connected", "job", "gap 1 5", "log 6"]


def test_lines_trimmed_between_the_tails_read_and_check(rig: Rig) -> None:
    """Lines that the tail read before they were trimmed are sent after the gap before them, or the gap has them too."""
    rig.write(1, 1)
    viewer = started(rig)
    rig.write(2, 4)
    rig.ask("XTRIM", rig.key("log"), "MAXLEN", 1)
    rig.source.before["get_jobs"] = lambda: rig.ask("XTRIM", rig.key("log"), "MAXLEN", 0)
    rig.run_tail_once()
    assert names(drained(viewer)) in (["gap 2 3", "log 4"], ["gap 2 4"])


@pytest.mark.parametrize(
    ("command", "reason"),
    [(("XTRIM", "MINID", "3-0"), "trimmed"), (("XDEL", "2-0"), "missing")],
    ids=["trim", "delete"],
)
def test_a_gap_says_why(rig: Rig, command: tuple[str, ...], reason: str) -> None:
    """The reason is `trimmed` below the first stored line and `missing` above it, live and in a replay."""
    rig.write(1, 1)
    viewer = started(rig)
    rig.write(2, 3)
    rig.ask(command[0], rig.key("log"), *command[1:])
    rig.run_tail_once()
    gap = ("gap", f'{{"from":2,"to":2,"reason":"{reason}"}}')
    assert event_data(drained(viewer))[0] == gap
    assert event_data(drained(rig.viewer(after=1)))[2] == gap


def test_a_viewer_far_behind_gets_several_slices(rig: Rig) -> None:
    """No chunk is longer than a slice and the closing frames, because a viewer that stops reading holds one chunk."""
    rig.write(1, 1)
    viewer = started(rig)
    for number in range(2, 22):
        fields = redis_fields(Line(number, STAMP, "x" * (SLICE_BYTES // 8), "stdout"))
        rig.ask("XADD", rig.key("log"), f"{number}-0", *fields)
    rig.end(22)
    rig.wait(3)
    chunks = list(drain(viewer))
    assert len(chunks) > 2
    assert max(map(len, chunks)) <= SLICE_BYTES + 1000
    assert names(b"".join(chunks)) == [*(f"log {number}" for number in range(2, 22)), "job", "end"]


def test_a_gap_does_not_name_lines_already_sent(rig: Rig) -> None:
    """A viewer that has read further than the tail gets only the part of the tail's gap after its cursor.

    Lines that are trimmed at once are in no read. The tail's check finds that they existed.
    """
    rig.write(1, 5)
    viewer = rig.viewer()
    rig.write(6, 8)
    assert names(drained(viewer))[-1] == "log 8"
    rig.write(9, 11)
    rig.ask("XTRIM", rig.key("log"), "MINID", "11-0")
    rig.run_tail_once()
    assert names(drained(viewer)) == ["gap 9 10", "log 11"]
    assert names(drained(rig.viewer(after=5)))[2:] == ["gap 6 10", "log 11"]
    rig.write(12, 13)
    rig.ask("XTRIM", rig.key("log"), "MAXLEN", 0)
    rig.wait(int(CHECK_SECONDS))
    assert names(drained(viewer)) == ["gap 12 13"]


def test_no_line_is_lost_when_the_last_check_of_a_replay_fails(rig: Rig) -> None:
    """If the check for the job's end fails after a read, the lines of that read are sent or read again."""
    rig.write(1, 2)
    early = rig.ask("DUMP", rig.key("log"))
    rig.write(3, 6)
    viewer = rig.viewer()
    viewer.next()
    rig.ask("RESTORE", rig.key("log"), 0, early, "REPLACE")
    rig.end(3)
    rig.source.before["get_job"] = unavailable
    viewer.next()
    assert names(drained(viewer)) == ["log 1", "log 2", "job", "end"]


def test_no_line_is_lost_when_the_last_check_of_a_live_log_fails(rig: Rig) -> None:
    """If the check for the job's end fails after the tail's read, the next read starts after the published lines."""
    rig.write(1, 1)
    viewer = started(rig)
    rig.write(2, 2)
    rig.end(3)
    rig.source.before["get_jobs"] = unavailable
    with pytest.raises(StoreUnavailable):
        rig.tail.read_once()
    rig.tail.read_once()
    assert names(drained(viewer)) == ["log 2", "job", "end"]


def unavailable() -> None:
    raise StoreUnavailable("for a moment")


def test_a_finished_log_that_shrank_before_the_replay(rig: Rig) -> None:
    """A gap or an error says that the store lost lines, in a power cut, after the job was checked."""
    attempt = write_as_own_runner(rig, 5)
    early = [(kind, rig.ask("DUMP", rig.key(kind))) for kind in ("log", "job")]
    rig.write(6, 10)
    rig.store.finish(attempt, Status.COMPLETED, 0, 0, 11)
    viewer = rig.viewer()
    for kind, dump in early:
        rig.ask("RESTORE", rig.key(kind), 0, dump, "REPLACE")
    rig.ask("SET", rig.key("lease"), "token")
    assert names(drained(viewer))[6:] in (["log 5", "gap 6 10", "job", "end"], ["log 5", "error"])


@pytest.mark.parametrize("lines", [1, 3])
def test_a_log_under_the_id_of_an_ended_one_is_followed(rig: Rig, lines: int) -> None:
    """Even if it is as long. Another viewer has not yet read the end of the old log, which was deleted."""
    rig.write(1, 3)
    behind = rig.viewer()
    rig.end(4)
    rig.wait(2)
    rig.ask("DEL", rig.key("log"), rig.key("job"))
    rig.write(1, lines)
    viewer = started(rig)
    rig.write(lines + 1, lines + 1)
    rig.run_tail_once()
    assert names(drained(viewer)) == [f"log {lines + 1}"]
    behind.close()


def test_a_job_under_the_id_of_a_deleted_one_is_not_shown_to_its_viewers(rig: Rig) -> None:
    rig.write(1, 3)
    viewer = rig.viewer()
    rig.wait(2)
    rig.ask("DEL", rig.key("log"))
    rig.wait(int(CHECK_SECONDS))
    rig.ask("HSET", rig.key("job"), "status", "PENDING")
    rig.wait(int(CHECK_SECONDS))
    assert event_data(drained(viewer))[-1:] == [("error", GONE)]
    assert rig.tail._feeds[JOB].job != rig.store.get_job(JOB)


def test_who_leaves_a_closed_feed_of_changes_does_not_end_its_successor(rig: Rig) -> None:
    ref = JobRef(JOB.workflow_id, "")
    (state,) = rig.store.get_jobs([ref])
    assert isinstance(state, Job)
    viewers = [rig.viewer() for _ in range(2)]
    first = rig.tail.join(ref, state, viewers[0])
    first.close(b"an error")
    second = rig.tail.join(ref, state, viewers[1])
    rig.tail.leave(first, viewers[0])
    assert (first is second, rig.tail._feeds[ref] is second) == (False, True)


def test_viewers_of_a_replaced_feed_are_still_woken(rig: Rig) -> None:
    """Otherwise, one whose read failed would never try again, and its stream would never end."""
    rig.write(1, 1)
    behind = rig.viewer()
    behind.feed.close(b"an error")
    assert rig.viewer().feed is not behind.feed
    woken: list[float] = []
    behind.on_wake = lambda: woken.append(rig.clock.now)
    rig.wait(20)
    assert woken
    behind.close()
    woken.clear()
    rig.wait(20)
    assert not woken


def test_a_viewer_between_an_early_end_and_the_ring_is_closed(rig: Rig) -> None:
    """The store was restored to an older state and the log ended early.

    A viewer between that end and the ring's beginning gets an error.
    """
    rig.write(1, 1)
    early = rig.ask("DUMP", rig.key("log"))
    rig.write(2, 3)
    ahead = started(rig)
    rig.ask("RESTORE", rig.key("log"), 0, early, "REPLACE")
    rig.write(2, 2)
    behind = started(rig, after=2)
    rig.ask("RESTORE", rig.key("log"), 0, early, "REPLACE")
    rig.end(2)
    rig.wait(2)
    assert names(drained(ahead)) == ["error"]
    assert names(drained(behind))[-1] == "error"
    assert behind.done


@pytest.mark.parametrize(
    ("ring", "resent", "expected"),
    [
        *((ring, "stdout", ["log 4"]) for ring in ("kept", "dropped")),
        *((ring, "stderr", ["error"]) for ring in ("kept", "dropped")),
        ("redacted", "stderr", ["redact", "log 4"]),
    ],
)
def test_lines_that_the_store_lost(rig: Rig, ring: str, resent: str, expected: list[str]) -> None:
    """Their runner sends them again; or another one sends others, which would never reach the viewer.

    A redacted line may differ.
    """
    rig.write(1, 1)
    early = rig.ask("DUMP", rig.key("log"))
    viewer = started(rig)
    rig.write(2, 3)
    rig.run_tail_once()
    assert names(drained(viewer)) == ["log 2", "log 3"]
    if ring == "dropped":
        viewer.feed.drop_ring()
    if ring == "redacted":
        viewer.feed.redact([(3, 3)])
    rig.ask("RESTORE", rig.key("log"), 0, early, "REPLACE")
    rig.wait(2)
    rig.write(2, 4, resent)
    rig.run_tail_once()
    assert names(drained(viewer)) == expected


def test_an_entry_out_of_sequence_stops_no_viewer(rig: Rig) -> None:
    """An error names an entry such as 2-1, and a gap one without a message. The lines after it are sent."""
    rig.write(1, 1)
    live = started(rig)
    rig.write(2, 2)
    rig.ask("XADD", rig.key("log"), "2-1", "message", "nowhere")
    rig.ask("XADD", rig.key("log"), "3-0", "note", "nothing to show")
    rig.write(4, 4)
    rig.run_tail_once()
    chunk = drained(live)
    assert names(chunk) == ["log 2", "error", "gap 3 3", "log 4"]
    assert event_data(chunk)[2][1] == '{"from":3,"to":3,"reason":"malformed"}'
    again = drained(rig.viewer())
    assert names(again)[:3] == ["connected", "job", "log 1"]
    assert events(again)[3:] == events(chunk)


@pytest.mark.parametrize("is_late", [False, True], ids=["live", "replayed"])
def test_an_entry_that_nothing_can_follow_ends_the_stream(rig: Rig, is_late: bool) -> None:
    """Its number is too large. A viewer is told of it, when it comes and later."""
    rig.write(1, 2)
    viewers = [rig.viewer()]
    drained(viewers[0])
    rig.ask("XADD", rig.key("log"), "1772532005123000-0", "message", "a time for a number")
    if is_late:
        viewers.append(rig.viewer())
    else:
        rig.run_tail_once()
    body = drained(viewers[-1])
    assert (b"1772532005123000" in events(body)[-1].data.encode(), viewers[-1].reason) == (True, "error")


def test_a_replay_is_throttled_between_its_segments(rig: Rig) -> None:
    """By the size of each segment that it reads, even if nothing passes its filter. Every line comes in order."""
    rig.write(1, 400)
    throttled: list[int] = []
    rig.replay_cache = ReplayCache(rig.source, throttle=throttled.append, clock=rig.clock)
    viewer, chunks = rig.viewer(), list[bytes]()
    while not chunks or "log 400" not in names(chunks[-1]):
        chunks += [chunk for chunk in [viewer.next()] if chunk]
        assert len(throttled) < len(chunks) < 100
    numbers = [name for chunk in chunks for name in names(chunk) if name.startswith("log")]
    assert numbers == [f"log {number}" for number in range(1, 401)]
    sizes = [len(chunk) for chunk in chunks if names(chunk)[0].startswith("log")]
    assert throttled == sizes[: len(throttled)]
    drained(viewer)
    read = sum(throttled)
    throttled.clear()
    drained(rig.viewer(line_filter=LineFilter(None, "nowhere")))
    assert sum(throttled) == read > 10_000


@pytest.mark.parametrize(("entries", "span"), [(1, (2, 2)), (0, (1, 3))], ids=["in the list", "lost"])
def test_a_redaction_reaches_who_watches_and_who_comes_later(rig: Rig, entries: int, span: tuple[int, int]) -> None:
    """Nothing of the old text is cached. Another job's segments stay. Without its range all lines count as redacted."""
    write_as_own_runner(rig, 3)
    rig.write(1, 3, job=OTHER)
    viewer, other = started(rig), started(rig, job=OTHER)
    assert rig.replay_cache.cached(JOB, None, 0)[1] == rig.replay_cache.cached(OTHER, None, 0)[1] == 3
    seen: list[tuple[bytes, int]] = []
    viewer.on_wake = lambda: seen.append(rig.replay_cache.cached(JOB, None, 0))
    for _ in range(entries):
        rig.ask("RPUSH", rig.key("audit"), b'{"from":2,"to":2,"count":1}')
    rig.ask("HSET", rig.key("job"), "redactions", 1)
    rig.tail.check_jobs([viewer.feed] if viewer.feed else [])
    assert event_data(drained(viewer)) == [("redact", f'{{"from":{span[0]},"to":{span[1]}}}')]
    assert {*seen} == {(b"", 0)}, "whoever is woken may read at once"
    assert rig.replay_cache.cached(OTHER, None, 0)[1] == 3
    assert drained(other) == b""


@pytest.mark.parametrize(
    ("answers", "others", "shown"),
    [(True, 0, True), (False, 0, False), (True, 1500, False)],
    ids=["checked", "the store hangs", "thousands of jobs, checked in turn"],
)
def test_the_ring_is_shown_only_for_two_seconds_after_a_check(
    rig: Rig, answers: bool, others: int, shown: bool
) -> None:
    """A ring without checks may have lines that were redacted. Newer lines are shown again."""
    write_as_own_runner(rig, 1)
    viewer, behind = started(rig), started(rig)
    rig.write(2, 3)
    for number in range(others):
        rig.tail.join(JobRef(JOB.workflow_id, f"other_{number}"), None, behind)
    rig.run_tail_once()
    assert names(drained(viewer)) == ["log 2", "log 3"]
    rig.clock.now += 2
    if answers:
        rig.tail.housekeep_once()
    rig.clock.now += 0.5
    rig.source.fault = StoreUnavailable("hangs")
    assert names(drained(behind)) == (["log 2", "log 3"] if shown else [])
    rig.source.fault = None
    rig.write(4, 4)
    # With many jobs, it takes several rounds.
    for _ in range(20):
        rig.tail.read_once()
    rig.source.fault = StoreUnavailable("hangs")
    assert names(drained(viewer)) == ["log 4"]


def test_new_lines_are_shown_when_an_older_ring_is_dropped(rig: Rig) -> None:
    """Otherwise, all viewers would read them from the store."""
    write_as_own_runner(rig, 1)
    viewer = started(rig)
    rig.run_tail_once()
    rig.clock.now += RING_SECONDS + 0.1
    rig.write(2, 2)
    rig.tail.read_once()
    rig.source.fault = StoreUnavailable("hangs")
    assert names(drained(viewer)) == ["log 2"]


def test_a_viewer_of_the_next_attempt_hides_no_redaction(rig: Rig) -> None:
    """It knows a newer state than the feed, which has yet to tell its viewers of a redaction."""
    write_as_own_runner(rig, 3)
    viewer = started(rig)
    rig.tail.housekeep_once()
    rig.ask("RPUSH", rig.key("audit"), b'{"from":2,"to":2,"count":1}')
    rig.ask("HSET", rig.key("job"), "redactions", 1)
    rig.ask("HSET", rig.key("job"), "attempt", 2)
    later = rig.viewer()
    rig.tail.housekeep_once()
    assert ("redact", '{"from":2,"to":2}') in event_data(drained(viewer))
    later.close()


def test_a_viewer_of_a_workflow_gets_no_id_before_its_jobs(rig: Rig) -> None:
    """It waits for its turn: a client would resume after the id, without the jobs. Then it gets them."""
    turns = iter([False, True])

    def read_jobs(first: int, last: int) -> tuple[bytes, int]:
        if not next(turns):
            raise ShareExceeded("others first")
        return b"jobs", last

    (state,) = rig.store.get_jobs([ref := JobRef("wf_1", "")])
    assert isinstance(state, Job)
    viewer = WorkflowViewer(
        rig.replay_cache, rig.tail, ref, state, jobs=read_jobs, opening=(b"first,", 0), retry_ms=2417
    )
    assert (viewer.next(), viewer.next()) == (CONNECTED, None)
    assert viewer.next() == b"first,jobsid: 0\n\n"


def test_lines_wait_for_a_check_that_the_store_did_not_answer(rig: Rig) -> None:
    """Of several servers one may not answer. Its lines are read again, because lines before them may be archived."""
    rig.write(1, 1)
    viewer = started(rig)
    rig.write(3, 3)
    rig.source.late["get_jobs"] = lambda _: [StoreUnavailable("away")]
    rig.tail.read_once()
    assert drained(viewer) == b""
    rig.tail.read_once()
    assert names(drained(viewer)) == ["gap 2 2", "log 3"]
