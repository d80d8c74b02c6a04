"""Sentinels or a Cluster replace the store's servers while a job runs."""

import secrets
import time
from contextlib import closing
from pathlib import Path

import pytest

from chronoverse.joblog.model import JobRef
from chronoverse.store import Store
from chronoverse.store.sentinel import CHECK_MASTER_SECONDS
from tests.faults.testbed import FaultTestbed
from tests.faults.watching import Watcher, longest_silence, seconds_to_next_line
from tests.support.fleets import Cluster, SentinelFleet
from tests.support.waiting import wait_until

#: The lease in whole seconds: longer than any failover.
LEASE_SECONDS = 15
#: Seconds from a fault to every viewer's next line. Here, a server counts as down after half a second of silence,
#: followed by an election. A replaced master that still answers is detected within 2 more seconds.
RECOVERY_SECONDS = 10.0

pytestmark = pytest.mark.long


def check_recovery(watchers: list[Watcher], since: float) -> float:
    """Fails if a watcher does not receive lines again in time. Returns the longest wait in seconds."""
    wait_until(
        lambda: all(seconds_to_next_line(each.seen, since) < RECOVERY_SECONDS for each in watchers),
        RECOVERY_SECONDS + 5,
        "all get lines again",
    )
    return max(seconds_to_next_line(each.seen, since) for each in watchers)


def test_a_slot_moves_and_a_master_dies_in_a_cluster(cluster: Cluster, tmp_path: Path) -> None:
    """One job's keys move to another node, one by one. Then a second job's node is killed.

    The first job's viewers do not notice the move.
    """
    first, _ = cluster.pair
    source, target = [number for number in cluster.masters() if number != first]
    with FaultTestbed(tmp_path, lease=LEASE_SECONDS, fleet=cluster) as testbed:
        moving = JobRef(cluster.workflow(source, "fault"), "moving")
        dying = JobRef(cluster.workflow(first, "fault"), "dying")
        runner, watchers = testbed.start_job(moving)
        other, others = testbed.start_job(dying, durability="replicated")

        slot = cluster.begin_move(moving.workflow_id, source, target)
        for kind in ("lease", "log", "job"):
            cluster.move_keys(slot, source, target, testbed.key(kind, moving))
        testbed.wait_for_more(watchers)
        # Moves the workflow's listing. A node cannot give a slot away while it has one of its keys.
        cluster.move_keys(slot, source, target)
        cluster.end_move(slot, source, target)
        testbed.wait_for_more(watchers)

        cluster.servers[first].kill()
        killed = time.monotonic()
        try:
            recovery = check_recovery(others, killed)
            # Viewers affected by it would have waited as long as the others.
            assert longest_silence(watchers, killed) < recovery / 2
            testbed.finish(runner)
        finally:
            # Other tests use this cluster too, so it must be complete even if this test fails.
            cluster.servers[first].start()
            cluster.settle()
        testbed.finish(other)


def test_a_master_is_cut_off_from_its_sentinels(sentinels: SentinelFleet, tmp_path: Path) -> None:
    """It still answers, but runner and service leave it. Lines that only the old master has are sent again."""
    job = JobRef("fleet", f"cut-off-{secrets.token_hex(4)}")
    with (
        FaultTestbed(tmp_path, lease=LEASE_SECONDS, fleet=sentinels) as testbed,
        closing(Store(sentinels.url)) as store,
    ):
        runner, watchers = testbed.start_job(job, durability="replicated")
        assert store.read(runner.job, 0, 1)
        lost = sentinels.cut_off()
        wait_until(lambda: sentinels.master is not lost, RECOVERY_SECONDS, "the Sentinels name another master")
        check_recovery(watchers, time.monotonic() + CHECK_MASTER_SECONDS)
        seen = watchers[0].highest - 1
        wait_until(
            lambda: store.read(runner.job, seen, 1), 2 * CHECK_MASTER_SECONDS, "old lines come from the new master"
        )
        sentinels.rejoin(lost)
        testbed.finish(runner)
