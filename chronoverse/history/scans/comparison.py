"""Compares a log with other runs: finds the lines of which none of these runs has the shape.

The shapes of an archived run are read from its set. Those of any other run are collected from its log, and cached in
this process. When a request has no time to collect all of them, the next request goes on where it has stopped.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from itertools import islice
from typing import Final, NamedTuple

from chronoverse.archive.codec import decode_lines
from chronoverse.archive.reader import ArchiveReader
from chronoverse.errors import ArchiveDamaged, JobNotFound, NotALog, NothingToCompare
from chronoverse.history.pages import PageBudget
from chronoverse.history.tiered_log import BatchReader
from chronoverse.joblog.labels import has_labels
from chronoverse.joblog.model import Job, JobRef, Line, Status
from chronoverse.joblog.shapes import MAX_SHAPES, ShapeHasher, Shapes, ShapeSet

#: The runs that a log is compared with, if none is named.
COMPARED_JOBS: Final = 5
#: Jobs that are looked at to find the good runs with certain labels, which takes 0.1 s. A branch may have few of them.
LABELLED_JOBS: Final = 1_000


class NewLines(NamedTuple):
    """Says which lines are new: those with a shape that is not ``known`` from other runs."""

    known: Set[int]
    hasher: ShapeHasher

    def is_new(self, line: Line) -> bool:
        (found,) = self.hasher.hashes([line.message])
        return found not in self.known

    def matching_lines(self, text: bytes) -> list[Line]:
        """The new lines of a frame's JSON Lines: a :data:`~chronoverse.archive.reader.FrameFilter`."""
        lines = decode_lines(text)
        found = self.hasher.hashes([line["message"] for line in lines])
        new = set(found) - self.known
        if not new:
            return []
        return [Line.from_json(line) for line, shape in zip(lines, found, strict=True) if shape in new]


@dataclass(slots=True)
class _CachedShapes:
    """The shapes up to the line ``position``. The version changes when the job begins anew, or is redacted."""

    log_version: tuple[object, ...]
    shapes: ShapeSet
    position: int


class RunShapes:
    """The shapes of the lines of whole jobs, for one process.

    The archive has those of most jobs. Those of others are collected from their logs, ``max_shapes`` of some 170 bytes
    in all.
    """

    def __init__(
        self, archive: ArchiveReader, read: BatchReader, hasher: ShapeHasher, max_shapes: int = 500_000
    ) -> None:
        self.hasher: Final = hasher
        self._archive = archive
        self._read = read
        self._max_shapes = max_shapes
        #: Those that were used last are at the end.
        self._cached: OrderedDict[JobRef, _CachedShapes] = OrderedDict()

    def get(self, job: Job, budget: PageBudget) -> Shapes | None:
        """The shapes of the job's lines so far; None without time for all. Raises as the store and the archive do."""
        if (stored := self._archive.shape_set(job)) is not None:
            return stored
        log_version = (job.created_at, job.started_at, job.redactions)
        cached = self._cached.pop(job.ref, None)
        if cached is None or cached.log_version != log_version:
            cached = _CachedShapes(log_version, ShapeSet(), 0)
        try:
            is_complete = self._collect(job, cached, budget)
        finally:
            self._cached[job.ref] = cached
            size = sum(len(each.shapes.hashes) for each in self._cached.values())
            while size > self._max_shapes:
                _, oldest = self._cached.popitem(last=False)
                size -= len(oldest.shapes.hashes)
        return cached.shapes if is_complete else None

    def _collect(self, job: Job, cached: _CachedShapes, budget: PageBudget) -> bool:
        """Adds the lines that are not in the set yet. Returns whether there was time for all of them."""
        if cached.position >= job.last or cached.shapes.is_full:
            return True
        for batch in self._read(job, cached.position):
            hashes = self.hasher.hashes([line.message for line in batch.lines])
            cached.shapes.add(hashes, [line.sequence_num for line in batch.lines])
            cached.position = batch.position
            if batch.is_last or batch.position >= job.last or cached.shapes.is_full:
                break
            if budget.is_out_of_time():
                return False
        cached.position = max(cached.position, job.last)
        return True


def runs_before(job: Job, listed: Iterable[Job | None], labels: Sequence[Sequence[str]] = ()) -> list[Job]:
    """The good runs with all ``labels`` that ``job`` is compared with, the newest first.

    They are looked for among 200 jobs that were ``listed`` before it, or with labels :data:`LABELLED_JOBS`.
    """
    looked_at = islice(listed, LABELLED_JOBS if labels else 200)
    good = (each for each in looked_at if each and each.status is Status.COMPLETED and has_labels(each.labels, labels))
    return list(islice((each for each in good if each.ref != job.ref), COMPARED_JOBS))


def read_runs(
    job: Job,
    others: Sequence[Job],
    labels: Sequence[Sequence[str]] = (),
    *,
    is_named: bool,
    shapes: RunShapes,
    budget: PageBudget,
) -> tuple[Set[int] | None, list[str]]:
    """All shapes of ``others``, or None when there was no time to read all of them; and the ids of those jobs.

    A job with too many shapes is left out, and one that cannot be read, unless a user has named it (``is_named``). The
    ``labels`` are those by which the jobs were chosen, for messages.
    Raises :class:`NothingToCompare` when none is left, and as :meth:`RunShapes.get` does.
    """
    known: set[int] = set()
    names: list[str] = []
    has_time = True
    for other in others:
        try:
            found = shapes.get(other, budget) if has_time else None
        except (ArchiveDamaged, JobNotFound, NotALog):
            if is_named:
                raise
            continue
        has_time = found is not None
        if found is None or not found.is_full:
            names.append(other.ref.job_id)
            known.update(() if found is None else found.hashes)
    if not names:
        chosen = f" with {', '.join(map('='.join, labels))}" if labels else ""
        raise NothingToCompare(
            f"the runs before {job.ref.job_id} have more than {MAX_SHAPES:,} different lines, or cannot be read"
            if others
            else f"no job of this workflow{chosen} has COMPLETED before {job.ref.job_id}: name one to compare with"
        )
    return (known if has_time else None), names
