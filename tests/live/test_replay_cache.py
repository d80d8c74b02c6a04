"""Stored lines in segments: the same bytes as line by line, read once for all viewers, without missing a line."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronoverse.archive.reader import ArchiveReader
from chronoverse.errors import NotALog, StoreUnavailable
from chronoverse.history.scans.scan import ReplayScan
from chronoverse.joblog.entries import Entry, RawEntry, read_entries
from chronoverse.joblog.line_filter import LineFilter
from chronoverse.joblog.model import Job, JobRef, Line, Status
from chronoverse.live.feed import encode, join
from chronoverse.live.replay_cache import (
    CACHE_SECONDS,
    FIRST_LINES,
    MAX_SEGMENT_BYTES,
    READ_BYTES,
    SEGMENT_BYTES,
    SEGMENT_LINES,
    ReplayCache,
    ReplaySegment,
    make_segment,
)
from chronoverse.live.tail import Tail
from chronoverse.live.viewer import Viewer
from chronoverse.store import Store
from tests.support.entries import raw_entries
from tests.support.reading import SMALL_CACHE_BYTES, Clock, ControlledStore, StreamCheck, redis_fields
from tests.support.servers import RedisServer
from tests.support.waiting import deadline

JOB: Final = JobRef("wf_1", "job_1")
STAMP: Final = "2026-03-03T10:00:05.123Z"
#: Seconds for something that takes a fraction of a second.
LONG: Final = 20.0


def line_filter(stream: str | None) -> LineFilter | None:
    return LineFilter(stream) if stream else None


#: A replay cache with segments of eight lines. It holds three of them.
Eights: Final = partial(ReplayCache, most_lines=8, most_bytes=SMALL_CACHE_BYTES)


class Rig:
    """A log, and segments of it."""

    def __init__(self, server: RedisServer, store: Store, prefix: str) -> None:
        self.source = ControlledStore(store)
        self.clock = Clock()
        self.cache = Eights(self.source, clock=self.clock)
        self.key = f"{prefix}:{{{JOB.workflow_id}}}:{JOB.job_id}:log"
        self.ask: Callable[..., Any] = server.ask

    def write(self, first: int, last: int, stream: str = "stdout") -> None:
        for number in range(first, last + 1):
            self.ask("XADD", self.key, f"{number}-0", *redis_fields(Line(number, STAMP, f"line {number}", stream)))

    def segment(self, cursor: int, stream: str | None = None, lines: int = 8) -> ReplaySegment:
        """The segment after ``cursor``, which must exist."""
        segment = self.cache.read_after(JOB, line_filter(stream), cursor, lines)
        assert segment is not None
        return segment

    def walk(self, cursor: int) -> list[ReplaySegment]:
        found: list[ReplaySegment] = []
        in_time = deadline(30, "the last segment")
        while in_time() and (segment := self.cache.read_after(JOB, None, cursor, 8)):
            found.append(segment)
            cursor = segment.cursor
        return found


@pytest.fixture
def rig(server: RedisServer, store: Store, prefix: str) -> Iterator[Rig]:
    """After each test, checks that the cache has counted its bytes correctly."""
    rig = Rig(server, store, prefix)
    yield rig
    assert rig.cache._cached_bytes == sum(len(segment.frames) for _, segment in rig.cache._segments.values())


# What a segment says


@given(entries=raw_entries(), stream=st.sampled_from([None, "stdout", "stderr"]))
def test_a_segment_equals_its_entries_one_by_one(entries: Sequence[RawEntry], stream: str | None) -> None:
    """The fast path for plain lines and the general one give the same bytes."""
    items, closing = encode(read_entries(entries, 5, 1), 5)

    segment = make_segment(entries, 5, 1, line_filter(stream))

    assert segment.frames == join(items, line_filter(stream))
    assert (segment.cursor, segment.closing) == (items[-1].number if items else 5, closing)


@pytest.mark.parametrize(
    ("length", "lines"), [(0, SEGMENT_LINES[1]), (100, 256), (1000, 32), (3 * 2**16, SEGMENT_LINES[0])], ids=str
)
def test_segments_grow_to_what_fits(length: int, lines: int) -> None:
    """To about 64 KiB, but never to more than four times the previous number of lines."""
    message, wanted, seen = b"x" * length, FIRST_LINES, []
    for _ in range(4):
        fields = [b"timestamp", STAMP.encode(), b"message", message, b"stream", b"stdout"]
        segment = make_segment([(b"%d-0" % number, fields) for number in range(1, wanted + 1)], 0, 1, None)
        seen.append(wanted)
        assert segment.next_count <= 4 * wanted
        wanted = segment.next_count
    assert (wanted, seen[0]) == (lines, FIRST_LINES)
    assert lines in SEGMENT_LINES or SEGMENT_BYTES / 2 < lines * len(segment.frames) / seen[-1] <= SEGMENT_BYTES


@pytest.mark.parametrize("stream", [None, "stdout"])
@pytest.mark.parametrize("partial", [False, True], ids=["plain", "partial"])
@pytest.mark.parametrize("short", [0, 100])
def test_a_segment_ends_where_lines_become_long(short: int, partial: bool, stream: str | None) -> None:
    """With the line that exceeds the limit, in any encoding."""
    messages = [b"short"] * short + [b"\x01" * 65_536] * 10
    more = [b"partial", b"1"] if partial else []
    entries: list[RawEntry] = [
        (b"%d-0" % number, [b"timestamp", STAMP.encode(), b"message", message, b"stream", b"stdout", *more])
        for number, message in enumerate(messages, 1)
    ]
    segment = make_segment(entries, 0, 1, line_filter(stream))

    assert (segment.cursor, segment.closing, segment.complete) == (short + 1, None, True)
    assert MAX_SEGMENT_BYTES < len(segment.frames) < MAX_SEGMENT_BYTES + 6 * 65_536
    whole, reached = b"", 0
    while reached < len(entries):
        segment = make_segment(entries[reached:], reached, 1, line_filter(stream))
        whole, reached = whole + segment.frames, segment.cursor
    assert whole == join(encode(read_entries(entries, 0), 0)[0], line_filter(stream))


def test_where_lines_can_be_long_fewer_are_read_at_once(rig: Rig) -> None:
    """The lines of one read are at most 32 MiB."""
    rig.write(1, 40)
    cache = ReplayCache(rig.source, max_line_bytes=2**21 + 1, clock=rig.clock)

    segment = cache.read_after(JOB, None, 0, SEGMENT_LINES[1])
    assert segment is not None
    assert (segment.cursor, READ_BYTES // 2**22) == (8, 8)


# Who shares it


def test_viewers_share_reads(rig: Rig) -> None:
    """They get the same bytes objects, soon also from different lines: segments end at multiples of their length."""
    rig.write(1, 20)
    first = rig.walk(0)
    reads = rig.source.calls["read"]
    second = rig.walk(0)

    assert [segment.cursor for segment in first] == [8, 16, 20]
    assert all(one.frames is other.frames for one, other in zip(first[:2], second[:2], strict=True))
    assert (reads, rig.source.calls["read"] - reads) == (4, 2)
    assert (rig.segment(3).cursor, rig.segment(8).frames is first[1].frames) == (8, True)
    assert rig.source.calls["read"] - reads == 3


def test_a_segment_larger_than_the_cache_is_read_again(rig: Rig) -> None:
    """A foreign runner can write lines of any length."""
    rig.ask("XADD", rig.key, "1-0", *redis_fields(Line(1, STAMP, "x" * SMALL_CACHE_BYTES, "stdout")))

    assert rig.segment(0, lines=1).cursor == 1
    assert rig.segment(0, lines=1).cursor == 1
    assert rig.cache.cached(JOB, None, 0) == (b"", 0)


def test_each_filter_has_its_own_segments(rig: Rig) -> None:
    """Nobody gets another's."""
    rig.write(1, 8, "stderr")

    assert rig.segment(0).frames.count(b"event: log") == 8
    assert rig.segment(0, "stdout").frames == b"id: 8\n\n"
    assert rig.segment(0, "stderr").frames == rig.segment(0).frames


def test_the_tip_of_a_log_is_read_again(rig: Rig) -> None:
    """Later lines follow, even if other viewers have already read the tip."""
    rig.write(1, 10)
    assert rig.segment(8).cursor == 10
    assert rig.cache.read_after(JOB, None, 10, 8) is None
    rig.write(11, 12)

    assert rig.segment(8).cursor == 12
    assert rig.segment(10).cursor == 12


def test_a_segment_with_a_gap_is_read_again(rig: Rig) -> None:
    """The gap's reason depends on what the store still has."""
    rig.write(1, 12)
    rig.ask("XDEL", rig.key, "3-0")
    assert b'{"from":3,"to":3,"reason":"missing"}' in rig.segment(0).frames
    rig.ask("XTRIM", rig.key, "MINID", "4-0")

    assert rig.segment(0).frames.startswith(b'event: gap\ndata: {"from":1,"to":3,"reason":"trimmed"}')


def test_the_cache_is_bounded(rig: Rig) -> None:
    """Oldest first."""
    rig.write(1, 32)
    size = len(rig.segment(0).frames)
    for cursor in (8, 16, 24):
        rig.segment(cursor)
    reads = rig.source.calls["read"]
    assert size * 2 < SMALL_CACHE_BYTES < size * 4

    rig.segment(24)
    assert rig.source.calls["read"] == reads
    rig.segment(0)
    assert rig.source.calls["read"] == reads + 1


def test_a_failed_read_is_not_shared(rig: Rig) -> None:
    """The next viewer reads for itself."""
    rig.write(1, 8)
    rig.source.fault = StoreUnavailable("gone")
    with pytest.raises(StoreUnavailable):
        rig.segment(0)
    rig.source.fault = None
    assert rig.segment(0).cursor == 8
    rig.ask("SET", rig.key, "no stream")
    with pytest.raises(NotALog):
        rig.segment(8)


# Many at once


def at_once(number: int, task: Callable[[int], None]) -> None:
    """Runs ``task`` in this many threads, which start together."""
    failures: list[BaseException] = []
    start = threading.Barrier(number)

    def run(index: int) -> None:
        try:
            start.wait(LONG)
            task(index)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert failures == []


def test_a_crowd_reads_each_segment_once(rig: Rig) -> None:
    """However many viewers arrive at the same time, with other threads running in between."""
    rig.write(1, 24)
    rig.cache = Eights(rig.source, pause=lambda: time.sleep(0), clock=rig.clock)
    found: list[list[int]] = []

    at_once(16, lambda _: found.append([rig.segment(cursor).cursor for cursor in (0, 8, 16)]))

    assert found == [[8, 16, 24]] * 16
    assert rig.source.calls["read"] == 3


def test_a_crowd_asks_for_each_scan_once(rig: Rig) -> None:
    """The scan server has other work. If the log is redacted meanwhile, those who waited ask again, and tell it."""
    asked, redacted = list[bool](), threading.Event()

    def scan(asking: ReplayScan, subject: str) -> tuple[bytes, int]:
        asked.append(asking.is_redacted)
        threading.Event().wait(0.05)
        if not redacted.is_set():
            cache.invalidate(JOB)
            redacted.set()
        return b"found", 8

    def view(_: int) -> None:
        cache.scan_after(JOB, LineFilter(q="x"), 0, "me", LONG, is_redacted=redacted.is_set)

    cache = Eights(rig.source, clock=rig.clock, scan=scan)
    at_once(8, view)
    assert asked == [False, True]


def test_nobody_in_a_crowd_misses_a_line(rig: Rig, store: Store) -> None:
    """While the log grows and is trimmed, each viewer gets every number once, in order, as a line or in a gap."""
    written = {number: Line(number, STAMP, f"line {number}", "stdout") for number in range(1, 401)}
    rig.write(1, 40)
    cache = Eights(rig.source, pause=lambda: time.sleep(0))
    tail = Tail(store)

    def gone(first: int, last: int) -> bool:
        return not rig.ask("XRANGE", rig.key, f"{first}-0", f"{last}-0")

    def grow(_: int) -> None:
        for first in range(41, 401, 10):
            rig.write(first, first + 9)
            if first % 60 == 1:
                rig.ask("XTRIM", rig.key, "MAXLEN", 100)
        rig.ask("XADD", rig.key, "401-0", "event", "end", "status", "COMPLETED")

    def view(index: int) -> None:
        account = StreamCheck(index, None, written, gone)
        viewer = Viewer(cache, tail, JOB, store.get_job(JOB), after=index)
        for chunk in viewer.chunks():
            account.feed(chunk)
        assert account.closing is not None
        assert account.closing.event == "end"
        assert account.cursor == 400

    tail.start()
    try:
        at_once(7, lambda index: grow(index) if index == 0 else view(index % 3))
    finally:
        tail.stop()


# What is at hand


def test_cached_segments_are_returned_together(rig: Rig) -> None:
    """Consecutive ones, without another read, even if the log has grown, or was deleted less than a second ago."""
    rig.write(1, 11)
    frames = b"".join(segment.frames for segment in rig.walk(0))
    rig.write(12, 13)
    reads = rig.source.calls["read"]

    assert rig.cache.cached(JOB, None, 0) == (frames, 11)
    assert rig.cache.cached(JOB, None, 3) == (b"", 3)
    assert rig.source.calls["read"] == reads
    # Viewers that can wait read it again.
    assert rig.segment(8).cursor == 13
    rig.ask("DEL", rig.key)
    assert (rig.cache.cached(JOB, None, 0)[1], rig.segment(0).cursor) == (13, 8)
    rig.clock.now += CACHE_SECONDS
    assert rig.cache.cached(JOB, None, 0) == (b"", 0)
    assert rig.cache.read_after(JOB, None, 0, 8) is None


@pytest.mark.parametrize("archived", [0, 8])
def test_lines_from_before_a_redaction_are_not_shared(rig: Rig, archived: int) -> None:
    """Nor are late ones kept for longer than a second after the request."""
    rig.write(1, 16)

    class Archive(ArchiveReader):
        def json_lines(self, job: JobRef, position: int, count: int, **_: object) -> list[bytes]:
            return [b"{}" for _ in rig.source.read(job, position, count)]

        def entries(self, *_: object, **__: object) -> list[Entry]:
            return []

    cache = Eights(rig.source, Archive(), clock=rig.clock)
    known = Job(JOB, Status.RUNNING, last=16, archived=archived, first_stored=archived + 1)

    def redact(answer: object) -> object:
        cache.invalidate(JOB)
        return answer

    def wait(answer: object) -> object:
        rig.clock.now += CACHE_SECONDS
        return answer

    for late in (redact, wait):
        rig.source.late["read"] = late
        reads = rig.source.calls["read"]
        assert [cache.read_after(JOB, None, 0, 8, known) is None for _ in range(3)] == [False] * 3
        assert rig.source.calls["read"] == reads + 2
        cache.invalidate(JOB)


def test_a_redaction_drops_all_cached_segments_of_the_job(rig: Rig, store: Store) -> None:
    """For each filter, and lines read ahead. Another job's segments stay, and the freed bytes are available again."""
    rig.write(1, 24)
    other = JobRef(JOB.workflow_id, "other")
    rig.ask("COPY", rig.key, rig.key.replace(JOB.job_id, other.job_id))
    cache = ReplayCache(rig.source, most_lines=8, most_bytes=4 * SMALL_CACHE_BYTES, clock=rig.clock)
    filters = [None, LineFilter("stdout"), LineFilter("stderr"), LineFilter(q="line")]
    for _ in range(20):
        for ref in (JOB, other):
            for each in filters:
                assert cache.read_after(ref, each, 0, 8)
        cache.invalidate(JOB)
        assert [cache.cached(JOB, each, 0) for each in filters] == [(b"", 0)] * 4
    assert [cache.cached(other, each, 0)[1] for each in filters] == [8] * 4
    reads = rig.source.calls["read"]
    assert cache.read_after(other, None, 0, 8)
    assert rig.source.calls["read"] == reads
    ahead = Eights(store)
    assert [ahead.read_after(JOB, None, cursor, 8) is None for cursor in (0, 8)] == [False, False]
    rig.ask("DEL", rig.key)
    ahead.invalidate(JOB)
    assert ahead.read_after(JOB, None, 16, 8) is None


def test_a_scan_does_not_return_a_segment_that_may_have_grown(rig: Rig) -> None:
    """A viewer may have compared the last lines by itself. More may follow them by now."""
    rig.write(1, 3)
    asked: list[ReplayScan] = []

    def scan(asking: ReplayScan, subject: str) -> tuple[bytes, int]:
        asked.append(asking)
        return b"scanned", 5

    cache, query = Eights(rig.source, clock=rig.clock, scan=scan), LineFilter(q="line")
    own = cache.read_after(JOB, query, 0, 8)
    assert own
    assert (own.cursor, own.complete) == (3, False)
    rig.write(4, 5)
    found = cache.scan_after(JOB, query, 0, "me", 5.0, is_redacted=lambda: False)
    assert found
    assert (found.frames, found.cursor, len(asked)) == (b"scanned", 5, 1)
