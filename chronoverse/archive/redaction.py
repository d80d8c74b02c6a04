"""Replaces messages with ``[redacted]``, in store and archive. Keeps numbers, times and streams.

First archives affected lines that are only in the store. Each chunk is one step, so a redaction can be retried.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NamedTuple

from chronoverse.archive.chunk_writer import fill
from chronoverse.archive.codec import ChunkBuilder, rewrite
from chronoverse.archive.job_objects import CLOCK_SKEW_SECONDS, JobObjects, archive_lock
from chronoverse.archive.object_store import ObjectStore
from chronoverse.archive.store_history import StoreHistory
from chronoverse.errors import AppendRefused, LineStillOpen, SearchTooExpensive, StoreError, StoreUnavailable
from chronoverse.joblog.chunk import folder, redactions_in
from chronoverse.joblog.entries import RawEntry, entry_number, read_entries
from chronoverse.joblog.model import REDACTED_MESSAGE, Job, JobRef, Line
from chronoverse.store import Store
from chronoverse.store.adaptive_batch import AdaptiveBatch

log: Final = logging.getLogger(__name__)


class RedactionRequest(NamedTuple):
    """Lines ``first`` to ``last`` that ``matches`` accepts. ``exact``: raises if some cannot be redacted yet."""

    first: int
    last: int
    matches: Callable[[Line], bool]
    audit: dict[str, Any]
    exact: bool

    def change(self, line: Line) -> Line | None:
        """The redacted line. None if it does not match or is already redacted."""
        is_concerned = self.first <= line.sequence_num <= self.last and line.message != REDACTED_MESSAGE
        return line._replace(message=REDACTED_MESSAGE) if is_concerned and self.matches(line) else None

    def audit_entry(self, numbers: Sequence[int]) -> dict[str, Any]:
        return {**self.audit, "from": numbers[0], "to": numbers[-1], "count": len(numbers)}


class RedactionResult(NamedTuple):
    """The number of redacted lines, the last number checked, and whether the request is complete.

    ``pending``: the store can still roll back to the old text, an object with the old text is not deleted yet, or an
    import has interfered.
    """

    lines: int
    last_checked: int
    complete: bool
    pending: bool


@dataclass(slots=True)
class Redaction:
    """Executes ``request`` for the log of ``job``. Waits up to ``busy_seconds`` for an archiver's lock."""

    store: Store
    objects: ObjectStore
    job: JobRef
    request: RedactionRequest
    pause: Callable[[], object] = lambda: None
    busy_seconds: float = 5.0
    _count: int = 0
    #: The job's number of redactions, including any that the store has lost.
    _redactions: int = 0
    _last_checked: int = 0
    #: The last archived line, unless an import changes it.
    _archived: int = 0
    #: The last redacted line whose text may still be in the store's memory.
    _unforgotten: int = 0
    _batch: AdaptiveBatch = field(default_factory=AdaptiveBatch)

    def run(self) -> RedactionResult:
        """Redacts all lines, or as many as possible within 5 s, and finishes the current chunk (about 1 s each).

        After lines were redacted, an error ends the call without an exception, because a retry would not count these
        lines. Otherwise raises :class:`JobNotFound`, :class:`LineStillOpen`, :class:`ArchiveBusy`,
        :class:`SearchTooExpensive`, and the errors of the store and the archive.
        """
        with archive_lock(self.store, self.job, wait_seconds=self.busy_seconds) as token:
            job = self.store.require_job(self.job)
            last = min(self.request.last, job.last if job.end else job.last - 1)
            if self.request.exact and last < min(self.request.last, job.last):
                raise LineStillOpen(
                    f"line {job.last} is the newest of a running job: it can be redacted once another line follows"
                )
            job_objects = JobObjects(self.store, self.objects, self.job, token)
            names = (each.name for each in self.objects.list(folder(self.job)))
            self._redactions = max(job.redactions, redactions_in(names))
            self._last_checked, self._archived = self.request.first - 1, job.archived
            deadline = time.monotonic() + 5.0
            try:
                self._redact_archived(job_objects, last, deadline)
                if self._last_checked >= min(job.archived, last):
                    self._redact_stored(job_objects, job, last, deadline)
            except (StoreError, AppendRefused, SearchTooExpensive) as error:
                if not self._count:
                    raise
                log.warning("a redaction was interrupted: %s", error, extra={"fields": {"job": str(self.job)}})
            return RedactionResult(
                self._count, self._last_checked, self._last_checked >= last, self._is_pending(job_objects)
            )

    def _is_pending(self, job_objects: JobObjects) -> bool:
        """Deletes the objects with the old text. Returns True if some are left, or if the store can roll back.

        Raises :class:`StoreUnavailable` if the store has rolled back meanwhile, even if the lock survived.
        """
        try:
            garbage = None
            # If the store has lost data, an import can need objects that have no record.
            if not StoreHistory(self.store, self.objects).is_incomplete():
                # The object store's clock can be ahead of ours.
                garbage = job_objects.collect_garbage(time.time(), min_age=-CLOCK_SKEW_SECONDS, check_permanence=True)
            job = self.store.get_job(self.job)
        except (StoreError, AppendRefused) as error:
            log.warning("redacted text is not deleted yet: %s", error, extra={"fields": {"job": str(self.job)}})
            return True
        if self._count and job and job.redactions < self._redactions:
            raise StoreUnavailable("the store has lost the redaction: retry")
        if job and job.archived != self._archived:
            # An import has replaced lines meanwhile, perhaps with old text.
            return True
        return garbage is None or garbage.remaining + garbage.kept > 0 or garbage.permanent is False

    def _redact_archived(self, job_objects: JobObjects, last: int, deadline: float) -> None:
        while self._last_checked < last and (chunk := self.store.chunks.chunk(self.job, self._last_checked + 1)):
            data = self.objects.get(chunk.name)
            rewritten = rewrite(
                self.job, chunk, data, range(self.request.first, last + 1), self.request.change, self.pause
            )
            if rewritten is not None:
                new_chunk, data, numbers = rewritten
                audit = self.request.audit_entry(numbers)
                with job_objects.put_verified(new_chunk, data, self._redactions + 1) as new_chunk:
                    if not self.store.chunks.redact(self.job, job_objects.token, new_chunk, audit, old=chunk):
                        self._unforgotten = numbers[-1]
                self._redactions += 1
                self._count += len(numbers)
            self._last_checked = chunk.last
            if time.monotonic() > deadline:
                break

    def _redact_stored(self, job_objects: JobObjects, job: Job, last: int, deadline: float) -> None:
        first, token = job.archived + 1 if job.archived else max(job.first_stored, 1), job_objects.token
        affected = self._last_affected(max(first, self.request.first), last, job.first_stored)
        end = min(max(affected, self._unforgotten) + 1_000, job.last if job.end else job.last - 1) + 1
        # Trimmed lines leave the store's memory once a whole node of the stream is trimmed (by default, 100 lines).
        while first <= affected or (self._unforgotten and first < min(self._unforgotten + 100, end)):
            numbers: list[int] = []
            builder = ChunkBuilder(self.job, first)
            change = partial(self._changed_entries, numbers)
            last_entry = fill(builder, self._page, job.first_stored, end, change=change)
            if builder.last < first:
                break
            with job_objects.put_verified(*builder.finish(), self._redactions + 1 if numbers else 0) as chunk:
                if numbers:
                    audit = self.request.audit_entry(numbers)
                    if not self.store.chunks.redact(self.job, token, chunk, audit, last_entry=last_entry):
                        self._unforgotten = numbers[-1]
                else:
                    self.store.chunks.commit_chunk(self.job, token, chunk, trim=chunk.last, last_entry=last_entry)
            self._redactions += bool(numbers)
            self._count += len(numbers)
            self._last_checked, self._archived = max(self._last_checked, chunk.last), chunk.last
            first = chunk.last + 1
            if time.monotonic() > deadline:
                break
        if first > affected:
            self._last_checked = last

    def _last_affected(self, first: int, last: int, first_stored: int) -> int:
        found, cursor = 0, first - 1
        while cursor < last and (entries := self._page(cursor, last)):
            numbers = [line.sequence_num for line in self._changed_lines(entries, cursor, first_stored)]
            found = max([found, *(number for number in numbers if number <= last)])
            cursor = entry_number(entries[-1][0])
        return found

    def _page(self, after: int, max_count: int) -> Sequence[RawEntry]:
        """Up to ``max_count`` entries after line ``after``. At most 1,000 or 1 MiB, because other greenlets wait."""
        entries = self.store.page(self.job, after=after, count=min(self._batch.lines, 1_000, max_count))
        self._batch.learn(len(entries), sum(len(value) for _, fields in entries for value in fields))
        self.pause()
        return entries

    def _changed_lines(self, entries: Sequence[RawEntry], after: int, first_stored: int) -> Iterator[Line]:
        for entry in read_entries(entries, after, first_stored):
            if isinstance(entry, Line) and (changed := self.request.change(entry)):
                yield changed

    def _changed_entries(self, numbers: list[int], entries: Sequence[RawEntry], after: int) -> list[RawEntry]:
        changed = {line.sequence_num for line in self._changed_lines(entries, after, 1)}
        redacted: list[RawEntry] = []
        for entry_id, fields in entries:
            number = entry_number(entry_id)
            if number in changed:
                # If several entries have the same number, the first one is the line.
                changed.remove(number)
                numbers.append(number)
                new = {b"message": REDACTED_MESSAGE.encode()}
                pairs = zip(fields[::2], fields[1::2], strict=False)
                fields = [each for name, value in pairs for each in (name, new.get(name, value))]
            redacted.append((entry_id, fields))
        return redacted
