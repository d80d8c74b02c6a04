"""The store's machine loses power while a job runs."""

from pathlib import Path

import pytest

from chronoverse.joblog.model import JobRef
from tests.faults.testbed import FaultTestbed

pytestmark = pytest.mark.long


def test_a_power_failure_that_the_runner_survives(tmp_path: Path) -> None:
    """The runner resends what the disk lost. Viewers that have these lines do not receive them again."""
    with FaultTestbed(tmp_path, workers=2) as testbed:
        runner, watchers = testbed.start_job(JobRef("power", "failure"), rate=500)
        safe = testbed.freeze_disk()
        # On a busy machine, the viewers can lag behind the store.
        testbed.wait_for_line(watchers, testbed.last_id(runner.job) + 400)
        # All 400 lines of some 60 bytes each are cut off.
        assert testbed.cut_power(safe) > 400 * 50
        testbed.redis.start()
        testbed.wait_for_more(watchers, 50)
        testbed.finish(runner)

        assert [each.connections for each in watchers] == [1, 1]
