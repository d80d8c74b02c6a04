"""Servers fail while a job writes and viewers read: every kind of failover of Sentinels and of a Cluster.

python -m bench.soak.failovers [--form sentinel|cluster] [--rounds N]
"""

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from chronoverse.joblog.model import JobRef
from tests.faults.emitter import EXIT_CODE
from tests.faults.testbed import FaultTestbed, frozen, sleep
from tests.faults.watching import longest_silence
from tests.support.fleets import SERVICE, TIMEOUT_SECONDS, Cluster, Fleet, SentinelFleet
from tests.support.waiting import wait_until

VIEWERS: Final = 5
#: Whole seconds of the lease: longer than any change of servers takes.
LEASE_SECONDS: Final = 30
#: Seconds for which a server stays frozen after it was replaced: longer than a command may take.
FROZEN_SECONDS: Final = 8.0
#: Seconds after which a master that was frozen for a shorter time learns that it was replaced.
AWAKE_SECONDS: Final = 1.0
#: Seconds before the next fault. Sentinels begin no failover sooner.
PAUSE_SECONDS: Final = 6.5


class Sentinels:
    """Faults of a pair under Sentinels."""

    def __init__(self, fleet: SentinelFleet) -> None:
        self._fleet = fleet
        self.workflow = "failovers"
        self.faults: list[Callable[[], None]] = [self.kill, self.cut_off, self.freeze, self.wake, self.order]

    def kill(self) -> None:
        lost = self._fleet.master
        lost.kill()
        self._other(lost)
        lost.start()
        self._fleet.follow(lost)

    def cut_off(self) -> None:
        """The master is cut off from the others, but not from us."""
        lost = self._fleet.cut_off()
        self._other(lost)
        sleep(1)
        self._fleet.rejoin(lost)

    def freeze(self) -> None:
        """The master is frozen for a long time, and continues when another server is the master."""
        lost = self._fleet.master
        with frozen(lost):
            self._other(lost)
            sleep(FROZEN_SECONDS)
        self._fleet.follow(lost)

    def wake(self) -> None:
        """The master is frozen until another server is the master. Then it goes on as if it were still the master."""
        lost = self._fleet.master
        with frozen(lost):
            self._other(lost)
        sleep(AWAKE_SECONDS)
        self._fleet.follow(lost)

    def order(self) -> None:
        lost = self._fleet.master
        self._fleet.servers[2].ask("SENTINEL", "FAILOVER", SERVICE)
        self._other(lost)

    def _other(self, lost: object) -> None:
        wait_until(lambda: self._fleet.master is not lost, TIMEOUT_SECONDS, "another master is named")


class Nodes:
    """Faults of a Cluster. The job is on the node with the replica."""

    def __init__(self, fleet: Cluster) -> None:
        self._fleet = fleet
        self.workflow = fleet.workflow(fleet.pair[0])
        self.faults: list[Callable[[], None]] = [self.kill, self.freeze, self.wake, self.order, self.move]

    def kill(self) -> None:
        first, second = self._fleet.pair
        self._fleet.servers[first].kill()
        self._takes_over(second)
        self._fleet.servers[first].start()

    def freeze(self) -> None:
        """The master is frozen for a long time, and continues when another server is the master."""
        first, second = self._fleet.pair
        with frozen(self._fleet.servers[first]):
            self._takes_over(second)
            sleep(FROZEN_SECONDS)

    def wake(self) -> None:
        """The master is frozen until the replica has taken over. Then it goes on as if it were still the master."""
        first, second = self._fleet.pair
        with frozen(self._fleet.servers[first]):
            self._takes_over(second)

    def order(self) -> None:
        _, second = self._fleet.pair
        self._fleet.servers[second].ask("CLUSTER", "FAILOVER")
        self._takes_over(second)

    def move(self) -> None:
        """The slot moves to another node and back."""
        first, _ = self._fleet.pair
        other = next(number for number in self._fleet.masters() if number != first)
        for source, target in ((first, other), (other, first)):
            slot = self._fleet.begin_move(self.workflow, source, target)
            self._fleet.move_keys(slot, source, target)
            sleep(0.5)
            self._fleet.end_move(slot, source, target)
            sleep(0.5)

    def _takes_over(self, number: int) -> None:
        server = self._fleet.servers[number]
        wait_until(lambda: server.ask("ROLE")[0] == b"master", TIMEOUT_SECONDS, "the replica has taken over")


def play(directory: Path, fleet: Fleet, events: Sentinels | Nodes, settle: Callable[[], None], rounds: int) -> bool:
    """Causes all faults in turn, ``rounds`` times. Returns whether the verdict is clean."""
    with FaultTestbed(
        directory, lease=LEASE_SECONDS, service_lease=600, fleet=fleet, workers=2, with_nginx=True
    ) as testbed:
        job = JobRef(events.workflow, "job")
        runner, watchers = testbed.start_job(job, viewers=VIEWERS, durability="replicated")
        for fault in events.faults * rounds:
            began = time.monotonic()
            fault()
            settle()
            testbed.wait_for_more(watchers, 50)
            print(f"  {fault.__name__}: {longest_silence(watchers, began):.2f} s without a line", flush=True)
            sleep(max(PAUSE_SECONDS - (time.monotonic() - began), 0))
        runner.end_job()
        ended = runner.wait() == EXIT_CODE and all(watcher.join(TIMEOUT_SECONDS) for watcher in watchers)
        verdict = testbed.verdict(job)
        reconnects = sum(watcher.connections for watcher in watchers) - len(watchers)
        print(f"  {runner.begun} lines, {reconnects} reconnects of viewers: {verdict}")
        print(runner.stderr_text, end="")
        return ended and verdict.clean


def main() -> int:
    """Runs the faults of one form of the store, or of both."""
    parser = argparse.ArgumentParser(description="Failovers and moves under a job and its viewers.")
    parser.add_argument("--form", choices=["sentinel", "cluster"])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    clean = True
    with tempfile.TemporaryDirectory(prefix="cv-fail-") as directory:
        root = Path(directory)
        if options.form != "cluster":
            print("sentinel")
            with SentinelFleet(root / "watched") as watched:
                clean &= play(root / "s", watched, Sentinels(watched), watched.settle, options.rounds)
        if options.form != "sentinel":
            print("cluster")
            with Cluster(root / "cluster") as cluster:
                clean &= play(root / "c", cluster, Nodes(cluster), cluster.settle, options.rounds)
    return 0 if clean else 1


if __name__ == "__main__":
    sys.exit(main())
