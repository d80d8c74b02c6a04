"""Appends to the store. The next append is sent before the last is answered, so neither side waits for the other."""

from collections import deque
from typing import Final

from chronoverse.errors import ForeignLines
from chronoverse.joblog.values import Attempt
from chronoverse.runner.log_writer import AppendChannel
from chronoverse.runner.spool.spool import BATCH_LINES, Spool

#: Appends that may be unanswered at once: the store works on one, and the next one is there when it is done.
MAX_PENDING: Final = 2


class AppendPipeline:
    """Sends the lines of one spool. Call :meth:`reset` after any error: sending starts again at the first line that
    is not acknowledged."""

    def __init__(self, channel: AppendChannel, spool: Spool, sent_end: int = 0) -> None:
        self._channel = channel
        self._spool = spool
        #: For each append that is not answered, the index after its last line.
        self._pending_ends: deque[int] = deque()
        #: The index after the last line that was ever sent. The log cannot have later lines of ours.
        self.sent_end = sent_end

    @property
    def has_pending(self) -> bool:
        """Whether an append is not answered yet."""
        return bool(self._pending_ends)

    def send(self, attempt: Attempt, base: int) -> None:
        """Sends the lines that wait: any number if no append is pending, else only full batches."""
        while len(self._pending_ends) < MAX_PENDING:
            start = self._pending_ends[-1] if self._pending_ends else self._spool.acked
            if self._pending_ends and self._spool.end - start < BATCH_LINES:
                return
            batch = self._spool.take(start, base)
            if batch is None:
                return
            self.sent_end = max(self.sent_end, batch.end)
            self._channel.send(attempt, base + batch.start, batch.runs)
            self._pending_ends.append(batch.end)

    def receive(self, base: int) -> None:
        """Waits for the oldest answer.

        Raises what the store raises, and :class:`ForeignLines` when somebody else writes to the log.
        """
        next_index = self._channel.receive() - base
        # The store may have more lines than this append had: those of a later append whose answer was lost.
        if not self._pending_ends.popleft() <= next_index <= self.sent_end:
            raise ForeignLines("somebody else writes to this job's log")
        if next_index > self._spool.acked:
            self._spool.acknowledge(next_index)

    def reset(self) -> None:
        """Forgets the appends that are not answered."""
        self._pending_ends.clear()
        self._channel.reset()
