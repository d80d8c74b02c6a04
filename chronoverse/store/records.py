"""Appends OpenTelemetry log records. They have no runner, no lease and no line numbers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from chronoverse.joblog.model import JobRef, Status, iso_timestamp
from chronoverse.store.catalog import JobCatalog
from chronoverse.store.commands import Commands
from chronoverse.store.keys import RECORD_KEYS
from chronoverse.store.replies import accepted
from chronoverse.store.topology import PoolKind
from chronoverse.store.workflows import WorkflowList

#: Seconds for which a log waits for missing records before a gap replaces them.
MISSING_SECONDS: Final = 5


class RecordRun(NamedTuple):
    """Consecutive lines with the same time and stream, from records of one file. ``source`` 0: not from a file.

    ``number`` is the first record's number. If ``step`` is 1, each message is a record; if 0, all messages are the
    lines of one record. ``messages`` are UTF-8; ``time`` is Unix µs.
    """

    timestamp: str
    stream: str
    partial: bool
    source: int
    number: int
    step: int
    messages: list[bytes]
    time: int = 0


class RecordBatch(NamedTuple):
    """A batch of lines, appended by one script. ``digest`` identifies it.

    ``sources``: for each file of numbered records, its id, and the digest of record 1 ("" if the batch lacks it).
    ``end``: how the job ends after the batch.
    """

    runs: Sequence[RecordRun]
    digest: str
    sources: Sequence[tuple[str, str]] = ()
    end: tuple[Status, int | None] | None = None


class Appended(NamedTuple):
    """The result of a batch. ``left_out``: lines dropped by a quota. ``waits``: earlier records are missing."""

    left_out: int
    waits: bool


@dataclass(frozen=True, slots=True)
class RecordAppender:
    """Appends batches of records. ``clock`` is Unix time in seconds. Raises what :class:`Store` raises."""

    _commands: Commands
    _catalog: JobCatalog
    _workflows: WorkflowList
    _retention_ms: int
    _clock: Callable[[], float]

    def append(
        self, job: JobRef, batch: RecordBatch, idle_seconds: int = 0, on_new: Callable[[], None] = lambda: None
    ) -> Appended:
        """Appends the records that the log lacks. Calls ``on_new()`` before it creates a job. Idempotent.

        The job becomes LOST after ``idle_seconds`` without records; 0: never. Raises what ``on_new`` raises. Unless the
        log already has the whole batch, raises :class:`Held`, :class:`Closed` and :class:`Deleted`. Also raises
        :class:`CorruptLog`, :class:`TooManyFiles`.
        """
        reply = self._run(job, batch, idle_seconds, ("", "", "", ""))
        if reply[0] == b"NEW":
            on_new()
            own = self._catalog.settings_of(job.workflow_id, PoolKind.APPENDS).retention_seconds
            bounds = self._catalog.common_bounds(PoolKind.HEALTH) or ("", "")
            reply = self._run(job, batch, idle_seconds, ("1", 1000 * own if own else "", *bounds))
        waits = reply[0] == b"WAIT"
        left_out, begun, created_ms = reply[1:] if waits else accepted(reply)
        if begun:
            self._workflows.add(job.workflow_id, float(created_ms))
        return Appended(left_out, waits)

    def _run(self, job: JobRef, batch: RecordBatch, idle_seconds: int, begin: Sequence[Any]) -> list[Any]:
        now = self._clock()
        status, code = batch.end or ("", None)
        # A batch's digest is kept for ten minutes. Exporters stop retrying earlier.
        args: list[Any] = [iso_timestamp(now), round(1000 * now), job.job_id, batch.digest, 600_000]
        args += (1000 * MISSING_SECONDS, 1000 * idle_seconds if idle_seconds else "", status)
        args += ("" if code is None else code, self._retention_ms, *begin, len(batch.sources))
        for source in batch.sources:
            args += source
        for timestamp, stream, partial, source_number, number, step, messages, time in batch.runs:
            args += (timestamp, stream, "1" if partial else "", len(messages), source_number, number, step, time)
            args += messages
        keys = [self._commands.keys.of(job, kind) for kind in RECORD_KEYS]
        reply: list[Any] = self._commands.script("append_records", job.workflow_id, keys, *args, pool=PoolKind.APPENDS)
        return reply
