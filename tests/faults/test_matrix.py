"""The fault matrix's rows about one store and its service (see ``docs/faults.md``)."""

from collections.abc import Iterator

import psutil
import pytest

from chronoverse.joblog.model import JobRef
from tests.faults.testbed import FaultTestbed
from tests.support.waiting import wait_until
from tests.web.routes.foreign import Foreign
from tests.web.routes.wire import Stream

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def testbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultTestbed]:
    with FaultTestbed(tmp_path_factory.mktemp("matrix"), workers=2) as testbed:
        yield testbed


def test_row_4_a_power_failure_that_the_runner_survives(testbed: FaultTestbed) -> None:
    """The runner resends what the disk lost. Viewers that have these lines do not receive them again."""
    runner, watchers = testbed.start_job(JobRef("matrix", "row-4"), rate=500)
    safe = testbed.freeze_disk()
    # On a busy machine, the viewers can lag behind the store.
    testbed.wait_for_line(watchers, testbed.last_id(runner.job) + 400)
    # All 400 lines of some 60 bytes each are cut off.
    assert testbed.cut_power(safe) > 400 * 50
    testbed.redis.start()
    testbed.wait_for_more(watchers, 50)
    testbed.finish(runner)

    assert [each.connections for each in watchers] == [1, 1]


def test_row_24_viewers_come_and_go(testbed: FaultTestbed) -> None:
    """100 short streams, some of which end, while clients leave the others early.

    Afterwards, descriptors, open streams and watched jobs are as many as before.
    """
    live = Foreign(testbed.redis.url, "matrix", "row-24").lines(["x"] * 3)
    ended = live.sibling("row-24-ended").lines(["x"] * 3).end()
    headers = {"Authorization": f"Bearer {testbed.service.token()}"}

    def visit(count: int) -> None:
        for number in range(count):
            with Stream(testbed.service, f"{(ended if number % 2 else live).path}/events", headers) as stream:
                stream.wait_for(b"id: 3\n\n")

    def descriptors() -> list[int]:
        """Each worker's descriptors, once no stream is open and no job is watched."""
        names = ("chronoverse_streams_open", "chronoverse_jobs_watched")
        wait_until(lambda: not any(map(testbed.service.metric, names)), 10, "no stream is open")
        return [psutil.Process(pid).num_fds() for pid in testbed.service.worker_pids()]

    visit(40)
    before = descriptors()
    visit(100)
    wait_until(
        lambda: all(now <= then + 4 for now, then in zip(descriptors(), before, strict=True)), 15, "all is as before"
    )
