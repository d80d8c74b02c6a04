"""Makes the summary of a job's log: scans all of it for lines that look like errors, and reads its end."""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
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
from chronoverse.joblog.shapes import ShapeHasher
from chronoverse.joblog.summary import MAX_LAST_LINES, Findings, FoundLines, weight_of


class SummaryProgress:
    """The progress of summaries, shared by all forks of a process: an unnamed file of 512 slots.

    A job's scan starts over if another job has taken its slot.
    """

    def __init__(self) -> None:
        with tempfile.TemporaryFile() as file:
            self._file: Final = os.dup(file.fileno())

    def get(self, key: bytes) -> Any:
        """The value last stored under ``key`` (16 bytes), or None."""
        data = os.pread(self._file, 2**18, self._offset(key))
        json = data[20 : 20 + int.from_bytes(data[16:20], "big")]
        # The digest also detects simultaneous writes by two processes.
        return orjson.loads(json) if data[:16] == _digest(key + json) else None

    def put(self, key: bytes, value: Any) -> None:
        """Stores ``value`` for the next request. If the disk is full, that request starts over."""
        json = orjson.dumps(value)
        with contextlib.suppress(OSError):
            os.pwrite(self._file, _digest(key + json) + len(json).to_bytes(4, "big") + json, self._offset(key))

    def _offset(self, key: bytes) -> int:
        return int.from_bytes(key[:4], "big") % 512 * 2**18


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class SummaryReader:
    """Finds the contents of summaries. ``read`` reads the logs. All processes of a scan server share ``progress``."""

    read: BatchReader
    hasher: ShapeHasher
    progress: SummaryProgress
    lines: LineReader = field(default_factory=LineReader)

    def find(
        self,
        job: Job,
        new_lines: NewLines | None,
        compared_with: Sequence[str] | None,
        budget: PageBudget,
        renew: Callable[[], PageBudget],
    ) -> Findings:
        """The findings in the log so far, except pauses. The next call continues. Raises what ``read`` raises.

        ``budget`` is for new lines; ``renew`` makes the budget for errors. ``new_lines`` is None if there was no run to
        compare with, or no time to compare.
        """
        new = FoundLines(self._shape_of, self._weigh, job.last + 1, job.last)
        errors = FoundLines(self._shape_of, lambda _: -1, job.last + 1, job.last)
        clues, reader = Clues(), self.lines
        # The version changes if the job restarts, is redacted, or drops lines. The scan then starts over.
        version = job.created_at, job.started_at, job.redactions, job.first
        key = _digest(orjson.dumps([*job.ref, *version, compared_with]))
        if (kept := self.progress.get(key)) is not None:
            new.restore(kept[0])
            errors.restore(kept[1])
            clues.restore(kept[2])
        if new_lines is not None:
            for line, is_match in _lines(job, self.read, budget, Search(new_lines.matching_lines), new):
                if is_match or new_lines.is_new(line):
                    new.add(line)
        search = Search(partial(matching_lines, reader.signal))
        for line, is_match in _lines(job, self.read, renew(), search, errors):
            if is_match or reader.is_signal(line.message):
                features, is_error = reader.read(line.message)
                clues.add(line.sequence_num, features)
                if is_error:
                    errors.add(line)
        self.progress.put(key, [new.to_json(), errors.to_json(), clues.to_json()])
        newest = chain.from_iterable(batch.lines for batch in self.read(job, job.last + 1, descending=True))
        last = list(islice(newest, MAX_LAST_LINES))[::-1]
        guess = clues.best(job.first, last[-1].sequence_num, reader.read(last[-1].message).features) if last else None
        return Findings(errors, last, compared_with, None if compared_with is None else new, guess)

    def line(self, job: Job, number: int) -> Line:
        lines = next(self.read(job, number - 1, limit=1)).lines
        return lines[0] if lines else Line(number, "", "", "stdout")

    def _shape_of(self, message: str) -> int:
        return self.hasher.hashes([message])[0]

    def _weigh(self, message: str) -> int:
        return weight_of(message, self.lines.read(message).is_error)


def _lines(
    job: Job, read: BatchReader, budget: PageBudget, search: Search, found: FoundLines
) -> Iterator[tuple[Line, bool]]:
    """The lines not yet scanned, and whether each matches ``search``, until time runs out.

    Begins with the lines written since the last request, then continues backwards from where that request stopped.
    """
    if found.high < job.last:
        for batch in read(job, found.high, search=search):
            yield from ((line, batch.is_match) for line in batch.lines)
            found.high = batch.position
            if batch.position >= job.last:
                break
            if budget.is_out_of_time():
                return
    if found.low > job.first:
        for batch in read(job, found.low, descending=True, search=search):
            yield from ((line, batch.is_match) for line in batch.lines)
            found.low = batch.position
            if budget.is_out_of_time():
                return
    found.low = min(found.low, job.first)
