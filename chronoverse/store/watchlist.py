"""The cursor of each watched job, and which cursors have moved since the last read. Pure."""

from chronoverse.joblog.values import JobRef


class Watchlist(dict[JobRef, int]):
    """The cursor of each watched job. It remembers which ones were set, so that a reader need not compare them all.

    Of thousands of jobs only a few move between two reads. For use by one thread. Only :meth:`set_cursor` marks a job
    as moved; a job that is removed is not marked.
    """

    def __init__(self) -> None:
        super().__init__()
        self._moved: set[JobRef] = set()

    def set_cursor(self, job: JobRef, cursor: int) -> None:
        """Sets the cursor of a job, which may be new."""
        self[job] = cursor
        self._moved.add(job)

    def take_moved(self) -> set[JobRef]:
        """The jobs whose cursors were set since the last call. Some of them may have been removed since."""
        moved, self._moved = self._moved, set()
        return moved
