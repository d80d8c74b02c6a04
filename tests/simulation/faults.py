"""The faults. Each public method of :class:`Faults` is one kind, whose frequency is in ``plan.RATES``.

A fault has its own random numbers, so that omitting others does not change it. It starts immediately, ends by itself
within :data:`LONGEST_SECONDS`, and reports what it does to the story.
"""

import math
import random
from functools import partial
from typing import Any, Final, NamedTuple

from tests.simulation.actions import delete, import_archive, redact
from tests.simulation.install import ASKED_FOR
from tests.simulation.kernel import Process, loop, world
from tests.simulation.network import Link
from tests.simulation.parts import ArchiverProcess, Node, Site

#: Maximum duration of a fault in seconds.
LONGEST_SECONDS: Final = 30.0
#: The faults that do not prevent any runner from renewing its lease.
HARMLESS: Final = frozenset({
    "kill_archiver", "no_memory", "objects_away", "objects_slow", "jump_clock", "redact", "delete", "lose_reports",
    "import_beside", "drift_clock", "fill_disk", "issuer_away",
})  # fmt: skip


class Fault(NamedTuple):
    """One fault of a schedule: its number, kind, start in virtual seconds, and its own seed."""

    number: int
    kind: str
    at: float
    seed: int


def schedule(seed: int, number: int, began: float, seconds: float, rates: dict[str, float]) -> list[Fault]:
    """The faults of a round that starts at ``began``. ``rates`` are faults per hour."""
    chance = random.Random(f"{seed} {number}")
    found: list[Fault] = []
    at = began
    while rates and (at := at + chance.expovariate(math.fsum(rates.values()) / 3600)) < began + seconds:
        kind = chance.choices(list(rates), list(rates.values()))[0]
        found.append(Fault(1000 * number + len(found), kind, at, chance.getrandbits(32)))
    return found


class Faults:
    """Causes faults at ``site``."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._chance = random.Random(0)

    def start(self, fault: Fault) -> None:
        self._chance = random.Random(fault.seed)
        what: str | None = getattr(self, fault.kind)()
        if what is not None:
            world.count("faults")
            world.faults.append(fault.number)
            self._site.outages += fault.kind in ("crash_store", "cut_power", "lose_store", "fail_over")
            world.count(fault.kind)
            if fault.kind not in HARMLESS:
                self._site.silences.append(loop.time)
            world.tell("fault", f"{fault.number} {fault.kind} {what}")

    # The network

    def cut(self) -> str:
        names, _, ends = self._pair()
        for end in ends:
            end.reset()
        return f"{names} ({len(ends)})"

    def refuse(self) -> str:
        names, link, ends = self._pair()
        for end in ends:
            end.reset()
        return f"{names} {self._until(link, 'refused_until', 8)}"

    def stall(self) -> str:
        names, link, _ = self._pair()
        return f"{names} {self._until(link, 'stalled_until', 8)}"

    def late(self) -> str:
        (names, link, _), seconds = self._pair(), self._seconds(25)
        link.late = self._chance.choice((0.1, 0.5, 0.9))
        loop.call_later(seconds, setattr, link, "late", world.late)
        return f"{names} for {seconds:.1f} s"

    def half_open(self) -> str:
        names, _, ends = self._pair()
        for end in ends:
            end.forget()
        return f"{names} ({len(ends)})"

    # Processes

    def freeze(self) -> str:
        process = self._chance.choice(self._processes())
        # Less than a runner's lease, including other delays.
        seconds = self._seconds(12)
        process.freeze(seconds)
        return f"{process.name} for {seconds:.1f} s"

    def slow(self) -> str:
        process, seconds = self._chance.choice(self._processes()), self._seconds(25)
        process.slow = self._chance.choice((0.1, 0.5))
        loop.call_later(seconds, setattr, process, "slow", world.slow)
        return f"{process.name} for {seconds:.1f} s"

    def kill_node(self) -> str | None:
        return self._kill(self._chance.choice(self._site.nodes))

    def fail_tail(self) -> str | None:
        """A thread of a node's tail raises an unexpected error."""
        node, name = self._chance.choice(self._site.nodes), self._chance.choice(("read_once", "housekeep_once"))
        if node.deps is None:
            return None
        tail = node.deps.tail

        def fail() -> None:
            delattr(tail, name)
            raise RuntimeError(ASKED_FOR)

        setattr(tail, name, fail)
        return f"{node.name} in {name}"

    def drain_node(self) -> str | None:
        """A node ends its streams and then exits, as in a rolling restart."""
        node, seconds = self._chance.choice(self._site.nodes), self._seconds(8)
        if node.process.dead or node.deps is None:
            return None
        node.process.spawn(node.deps.admission.drain, seconds)
        loop.call_later(seconds + 1.0, self._kill, node)
        return f"{node.name} in {seconds:.1f} s"

    def kill_archiver(self) -> str | None:
        return self._kill(self._chance.choice(self._site.archivers))

    def _kill(self, part: Node | ArchiverProcess) -> str | None:
        seconds, power = self._seconds(5), self._chance.random() < 0.3
        if part.process.dead:
            return None
        part.kill(power=power)
        loop.call_later(seconds, part.start)
        return f"{part.name} for {seconds:.1f} s{' by power' if power else ''}"

    def kill_runner(self) -> str | None:
        alive = [each for each in self._site.runners if each.is_alive]
        restarts = self._chance.random() < 0.7
        # Only the store has what a dead runner sent. If it lost that, the numbers would be reused.
        if not alive or loop.time < self._site.unsafe_until:
            return None
        # A file from an earlier outage can lack what has been sent since.
        files = [each for each in alive if each.publisher and each.publisher.spool.path]
        runner = self._chance.choice(files if files and self._chance.random() < 0.7 else alive)
        runner.kill(restarts=restarts)
        return f"{runner.name}, {'restarts' if restarts else 'stays dead'}"

    def jump_clock(self) -> str:
        process = self._chance.choice([each for each in self._processes() if each.name != "store"])
        process.offset = self._chance.choice((-7_200.0, -5.0, 0.0, 5.0, 7_200.0))
        return f"{process.name} {process.offset:+.0f} s"

    def drift_clock(self) -> str:
        """A clock runs too fast or too slowly for some time."""
        process, more = self._chance.choice(self._processes()), self._chance.choice((-0.1, 0.1))
        seconds = int(self._seconds(LONGEST_SECONDS))

        def drift() -> None:
            process.offset += more

        for after in range(seconds):
            loop.call_later(after, drift)
        return f"{process.name} {more:+.1f} s a second for {seconds} s"

    def fill_disk(self) -> str | None:
        """A runner's disk is full."""
        alive = [each for each in self._site.runners if each.is_alive and each.publisher and each.publisher.spool._file]
        if not alive:
            return None
        runner, seconds = self._chance.choice(alive), self._seconds(25)
        runner.limit_disk(1)
        loop.call_later(seconds, runner.limit_disk, 2**30)
        return f"{runner.name} for {seconds:.1f} s"

    # The store

    def full_disk(self) -> str:
        return self._limit(15, "_has_no_disk")

    def no_memory(self) -> str:
        return self._limit(20, "_has_no_memory")

    def _limit(self, most: float, what: str) -> str:
        store, seconds = self._site.store, self._seconds(most)
        store.limit(**{what: True})
        loop.call_later(seconds, partial(store.limit, **{what: False}))
        return f"for {seconds:.1f} s"

    def crash_store(self) -> str | None:
        if self._site.store.process.dead:
            return None
        seconds = self._seconds(5)
        self._site.store.crash(power=False, seconds=seconds)
        return f"for {seconds:.1f} s"

    def cut_power(self) -> str | None:
        if not self._is_up or self._site.sentinel:
            return None
        store, seconds = self._site.store, self._seconds(5)
        # Unsynced data is lost, often a job's end, more after a stalled disk. Redis waits for the disk after 2 seconds.
        ends = [each.until - loop.time for each in self._site.runners if each.is_alive]
        start = self._chance.choice([each for each in ends if 0 < each < 15] or [0.0])
        busy = self._seconds(2) if start or self._chance.random() < 0.5 else 0.0
        loop.call_later(start, setattr, store, "disk_is_busy", busy > 0)
        loop.call_later(start + busy, setattr, store, "disk_is_busy", False)
        loop.call_later(start + busy, store.crash, True, seconds)
        self._site.unsafe_until = loop.time + start + busy + 60.0
        if self._chance.random() < 0.5:
            # Again, while runners resend what was lost.
            loop.call_later(start + busy + seconds + self._seconds(3), store.crash, True, self._seconds(3))
        return f"for {seconds:.1f} s, in {start:.1f} s, after {busy:.1f} s without a sync"

    def lag(self) -> str | None:
        return self._until(self._site.store, "lags_until", 8) if self._site.sentinel else None

    def fail_over(self) -> str | None:
        """The replica becomes the master, possibly after a lag. The old one possibly freezes, and is notified later."""
        old, sentinel = self._site.store, self._site.sentinel
        if sentinel is None or not self._is_up or loop.time < self._site.unsafe_until:
            return None
        address, seconds = f"store{loop.steps}", self._seconds(4)
        if self._chance.random() < 0.5:
            old.process.freeze(self._seconds(8))
        else:
            old.lags_until = loop.time + (seconds := seconds + 2.5)

        def elect() -> None:
            self._site.store = old.fail_over(address)
            sentinel.master = address
            # Until notified, it answers remaining clients.
            loop.call_later(demoted, old.demote)

        demoted = self._seconds(8)
        loop.call_later(seconds, elect)
        self._site.unsafe_until = loop.time + 90.0
        return f"{address} after {seconds:.1f} s, the old master is told after {demoted:.1f} s more"

    def lose_reports(self) -> str:
        return self._until(self._site.store, "loses_reports_until", 25)

    def lose_store(self) -> str | None:
        """The store loses everything, and the archive is imported. Data that was only in the store is lost."""
        # Earlier, little is archived.
        if not self._is_up or self._site.sentinel or loop.time < max(self._site.unsafe_until, self._site.began + 20.0):
            return None
        for runner in self._site.runners:
            runner.lost_at = loop.time
            for each in runner.redactions if runner.is_alive else ():
                # A live runner also resends what was redacted (docs/history.md).
                each.done_at = float("inf")
        seconds = self._seconds(5)
        if self._chance.random() < 0.3:
            self._site.store.crash(power=True, seconds=seconds, lose_all=True)
        else:
            # The store is emptied. It has long been up, so leases expire immediately.
            self._site.store.empty()
            seconds = 0.0
        self._site.losses.append([loop.time, float("inf")])
        self._site.unsafe_until = loop.time + 120.0
        for _ in range(self._chance.choice((1, 1, 2))):
            import_archive(self._site, seconds + self._seconds(2))
        # Otherwise all runners return before the import.
        for runner in self._site.runners:
            if runner.is_alive and self._chance.random() < 0.7:
                runner.process.freeze(seconds + self._chance.uniform(0.5, 0.85) * self._site.shape.lease)
        return f"for {seconds:.1f} s"

    def import_beside(self) -> str:
        import_archive(self._site, 0.0)
        return "while all run"

    def busy_disk(self) -> str:
        return self._limit(20, "disk_is_busy")

    def objects_away(self) -> str:
        return self._until(self._site.objects, "away_until", 25)

    def objects_slow(self) -> str:
        return self._until(self._site.objects, "slow_until", 25)

    def issuer_away(self) -> str | None:
        """The issuer cannot be reached, possibly once it has published another key."""
        issuer = self._site.issuer
        if issuer is None:
            return None
        if self._chance.random() < 0.5:
            issuer.rotate()
        return self._until(issuer, "away_until", LONGEST_SECONDS)

    # What people do

    def redact(self) -> str:
        # Some logs are redacted several times.
        runner = self._chance.choice(self._site.runners[:4] if self._chance.random() < 0.7 else self._site.runners)
        node, query = self._chance.choice(self._site.nodes), self._chance.choice(("", "&q=n%3D"))
        # The concurrent reader is slow: it gets an answer from before the redaction after it.
        slow = self._chance.choice(("", "", "scans", "archive"))
        if slow == "scans":
            link = self._site.network.link(node.name, node.scans.name)
            link.delayed = node.scans.name, loop.time + 10.0, self._seconds(4.5)
        elif slow == "archive":
            self._site.objects.slow_until = loop.time + 10.0
        redact(self._site, runner, self._chance.random(), self._chance.random(), node.name, query)
        return f"{runner.job}, {slow or 'nothing'} is slow"

    def delete(self) -> str | None:
        over = [each for each in self._site.runners if each.is_done and not each.is_deleted]
        if not over or loop.time < self._site.unsafe_until:
            return None
        runner = self._chance.choice(over)
        delete(self._site, runner)
        return str(runner.job)

    @property
    def _is_up(self) -> bool:
        """Whether the store is up, and no dead runner's successor has yet to open the job."""
        return not any(each.is_awaited for each in self._site.runners) and not self._site.store.process.dead

    def _until(self, part: Any, name: str, most: float) -> str:
        seconds = self._seconds(most)
        setattr(part, name, loop.time + seconds)
        return f"for {seconds:.1f} s"

    def _seconds(self, most: float) -> float:
        return self._chance.uniform(0.1, most)

    def _processes(self) -> list[Process]:
        parts: list[Any] = [*self._site.services, *(each for each in self._site.runners if each.is_alive)]
        found = [each.process for each in parts] + [each.scans for each in self._site.nodes]
        return [each for each in found if not each.dead] + [self._site.store.process]

    def _pair(self) -> tuple[str, Link, list[Any]]:
        """The names of two processes that communicate, their link, and the first one's ends of their connections."""
        talking: dict[tuple[str, str], tuple[Process, Process]] = {}
        for process in [*self._processes(), *(each.process for each in self._site.viewers if not each.ending)]:
            for end in process.endpoints:
                if end.peer is not None:
                    talking[process.name, end.peer.owner.name] = process, end.peer.owner
        if not talking:
            talking["", ""] = self._site.nodes[0].process, self._site.store.process
        # There are more viewers than all others together.
        names = sorted(talking)
        if self._chance.random() < 0.6:
            names = [each for each in names if "store" in each] or names
        one, other = talking[self._chance.choice(names)]
        ends = [each for each in one.endpoints if each.peer and each.peer.owner is other]
        return f"{one.name} {other.name}", self._site.network.link(one.name, other.name), ends
