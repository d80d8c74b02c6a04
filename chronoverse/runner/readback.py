"""Compares a runner's lines with the log before the runner deletes its copy."""

from collections.abc import Callable, Sequence
from itertools import chain

from chronoverse.archive.reader import ArchiveReader
from chronoverse.history.tiered_log import LogReader
from chronoverse.joblog.comparing import Comparison, compare_lines, line_digest
from chronoverse.joblog.model import MAX_LINE_BYTES, JobRef, Line
from chronoverse.runner.http_log_writer import HttpLogWriter
from chronoverse.runner.publisher import LogWriter

#: Compares consecutive lines of a job with its log. Raises :class:`JobNotFound` and :class:`StoreError`.
Compare = Callable[[JobRef, Sequence[Line]], Comparison]


def comparer_for(writer: LogWriter, archive: ArchiveReader | None = None) -> Compare:
    """The comparison for logs of ``writer``.

    A service compares lines itself. A store's lines are read from it or, if trimmed there, from ``archive``.
    """
    if isinstance(writer, HttpLogWriter):
        return writer.compare

    def compare(ref: JobRef, lines: Sequence[Line]) -> Comparison:
        job, first = writer.require_job(ref), lines[0].sequence_num
        batches = LogReader(writer, archive or ArchiveReader(), MAX_LINE_BYTES)(job, first - 1)
        log = chain.from_iterable(batch.lines for batch in batches)
        return compare_lines(log, first, [line_digest(line) for line in lines])

    return compare
