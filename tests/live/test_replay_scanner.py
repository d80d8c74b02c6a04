"""A replay with a query sends the same bytes with the scan server as when the worker filters by itself."""

import math
import random
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Final

import pytest

from chronoverse.errors import AtCapacity, ChronoverseError, ScansUnavailable, ShareExceeded
from chronoverse.history.pages import PageBudget
from chronoverse.history.scans.scan import ReplayScan
from chronoverse.joblog.line_filter import LineFilter
from chronoverse.joblog.model import MAX_NUMBER, JobRef, Line, Status
from chronoverse.live.feed import FilterBudget
from chronoverse.live.replay_cache import CACHE_SECONDS, FIRST_LINES, ReplayCache, ReplayScanner, read_frames
from chronoverse.live.tail import CHECK_SECONDS, Tail
from chronoverse.live.viewer import RETRY_READ_SECONDS, STORE_PATIENCE_SECONDS, Viewer
from chronoverse.store import Store
from tests.support.reading import Clock, ControlledStore, drained, events
from tests.support.servers import RedisServer

JOB: Final = JobRef("wf_1", "job_1")
STAMP: Final = "2026-03-03T10:00:05.123Z"
FILTERS: Final = (LineFilter(q="needle"), LineFilter("stderr", "ne+dle [0-9]", True), LineFilter(q="nowhere"))


class Rig:
    """The reading side of a worker and of the scan server, whose answers have at most about 300 bytes."""

    def __init__(self, server: RedisServer, store: Store, prefix: str) -> None:
        self.source = ControlledStore(store)
        self.clock = Clock()
        self.tail = Tail(self.source, lease_seconds=30, clock=self.clock)
        # On a busy machine, comparing could use up the budget.
        self.tail._filter_budget = FilterBudget(clock=float)
        self.asked: list[ReplayScan] = []
        self.fault: ChronoverseError | None = None
        self._key = f"{prefix}:{{{JOB.workflow_id}}}:{JOB.job_id}:log"
        self._server = server
        self._theirs = ReplayCache(self.source, clock=self.clock)

    def scan(self, scan: ReplayScan, subject: str) -> tuple[bytes, int]:
        self.asked.append(scan)
        if self.fault:
            raise self.fault
        return read_frames(self._theirs, scan, PageBudget(page_bytes=300, clock=self.clock))

    def redact(self, number: int) -> None:
        job = self._key.removesuffix("log")
        self._server.ask("HSET", f"{job}job", "redactions", "1")
        self._server.ask("RPUSH", f"{job}audit", f'{{"from":{number},"to":{number},"count":1}}')

    def write(self, chance: random.Random, count: int) -> None:
        """A log with lines of both streams, and everything that a foreign runner can write."""
        number = 0
        for _ in range(count):
            number += chance.choice((1, 1, 1, 1, 1, 1, 3))
            text = chance.choice((f"a NEEDLE {number}", "hay", "hay", "hay\x1b[1m needle 1"))
            fields = ["timestamp", STAMP, "message", text, "stream", chance.choice(("stdout", "stderr"))]
            if chance.random() < 0.05:
                fields = ["note", "nothing"]
            self._server.ask("XADD", self._key, f"{number}-0", *fields)
        # A viewer that reads just up to a segment's last line does not see other entries with the same number.
        out_of_sequence = f"{number}-1" if number % FIRST_LINES else ""
        if end := chance.choice((f"{number + 1}-0", f"{MAX_NUMBER + 1}-0", out_of_sequence, "")):
            self._server.ask("XADD", self._key, end, "event", "end", "status", "COMPLETED")

    def viewer(
        self, line_filter: LineFilter, after: int, scan: ReplayScanner | None, expires_at: float = math.inf
    ) -> Viewer:
        cache = ReplayCache(self.source, clock=self.clock, scan=scan)
        job = self.source.get_job(JOB)
        return Viewer(cache, self.tail, JOB, job, after=after, line_filter=line_filter, expires_at=expires_at)

    def read(self, line_filter: LineFilter, after: int, scan: ReplayScanner | None) -> list[object]:
        """All events of a viewer, each with the number from which its client would resume."""
        viewer = self.viewer(line_filter, after, scan)
        found: list[object] = [(each.event, each.data, each.id) for each in events(drained(viewer))]
        cursor, reason = viewer.cursor, viewer.reason
        viewer.close()
        return [*found, cursor, reason]


@pytest.fixture
def rig(server: RedisServer, store: Store, prefix: str) -> Iterator[Rig]:
    rig = Rig(server, store, prefix)
    yield rig
    rig.tail.stop()


@pytest.mark.parametrize("seed", range(6))
def test_it_makes_no_difference_who_filters(rig: Rig, seed: int) -> None:
    """Gaps, malformed entries, an entry out of sequence and the end are the same in both, wherever a client begins."""
    chance = random.Random(seed)
    rig.write(chance, 90)
    for line_filter in FILTERS:
        for after in (0, chance.randrange(40), chance.randrange(90)):
            assert rig.read(line_filter, after, rig.scan) == rig.read(line_filter, after, None)
    assert len(rig.asked) >= 6


def test_a_scan_does_not_outlast_its_stream(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The token can expire meanwhile. With less than a second left, the scan still gets one."""
    monkeypatch.setattr("chronoverse.live.replay_cache.time", SimpleNamespace(monotonic=float))
    rig.write(random.Random(2), 60)
    for seconds, patience in ((600, 5.0), (3, 3.0), (0.5, 1.0)):
        viewer = rig.viewer(FILTERS[2], 0, rig.scan, expires_at=rig.clock.now + seconds)
        drained(viewer)
        assert rig.asked[0].patience == patience
        rig.asked.clear()
        viewer.close()


def test_the_worker_compares_only_live_lines(rig: Rig) -> None:
    """It requests stored lines, then nothing more."""
    rig.write(random.Random(2), 60)
    viewer = rig.viewer(FILTERS[2], 0, rig.scan)
    drained(viewer)
    assert rig.asked[-1].position < viewer.cursor
    count = len(rig.asked)
    drained(viewer)
    assert len(rig.asked) == count
    viewer.close()


@pytest.mark.parametrize("error", [AtCapacity("full"), ScansUnavailable("away")])
def test_a_refused_scan_is_retried(rig: Rig, error: ChronoverseError) -> None:
    """Nothing is skipped. If there is no scan server for a long time, the stream ends with an error."""
    rig.write(random.Random(3), 60)
    rig.fault = error
    viewer = rig.viewer(FILTERS[0], 0, rig.scan)
    assert [each.event for each in events(drained(viewer))] == ["connected", "job"]
    rig.clock.now += RETRY_READ_SECONDS
    assert (drained(viewer), viewer.done) == (b"", False)
    rig.clock.now += STORE_PATIENCE_SECONDS
    assert b"event: error\ndata: the log search has been unavailable for 30 s\n" in drained(viewer)
    viewer.close()


def test_a_stream_that_waits_for_others_of_its_token_stays_alive(rig: Rig) -> None:
    """They never end it."""
    rig.write(random.Random(3), 60)
    viewer = rig.viewer(FILTERS[0], 0, rig.scan)
    viewer.next()
    rig.fault = ShareExceeded("others of this token")
    for _ in range(20):
        rig.clock.now += 5
        assert viewer.next() == b"id: 0\n\n"
    rig.fault = None
    assert b"NEEDLE" in drained(viewer)
    viewer.close()


def test_the_scan_server_learns_of_a_redaction_of_an_ended_log(rig: Rig, store: Store) -> None:
    """It has its own cache. The redaction happens midway."""
    attempt = store.open(JOB, "token")
    store.append(attempt, [Line(number, STAMP, f"a needle {number}", "stdout") for number in range(1, 201)])
    store.finish(attempt, Status.COMPLETED, 0, 0, 201)

    def scan(asked: ReplayScan, subject: str) -> tuple[bytes, int]:
        if not rig.asked:
            rig.redact(7)
            rig.clock.now += CHECK_SECONDS
            rig.tail.housekeep_once()
        return rig.scan(asked, subject)

    viewer = rig.viewer(FILTERS[0], 0, scan)
    assert b"event: redact" in drained(viewer)
    assert viewer.done
    viewer.close()
    told = [each.is_redacted for each in rig.asked]
    assert (told[0], set(told[1:])) == (False, {True})
    # With that, it reads the lines again.
    reads = list[int]()
    for is_redacted in (False, False, True):
        rig.scan(replace(rig.asked[0], is_redacted=is_redacted), "")
        reads.append(rig.source.calls["read"])
    assert reads[0] == reads[1] < reads[2]


def test_a_late_answer_is_not_cached_for_longer(rig: Rig) -> None:
    """Its lines may have been read at the time of the request. They are kept for a second from then on."""
    rig.write(random.Random(3), 20)

    def late(scan: ReplayScan, subject: str) -> tuple[bytes, int]:
        answer = rig.scan(scan, subject)
        rig.clock.now += CACHE_SECONDS
        return answer

    cache = ReplayCache(rig.source, clock=rig.clock, scan=late)
    for count in (1, 2):
        assert cache.scan_after(JOB, FILTERS[0], 0, "somebody", 5.0, is_redacted=lambda: False)
        assert len(rig.asked) == count
    cache.scan = rig.scan
    assert cache.scan_after(JOB, FILTERS[0], 0, "somebody", 5.0, is_redacted=lambda: False)
    assert [cache.cached(JOB, each, 0)[1] > 0 for each in (FILTERS[0], FILTERS[1], None)] == [True, False, False]
