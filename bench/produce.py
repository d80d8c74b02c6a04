"""The producer: a process that writes each peer's lines at the same rate. Each line contains its sending time."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Final, Protocol

from bench.reference import message

#: The timestamp of every line. Delays are measured with the monotonic time in the text.
TIMESTAMP: Final = "2026-03-03T10:00:05.123Z"
#: Longest wait until the viewers are ready, in seconds.
GO_SECONDS: Final = 180.0


def line_json(text: str, number: int) -> bytes:
    """The service's JSON of a line whose ``text`` needs no escapes. All peers send the same number of bytes."""
    return f'{{"timestamp":"{TIMESTAMP}","message":"{text}","sequence_num":{number},"stream":"stdout"}}'.encode()


class Sink(Protocol):
    """How to publish to a peer. Created in the benchmark's process and used in the producer's."""

    def open(self, jobs: range) -> None:
        """Prepares these jobs."""

    def publish(self, batch: Sequence[tuple[int, int, list[str]]]) -> None:
        """Publishes each (job, first number, texts), and waits until all are accepted."""

    def finish(self, jobs: range, last: int) -> None:
        """Ends the jobs after line ``last``, if the peer supports it."""


@dataclass(frozen=True)
class Plan:
    """Lines 1 to ``last`` of ``jobs`` jobs, each with ``rate`` lines per second, or without limit if None.

    One publish has at most ``batch`` lines, every ``tick`` seconds. With ``end``, jobs end after their last line.
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
    """Yields (job, first number, count) of each publish when it is due."""
    if plan.rate is None:
        for first in range(1, plan.last + 1, plan.batch):
            for job in plan.range:
                yield [(job, first, min(plan.batch, plan.last + 1 - first))]
        return
    # A global order: line n of job j is the (n * jobs + j)th.
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
    """The producer's process: sends ``open``, waits for the start, publishes, and sends the duration in seconds."""
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
