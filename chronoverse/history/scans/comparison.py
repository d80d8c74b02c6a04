"""Compares a log with other runs: finds lines whose shape none of the other runs has.

Shapes that are not archived are collected from logs and cached. A request continues where the last one stopped.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, NamedTuple

from chronoverse.archive.codec import decode_lines
from chronoverse.archive.derived import LineCollector
from chronoverse.archive.reader import ArchiveReader
from chronoverse.errors import ArchiveDamaged, JobNotFound, NotALog, NothingToCompare
from chronoverse.history.pages import PageBudget
from chronoverse.history.tiered_log import BatchReader
from chronoverse.joblog.labels import has_labels
from chronoverse.joblog.model import Job, JobRef, Line, Status
from chronoverse.joblog.shapes import MAX_SHAPES, ShapeHasher, Shapes
from chronoverse.joblog.timelines import MAX_ANCHORS, Timeline

COMPARED_JOBS: Final = 5
#: Minimum good runs on a branch. Branches with fewer are not used.
_LEAST_RUNS: Final = 3
#: Branches to try if the job's own has too few good runs.
_DEFAULT_BRANCHES: Final = ("main", "master")
_RECENT_JOBS: Final = 200
#: Maximum jobs searched for good runs with certain labels or on a branch. Such runs can be rare. Takes 0.1 s.
LABELLED_JOBS: Final = 1_000


class NewLines(NamedTuple):
    known: Set[int]
    hasher: ShapeHasher

    def is_new(self, line: Line) -> bool:
        (found,) = self.hasher.hashes([line.message])
        return found not in self.known

    def matching_lines(self, text: bytes) -> list[Line]:
        lines = decode_lines(text)
        found = self.hasher.hashes([line["message"] for line in lines])
        new = set(found) - self.known
        if not new:
            return []
        return [Line.from_json(line) for line, shape in zip(lines, found, strict=True) if shape in new]


@dataclass(slots=True)
class _CachedLines:
    """Shapes and pauses of lines up to ``position``. A restart, a redaction or dropped lines change the version."""

    log_version: tuple[object, ...]
    lines: LineCollector
    position: int

    @property
    def size(self) -> int:
        """The number of cached shapes and pauses."""
        shapes = MAX_SHAPES if self.lines.shapes.is_full else len(self.lines.shapes.hashes)
        return shapes + min(self.position, MAX_ANCHORS)


@dataclass(slots=True, eq=False)
class DerivedReader:
    """The shapes and timelines of whole jobs: from the archive, or collected from their logs and cached.

    Caches up to ``max_size`` shapes and pauses, about 200 bytes each.
    """

    _archive: ArchiveReader
    _read: BatchReader
    hasher: ShapeHasher
    max_size: int = 500_000
    _cached: OrderedDict[JobRef, _CachedLines] = field(default_factory=OrderedDict)

    def shapes(self, job: Job, budget: PageBudget) -> Shapes | None:
        """The shapes of the job's lines so far. None if time ran out.

        Raises the errors of the store and the archive.
        """
        if (stored := self._archive.shape_set(job)) is not None:
            return stored
        found = self._collect(job, budget, lambda lines: lines.shapes.is_full)
        shapes = found.lines.shapes
        return shapes if found.position >= job.last or shapes.is_full else None

    def timeline(self, job: Job, budget: PageBudget) -> tuple[Timeline, int]:
        """The timeline of the job's lines, and the last line it covers: ``job.last`` unless time ran out.

        Raises the errors of the store and the archive.
        """
        if (stored := self._archive.timeline(job)) is not None:
            return stored, job.last
        found = self._collect(job, budget)
        return found.lines.timeline.timeline(job.finished_at), found.position

    def _collect(
        self, job: Job, budget: PageBudget, is_enough: Callable[[LineCollector], bool] = lambda lines: False
    ) -> _CachedLines:
        log_version = (job.created_at, job.started_at, job.redactions, job.first)
        cached = self._cached.pop(job.ref, None)
        if cached is None or cached.log_version != log_version:
            cached = _CachedLines(log_version, LineCollector(self.hasher), 0)
        try:
            self._add_lines(job, cached, budget, is_enough)
        finally:
            self._cached[job.ref] = cached
            size = sum(each.size for each in self._cached.values())
            while size > self.max_size:
                _, oldest = self._cached.popitem(last=False)
                size -= oldest.size
        return cached

    def _add_lines(
        self, job: Job, cached: _CachedLines, budget: PageBudget, is_enough: Callable[[LineCollector], bool]
    ) -> None:
        if cached.position >= job.last or is_enough(cached.lines):
            return
        for batch in self._read(job, cached.position):
            lines = batch.lines
            messages, numbers = [line.message for line in lines], [line.sequence_num for line in lines]
            cached.lines.add(messages, numbers, [line.timestamp for line in lines])
            cached.position = batch.position
            if batch.is_last or batch.position >= job.last:
                break
            if is_enough(cached.lines) or budget.is_out_of_time():
                return
        cached.position = max(cached.position, job.last)


class Baseline(NamedTuple):
    """The good runs that a job is compared with, newest first, and the labels that selected them."""

    runs: list[Job]
    labels: Sequence[Sequence[str]]


def baseline(job: Job, listed: Iterable[Job | None], labels: Sequence[Sequence[str]] | None = None) -> Baseline:
    """Among ``listed`` (jobs older than ``job``, newest first), the newest good runs with all ``labels``.

    If ``labels`` is None, tries the job's branch, then the :data:`_DEFAULT_BRANCHES`, and uses the first branch with
    :data:`_LEAST_RUNS` good runs. If no branch has so many, or the job has no branch, uses all good runs. Considers 200
    jobs, or up to :data:`LABELLED_JOBS` with labels or a branch.
    """
    good = (each and each.status is Status.COMPLETED and each.ref != job.ref and each for each in listed)
    branch = dict(job.labels).get("branch")
    if branch is None or labels is not None:
        found = islice(good, LABELLED_JOBS if labels else _RECENT_JOBS)
        wanted = (each for each in found if each and has_labels(each.labels, labels or ()))
        return Baseline(list(islice(wanted, COMPARED_JOBS)), labels or ())
    recent: list[Job] = []
    lines: dict[str, list[Job]] = {each: [] for each in (branch, *_DEFAULT_BRANCHES)}
    for index, each in enumerate(islice(good, LABELLED_JOBS)):
        is_enough = index >= _RECENT_JOBS and any(len(runs) >= _LEAST_RUNS for runs in lines.values())
        if is_enough or len(lines[branch]) == COMPARED_JOBS:
            break
        if each:
            recent += [each] if index < _RECENT_JOBS else []
            lines.get(dict(each.labels).get("branch", ""), []).append(each)
    for name, runs in lines.items():
        if len(runs) >= _LEAST_RUNS:
            return Baseline(runs[:COMPARED_JOBS], [("branch", name)])
    return Baseline(recent[:COMPARED_JOBS], ())


def read_runs(
    job: Job,
    others: Sequence[Job],
    labels: Sequence[Sequence[str]] = (),
    *,
    is_named: bool,
    runs: DerivedReader,
    budget: PageBudget,
) -> tuple[Set[int] | None, list[str]]:
    """All shapes of ``others`` (None if time ran out), and the ids of the jobs compared with.

    Omits jobs with too many shapes, and jobs that cannot be read; if the request names the job (``is_named``), raises
    the read error instead. Raises :class:`NothingToCompare`, which names ``labels``, if no job is left. Also raises
    store and archive errors.
    """
    known: set[int] = set()
    names: list[str] = []
    has_time = True
    for other in others:
        try:
            found = runs.shapes(other, budget) if has_time else None
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
            else f"no job of this workflow{chosen} has COMPLETED before {job.ref.job_id}: choose one to compare with"
        )
    return (known if has_time else None), names
