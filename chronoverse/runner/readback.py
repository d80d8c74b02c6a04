"""Compares lines with those of a log, before a copy of them is deleted.

They are compared by their digests. So the service can compare for a runner that reaches only the service, without
getting the lines again.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Final

from chronoverse.archive.reader import ArchiveReader
from chronoverse.errors import JobNotFound
from chronoverse.history.tiered_log import read_batches
from chronoverse.joblog.model import MAX_LINE_BYTES, JobRef, Line
from chronoverse.runner.http_log_writer import Comparison, HttpLogWriter, line_digest
from chronoverse.runner.publisher import LogWriter

#: A comparison stops after messages of that many characters. Comparing them takes some 10 ms.
ANSWER_CHARACTERS: Final = 2 * 2**20

#: Compares consecutive lines (at least one) with the job's log. It may stop before the last of them.
#: Raises: :class:`JobNotFound`, :class:`StoreError`.
Compare = Callable[[JobRef, Sequence[Line]], Comparison]


def comparer_for(writer: LogWriter, archive: ArchiveReader | None = None) -> Compare:
    """How to compare with logs that ``writer`` writes. A service compares itself. A store's lines are read, and those
    that have left it from ``archive``."""
    if isinstance(writer, HttpLogWriter):
        return writer.compare

    def compare(ref: JobRef, lines: Sequence[Line]) -> Comparison:
        job, first = writer.get_job(ref), lines[0].sequence_num
        if job is None:
            raise JobNotFound("no such job")
        batches = read_batches(writer, archive or ArchiveReader(), job, first - 1, max_line_bytes=MAX_LINE_BYTES)
        log = chain.from_iterable(batch.lines for batch in batches)
        return compare_lines(log, first, [line_digest(line) for line in lines])

    return compare


def compare_lines(log: Iterable[Line], first: int, digests: Sequence[str]) -> Comparison:
    """Compares the lines of ``log``, which begins with number ``first``, with lines that have the ``digests``.

    It stops after as many lines as there are digests, and after messages of :data:`ANSWER_CHARACTERS`.
    """
    next_number, characters = first, 0
    for digest, line in zip(digests, log, strict=False):
        if line.sequence_num != next_number or characters >= ANSWER_CHARACTERS:
            break
        if line_digest(line) != digest:
            return Comparison(next_number, differs=True)
        next_number += 1
        characters += len(line.message)
    return Comparison(next_number, differs=False)
