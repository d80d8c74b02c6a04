"""What a look at a watched job, or a hole in what was read of it, means to its channel."""

from collections.abc import Callable, Sequence

from chronoverse.history.source import LogReader
from chronoverse.joblog import sse
from chronoverse.joblog.entries import RawEntry, entry_number
from chronoverse.joblog.values import Gap, Job, JobRef
from chronoverse.live.feed import Feed, encode, final_frames


class JobStateReconciler:
    """Brings channels up to date with looks. ``ring_bytes`` says what a channel's ring may hold.

    ``redacted`` is called with a job of which something was redacted: whoever has copies lets them go.
    """

    def __init__(
        self,
        store: LogReader,
        lease_seconds: float,
        ring_bytes: Callable[[], int],
        redacted: Callable[[JobRef], object],
    ) -> None:
        self._store = store
        self._lease_seconds = lease_seconds
        self._ring_bytes = ring_bytes
        self._redacted = redacted

    def reconcile(self, channel: Feed, job: Job) -> None:
        """After a look at the channel's job, also of one that has closed: its viewers may not be through with it.

        Raises :class:`StoreError`.
        """
        closed = channel.final is not None
        if closed and (channel.job is None or job.end is None):
            # Another log under its name.
            return
        self._redact(channel, job)
        channel.reconcile(job)
        if closed:
            return
        if job.last > channel.cursor and not self._store.read(channel.ref, channel.cursor, 1):
            # The read came after the look, so what the look knew of and the read did not find is gone from the store.
            channel.skip(min(job.archived, job.last))
            cursor = channel.cursor
            if job.last > cursor:
                gap = Gap(cursor + 1, job.last, "trimmed" if job.first > cursor + 1 else "missing")
                channel.publish(encode([gap], cursor)[0], cursor, self._ring_bytes())
        end = job.end
        if end is None:
            return
        if end.sequence_num <= channel.cursor:
            lost = f"the store lost lines {end.sequence_num} to {channel.cursor} of this log"
            channel.close(sse.frame("error", lost.encode()))
        elif end.sequence_num == channel.cursor + 1:
            channel.close(final_frames(job, end, self._lease_seconds))

    def _redact(self, channel: Feed, job: Job) -> None:
        ranges = redacted_since(self._store, channel.job, job) if channel.job else []
        if ranges:
            self._redacted(channel.ref)
            channel.redact(ranges)


def redacted_since(store: LogReader, before: Job, now: Job) -> Sequence[tuple[int, int]]:
    """What was redacted of a job between two looks at it: the first and the last line of each range.

    All of the log, where that was more than is remembered. Raises :class:`StoreError`.
    """
    count = now.redactions - before.redactions
    ranges = store.redactions(now.ref, count) if count > 0 else []
    return ranges if len(ranges) >= count else [(1, max(now.last, 1))]


def beyond_archived(channel: Feed, entries: Sequence[RawEntry], before: int) -> tuple[Sequence[RawEntry], int]:
    """What is news in ``entries``, which follow ``before`` and have holes, and what that follows.

    Lines may have gone to the archive before they were read live. Then the channel goes on behind what is archived, and
    its viewers, who have not got that far, read for themselves.
    """
    archived = channel.job.archived if channel.job else 0
    if archived <= before or channel.cursor != before:
        return entries, before
    channel.skip(min(archived, entry_number(entries[-1][0])))
    return [entry for entry in entries if entry_number(entry[0]) > channel.cursor], channel.cursor
