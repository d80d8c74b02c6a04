"""The fault matrix's rows about the service (see ``docs/faults.md``).

Viewers connect through nginx with the shipped configuration: over TLS, with HTTP/1.1 and HTTP/2.
"""

import secrets
import signal
import time
from collections.abc import Iterator
from typing import Final

import psutil
import pytest

from chronoverse.joblog.model import JobRef
from chronoverse.joblog.sse import Decoder
from tests.faults.oracle import Printed, judge
from tests.faults.testbed import FaultTestbed, add_lines
from tests.faults.watching import Watcher, longest_silence
from tests.support.viewers import ReconnectingViewers
from tests.support.waiting import wait_until
from tests.web.routes.foreign import TIMESTAMP, Foreign, ask_all
from tests.web.routes.wire import Stream

#: One of each kind: HTTP/1.1, the Python client, and HTTP/2.
VIEWERS: Final = 3
#: Time limit of any expected event on a busy machine, in seconds.
RECOVERY_SECONDS: Final = 10.0
#: Row 23: concurrent viewers of a log, and its lines.
REPLAYS, LONG_LINES = 30, 5_000
#: Row 23: time limit of all these replays, in seconds.
REPLAY_SECONDS: Final = 60.0
#: Row 23: a worker's maximum growth in megabytes: a write of 256 KiB per viewer, and the cached segments.
GROWTH_MB: Final = 64

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def testbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultTestbed]:
    """A service with two workers behind nginx. After a reload, nginx closes old workers' streams within a second."""
    directory = tmp_path_factory.mktemp("edge")
    with FaultTestbed(
        directory, lease=10, service_lease=60, workers=2, with_nginx=True, shutdown_seconds=1, drain_seconds=1
    ) as testbed:
        yield testbed


def job(name: str) -> JobRef:
    """One row's job."""
    return JobRef("edge", name)


def foreign(testbed: FaultTestbed, name: str) -> Foreign:
    """A job whose lines the test itself writes, with :func:`add_lines`."""
    return Foreign(testbed.redis.url, "edge", name)


def refused(watchers: list[Watcher]) -> list[str]:
    """The answers that viewers received instead of a stream."""
    return [error for watcher in watchers for error in watcher.errors if error[:3].isdigit()]


def test_row_9_workers_are_replaced(testbed: FaultTestbed) -> None:
    """By SIGHUP, twice while a job runs. No line is lost, and no viewer is rejected."""
    runner, watchers = testbed.start_job(job("row-9"), viewers=2 * VIEWERS)
    for _ in range(2):
        old = testbed.service.worker_pids()
        testbed.service.signal(signal.SIGHUP)
        wait_until(lambda old=old: not any(map(psutil.pid_exists, old)), 20, "the old workers are gone")  # type: ignore[misc]
        testbed.wait_for_more(watchers, 20)
    assert refused(watchers) == []
    testbed.finish(runner)


def test_row_13_nginx_is_reloaded(testbed: FaultTestbed) -> None:
    """Four times. Streams are closed when nginx's old workers shut down, and resume at its new workers."""
    nginx = testbed.nginx
    assert nginx is not None
    runner, watchers = testbed.start_job(job("row-13"), viewers=2 * VIEWERS)
    before, workers = psutil.Process(nginx.pid).num_fds(), len(nginx.workers())
    for _ in range(4):
        old = nginx.workers()
        nginx.signal(signal.SIGHUP)
        wait_until(lambda old=old: nginx.workers() - old, RECOVERY_SECONDS, "new workers")  # type: ignore[misc]
        testbed.wait_for_more(watchers, 5)
    wait_until(lambda: len(nginx.workers()) == workers, 2 * RECOVERY_SECONDS, "the old workers are gone")
    testbed.wait_for_more(watchers, 20)
    assert sum(watcher.connections for watcher in watchers) > 2 * VIEWERS
    assert psutil.Process(nginx.pid).num_fds() <= before + 2
    assert refused(watchers) == []
    testbed.finish(runner)


class SlowWatcher(Watcher):
    """Reads a kilobyte a second while ``slow`` is True."""

    slow = True

    def _feed(self, decoder: Decoder, chunk: bytes) -> None:
        while self.slow and chunk:
            super()._feed(decoder, chunk[:1024])
            chunk = chunk[1024:]
            self._stop.wait(1)
        super()._feed(decoder, chunk)


def test_row_10_a_slow_viewer_among_fast_ones(testbed: FaultTestbed) -> None:
    """It falls behind by more than all buffers can hold. The others are unaffected, and it misses nothing."""
    slow = testbed.new_watcher(job("row-10"), SlowWatcher)
    assert isinstance(slow, SlowWatcher)
    slow.start()
    # 250 lines/s are 4 MB/s per viewer, less than half of what viewers can read here.
    runner, watchers = testbed.start_job(job("row-10"), viewers=VIEWERS, padding=16_000, rate=250, count=1250)
    began = time.monotonic()
    testbed.watchers[runner.job].append(slow)
    testbed.wait_for_line(watchers, 1250, 90)
    assert longest_silence(watchers, began) < RECOVERY_SECONDS
    assert slow.highest < 250
    slow.slow = False
    testbed.finish(runner)


def test_row_20_a_log_is_gone(testbed: FaultTestbed) -> None:
    """It expires, is deleted, or the store is flushed. Each viewer receives an error, then reconnects in vain."""
    jobs = [foreign(testbed, f"row-20-{how}") for how in ("expired", "deleted", "flushed")]
    watchers = []
    for each in jobs:
        add_lines(each, 50)
        watchers += testbed.start_watchers(job(each.job_id), VIEWERS)
    testbed.wait_for_line(watchers, 50)
    ends = [
        ("PEXPIRE", jobs[0].key, "1"),
        ("DEL", jobs[1].key),
        ("FLUSHDB",),
    ]
    for number, command in enumerate(ends):
        ask_all(testbed.redis.url, [command])
        concerned = watchers[number * VIEWERS : (number + 1) * VIEWERS]
        began = time.monotonic()
        raw = [each for each in concerned if each.connections and not isinstance(each, type(watchers[1]))]
        wait_until(lambda raw=raw: all(each.errors for each in raw), RECOVERY_SECONDS, f"errors after {command}")  # type: ignore[misc]
        print(f"{command[0]}: all had an error within {time.monotonic() - began:.2f} s")
        assert {each.errors[0] for each in raw} == {"the log is gone from the store: it expired or was deleted"}
    for each in jobs:
        views = {str(n): tuple(view.seen) for n, view in enumerate(testbed.watchers[job(each.job_id)])}
        verdict = judge({"a": Printed(50, 50)}, views, next(iter(views.values())))
        assert verdict.clean, verdict
    for watcher in watchers:
        watcher.request_stop()


def test_row_21_a_log_is_trimmed_before_and_while_it_is_read(testbed: FaultTestbed) -> None:
    """Each viewer receives all numbers except one gap: from its last line before the trim to the last trimmed one."""
    trimmed = foreign(testbed, "row-21")
    add_lines(trimmed, 9500, padding=2000)
    late = [testbed.new_watcher(job("row-21"), SlowWatcher).start() for _ in range(2)]
    testbed.wait_for_line(late, 1)
    ask_all(testbed.redis.url, [("XTRIM", trimmed.key, "MINID", "9001-0")])
    watchers = testbed.start_watchers(job("row-21"), VIEWERS)
    testbed.wait_for_line(watchers, 9001)
    add_lines(trimmed, 100, padding=2000)
    trimmed.end()
    for each in late:
        assert isinstance(each, SlowWatcher)
        each.slow = False
    testbed.watchers[job("row-21")] += late
    testbed.wait_for_end(job("row-21"))
    for each in testbed.watchers[job("row-21")]:
        gaps = [seen for seen in each.seen if seen.kind == "gap"]
        numbers = [seen.number for seen in each.lines]
        before = max((number for number in numbers if number < 9001), default=0)
        assert [(gap.number, gap.last, gap.message) for gap in gaps] == [(before + 1, 9000, "trimmed")]
        assert numbers == [*range(1, before + 1), *range(9001, 9601)]
        assert {seen.timestamp for seen in each.lines} == {TIMESTAMP}
    assert all(each.lines[0].number == 1 for each in late)


def test_row_23_many_viewers_at_the_beginning_of_a_long_log(testbed: FaultTestbed) -> None:
    """Each receives every line once and in order. The workers' memory is bounded. A live job's viewers miss nothing."""
    # Each attempt has its own job: a second attempt would append to the first one's log.
    long = foreign(testbed, f"row-23-{secrets.token_hex(4)}")
    add_lines(long, LONG_LINES, padding=270)
    long.end()
    runner, watchers = testbed.start_job(job("row-23"), viewers=VIEWERS)
    headers = f"Authorization: Bearer {testbed.service.token()}\r\n"
    viewers = ReconnectingViewers(testbed.endpoint, f"{long.path}/events", headers, REPLAYS)
    workers = [psutil.Process(pid) for pid in testbed.service.worker_pids()]
    before, most = [worker.memory_info().rss for worker in workers], [0, 0]
    deadline = time.monotonic() + REPLAY_SECONDS

    def on_tick() -> bool:
        most[:] = map(max, most, (worker.memory_info().rss for worker in workers))
        return time.monotonic() > deadline

    viewers.run(on_tick)
    grown = [(now - then) / 2**20 for now, then in zip(most, before, strict=True)]
    print(f"{REPLAY_SECONDS + time.monotonic() - deadline:.1f} s; the workers grew by {grown} MB")
    # The terminal entry has a number, too.
    assert {viewer.lines for viewer in viewers.viewers} == {LONG_LINES + 1}
    assert (viewers.errors, viewers.reconnections, viewers.answers["200"], viewers.answers["cut"]) == (
        0,
        [],
        REPLAYS,
        0,
    )
    assert max(grown) < GROWTH_MB
    assert [watcher.connections for watcher in watchers] == [1] * VIEWERS
    testbed.wait_for_more(watchers, 50)
    testbed.finish(runner)


def test_row_24_viewers_come_and_go(testbed: FaultTestbed) -> None:
    """100 short streams, some of which end, while clients leave the others early.

    Afterwards, descriptors, open streams and watched jobs are as many as before.
    """
    ended, live = foreign(testbed, "row-24-ended"), foreign(testbed, "row-24-live")
    add_lines(ended, 3)
    ended.end()
    add_lines(live, 3)
    headers = {"Authorization": f"Bearer {testbed.service.token()}"}

    def visit(count: int) -> None:
        for number in range(count):
            with Stream(testbed.endpoint, f"{(ended if number % 2 else live).path}/events", headers) as stream:
                stream.wait_for(b"id: 3\n\n")

    def descriptors() -> list[int]:
        """The open descriptors of each worker and of nginx, once no stream is open and no job is watched."""
        for name in ("chronoverse_streams_open", "chronoverse_jobs_watched"):
            wait_until(lambda name=name: testbed.service.metric(name) == 0, RECOVERY_SECONDS, f"{name} is 0")  # type: ignore[misc]
        assert testbed.nginx is not None
        # Each nginx worker keeps up to 32 idle connections to the service open.
        workers = [psutil.Process(pid).num_fds() for pid in testbed.service.worker_pids()]
        return [*workers, sum(psutil.Process(pid).num_fds() for pid in testbed.nginx.workers())]

    visit(40)
    before = descriptors()
    visit(100)
    wait_until(
        lambda: all(now <= then + 4 for now, then in zip(descriptors(), before, strict=True)), 15, "all is as before"
    )
