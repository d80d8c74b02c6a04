"""The producer: a process that writes every peer's lines at the same rate. Each line has the time of its sending."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Final, Protocol

from bench.reference import message

#: The timestamp of every line. Delays are measured with the monotonic time in the text.
TIMESTAMP: Final = "2026-03-03T10:00:05.123Z"
#: Seconds to wait until the viewers are ready.
GO_SECONDS: Final = 180.0


def line_json(text: str, number: int) -> bytes:
    """The service's JSON of a line whose ``text`` needs no escapes: all peers send the same number of bytes."""
    return f'{{"timestamp":"{TIMESTAMP}","message":"{text}","sequence_num":{number},"stream":"stdout"}}'.encode()


class Sink(Protocol):
    """How to publish to a peer. Made in the benchmark's process and used in the producer's."""

    def open(self, jobs: range) -> None:
        """Prepares these jobs."""

    def publish(self, batch: Sequence[tuple[int, int, list[str]]]) -> None:
        """Publishes each (job, first number, texts), and waits until all are accepted."""

    def finish(self, jobs: range, last: int) -> None:
        """Ends the jobs after line ``last``, if the peer has an end."""


@dataclass(frozen=True)
class Plan:
    """Lines 1 to ``last`` of ``jobs`` jobs, at ``rate`` a second each, or as many as possible with None.

    One publish has at most ``batch`` lines, every ``tick`` seconds. ``end``: the jobs end after their last line.
    """

    last: int
    jobs: int = 1
    rate: float | None = None
    batch: int = 500
    tick: float = 0.0
    end: bool = True
    first_job: int = 0

    @property
    def range(self) -> range:
        return range(self.first_job, self.first_job + self.jobs)


def batches(plan: Plan) -> Iterator[list[tuple[int, int, int]]]:
    """Yields (job, first number, count) of each publish at its time."""
    if plan.rate is None:
        for first in range(1, plan.last + 1, plan.batch):
            for job in plan.range:
                yield [(job, first, min(plan.batch, plan.last + 1 - first))]
        return
    # In one order for all: line n of job j is the (n * jobs + j)th.
    step, done, total = 1 / (plan.rate * plan.jobs), 0, plan.last * plan.jobs
    began = time.monotonic()
    while done < total:
        time.sleep(max(plan.tick, began + done * step - time.monotonic(), 0.0))
        due = min(total, int((time.monotonic() - began) / step) + 1, done + plan.batch)
        batch: dict[int, tuple[int, int]] = {}
        for index in range(done, due):
            number, job = divmod(index, plan.jobs)
            job += plan.first_job
            first, count = batch.get(job, (number + 1, 0))
            batch[job] = (first, count + 1)
        done = due
        yield [(job, first, count) for job, (first, count) in batch.items()]


def produce(sink: Sink, plan: Plan, pipe: Connection) -> None:
    """The process of the producer: sends ``open``, waits for the start, publishes, sends the seconds that it took."""
    sink.open(plan.range)
    pipe.send("open")
    if not pipe.poll(GO_SECONDS):
        return
    pipe.recv()
    began = time.monotonic()
    for batch in batches(plan):
        stamp = time.monotonic_ns()
        sink.publish(
            [
                (job, first, [message(stamp, job, number) for number in range(first, first + count)])
                for job, first, count in batch
            ]
        )
    took = time.monotonic() - began
    if plan.end:
        sink.finish(plan.range, plan.last)
    pipe.send(took)
