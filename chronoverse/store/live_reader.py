"""Live reading on one server: of a few jobs it waits for the lines themselves, of very many for word of them."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from chronoverse.joblog.entries import RawEntry
from chronoverse.joblog.values import JobRef
from chronoverse.store.blocking_reader import BlockingReader
from chronoverse.store.topology import Topology
from chronoverse.store.tracking_reader import TrackingReader, Untracked

#: Jobs below which one command that waits for all of them is used again, and beyond which the server is to tell which
#: of them have changed. Up to there that command costs less than being told.
TRACKED_JOBS: Final = (128, 256)

log = logging.getLogger(__name__)


class LiveReader:
    """As :class:`chronoverse.store.blocking_reader.BlockingReader`; ``tracks`` says whether it asks for changed jobs
    only."""

    def __init__(
        self,
        place: Topology,
        key: Callable[[JobRef], str],
        block_seconds: float,
        tracked_jobs: tuple[int, int] = TRACKED_JOBS,
    ) -> None:
        self._few = BlockingReader(place, key, block_seconds)
        self._many = TrackingReader(place, key, block_seconds)
        self._tracked_jobs = tracked_jobs
        self._refused = False
        self.tracks = False

    def read(self, cursors: Mapping[JobRef, int], count: int) -> list[tuple[JobRef, Sequence[RawEntry]]]:
        """Waits until any job has entries after its cursor; up to ``count`` of each. Empty when none came in time.

        Raises :class:`NotALog` when one of the jobs' keys is no stream: Redis does not say whose.
        """
        self._choose(len(cursors))
        if not self.tracks:
            return self._few.read(cursors, count)
        try:
            return self._many.read(cursors, count)
        except Untracked as error:
            log.warning("the store does not tell of changes, so all jobs are read each time: %s", error)
            self._refused = True
            return self.read(cursors, count)

    def _choose(self, jobs: int) -> None:
        least, most = self._tracked_jobs
        tracks = not self._refused and jobs >= (least if self.tracks else most)
        if tracks != self.tracks:
            (self._many if self.tracks else self._few).close()
            self.tracks = tracks

    def interrupt(self) -> None:
        """Makes a waiting :meth:`read` return. Does nothing when none is waiting."""
        (self._many if self.tracks else self._few).interrupt()

    def silent_seconds(self, job: JobRef) -> float:
        """Nothing beyond the last read's own age: a read is about all jobs."""
        return 0

    def close(self) -> None:
        """Closes the connection; the next read opens another."""
        self._few.close()
        self._many.close()
