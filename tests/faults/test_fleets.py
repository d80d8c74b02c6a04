"""Row 5 of the matrix, and its like in a Cluster: the store's servers change under a runner and its viewers."""

import time
from pathlib import Path

import pytest

from chronoverse.joblog.values import JobRef
from chronoverse.store import Store
from chronoverse.store.sentinel import CHECK_MASTER_SECONDS, STALE_SECONDS
from tests.faults.emitter import EXIT_CODE
from tests.faults.runner import Runner
from tests.faults.testbed import FaultTestbed, sleep
from tests.faults.watching import Watcher, longest_silence, silence
from tests.support.fleets import Cluster, SentinelFleet
from tests.support.waiting import wait_until

#: Whole seconds of the lease: longer than any change of servers takes.
LEASE_SECONDS = 15
#: Seconds from a fault to the next line at every viewer. Half a second of silence counts as down here, and then there
#: is an election; a lost master that answers is found out within 2 s more.
RECOVERY_SECONDS = 10.0

pytestmark = pytest.mark.long


def recovers(watchers: list[Watcher], since: float, what: str) -> None:
    """All of them see lines again in time."""
    wait_until(
        lambda: all(silence(each.seen, since) < RECOVERY_SECONDS for each in watchers), RECOVERY_SECONDS + 5, what
    )
    print(f"{what}: {max(silence(each.seen, since) for each in watchers):.2f} s")


def ends_clean(testbed: FaultTestbed, runner: Runner) -> None:
    """The job ends as it wants to; every viewer has every line."""
    runner.end()
    assert runner.wait() == EXIT_CODE, runner.stderr_text
    testbed.over(runner.job)
    verdict = testbed.verdict(runner.job)
    assert verdict.clean, verdict
    assert testbed.status(runner.job)["status"] == "FAILED", runner.stderr_text


def test_a_slot_moves_and_a_master_dies_in_a_cluster(cluster: Cluster, tmp_path: Path) -> None:
    """Two jobs: one whose keys move one by one; and one whose node is killed, which the other does not notice."""
    first, _ = cluster.pair
    source, target = [number for number in cluster.masters() if number != first]
    with FaultTestbed(tmp_path, lease=LEASE_SECONDS, judge_after=60, fleet=cluster, edge=True) as testbed:
        moving = JobRef(cluster.workflow(source, "fault"), "moving")
        dying = JobRef(cluster.workflow(first, "fault"), "dying")
        runner, watchers = testbed.play(moving)
        other, others = testbed.play(dying, durability="replicated")

        slot = cluster.begin_move(moving.workflow_id, source, target)
        for kind in ("lease", "log", "job"):
            cluster.move_keys(slot, source, target, testbed.key(kind, moving))
            sleep(0.2)
        testbed.more(watchers)
        # The workflow's list of jobs: a node that has a key of a slot gives it away only if it hears first that it has.
        cluster.move_keys(slot, source, target)
        cluster.end_move(slot, source, target)
        testbed.more(watchers)

        cluster.servers[first].kill()
        killed = time.monotonic()
        try:
            recovers(others, killed, "killed")
            assert longest_silence(watchers, killed) < 0.5
            ends_clean(testbed, runner)
        finally:
            # Other tests have this cluster too, whatever becomes of this one.
            cluster.servers[first].start()
            cluster.settle()
        ends_clean(testbed, other)


def test_row_5_a_master_is_cut_off_from_its_sentinels(sentinels: SentinelFleet, tmp_path: Path) -> None:
    """It goes on answering us, yet nobody stays there, and what it took after the others left is sent again."""
    with FaultTestbed(tmp_path, lease=LEASE_SECONDS, judge_after=60, fleet=sentinels, edge=True) as testbed:
        runner, watchers = testbed.play(JobRef("fleet", "row-5"), durability="replicated")
        store = Store(sentinels.url)
        assert store.read_sequential(runner.job, 0, 1)
        lost = sentinels.cut_off()
        wait_until(lambda: sentinels.master is not lost, RECOVERY_SECONDS, "the Sentinels name another master")
        named = time.monotonic()
        recovers(watchers, named + CHECK_MASTER_SECONDS, "cut off")
        seen = watchers[0].highest - 1
        wait_until(
            lambda: store.read_sequential(runner.job, seen, 1),
            STALE_SECONDS,
            "old lines come from the new master",
        )
        store.close()
        sentinels.rejoin(lost)
        ends_clean(testbed, runner)
