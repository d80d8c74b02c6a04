"""Taking what lines say out of a log, in every tier: their numbers, times and streams stay.

What is in the archive is put there anew, in the old chunk's place; what is not yet goes there now, up to the last line
that is redacted, and leaves the store. All of it is done under the job's archiving lease, chunk by chunk, each of them
in one step: whoever repeats a redaction that broke off finds what is left of it.

A redaction is done when nothing can bring the old text back: the store has its new records for good, and no object
that holds the text is left, recorded or not. See :mod:`chronoverse.archive.job_objects`.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from chronoverse.archive.codec import ChunkBuilder, rewrite
from chronoverse.archive.job_objects import CLOCK_SKEW_SECONDS, JobObjects, archive_lock
from chronoverse.archive.object_store import ObjectStore
from chronoverse.errors import AppendRefused, ArchiveBusy, JobNotFound, LineStillOpen, SearchTooExpensive, StoreError
from chronoverse.joblog.chunk import CHUNK_BYTES
from chronoverse.joblog.entries import RawEntry, entry_number, read_entries
from chronoverse.joblog.values import Job, JobRef, Line
from chronoverse.store import Store
from chronoverse.store.adaptive_batch import AdaptiveBatch

#: What a redacted line says.
REDACTED_MESSAGE: Final = "[redacted]"
#: Seconds after which one call ends, behind the chunk it is at: a chunk takes about one.
CALL_SECONDS: Final = 5.0
#: Seconds to wait for an archiver that is at the job, and between two tries. A chunk takes it less than that.
BUSY_SECONDS: Final = 5.0
BUSY_RETRY_SECONDS: Final = 0.1
#: Entries of one read, at most: others wait for as long as these are looked through.
PAGE_ENTRIES: Final = 1_000

log: Final = logging.getLogger(__name__)


class RedactionRequest(NamedTuple):
    """Lines ``first`` to ``last`` that are ``wanted``, and what to remember of it.

    ``exact``: all of the range is meant, so that a line that cannot be redacted yet is an error.
    """

    first: int
    last: int
    matches: Callable[[Line], bool]
    audit: dict[str, Any]
    exact: bool

    def change(self, line: Line) -> Line | None:
        """The line as it shall be, None where it is so."""
        if (
            not self.first <= line.sequence_num <= self.last
            or line.message == REDACTED_MESSAGE
            or not self.matches(line)
        ):
            return None
        return line._replace(message=REDACTED_MESSAGE)

    def audit_entry(self, numbers: Sequence[int]) -> dict[str, Any]:
        """What to remember of the redaction of these lines."""
        return {**self.audit, "from": numbers[0], "to": numbers[-1], "count": len(numbers)}


class RedactionResult(NamedTuple):
    """How many lines were redacted, the last number looked at, and whether the wish is fulfilled.

    ``pending``: the store may still go back to the old text, or an object that holds it is still to be deleted.
    """

    lines: int
    last_checked: int
    complete: bool
    pending: bool


class Redaction:
    """``wish`` for the log of ``job``. ``pause`` lets others go on; ``clock`` is monotonic, in seconds."""

    def __init__(
        self,
        store: Store,
        objects: ObjectStore,
        job: JobRef,
        request: RedactionRequest,
        *,
        pause: Callable[[], object] = bool,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._store: Final = store
        self._objects: Final = objects
        self._ref: Final = job
        self._request = request
        self._pause = pause
        self._clock = clock
        self._wall_clock = wall_clock
        self._sleep = sleep
        self._token = ""
        self._count = 0
        self._batch = AdaptiveBatch()
        #: The number up to which nothing is left to do.
        self._last_checked = request.first - 1

    def run(self) -> RedactionResult:
        """Does it, or a part of it.

        An error behind the first lines that were redacted ends the call and is not raised, or nobody would hear of
        those lines: they would not be counted when the redaction is repeated.
        Raises: :class:`JobNotFound`, :class:`LineStillOpen`, :class:`ArchiveBusy`, :class:`SearchTooExpensive`, and as
        the store and the archive do.
        """
        with self._wait_for_lock() as self._token:
            job = self._store.get_job(self._ref)
            if job is None:
                raise JobNotFound("no such job")
            last = min(self._request.last, job.last if job.end else job.last - 1)
            if self._request.exact and last < min(self._request.last, job.last):
                raise LineStillOpen(
                    f"line {job.last} is the newest of a running job: it can be redacted behind the next"
                )
            written = JobObjects(self._store, self._objects, self._ref, self._token)
            try:
                self._redact(written, job, last)
            except (StoreError, AppendRefused, SearchTooExpensive) as error:
                if not self._count:
                    raise
                log.warning("a redaction broke off: %s", error, extra={"fields": {"job": str(self._ref)}})
            return RedactionResult(
                self._count, self._last_checked, self._last_checked >= last, self._is_pending(written)
            )

    def _redact(self, written: JobObjects, job: Job, last: int) -> None:
        deadline = self._clock() + CALL_SECONDS
        self._redact_archived(written, last, deadline)
        if self._last_checked >= min(job.archived, last):
            self._redact_stored(written, job, last, deadline)

    def _is_pending(self, written: JobObjects) -> bool:
        """Deletes what holds the old text. True when that could not be done for all of it, and for good."""
        try:
            # An object store's clock may be ahead of ours.
            found = written.collect_garbage(self._wall_clock(), min_age=-CLOCK_SKEW_SECONDS, check_permanence=True)
        except (StoreError, AppendRefused) as error:
            log.warning("redacted text is still to be deleted: %s", error, extra={"fields": {"job": str(self._ref)}})
            return True
        return found.remaining > 0 or found.permanent is False

    @contextmanager
    def _wait_for_lock(self) -> Iterator[str]:
        until = self._clock() + BUSY_SECONDS
        while True:
            lease = archive_lock(self._store, self._ref)
            try:
                token = lease.__enter__()
                break
            except ArchiveBusy:
                if self._clock() > until:
                    raise
            self._sleep(BUSY_RETRY_SECONDS)
        try:
            yield token
        finally:
            lease.__exit__(None, None, None)

    def _redact_archived(self, written: JobObjects, last: int, deadline: float) -> None:
        """Redacts what is archived. The old objects stay, as garbage."""
        while self._last_checked < last and (chunk := self._store.chunks.chunk(self._ref, self._last_checked + 1)):
            data = self._objects.get(chunk.name)
            found = rewrite(self._ref, chunk, data, self._request.first, last, self._request.change, self._pause)
            if found is not None:
                made, data, numbers = found
                audit = self._request.audit_entry(numbers)
                with written.put_verified(made, data) as made:
                    self._store.redaction_log.redact(self._ref, self._token, made, audit, old=chunk)
                self._count += len(numbers)
            self._last_checked = chunk.last
            if self._clock() > deadline:
                break

    def _redact_stored(self, written: JobObjects, job: Job, last: int, deadline: float) -> None:
        """Redacts what only the store has."""
        following = job.archived + 1 if job.archived else max(job.hot, 1)
        affected = self._last_affected(max(following, self._request.first), last, job.hot)
        while following <= affected:
            numbers: list[int] = []
            newest: RawEntry | None = None
            builder = ChunkBuilder(self._ref, following)
            while builder.last < affected and builder.text_size < CHUNK_BYTES and not builder.closed:
                entries = self._page(builder.last, affected - builder.last)
                taken = [each for each in entries if entry_number(each[0]) <= affected]
                if not taken:
                    break
                builder.add(self._changed_entries(taken, builder.last, numbers), job.hot)
                newest = taken[-1]
                self._pause()
            if builder.last < following:
                break
            with written.put_verified(*builder.finish()) as chunk:
                if numbers:
                    audit = self._request.audit_entry(numbers)
                    self._store.redaction_log.redact(self._ref, self._token, chunk, audit, last_entry=newest)
                else:
                    self._store.chunks.commit_chunk(self._ref, self._token, chunk, trim=chunk.last, last_entry=newest)
            self._count += len(numbers)
            self._last_checked = max(self._last_checked, chunk.last)
            following = chunk.last + 1
            if self._clock() > deadline:
                break
        if following > affected:
            self._last_checked = last

    def _last_affected(self, first: int, last: int, lowest: int) -> int:
        """The last line in the store that is to be changed; 0 when none is."""
        found, cursor = 0, first - 1
        while cursor < last:
            entries = self._page(cursor, PAGE_ENTRIES)
            if not entries:
                break
            for line in self._changed_lines(entries, cursor, lowest):
                found = line.sequence_num if line.sequence_num <= last else found
            cursor = entry_number(entries[-1][0])
            self._pause()
        return found

    def _page(self, after: int, most: int) -> Sequence[RawEntry]:
        """The entries that follow, no more than :data:`PAGE` and about a megabyte."""
        entries = self._store.page(self._ref, after=after, count=min(self._batch.lines, PAGE_ENTRIES, most))
        self._batch.learn(len(entries), sum(len(value) for _, fields in entries for value in fields))
        return entries

    def _changed_lines(self, entries: Sequence[RawEntry], after: int, lowest: int) -> Iterator[Line]:
        """The lines to be changed, as they shall be."""
        for entry in read_entries(entries, after, lowest):
            if isinstance(entry, Line) and (changed := self._request.change(entry)):
                yield changed

    def _changed_entries(self, entries: Sequence[RawEntry], after: int, numbers: list[int]) -> list[RawEntry]:
        """The raw entries with what they shall say; the changed lines are added to ``numbers``."""
        changed = {line.sequence_num for line in self._changed_lines(entries, after, 1)}
        found: list[RawEntry] = []
        for entry in entries:
            number = entry_number(entry[0])
            if number in changed:
                # Of several with one number the first is the line.
                changed.remove(number)
                numbers.append(number)
                entry = (entry[0], _redacted_fields(entry[1]))
            found.append(entry)
        return found


def _redacted_fields(fields: Sequence[bytes]) -> list[bytes]:
    """An entry's fields with the tombstone for every message that there is."""
    pairs = zip(fields[::2], fields[1::2], strict=False)
    return [
        each for name, value in pairs for each in (name, REDACTED_MESSAGE.encode() if name == b"message" else value)
    ]
