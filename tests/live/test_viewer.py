"""A viewer's walk on a clock that goes only when told: hello, replay, live, and every way a stream can end."""

from collections.abc import Generator, Iterator
from typing import Any, Final, cast

import pytest

from chronoverse.errors import StoreError, StoreUnavailable
from chronoverse.joblog.values import Attempt, JobRef, Line, Status
from chronoverse.live.feed import SLICE_BYTES
from chronoverse.live.poll_policy import CHECK_SECONDS
from chronoverse.live.replay_cache import ReplayCache
from chronoverse.live.tail import Tail
from chronoverse.live.viewer import STORE_PATIENCE_SECONDS, Viewer, ViewerRequest
from chronoverse.store import Store
from tests.support.reading import Clock, ControlledStore, drain, drained, events
from tests.support.servers import RedisServer, running
from tests.support.waiting import wait_until

#: The lease as those who look know it: a server younger than that judges no runner lost.
YOUTH_SECONDS: Final = 1.0
STAMP = "2026-03-03T10:00:05.123Z"
JOB = JobRef("wf_1", "job_1")
OTHER = JobRef("wf_1", "job_2")

CONNECTED = b'event: connected\ndata: {"status":"connected"}\nretry: 2417\n\n'
GONE = "the log is gone from the store: it expired or was deleted"
NO_LOG = "the job's key in the store holds something that is not a log"


class Rig:
    """A worker's reading side without its threads, on a real store, and a foreign runner beside it."""

    def __init__(self, server: RedisServer, store: Store, looker: Store, prefix: str) -> None:
        self.store = store
        self.source = ControlledStore(looker)
        self.clock = Clock()
        self.pieces = ReplayCache(self.source, clock=self.clock)
        self.tail = Tail(self.source, lease_seconds=YOUTH_SECONDS, clock=self.clock)
        self._server = server
        self._prefix = prefix

    def key(self, kind: str, job: JobRef = JOB) -> str:
        return f"{self._prefix}:{{{job.workflow_id}}}:{job.job_id}:{kind}"

    def ask(self, *command: Any) -> Any:
        return self._server.ask(*command)

    def write(self, first: int, last: int, stream: str = "stdout", job: JobRef = JOB) -> None:
        """Lines as a foreign runner writes them."""
        for number in range(first, last + 1):
            fields = Line(number, STAMP, f"line {number}", stream).to_fields()
            self.ask("XADD", self.key("log", job), f"{number}-0", *fields)

    def end(self, number: int, status: str = "COMPLETED", job: JobRef = JOB) -> None:
        """The terminal entry as a foreign runner writes it."""
        self.ask("XADD", self.key("log", job), f"{number}-0", "event", "end", "status", status, "exit_code", "0")

    def viewer(self, job: JobRef = JOB, **wanted: Any) -> Viewer:
        """A viewer, of the job as it is now."""
        request = ViewerRequest(job, self.store.get_job(job), retry_ms=2417, **wanted)
        return Viewer(request, self.pieces, self.tail, clock=self.clock)

    def attend(self) -> None:
        """A round of each of the tail's threads."""
        for step in (self.tail.read_once, self.tail.housekeep_once):
            try:
                step()
            except StoreError:
                continue

    def wait(self, seconds: int) -> None:
        """Lets time pass, the tail at work."""
        for _ in range(seconds):
            self.clock.now += 1
            self.attend()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server that lets a blocked read go when it should, not only at its next tenth of a second."""
    with running(tmp_path_factory.mktemp("server"), None, "--hz", "500") as server:
        yield server


@pytest.fixture
def rig(server: RedisServer, store: Store, prefix: str) -> Iterator[Rig]:
    """A rig with nothing under its prefix, on a server old enough to judge its runners."""
    wait_until(lambda: b"uptime_in_seconds:0\r" not in server.ask("INFO", "server"), 5, "the server is a second old")
    looker = Store(server.url, prefix=prefix, lease_seconds=YOUTH_SECONDS)
    rig = Rig(server, store, looker, prefix)
    yield rig
    rig.tail.stop()
    looker.close()


def started(rig: Rig, **wanted: Any) -> Viewer:
    """A viewer that has said hello and all there was."""
    viewer = rig.viewer(**wanted)
    drained(viewer)
    return viewer


def spoken(chunk: bytes) -> list[tuple[str, str]]:
    """The (event, data) pairs of a chunk."""
    return [(event.event, event.data) for event in events(chunk)]


def names(chunk: bytes) -> list[str]:
    """What each event is: its name, and for lines and gaps their numbers."""
    found = []
    for event in events(chunk):
        if event.event == "log":
            found.append(f"log {event.id}")
        elif event.event == "gap":
            found.append(f"gap {event.data.split(',')[0].split(':')[1]} {event.data.split(',')[1].split(':')[1]}")
        else:
            found.append(event.event)
    return found


def runner(rig: Rig, lines: int) -> Attempt:
    """Our own runner's attempt, with some lines written."""
    attempt = rig.store.open(JOB, "token")
    rig.store.append(attempt, [Line(number, STAMP, f"line {number}", "stdout") for number in range(1, lines + 1)])
    return attempt


def test_hello_comes_before_anything_else(rig: Rig) -> None:
    """The first bytes are `connected` with the reconnection time, and what the job is."""
    rig.write(1, 2)
    job = b'{"status":"RUNNING","attempt":1,"first_sequence_num":1,"last_sequence_num":2,"started_at":"%b"}'
    assert rig.viewer().next() == CONNECTED + b"event: job\ndata: " + job % STAMP.encode() + b"\n\n"


def test_hello_needs_no_store(rig: Rig) -> None:
    """A store that has just gone away does not keep `connected` back."""
    viewer = rig.viewer(wait=5)
    rig.source.fault = StoreUnavailable("gone")
    assert viewer.next() == CONNECTED


def test_replay_then_live_then_the_end(rig: Rig) -> None:
    """Lines from before and after the connect come in one order, the job's last state just before the end."""
    rig.write(1, 3)
    viewer = rig.viewer()
    before = drained(viewer)
    rig.write(4, 5)
    rig.end(6)
    rig.attend()
    assert names(before + drained(viewer)) == [
        "connected", "job", "log 1", "log 2", "log 3", "log 4", "log 5", "job", "end",
    ]  # fmt: skip
    assert (viewer.done, viewer.reason) == (True, "end")


def test_a_filter_moves_the_cursor_over_what_it_keeps_back(rig: Rig) -> None:
    """Under `stream=stderr` the other lines leave nothing but an id behind, in the replay and live."""
    rig.write(1, 2)
    viewer = rig.viewer(stream="stderr")
    assert drained(viewer).endswith(b"\n\nid: 2\n\n")
    rig.write(3, 3, "stderr")
    rig.write(4, 5)
    rig.attend()
    live = drained(viewer)
    assert names(live) == ["log 3"]
    assert live.endswith(b"\n\nid: 5\n\n")


def test_an_offset_beyond_the_log_waits_for_its_line(rig: Rig) -> None:
    """Nothing at or below the offset is sent, however the log gets there."""
    rig.write(1, 2)
    viewer = started(rig, after=4)
    rig.write(3, 4)
    rig.attend()
    assert viewer.next() is None
    rig.write(5, 5)
    rig.attend()
    assert names(drained(viewer)) == ["log 5"]


def test_viewers_share_their_bytes(rig: Rig) -> None:
    """A line is encoded once, and viewers at the same place get the very same object."""
    rig.write(1, 1)
    one, other = started(rig), started(rig)
    rig.write(2, 3)
    rig.attend()
    chunk = one.next()
    assert chunk
    assert chunk is other.next()


def test_a_heartbeat_after_silence(rig: Rig) -> None:
    """A bare colon line, after 15 s without a byte and after 15 more, and no sooner."""
    rig.write(1, 1)
    viewer = started(rig)
    for _ in range(2):
        rig.wait(14)
        assert viewer.next() is None
        rig.wait(1)
        assert viewer.next() == b":\n"
        assert viewer.next() is None


def test_a_heartbeat_is_due_when_the_tail_wakes_for_it(rig: Rig) -> None:
    """The tail's round at that time wakes the viewer, and none before does."""
    rig.write(1, 1)
    viewer = started(rig)
    assert viewer.due == rig.clock.now + 15


def test_a_line_puts_the_heartbeat_off(rig: Rig) -> None:
    """The 15 s count from the last byte, whatever it belonged to."""
    rig.write(1, 1)
    viewer = started(rig)
    rig.wait(10)
    rig.write(2, 2)
    rig.attend()
    assert names(drained(viewer)) == ["log 2"]
    rig.wait(14)
    assert viewer.next() is None


def test_no_heartbeat_while_the_tail_is_deaf(rig: Rig) -> None:
    """A heartbeat would say that all is well; with the store away it is not sent, and with it back it is."""
    rig.write(1, 1)
    viewer = started(rig)
    rig.wait(10)
    rig.source.fault = StoreUnavailable("gone")
    rig.wait(6)
    assert viewer.next() is None
    rig.source.fault = None
    rig.attend()
    assert viewer.next() == b":\n"


def test_a_store_that_stays_away_ends_the_stream(rig: Rig) -> None:
    """Not a byte until patience is out, then one error."""
    rig.write(1, 1)
    viewer = started(rig)
    rig.source.fault = StoreUnavailable("gone")
    rig.wait(int(STORE_PATIENCE_SECONDS) - 1)
    assert viewer.next() is None
    rig.wait(1)
    assert spoken(drained(viewer)) == [("error", "the store has been away for 30 s")]
    assert (viewer.done, viewer.reason) == (True, "error")


def test_a_store_that_stays_away_ends_a_replay(rig: Rig) -> None:
    """The same for a finished job, which no tail reads."""
    rig.write(1, 1)
    rig.end(2)
    viewer = rig.viewer()
    rig.source.fault = StoreUnavailable("gone")
    assert names(drained(viewer)) == ["connected", "job"]
    rig.clock.now += STORE_PATIENCE_SECONDS - 1
    assert viewer.next() is None
    rig.clock.now += 1
    assert spoken(drained(viewer)) == [("error", "the store has been away for 30 s")]


def test_a_store_that_comes_back_has_lost_nothing(rig: Rig) -> None:
    """What was written meanwhile follows what was sent before."""
    rig.write(1, 1)
    viewer = started(rig)
    rig.source.fault = StoreUnavailable("gone")
    rig.wait(20)
    rig.write(2, 3)
    rig.source.fault = None
    rig.attend()
    assert names(drained(viewer)) == ["log 2", "log 3"]


def test_a_tail_that_was_idle_for_long_is_not_deaf(rig: Rig) -> None:
    """A job joined after an hour without any is not told that the store has been away."""
    rig.write(1, 1)
    rig.clock.now += 3600
    viewer = rig.viewer()
    assert names(drained(viewer)) == ["connected", "job", "log 1"]


def test_a_stalled_viewer_of_an_ended_job_spoils_nothing(rig: Rig) -> None:
    """While it lingers, the tail stays healthy for the jobs that come after."""
    rig.write(1, 1)
    stalled = rig.viewer()
    rig.end(2)
    rig.wait(40)
    rig.write(1, 1, job=OTHER)
    assert names(drained(rig.viewer(OTHER))) == ["connected", "job", "log 1"]
    assert names(drained(stalled))[-1] == "end"


def test_the_token_expires(rig: Rig) -> None:
    """At its last second the stream ends with an error that says so."""
    rig.write(1, 1)
    viewer = started(rig, expires_at=rig.clock.now + 5)
    rig.wait(4)
    assert viewer.next() is None
    assert viewer.due == rig.clock.now + 1
    rig.wait(1)
    assert viewer.next() == b"event: error\ndata: token expired\n\n"
    assert (viewer.done, viewer.reason) == (True, "expired")


def test_the_stream_is_old_enough(rig: Rig) -> None:
    """At the maximum age it ends without `end` or error: the client comes back by itself."""
    rig.write(1, 1)
    viewer = started(rig, closes_at=rig.clock.now + 5)
    rig.wait(4)
    assert viewer.next() is None
    rig.wait(1)
    assert viewer.next() == b"retry: 2417\n\n"
    assert (viewer.done, viewer.reason) == (True, "age")


def test_the_process_goes(rig: Rig) -> None:
    """A viewer that is sent away ends without `end` or error, and with a reconnection time of its own."""
    rig.write(1, 1)
    viewer = started(rig)
    viewer.close_with_retry(1234)
    assert viewer.next() == b"retry: 1234\n\n"
    assert (viewer.done, viewer.reason) == (True, "drain")


def test_the_wait_is_over(rig: Rig) -> None:
    """A job that does not come in time is one error."""
    viewer = started(rig, wait=20)
    rig.wait(15)
    assert viewer.next() == b":\n"
    rig.wait(4)
    assert viewer.next() is None
    assert viewer.due == rig.clock.now + 1
    rig.wait(1)
    assert spoken(drained(viewer)) == [("error", "no such job came within 20 s")]


@pytest.mark.parametrize("registered", [False, True], ids=["unheard of", "registered"])
def test_an_awaited_job_is_introduced_before_its_lines(rig: Rig, registered: bool) -> None:
    """A job that comes while it is waited for sends its `job` frame first, then the lines from 1."""
    if registered:
        rig.store.register(JOB)
    viewer = started(rig, wait=20)
    rig.write(1, 2)
    rig.attend()
    assert names(drained(viewer)) == ["job", "log 1", "log 2"]


def test_an_awaited_job_that_is_registered_is_introduced(rig: Rig) -> None:
    """PENDING is worth a `job` frame within a look, and ends the wait."""
    viewer = started(rig, wait=5)
    rig.store.register(JOB)
    rig.wait(int(CHECK_SECONDS))
    assert [data[:19] for _, data in spoken(drained(viewer))] == ['{"status":"PENDING"']
    rig.wait(10)
    assert viewer.next() is None


def test_a_new_attempt_is_told(rig: Rig) -> None:
    """A `job` frame comes again when, and only when, status or attempt changed."""
    runner(rig, 2)
    viewer = started(rig)
    rig.wait(3)
    assert viewer.next() is None
    rig.ask("DEL", rig.key("lease"))
    rig.store.open(JOB, "another token")
    rig.wait(1)
    assert [data[:31] for _, data in spoken(drained(viewer))] == ['{"status":"RUNNING","attempt":2']


def test_a_deleted_log_is_an_error(rig: Rig) -> None:
    """Within a look, for no read wakes up for that."""
    rig.write(1, 1)
    viewer = started(rig)
    rig.wait(5)
    rig.ask("DEL", rig.key("log"))
    rig.wait(int(CHECK_SECONDS))
    assert spoken(drained(viewer)) == [("error", GONE)]


def test_a_log_that_goes_between_look_and_replay_is_an_error(rig: Rig) -> None:
    """The same for a viewer that has not begun to read."""
    rig.write(1, 9)
    viewer = rig.viewer()
    rig.ask("DEL", rig.key("log"))
    assert spoken(drained(viewer))[2:] == [("error", GONE)]


def test_a_key_that_is_no_log_is_an_error(rig: Rig) -> None:
    """Whether the tail or the viewer itself stumbles over it."""
    rig.write(1, 3)
    live, behind = started(rig), rig.viewer()
    rig.ask("SET", rig.key("log"), "not a stream")
    rig.attend()
    assert spoken(drained(live)) == [("error", NO_LOG)]
    assert spoken(drained(behind))[2:] == [("error", NO_LOG)]


def test_a_key_that_is_no_log_disturbs_nobody_else(rig: Rig) -> None:
    """The other jobs of the same read go on."""
    rig.write(1, 1)
    rig.write(1, 1, job=OTHER)
    viewer, other = started(rig), started(rig, job=OTHER)
    rig.ask("SET", rig.key("log"), "not a stream")
    rig.write(2, 2, job=OTHER)
    rig.attend()
    rig.attend()
    assert names(drained(viewer)) == ["error"]
    assert names(drained(other)) == ["log 2"]
    rig.wait(15)
    assert other.next() == b":\n"


def test_a_lost_runner_is_the_end(rig: Rig) -> None:
    """The job says LOST, and an error with the id behind the last line closes, so that no client comes back."""
    runner(rig, 2)
    viewer = started(rig)
    rig.ask("DEL", rig.key("lease"))
    heard: list[bytes] = []

    def lost() -> bool:
        rig.wait(int(CHECK_SECONDS))
        heard.append(drained(viewer))
        return viewer.done

    wait_until(lost, 5, "the grace is over and the job LOST")
    job, error = events(b"".join(heard))
    assert (job.event, job.data[:16]) == ("job", '{"status":"LOST"')
    assert error == ("error", "runner lost: nothing heard from it for 1 s", "3")


def test_a_lost_job_is_the_same_for_a_late_viewer(rig: Rig) -> None:
    """One that comes after the end reads the lines, LOST, and the same closing error."""
    rig.write(1, 1)
    rig.end(2, "LOST")
    chunk = drained(rig.viewer())
    assert names(chunk) == ["connected", "job", "log 1", "job", "error"]
    assert events(chunk)[-1].id == "2"


def test_a_finished_job_with_trimmed_lines(rig: Rig) -> None:
    """What was let go is named, what is left is shown, and the end comes."""
    rig.write(1, 6)
    rig.end(7)
    rig.ask("XTRIM", rig.key("log"), "MAXLEN", 3)
    assert names(drained(rig.viewer())) == ["connected", "job", "gap 1 4", "log 5", "log 6", "job", "end"]
    assert names(drained(rig.viewer(after=2)))[2] == "gap 3 4"


def test_a_finished_job_whose_log_expired(rig: Rig) -> None:
    """As long as the hash is there, it says how many lines there were: all of them gone, then the end."""
    attempt = runner(rig, 3)
    rig.store.finish(attempt, Status.FAILED, 7, 0, 4)
    rig.ask("DEL", rig.key("log"))
    chunk = drained(rig.viewer())
    assert names(chunk) == ["connected", "job", "gap 1 3", "job", "end"]
    assert events(chunk)[-1].id == "4"


def test_a_log_trimmed_to_nothing_while_it_runs(rig: Rig) -> None:
    """Viewers that were behind and viewers that come learn what is gone; the next line follows."""
    rig.write(1, 5)
    behind = rig.viewer()
    rig.ask("XTRIM", rig.key("log"), "MAXLEN", 0)
    assert names(drained(behind)) == ["connected", "job", "gap 1 5"]
    rig.write(6, 6)
    rig.attend()
    assert names(drained(behind)) == ["log 6"]
    assert names(drained(rig.viewer())) == ["connected", "job", "gap 1 5", "log 6"]


def test_what_comes_between_a_viewers_read_and_its_look_is_no_gap(rig: Rig) -> None:
    """A line that the look knows of and the read was too early for is read again, not given up."""
    rig.write(1, 3)
    viewer = rig.viewer()
    rig.ask("XTRIM", rig.key("log"), "MAXLEN", 0)
    rig.source.before["get_job"] = lambda: rig.write(4, 4)
    assert names(drained(viewer)) == ["connected", "job", "gap 1 3", "log 4"]


def test_what_comes_before_the_tails_look_is_no_gap(rig: Rig) -> None:
    """The same for the tail, whose next read brings the line."""
    rig.write(1, 1)
    viewer = started(rig)
    rig.source.before["get_jobs"] = lambda: rig.write(2, 3)
    rig.attend()
    assert viewer.next() is None
    rig.attend()
    assert names(drained(viewer)) == ["log 2", "log 3"]


def test_a_log_that_vanishes_under_a_read_is_a_gap(rig: Rig) -> None:
    """Lines trimmed between the tail's read and its look are sent all the same, behind the gap before them."""
    rig.write(1, 1)
    viewer = started(rig)
    rig.write(2, 4)
    rig.ask("XTRIM", rig.key("log"), "MAXLEN", 1)
    rig.source.before["get_jobs"] = lambda: rig.ask("XTRIM", rig.key("log"), "MAXLEN", 0)
    rig.attend()
    assert names(drained(viewer)) in (["gap 2 3", "log 4"], ["gap 2 4"])


@pytest.mark.parametrize(
    ("command", "reason"),
    [(("XTRIM", "MINID", "3-0"), "trimmed"), (("XDEL", "2-0"), "missing")],
    ids=["trim", "delete"],
)
def test_a_gap_says_why(rig: Rig, command: tuple[str, ...], reason: str) -> None:
    """Trimmed below the first line there is, missing above it: live and in a replay."""
    rig.write(1, 1)
    viewer = started(rig)
    rig.write(2, 3)
    rig.ask(command[0], rig.key("log"), *command[1:])
    rig.attend()
    gap = ("gap", f'{{"from":2,"to":2,"reason":"{reason}"}}')
    assert spoken(drained(viewer))[0] == gap
    assert spoken(drained(rig.viewer(after=1)))[2] == gap


def test_a_viewer_far_behind_in_the_ring_takes_it_in_pieces(rig: Rig) -> None:
    """No write is longer than a viewer that stopped reading may hold on to, and the end is in the last one."""
    rig.write(1, 1)
    viewer = started(rig)
    for number in range(2, 22):
        fields = Line(number, STAMP, "x" * (SLICE_BYTES // 8), "stdout").to_fields()
        rig.ask("XADD", rig.key("log"), f"{number}-0", *fields)
    rig.end(22)
    rig.wait(3)
    chunks = list(drain(viewer))
    assert len(chunks) > 2
    assert max(map(len, chunks)) <= SLICE_BYTES + 1000
    assert names(b"".join(chunks)) == [*(f"log {number}" for number in range(2, 22)), "job", "end"]


def test_lines_that_came_and_went_are_named_live(rig: Rig) -> None:
    """No read ever wakes for them: the tail's look knows that they were there."""
    rig.write(1, 1)
    viewer = started(rig)
    rig.write(2, 3)
    rig.ask("XTRIM", rig.key("log"), "MAXLEN", 0)
    rig.attend()
    assert names(drained(viewer)) == ["gap 2 3"]


def test_a_gap_does_not_name_what_was_seen(rig: Rig) -> None:
    """A viewer whose own reads ran ahead of the tail meets the tail's gap in its middle, and is told the rest."""
    rig.write(1, 5)
    viewer = rig.viewer()
    rig.write(6, 8)
    assert names(drained(viewer))[-1] == "log 8"
    rig.write(9, 11)
    rig.ask("XTRIM", rig.key("log"), "MINID", "11-0")
    rig.attend()
    assert names(drained(viewer)) == ["gap 9 10", "log 11"]


def test_a_gap_does_not_reach_below_the_offset(rig: Rig) -> None:
    """The same for one that connects inside a gap that the ring holds."""
    rig.write(1, 2)
    other = started(rig)
    rig.write(3, 9)
    rig.ask("XTRIM", rig.key("log"), "MINID", "9-0")
    rig.attend()
    assert names(drained(other)) == ["gap 3 8", "log 9"]
    assert names(drained(rig.viewer(after=5)))[2:] == ["gap 6 8", "log 9"]


def test_the_job_never_goes_back(rig: Rig) -> None:
    """A viewer whose look is fresher than the tail's is not told what the job was before."""
    rig.store.register(JOB)
    first = started(rig)
    runner(rig, 1)
    assert names(drained(rig.viewer())) == ["connected", "job"]
    rig.attend()
    assert names(drained(first)) == ["job", "log 1"]


def test_a_job_that_came_and_ended_is_introduced_all_the_same(rig: Rig) -> None:
    """An awaited job that has ended when the tail first looks: its `job` frame still precedes its first line."""
    viewer = started(rig, wait=5)
    rig.write(1, 1)
    rig.end(2)
    rig.attend()
    assert names(drained(viewer)) == ["job", "log 1", "job", "end"]


def test_a_store_that_fails_at_the_end_of_a_replay_costs_no_line(rig: Rig) -> None:
    """The lines of a read are sent, or read again, when the look that follows for the end fails."""
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


def test_a_store_that_fails_at_the_end_of_a_live_log(rig: Rig) -> None:
    """When the look that follows for the end fails, the very next read is from where the lines have got to."""
    rig.write(1, 1)
    viewer = started(rig)
    rig.write(2, 2)
    rig.end(3)
    rig.source.before["get_jobs"] = unavailable
    with pytest.raises(StoreUnavailable):
        rig.tail.read_once()
    rig.tail.read_once()
    assert names(drained(viewer)) == ["log 2", "job", "end"]


def test_a_job_that_ends_before_it_is_read_needs_no_other_read(rig: Rig) -> None:
    """The attendant's look has closed its channel: no read has to give way for it any more."""
    rig.write(1, 1)
    started(rig)
    rig.end(2)
    rig.tail.housekeep_once()
    assert not rig.tail.read_once()
    [channel] = rig.tail._feeds.values()
    assert channel.final
    assert channel.subscribed


def unavailable() -> None:
    raise StoreUnavailable("for a moment")


def test_a_finished_log_that_shrank_before_the_replay(rig: Rig) -> None:
    """What the look promised and the store lost in a power cut is not passed over: a gap, or an error that says so."""
    attempt = runner(rig, 5)
    early = [(kind, rig.ask("DUMP", rig.key(kind))) for kind in ("log", "job")]
    rig.write(6, 10)
    rig.store.finish(attempt, Status.COMPLETED, 0, 0, 11)
    viewer = rig.viewer()
    for kind, dump in early:
        rig.ask("RESTORE", rig.key(kind), 0, dump, "REPLACE")
    rig.ask("SET", rig.key("lease"), "token")
    assert names(drained(viewer))[6:] in (["log 5", "gap 6 10", "job", "end"], ["log 5", "error"])


def test_a_viewer_behind_a_ring_that_closed_is_let_go(rig: Rig) -> None:
    """The store went back and the log ended early: one between that end and the ring's beginning does not hang."""
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


def test_a_stray_entry_stops_nobody(rig: Rig) -> None:
    """An entry such as 2-1 is named by an error, and the lines behind it come."""
    rig.write(1, 1)
    live = started(rig)
    rig.write(2, 2)
    rig.ask("XADD", rig.key("log"), "2-1", "message", "nowhere")
    rig.write(3, 3)
    rig.attend()
    assert names(drained(live)) == ["log 2", "error", "log 3"]
    assert names(drained(rig.viewer())) == ["connected", "job", "log 1", "log 2", "error", "log 3"]


def test_an_entry_without_a_message_is_a_gap(rig: Rig) -> None:
    """There is nothing in it to show, so its number is named."""
    rig.write(1, 1)
    live = started(rig)
    rig.ask("XADD", rig.key("log"), "2-0", "note", "nothing to show")
    rig.write(3, 3)
    rig.attend()
    gap = ("gap", '{"from":2,"to":2,"reason":"malformed"}')
    assert spoken(drained(live))[0] == gap
    assert spoken(drained(rig.viewer()))[3] == gap


def test_a_client_that_goes_gets_no_more_bytes(rig: Rig) -> None:
    """`hang_up` ends the chunks, and the viewer leaves the tail."""
    rig.write(1, 1)
    viewer = rig.viewer()
    chunks = viewer.chunks()
    assert next(chunks).startswith(CONNECTED)
    viewer.disconnect()
    assert list(chunks) == []
    assert (rig.tail.watched, viewer.reason) == (0, "left")


def test_a_closed_response_leaves_the_tail(rig: Rig) -> None:
    """So does one whose server closes the generator, and closing twice is no harm."""
    rig.write(1, 1)
    viewer = rig.viewer()
    chunks = viewer.chunks()
    next(chunks)
    assert rig.tail.watched == 1
    cast(Generator[bytes], chunks).close()
    viewer.close()
    assert rig.tail.watched == 0


def test_a_replay_may_rest_between_its_pieces_and_not_before_the_first(rig: Rig) -> None:
    """It is told how much it had each time, and every line comes, in order."""
    rig.write(1, 100)
    rested: list[int] = []
    rig.pieces = ReplayCache(rig.source, throttle=rested.append, clock=rig.clock)
    viewer, chunks = rig.viewer(), list[bytes]()
    while not chunks or "log 100" not in names(chunks[-1]):
        chunks += [chunk for chunk in [viewer.next()] if chunk]
        assert len(rested) < len(chunks) < 100
    numbers = [name for chunk in chunks for name in names(chunk) if name.startswith("log")]
    assert numbers == [f"log {number}" for number in range(1, 101)]
    pieces = [len(chunk) for chunk in chunks if names(chunk)[0].startswith("log")]
    assert rested == pieces[: len(rested)]
    assert rested
