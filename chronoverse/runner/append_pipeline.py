"""Appends under way: the next one leaves before the last is answered, so that neither end waits for the other."""

from collections import deque
from collections.abc import Sequence
from typing import Final, Protocol, runtime_checkable

from chronoverse.errors import ForeignLines
from chronoverse.joblog.values import Attempt, Line, LineRun, lines_of
from chronoverse.runner.spool.spool import BATCH_LINES, Spool

#: Appends that may be under way at once: one that the store works on, one that already waits for it there.
MAX_PENDING: Final = 2


class Appender(Protocol):
    """What is needed of a store where appends wait for each other."""

    def append(self, attempt: Attempt, lines: Sequence[Line]) -> int: ...


class PendingAppends(Protocol):
    """Appends whose answers are fetched later. :class:`chronoverse.store.append_connection.AppendConnection` is one."""

    def send(self, attempt: Attempt, first: int, runs: Sequence[LineRun]) -> None: ...

    def receive(self) -> int: ...

    def reset(self) -> None: ...


@runtime_checkable
class SupportsPipelining(Protocol):
    """A store where they need not."""

    def append_connection(self) -> PendingAppends: ...


class _SequentialAppends:
    def __init__(self, store: Appender) -> None:
        self._store = store
        self._answers: deque[int] = deque()

    def send(self, attempt: Attempt, first: int, runs: Sequence[LineRun]) -> None:
        self._answers.append(self._store.append(attempt, lines_of(runs, first)))

    def receive(self) -> int:
        return self._answers.popleft()

    def reset(self) -> None:
        self._answers.clear()


class AppendPipeline:
    """Sends one spool's lines. After any error, :meth:`reset`: all begins again at the first unacknowledged line."""

    def __init__(self, store: Appender, spool: Spool, sent_end: int = 0) -> None:
        self._spool = spool
        self._depth = MAX_PENDING if isinstance(store, SupportsPipelining) else 1
        self._pipeline: PendingAppends = (
            store.append_connection() if isinstance(store, SupportsPipelining) else _SequentialAppends(store)
        )
        self._ends: deque[int] = deque()
        #: The index behind the last line that was ever sent: the log may have no other lines of ours.
        self.sent = sent_end

    @property
    def has_pending(self) -> bool:
        """Whether there is an answer to be waited for."""
        return bool(self._ends)

    def send(self, attempt: Attempt, base: int) -> None:
        """Sends what there is, if nothing is under way; and further full batches, as many as may be."""
        while len(self._ends) < self._depth:
            start = self._ends[-1] if self._ends else self._spool.acked
            if self._ends and self._spool.end - start < BATCH_LINES:
                return
            batch = self._spool.take(start, base)
            if batch is None:
                return
            self.sent = max(self.sent, batch.end)
            self._pipeline.send(attempt, base + batch.start, batch.runs)
            self._ends.append(batch.end)

    def receive(self, base: int) -> None:
        """Waits for the oldest answer.

        Raises what the store raises, and :class:`ForeignLines` when somebody else writes to the log.
        """
        following = self._pipeline.receive() - base
        # More than this append had: another is in already, whose answer was lost.
        if not self._ends.popleft() <= following <= self.sent:
            raise ForeignLines("somebody else writes to this job's log")
        if following > self._spool.acked:
            self._spool.acknowledge(following)

    def reset(self) -> None:
        """Forgets what is under way."""
        self._ends.clear()
        self._pipeline.reset()
