"""One log in two tiers. While lines move from the store to the archive, readers miss none and report no gap."""

import contextlib
import itertools
import json
import secrets
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from chronoverse.archive.job_objects import archive_lock
from chronoverse.archive.object_store import FileObjectStore
from chronoverse.archive.reader import ArchiveReader
from chronoverse.archive.redaction import Redaction, RedactionRequest
from chronoverse.archive.retention import delete_job
from chronoverse.errors import ArchiveUnavailable, JobNotFound, StoreUnavailable
from chronoverse.history.tiered_log import TieredLog, read_tiers
from chronoverse.joblog.chunk import folder
from chronoverse.joblog.entries import RawEntry
from chronoverse.joblog.model import REDACTED_MESSAGE, End, Gap, Job, JobRef, Line, Status
from chronoverse.live import tail
from chronoverse.live.replay_cache import FIRST_LINES, ReplayCache
from chronoverse.live.tail import Tail
from chronoverse.live.viewer import STORE_PATIENCE_SECONDS, Viewer
from chronoverse.store import Store
from tests.support.archivers import stepped
from tests.support.archives import archive_up_to
from tests.support.examples import examples
from tests.support.reading import SMALL_RING, Clock, ControlledStore, drained, events, redis_fields
from tests.support.servers import RedisServer
from tests.support.waiting import deadline

JOB: Final = JobRef("wf_1", "job_1")
STAMP: Final = "2026-03-03T10:00:05.123Z"


class UnreachableStore(FileObjectStore):
    """An object store that can be made unavailable. Counts reads."""

    unavailable = False
    reads = 0

    def get(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        self.reads += 1
        if self.unavailable:
            raise ArchiveUnavailable("out of reach")
        return super().get(name, start, stop)


class Rig:
    """A log in two tiers, with a tail reader and viewers. Each acts only when the test calls it."""

    def __init__(self, server: RedisServer, store: Store, prefix: str, directory: Path) -> None:
        self.store = store
        self.source = ControlledStore(store)
        self.clock = Clock()
        self.objects = UnreachableStore(directory)
        self.archive = ArchiveReader(self.objects, store.chunks.chunk, self.clock)
        self.replay_cache = ReplayCache(self.source, self.archive, clock=self.clock)
        self.tail = Tail(self.source, ring_bytes=SMALL_RING, redacted=self.replay_cache.invalidate, clock=self.clock)
        self.key = f"{prefix}:{{{JOB.workflow_id}}}:{JOB.job_id}:log"
        self.ask: Callable[..., Any] = server.ask
        self.last = 0

    def write(self, count: int) -> None:
        for _ in range(count):
            self.last += 1
            line = Line(self.last, STAMP, f"line {self.last}", "stdout")
            self.ask("XADD", self.key, f"{self.last}-0", *redis_fields(line))

    def end(self) -> None:
        self.ask("XADD", self.key, f"{self.last + 1}-0", "event", "end", "status", "COMPLETED")

    def redact(self, first: int, last: int) -> None:
        request = RedactionRequest(first, last, lambda line: True, {}, exact=True)
        assert Redaction(self.store, self.objects, JOB, request).run().lines == last - first + 1

    def archive_up_to(self, to: int, *, trim: bool = True) -> None:
        archive_up_to(self.store, self.objects, JOB, to, trim=trim, frame_bytes=700)

    def get_job(self) -> Job:
        return self.store.require_job(JOB)

    def viewer(self, after: int = 0) -> Viewer:
        return Viewer(self.replay_cache, self.tail, JOB, self.store.get_job(JOB), after=after)

    def read(self) -> None:
        for _ in range(3):
            self.tail.read_once()


@pytest.fixture
def rig(server: RedisServer, store: Store, prefix: str, tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(server, store, prefix, tmp_path)
    yield rig
    rig.tail.stop()


def numbers(chunk: bytes) -> list[int]:
    return [int(event.id) for event in events(chunk) if event.event == "log"]


def names(chunk: bytes) -> list[str]:
    return [event.event for event in events(chunk)]


@settings(max_examples=examples(20), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_pages_add_up_while_lines_move(
    server: RedisServer, store: Store, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Ascending and descending. Between the reads of a page, lines are archived and trimmed."""
    prefix = f"h{secrets.token_hex(6)}"
    own = Store(server.url, prefix=prefix)
    rig = Rig(server, own, prefix, tmp_path_factory.mktemp("objects"))
    total, descending = data.draw(st.integers(1, 60)), data.draw(st.booleans())
    rig.write(total)
    log = TieredLog(own, rig.archive, rig.get_job())
    position, found, archived = total + 1 if descending else 0, list[int](), 0
    in_time = deadline(30, "the last page")
    try:
        while in_time():
            if archived < total - 1 and data.draw(st.booleans()):
                archived = data.draw(st.integers(archived + 1, total - 1))
                rig.archive_up_to(archived, trim=data.draw(st.booleans()))
            count = data.draw(st.integers(1, 20))
            read = log.before(position, count) if descending else log.after(position, count)
            found += [entry.sequence_num for entry in read.entries if isinstance(entry, Line)]
            position = read.position
            if read.is_last:
                break
    finally:
        own.close()
    assert found == ([*range(total, 0, -1)] if descending else [*range(1, total + 1)])


def test_entries_after_the_end_are_not_read(rig: Rig) -> None:
    """A foreign runner can write some. A page can begin anywhere."""
    rig.write(3)
    rig.end()
    rig.last += 1
    rig.write(4)
    log = TieredLog(rig.store, rig.archive, rig.get_job())
    for position in range(4, 12):
        read = log.before(position, 2)
        assert ([entry.sequence_num for entry in read.lines], read.position) == ([3, 2], 2)
        assert log.after(position, 2).entries == []


def test_a_line_that_shares_its_number_is_not_lost(rig: Rig) -> None:
    """A page ends between the line and a foreign runner's entry that follows it."""
    rig.write(5)
    rig.ask("XADD", rig.key, "5-1", "message", "nowhere")
    log = TieredLog(rig.store, rig.archive, rig.get_job())
    assert [(line.sequence_num, line.message) for line in log.before(6, 1).lines] == [(5, "line 5")]
    # Numbers that the log does not have yet are not missing.
    assert [line.sequence_num for line in log.before(99, 9).lines] == [5, 4, 3, 2, 1]
    assert not [each for each in log.before(99, 9).entries if isinstance(each, Gap)]
    rig.ask("XADD", rig.key, "8-0", "message", "line 8")
    assert TieredLog(rig.store, rig.archive, rig.get_job()).before(8, 9).entries[0] == Gap(6, 7, "missing")


def test_without_an_archive_archived_lines_are_unavailable(rig: Rig) -> None:
    """Lines in the store can still be read."""
    rig.write(20)
    rig.archive_up_to(10)
    log = TieredLog(rig.store, ArchiveReader(), rig.get_job())

    assert [entry.sequence_num for entry in log.after(10, 5).entries if isinstance(entry, Line)] == [*range(11, 16)]
    assert log.before(1, 5).is_last
    with pytest.raises(ArchiveUnavailable):
        log.after(9, 5)
    with pytest.raises(ArchiveUnavailable):
        log.before(11, 5)


def test_lines_that_were_archived_before_the_tail_read_them_are_no_gap(rig: Rig) -> None:
    """The tail continues after them, and its viewer reads them from the archive."""
    rig.write(5)
    viewer = rig.viewer()
    assert numbers(drained(viewer)) == [*range(1, 6)]
    rig.write(20)
    rig.archive_up_to(15)
    rig.read()
    found = drained(viewer)
    rig.write(1)
    rig.read()

    assert "gap" not in names(found)
    assert numbers(found + drained(viewer)) == [*range(6, 27)]


def test_a_quiet_log_that_was_archived_is_no_gap(rig: Rig) -> None:
    """When the tail checks the job, its lines have moved from the store to the archive. Pages know an older state."""
    rig.write(5)
    viewer = rig.viewer(after=5)
    assert names(drained(viewer)) == ["connected", "job"]
    rig.write(5)
    log = TieredLog(rig.store, rig.archive, rig.get_job())
    rig.archive_up_to(10)
    rig.ask("XTRIM", rig.key, "MAXLEN", 0)
    rig.clock.now += 2
    rig.tail.housekeep_once()

    assert numbers(drained(viewer)) == [*range(6, 11)]
    assert [line.sequence_num for line in log.after(5, 9).lines] == [*range(6, 11)]
    assert [line.sequence_num for line in log.before(1_000, 3).lines] == [10, 9, 8]


@pytest.mark.parametrize(("how", "returns"), [*itertools.product(["live", "replay", "page"], [False, True])])
def test_archived_lines_of_a_lost_job_are_no_gap(rig: Rig, how: str, returns: bool) -> None:
    """The store loses the job after a reader has read what follows them. An import can restore them.

    If the runner ``returns`` before the import, it reports them as lost, and the reader gets what the new log has.
    """
    rig.write(5)
    viewer, log = rig.viewer(after=5 if how == "live" else 2), TieredLog(rig.source, rig.archive, rig.get_job())
    if how == "live":
        assert names(drained(viewer)) == ["connected", "job"]
    rig.write(3)
    rig.archive_up_to(7)
    kinds = ("log", "job", "archive")

    def lose() -> None:
        rig.ask("DEL", *(f"{rig.key.removesuffix('log')}{kind}" for kind in kinds))
        if returns:
            rig.ask("XADD", rig.key, "25-0", "event", "lost", "from", "1")
            rig.ask("HSET", rig.key.removesuffix("log") + "job", "created_at", "2026-03-03T11:00:00.000Z")

    rig.source.before["get_jobs" if how == "live" else "get_job"] = lose
    if how == "page":
        with contextlib.nullcontext() if returns else pytest.raises(JobNotFound):
            assert log.after(2, 20).entries == [Gap(3, 25, "lost")]
        return
    for _ in range(1 + returns if how == "live" else 0):
        rig.tail.read_once()
    found = [each for each in events(drained(viewer)) if each.event in ("log", "gap", "error")]
    assert [each.event for each in found] == ["gap" if returns else "error"]
    assert ('"reason":"lost"' in found[0].data) == returns


def test_a_failover_between_two_reads_is_no_gap_live(rig: Rig) -> None:
    """The new master lacks what the old one had archived, and the tail had read what follows."""
    rig.write(5)
    viewer = rig.viewer(after=5)
    assert names(drained(viewer)) == ["connected", "job"]
    kinds = [rig.key.removesuffix("log") + kind for kind in ("log", "job", "archive")]
    old = rig.ask("DUMP", rig.key)

    def fail_over() -> None:
        rig.ask("DEL", *kinds)
        rig.ask("RESTORE", rig.key, 0, old)

    rig.write(3)
    rig.archive_up_to(7)
    rig.source.before["get_jobs"] = fail_over
    for _ in range(2):
        rig.tail.read_once()
    assert drained(viewer) == b""
    rig.last = 5
    rig.write(3)
    rig.tail.read_once()
    assert numbers(drained(viewer)) == [6, 7, 8]


@pytest.mark.parametrize(("last", "end", "is_gap"), [(7, None, False), (9, None, True), (7, 8, True)])
def test_entries_that_the_job_lacks_are_no_gap(last: int, end: int | None, is_gap: bool) -> None:
    """They are from a server that another has replaced. An end is final."""
    job = Job(JOB, Status.RUNNING, last=last)
    job = job.ended(End(end, Status.COMPLETED, 0, last, 0, None)) if end else job
    found: list[RawEntry] = [(b"9-0", [])]
    with contextlib.nullcontext() if is_gap else pytest.raises(StoreUnavailable):
        assert read_tiers(job, 5, lambda: None, lambda: (None, found), lambda: job) == (None, found, job)


def test_entries_of_a_replaced_log_are_no_gap() -> None:
    """They were read before the job. What is read after two equal answers about the job is of its log."""
    jobs = [Job(JOB, Status.RUNNING, last=9, created_at=f"2026-03-03T10:00:0{second}.000Z") for second in (1, 2, 2)]
    logs: list[list[RawEntry]] = [[(b"7-0", [])], [(b"8-0", [])], [(b"9-0", [])]]
    found = read_tiers(jobs[0], 5, lambda: None, lambda: (None, logs.pop(0)), lambda: jobs.pop(0))
    assert found[1] == [(b"9-0", [])]


def test_an_unavailable_archive_ends_the_streams_that_need_it(rig: Rig) -> None:
    """After a while, with one error. Streams that have caught up continue."""
    rig.write(20)
    rig.archive_up_to(15)
    rig.objects.unavailable = True
    replaying, caught_up = rig.viewer(), rig.viewer(after=15)
    assert names(drained(replaying)) == ["connected", "job"]
    assert numbers(drained(caught_up)) == [*range(16, 21)]
    rig.clock.now += STORE_PATIENCE_SECONDS / 2
    rig.read()
    assert drained(replaying) in (b"", b":\n")
    rig.clock.now += STORE_PATIENCE_SECONDS / 2
    rig.read()
    (error,) = events(drained(replaying))
    assert (error.event, error.data) == ("error", "the archive has been unavailable for 30 s")
    rig.write(1)
    rig.read()
    assert numbers(drained(caught_up)) == [21]


def test_a_replay_continues_when_the_archive_is_available_again(rig: Rig) -> None:
    """It needs no store for archived lines of a job that it knows."""
    rig.write(20)
    rig.archive_up_to(15)
    rig.objects.unavailable = True
    viewer = rig.viewer()
    drained(viewer)
    rig.objects.unavailable = False
    rig.clock.now += 1
    rig.source.fault = StoreUnavailable("away")

    assert numbers(drained(viewer)) == [*range(1, 16)]
    rig.source.fault = None
    rig.clock.now += 1
    assert numbers(drained(viewer)) == [*range(16, 21)]


def texts(chunk: bytes) -> list[str]:
    """The messages of lines, and the names of other events."""
    return [json.loads(event.data)["message"] if event.event == "log" else event.event for event in events(chunk)]


@pytest.mark.parametrize("archived", [0, 100])
def test_a_replay_of_an_ended_log_reports_a_redaction(rig: Rig, archived: int) -> None:
    """Before the end. A viewer that connects later only gets the redacted text."""
    rig.write(100)
    rig.end()
    if archived:
        rig.archive_up_to(archived)
    viewer = rig.viewer()
    assert names(viewer.next() or b"") == ["connected", "job"]
    sent = numbers(viewer.next() or b"")
    assert 7 <= sent[-1] < 90
    rig.redact(5, 7)
    rig.redact(90, 90)
    found = drained(viewer)

    assert sent + numbers(found) == [*range(1, 101)]
    assert texts(found)[-4:] == ["redact", "redact", "job", "end"]
    ranges = [json.loads(event.data) for event in events(found) if event.event == "redact"]
    assert ranges == [{"from": 5, "to": 7}, {"from": 90, "to": 90}]
    redacted = [number for number, text in enumerate(texts(drained(rig.viewer()))[2:], 1) if text == REDACTED_MESSAGE]
    assert redacted == [5, 6, 7, 90]


@pytest.mark.parametrize("is_early", [True, False])
def test_a_viewer_that_is_behind_after_the_end_gets_a_redaction(rig: Rig, is_early: bool) -> None:
    """Before the lines that follow. The tail checks the log until every viewer has seen its end."""
    rig.write(100)
    if not is_early:
        rig.end()
    viewer = rig.viewer()
    viewer.next()
    assert numbers(viewer.next() or b"") == [*range(1, FIRST_LINES + 1)]
    if is_early:
        rig.end()
        rig.read()
    rig.redact(5, 7)
    rig.clock.now += 2 * tail.CHECK_SECONDS
    rig.tail.housekeep_once()
    found = drained(viewer)

    assert (names(found)[0], names(found).count("redact")) == ("redact", 1)
    assert numbers(found) == [*range(FIRST_LINES + 1, 101)]
    assert names(found)[-1] == "end"


@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize("archived", [0, 50, 99])
def test_a_viewer_of_a_deleted_log_gets_an_error(rig: Rig, archived: int, ended: bool) -> None:
    """Even if the log had ended, wherever its lines were. The stream reports neither an end nor damage."""
    rig.write(100)
    if ended:
        rig.end()
    if archived:
        rig.archive_up_to(archived)
    viewer = rig.viewer()
    assert numbers((viewer.next() or b"") + (viewer.next() or b""))[-1] < 50

    delete_job(rig.store, rig.objects, JOB)
    rig.clock.now += 2 * tail.CHECK_SECONDS
    rig.tail.housekeep_once()

    (gone,) = events(drained(viewer))
    assert gone.event == "error"
    assert gone.data == "the log is gone from the store: it expired or was deleted"


def test_a_viewer_of_a_log_that_is_being_deleted_gets_an_error(rig: Rig) -> None:
    """The error does not say that the archive is damaged, even if the viewer finds an object missing first.

    Nor does the metric, which raises an alert.
    """
    damaged = partial(REGISTRY.get_sample_value, "chronoverse_archive_damaged_reads_total")
    before = damaged()
    rig.write(100)
    rig.end()
    rig.archive_up_to(50)
    rig.archive_up_to(99)
    viewer = rig.viewer()
    assert numbers((viewer.next() or b"") + (viewer.next() or b""))[-1] < 50
    with archive_lock(rig.store, JOB) as token:
        rig.store.chunks.mark_deleting(JOB, token, 0)
    for each in [*rig.objects.list(folder(JOB))]:
        rig.objects.delete(each.name)

    gone = events(drained(viewer))[-1]
    assert (gone.event, gone.data) == ("error", "the log is gone from the store: it expired or was deleted")
    assert damaged() == before


@pytest.mark.parametrize("archived", [0, 99])
@pytest.mark.parametrize("interrupted", [False, True], ids=["deleted", "being deleted"])
def test_a_replay_of_a_deleted_log_ends_with_an_error(rig: Rig, archived: int, interrupted: bool) -> None:
    """Lines can still come from a cache, or not be deleted yet. But the log does not seem complete."""
    rig.write(100)
    rig.end()
    if archived:
        rig.archive_up_to(archived, trim=False)
    late = rig.viewer()
    assert names(drained(rig.viewer()))[-1] == "end"

    def stop(step: str) -> None:
        if interrupted:
            raise InterruptedError

    with contextlib.suppress(InterruptedError):
        delete_job(*stepped(rig.store, rig.objects, stop), JOB)

    found = drained(late)
    assert names(found)[-1] == "error"
    assert "end" not in names(found)
