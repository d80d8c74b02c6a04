"""Where each watched job is to be read on, and which of them have moved since somebody asked last. Pure."""

from chronoverse.joblog.values import JobRef


class Watchlist(dict[JobRef, int]):
    """The cursor of each job. Of thousands only a few move between two reads: so a reader need not look at all.

    For one thread. Only :meth:`move` says that a job has moved; one that is taken out has not.
    """

    def __init__(self) -> None:
        super().__init__()
        self._moved: set[JobRef] = set()

    def move(self, job: JobRef, cursor: int) -> None:
        """The job, which may be new, is to be read on behind ``cursor``."""
        self[job] = cursor
        self._moved.add(job)

    def moved(self) -> set[JobRef]:
        """Those that have moved since this was last asked, some of which may have been taken out again."""
        moved, self._moved = self._moved, set()
        return moved
