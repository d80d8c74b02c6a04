"""Live reading on one server. For few jobs one XREAD waits for entries; for many the server says which have changed."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from chronoverse.joblog.entries import RawEntry
from chronoverse.joblog.values import JobRef
from chronoverse.store.blocking_reader import BlockingReader
from chronoverse.store.topology import Topology
from chronoverse.store.tracking_reader import TrackingReader, TrackingRefused

#: From the second number of jobs on the :class:`TrackingReader` reads. Below the first the :class:`BlockingReader`
#: reads again. With so few jobs, one XREAD of all costs less than tracking them.
TRACKING_THRESHOLDS: Final = (128, 256)

log = logging.getLogger(__name__)


class LiveReader:
    """As :class:`chronoverse.store.blocking_reader.BlockingReader`; chooses between that and the tracking reader.

    ``tracks_changes`` says which of the two reads now. ``key`` gives the key of a job's log.
    """

    def __init__(
        self,
        topology: Topology,
        key: Callable[[JobRef], str],
        block_seconds: float,
        tracking_thresholds: tuple[int, int] = TRACKING_THRESHOLDS,
    ) -> None:
        self._blocking = BlockingReader(topology, key, block_seconds)
        self._tracking = TrackingReader(topology, key, block_seconds)
        self._thresholds = tracking_thresholds
        self._refused = False
        self.tracks_changes = False

    def read(self, cursors: Mapping[JobRef, int], count: int) -> list[tuple[JobRef, Sequence[RawEntry]]]:
        """Waits until any job has entries after its cursor; up to ``count`` of each. Empty when none came in time.

        Raises :class:`NotALog` when one of the jobs' keys is no stream. Redis does not say which one.
        """
        self._choose(len(cursors))
        if not self.tracks_changes:
            return self._blocking.read(cursors, count)
        try:
            return self._tracking.read(cursors, count)
        except TrackingRefused as error:
            log.warning("the store does not tell of changes, so all jobs are read each time: %s", error)
            self._refused = True
            return self.read(cursors, count)

    def _choose(self, jobs: int) -> None:
        least, most = self._thresholds
        tracks = not self._refused and jobs >= (least if self.tracks_changes else most)
        if tracks != self.tracks_changes:
            self._reader.close()
            self.tracks_changes = tracks

    @property
    def _reader(self) -> BlockingReader | TrackingReader:
        return self._tracking if self.tracks_changes else self._blocking

    def interrupt(self) -> None:
        """Makes a waiting :meth:`read` return. Does nothing when none is waiting."""
        self._reader.interrupt()

    def silent_seconds(self, job: JobRef) -> float:
        """Always 0: each read asks for all jobs, so its own age says how long the server has been silent."""
        return 0

    def close(self) -> None:
        """Closes the connections. The next read opens another."""
        self._blocking.close()
        self._tracking.close()
