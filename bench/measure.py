"""One round of one peer: viewers in one process, the producer in another. Measures the peer's CPU time and memory."""

import multiprocessing
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Final, Self

from bench.load import Load, Report, generate
from bench.machine import cpu_seconds, memory
from bench.peers.base import Peer
from bench.processes import Failed
from bench.produce import Plan, produce

#: How long after its own deadline a process must report, in seconds.
GRACE_SECONDS: Final = 60.0
#: The share of a core above which the generator, and not the peer, may be the bottleneck.
BUSY: Final = 0.9

_spawn = multiprocessing.get_context("spawn")


class Generator:
    """Runs the load generator in another process."""

    def __init__(self, load: Load) -> None:
        self._pipe, theirs = _spawn.Pipe()
        self._seconds = load.seconds + GRACE_SECONDS
        #: The messages so far: word to value.
        self._messages: dict[str, Any] = {}
        self.process = _spawn.Process(target=generate, args=(load, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def wait(self, word: str) -> Any:
        """Waits for a message, and returns its value.

        ``word`` is ``begun``, ``ready`` (with the value None if the time limit expired first), ``done`` or ``report``.

        Raises :class:`Failed`.
        """
        while word not in self._messages and not (word == "ready" and "done" in self._messages):
            if not self._pipe.poll(self._seconds):
                raise Failed(f"the generator does not send {word}")
            self._receive()
        return self._messages.get(word)

    def has_sent(self, word: str) -> bool:
        while "report" not in self._messages and self._pipe.poll(0):
            self._receive()
        return word in self._messages

    def _receive(self) -> None:
        try:
            word, value = self._pipe.recv()
        except EOFError:
            raise Failed("the generator died") from None
        if word == "failed":
            raise Failed(value)
        self._messages[word] = value

    def close(self) -> None:
        self.process.terminate()
        self.process.join()
        self._pipe.close()


class Peak(threading.Thread):
    """The peak memory of processes during a ``with`` block, in kilobytes, sampled periodically."""

    def __init__(self, pids: list[int]) -> None:
        super().__init__(daemon=True)
        self.rss = self.anon = 0
        self._pids = pids
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(0.1):
            now = memory(self._pids)
            self.rss, self.anon = max(self.rss, now.rss), max(self.anon, now.anon)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self.join()


class Producer:
    """Runs the producer in another process. The constructor returns once its jobs are open."""

    def __init__(self, peer: Peer, plan: Plan, seconds: float = GRACE_SECONDS) -> None:
        self._pipe, theirs = _spawn.Pipe()
        self._seconds = seconds + GRACE_SECONDS
        self.process = _spawn.Process(target=produce, args=(peer.sink(), plan, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self._receive("open")

    def _receive(self, what: str) -> Any:
        if not self._pipe.poll(self._seconds):
            raise Failed(f"the producer does not send {what}")
        try:
            return self._pipe.recv()
        except EOFError:
            raise Failed(f"the producer died before it sent {what}") from None

    def go(self) -> None:
        self._pipe.send("go")

    def took(self) -> float:
        """Waits until everything is published. Returns the duration in seconds."""
        seconds: float = self._receive("how long it took")
        return seconds

    def close(self) -> None:
        self.process.terminate()
        self.process.join()
        self._pipe.close()


@contextmanager
def closing(*what: Generator | Producer) -> Iterator[None]:
    try:
        yield
    finally:
        for each in what:
            each.close()


def stored(peer: Peer, plan: Plan) -> float:
    """Publishes the plan's lines without viewers. Returns the duration in seconds."""
    producer = Producer(peer, plan)
    with closing(producer):
        producer.go()
        return producer.took()


def live(peer: Peer, load: Load, plan: Plan) -> dict[str, Any]:
    """Viewers connect before lines are published. CPU time is measured until the last viewer has all lines."""
    before = memory(peer.pids.workers)
    producer = Producer(peer, plan, load.seconds)
    with closing(producer):
        generator = Generator(load)
        with closing(generator):
            generator.wait("ready")
            connected, connections = memory(peer.pids.workers), peer.store_connections()
            cpu, store, began = cpu_seconds(peer.pids.workers), cpu_seconds(peer.pids.store), time.monotonic()
            producer.go()
            generator.wait("done")
            seconds = time.monotonic() - began
            cpu, store = cpu_seconds(peer.pids.workers) - cpu, cpu_seconds(peer.pids.store) - store
            after = memory(peer.pids.workers)
            report: Report = generator.wait("report")
        took = producer.took() if report.complete == load.viewers else float("nan")
    found = result(report, cpu, store, seconds)
    found |= {
        "publish_seconds": took,
        "offered_seconds": plan.last / plan.rate if plan.rate else float("nan"),
        "store_connections": connections,
        "rss_kb_per_viewer": (connected.rss - before.rss) / load.viewers,
        "anon_kb_per_viewer": (connected.anon - before.anon) / load.viewers,
        "rss_mb": after.rss / 1024,
        "anon_mb": after.anon / 1024,
    }
    return found


def watched(peer: Peer, load: Load) -> dict[str, Any]:
    """Viewers read stored lines. Time and CPU are measured from the first connection."""
    before = memory(peer.pids.workers)
    generator = Generator(load)
    with closing(generator):
        cpu, store, began = cpu_seconds(peer.pids.workers), cpu_seconds(peer.pids.store), time.monotonic()
        generator.wait("done")
        seconds = time.monotonic() - began
        cpu, store = cpu_seconds(peer.pids.workers) - cpu, cpu_seconds(peer.pids.store) - store
        after = memory(peer.pids.workers)
        report: Report = generator.wait("report")
    report.share = report.whole_share
    found = result(report, cpu, store, seconds)
    return found | {
        "before_mb": before.rss / 1024,
        "rss_mb": after.rss / 1024,
        "grown_mb": (after.rss - before.rss) / 1024,
        "anon_grown_mb": (after.anon - before.anon) / 1024,
    }


def result(report: Report, cpu: float, store: float, seconds: float) -> dict[str, Any]:
    """The results of every round."""
    deliveries = max(report.deliveries, 1)
    return asdict(report) | {
        "deliveries_per_s": report.deliveries / max(report.span_seconds, 1e-9),
        "worker_cpu_seconds": cpu,
        "store_cpu_seconds": store,
        "worker_cores": cpu / max(seconds, 1e-9),
        "cpu_us_per_delivery": 1e6 * cpu / deliveries,
        "all_cpu_us_per_delivery": 1e6 * (cpu + store) / deliveries,
        "generator_bound": report.share > BUSY,
    }
