"""Reads the shapes of a workflow's runs, to find the runs in which a line was seen before."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice

from chronoverse.archive.reader import ArchiveReader
from chronoverse.errors import ArchiveDamaged, JobNotFound, NotALog
from chronoverse.history.pages import PageBudget
from chronoverse.history.scans.comparison import DerivedReader
from chronoverse.joblog.model import Job, ListingPosition
from chronoverse.joblog.past_runs import PastRuns, Run
from chronoverse.joblog.shapes import Shapes
from chronoverse.store.listing import ListedJob


@dataclass(frozen=True, slots=True)
class PastRunReader:
    """Looks up shapes in many runs. ``pool`` reads archived runs. Keeps no sets of shapes in memory."""

    _archive: ArchiveReader
    _runs: DerivedReader
    _pool: ThreadPoolExecutor

    def read(
        self,
        listed: Iterable[ListedJob],
        count: int,
        budget: PageBudget,
        hot_budget: PageBudget,
        is_wanted: Callable[[Job], bool],
        looked_for: Collection[int],
    ) -> tuple[PastRuns, ListingPosition | None]:
        """The first ``count`` ended runs of ``listed`` that ``is_wanted`` accepts, or fewer if time runs out.

        Each run comes with the number of its first line of each ``looked_for`` shape. The second value is the position
        in the listing at which time ran out, or None. Logs without stored shapes are read only for ``hot_budget``.
        Raises the errors of the store and the archive.
        """

        def look_up(some: Sequence[Job]) -> list[Mapping[int, int] | None]:
            return [_first_lines(self._archive.shape_set(job), looked_for) for job in some]

        runs: list[Run] = []
        jobs = iter(listed)
        while batch := [*islice(jobs, 50)]:
            ended = [each.job for each in batch if each.job and each.job.end and is_wanted(each.job)]
            ended = ended[: count - len(runs)]
            # A task reads several jobs, because starting a task takes ten times as long as a cached lookup.
            parts = [ended[at : at + 7] for at in range(0, len(ended), 7)]
            stored = chain.from_iterable(self._pool.map(look_up, parts))
            for job, found in zip(ended, stored, strict=True):
                try:
                    if job.archive_sha256 is None:
                        found = _first_lines(self._runs.shapes(job, hot_budget), looked_for)
                except (ArchiveDamaged, NotALog):
                    found = None
                except JobNotFound:
                    continue
                runs.append(Run(job, found))
            if len(runs) >= count or len(batch) < 50:
                break
            if budget.is_out_of_time():
                return PastRuns(runs, is_whole=False), (batch[-1].created_ms, batch[-1].ref.job_id)
        return PastRuns(runs), None


def _first_lines(shapes: Shapes | None, looked_for: Collection[int]) -> Mapping[int, int] | None:
    if shapes is None or shapes.is_full:
        return None
    return {shape: number for shape in looked_for if (number := shapes.first_line(shape)) is not None}
