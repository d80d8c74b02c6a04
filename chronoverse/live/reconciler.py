"""Brings the feed of a watched job in line with what the store says of the job now."""

from collections.abc import Callable, Sequence

from chronoverse.history.protocols import LogReader
from chronoverse.history.tiered_log import in_archive
from chronoverse.joblog.ending import end_of_log
from chronoverse.joblog.entries import RawEntry, entry_number, missing_numbers
from chronoverse.joblog.values import Job, JobRef
from chronoverse.live.feed import Feed, encode


class JobStateReconciler:
    """Updates feeds after their jobs were fetched from the store.

    ``ring_bytes`` returns how many bytes one feed's ring may hold. ``redacted`` is called with each job in which
    something was redacted, so that whoever has copies of its lines drops them.
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

    def reconcile(self, feed: Feed, job: Job, *, arriving: bool = False) -> None:
        """Updates ``feed`` with ``job``, which was just fetched. Closes the feed when it has all lines of an ended job.

        ``arriving``: entries after the feed's cursor were read, so what the job counts is not gone.
        A closed feed is updated too, because its viewers may still have lines to read. Raises: :class:`StoreError`.
        """
        closed = feed.final is not None
        if closed and (feed.job is None or job.end is None):
            # The old log was deleted, and this is a new one under the same id.
            return
        self._redact(feed, job)
        feed.reconcile(job)
        if closed:
            return
        if job.last > feed.cursor and not arriving and not self._store.read(feed.ref, feed.cursor, 1):
            # The read came after the job was fetched. Lines that the job counts and the read does not find are gone.
            feed.skip(min(job.archived, job.last))
            cursor = feed.cursor
            if gaps := list(missing_numbers(cursor, job.last + 1, job.first)):
                feed.publish(encode(gaps, cursor)[0], cursor, self._ring_bytes())
        final = end_of_log(job, feed.cursor, self._lease_seconds)
        if final is not None:
            feed.close(final)

    def _redact(self, feed: Feed, job: Job) -> None:
        ranges = redacted_since(self._store, feed.job, job) if feed.job else []
        if ranges:
            self._redacted(feed.ref)
            feed.redact(ranges)


def redacted_since(store: LogReader, before: Job, now: Job) -> Sequence[tuple[int, int]]:
    """The first and the last line of each range that was redacted between two states of a job.

    The store remembers the newest redactions only. If there were more, the answer is one range over the whole log.
    Raises: :class:`StoreError`.
    """
    count = now.redactions - before.redactions
    ranges = store.redactions(now.ref, count) if count > 0 else []
    return ranges if len(ranges) >= count else [(1, max(now.last, 1))]


def skip_archived(feed: Feed, entries: Sequence[RawEntry], before: int) -> tuple[Sequence[RawEntry], int]:
    """Skips lines that the archiver took out of the store before the tail read them.

    ``entries`` follow line ``before`` and leave numbers out. The feed goes on after the archived lines, and viewers
    that have not come so far read them from the archive. Returns the entries that are left, and the line they follow.
    """
    if feed.job is None or not in_archive(feed.job, before + 1) or feed.cursor != before:
        return entries, before
    feed.skip(min(feed.job.archived, entry_number(entries[-1][0])))
    return [entry for entry in entries if entry_number(entry[0]) > feed.cursor], feed.cursor
