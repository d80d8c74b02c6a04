"""Makes the summary of a job's log: goes through all of it for lines that look like errors, and reads its end."""

import contextlib
import os
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from hashlib import blake2b
from itertools import chain, islice
from typing import Any, Final

import orjson

from chronoverse.archive.prefilter import matching_lines
from chronoverse.history.pages import PageBudget
from chronoverse.history.scans.comparison import NewLines
from chronoverse.history.tiered_log import BatchReader, Search
from chronoverse.joblog.causes import Clues, LineReader
from chronoverse.joblog.model import Job, Line
from chronoverse.joblog.past_runs import PastRuns
from chronoverse.joblog.shapes import ShapeHasher
from chronoverse.joblog.summary import MAX_LAST_LINES, FoundLines, compose, weight_of


class SummaryProgress:
    """How far the summaries of some jobs have come, for all processes that are forked after it is made.

    It is a file without a name and without text of a log, with 512 slots of 256 KiB for groups and hunks. It has holes,
    so most jobs take some 2 KB. When two jobs have the same slot, the earlier one starts over.
    """

    def __init__(self) -> None:
        with tempfile.TemporaryFile() as file:
            self._file: Final = os.dup(file.fileno())

    def get(self, key: bytes) -> Any:
        """What was put last under ``key``, 16 bytes. None when it is gone."""
        data = os.pread(self._file, 2**18, self._offset(key))
        json = data[20 : 20 + int.from_bytes(data[16:20], "big")]
        # Two processes may write at the same time.
        return orjson.loads(json) if data[:16] == _digest(key + json) else None

    def put(self, key: bytes, value: Any) -> None:
        """Keeps ``value`` for the next request. Without room on the disk that request begins anew."""
        json = orjson.dumps(value)
        with contextlib.suppress(OSError):
            os.pwrite(self._file, _digest(key + json) + len(json).to_bytes(4, "big") + json, self._offset(key))

    def _offset(self, key: bytes) -> int:
        return int.from_bytes(key[:4], "big") % 512 * 2**18


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=16).digest()


def read_summary(
    job: Job,
    read: BatchReader,
    budgets: tuple[Callable[[], PageBudget], Callable[[], PageBudget]],
    hasher: ShapeHasher,
    reader: LineReader,
    new_lines: NewLines | None,
    compared_with: Sequence[str] | None,
    progress: SummaryProgress,
    max_bytes: int,
    read_past: Callable[[Collection[int]], PastRuns | None] = lambda _: None,
    read_slower: Callable[[], Sequence[bytes] | None] = lambda: None,
    baseline: str | None = None,
) -> bytes:
    """The summary's JSON in at most ``max_bytes``, as :func:`compose` makes it. Raises what ``read`` raises.

    ``budgets`` bound the time for the new lines and for the errors; the next request for the same summary continues
    there. ``compared_with`` is None when there is nothing to compare with, ``new_lines`` also when there was no time
    for it. ``baseline`` is the label of the runs compared with.
    """

    def shape_of(message: str) -> int:
        return hasher.hashes([message])[0]

    def read_line(number: int) -> Line:
        lines = next(read(job, number - 1, limit=1)).lines
        return lines[0] if lines else Line(number, "", "", "stdout")

    def weigh(message: str) -> int:
        return weight_of(message, reader.read(message).is_error)

    new = FoundLines(shape_of, weigh, job.last + 1, job.last)
    # Only new lines make hunks.
    errors = FoundLines(shape_of, lambda _: -1, job.last + 1, job.last)
    clues = Clues()
    # A job that begins anew under its id, or loses lines or what they said, is another one here.
    version = job.created_at, job.started_at, job.redactions, job.first
    key = _digest(orjson.dumps([*job.ref, *version, compared_with]))
    if (kept := progress.get(key)) is not None:
        new.restore(kept[0])
        errors.restore(kept[1])
        clues.restore(kept[2])
    if new_lines is not None:
        for line, is_match in _lines(job, read, budgets[0](), Search(new_lines.matching_lines), new):
            if is_match or new_lines.is_new(line):
                new.add(line)
    for line, is_match in _lines(job, read, budgets[1](), Search(partial(matching_lines, reader.signal)), errors):
        if is_match or reader.is_signal(line.message):
            features, is_error = reader.read(line.message)
            clues.add(line.sequence_num, features)
            if is_error:
                errors.add(line)
    progress.put(key, [new.to_json(), errors.to_json(), clues.to_json()])
    newest = chain.from_iterable(batch.lines for batch in read(job, job.last + 1, descending=True))
    last = list(islice(newest, MAX_LAST_LINES))[::-1]
    return compose(
        job,
        errors,
        last,
        max_bytes=max_bytes,
        read_line=read_line,
        compared_with=compared_with,
        new=new if compared_with is not None else None,
        guess=clues.best(job.first, last[-1].sequence_num, reader.read(last[-1].message).features) if last else None,
        read_past=read_past,
        slower=read_slower(),
        baseline=baseline,
    )


def _lines(
    job: Job, read: BatchReader, budget: PageBudget, search: Search, found: FoundLines
) -> Iterator[tuple[Line, bool]]:
    """The lines that were not looked at for ``found`` yet, and whether each one matches ``search``.

    First come those that a running job has written since, then the others from the end backwards, while there is time.
    """
    if found.high < job.last:
        for batch in read(job, found.high, search=search):
            yield from ((line, batch.is_match) for line in batch.lines)
            found.high = batch.position
            if batch.position >= job.last:
                # The job may write faster than this reads.
                break
            if budget.is_out_of_time():
                return
    if found.low > job.first:
        for batch in read(job, found.low, descending=True, search=search):
            yield from ((line, batch.is_match) for line in batch.lines)
            found.low = batch.position
            if budget.is_out_of_time() and not batch.is_last:
                return
    found.low = min(found.low, job.first)
