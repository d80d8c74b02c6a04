"""Foreign jobs: their runners write the log with XADD alone, so somebody else has to put them into the listing."""

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Final

from chronoverse.joblog.values import Job, JobRef, seconds_of
from chronoverse.store.driver import Client, DriverError
from chronoverse.store.topology import PoolKind, Topology

#: Seconds until this process lists a foreign job again. The tail looks at a quiet job once a second, and only a job
#: that was deleted and written anew needs to be listed again.
LISTED_SECONDS: Final = 10.0
#: Jobs for which that is remembered, some 300 bytes each. Beyond, each look at a foreign job costs one ZADD more.
LISTED_JOBS: Final = 10_000


class ForeignJobs:
    """Lists foreign jobs when they are looked at. ``index`` names the key of a workflow's listing.

    ``clock`` is Unix time in seconds, ``monotonic`` another that is never set.
    """

    def __init__(
        self,
        place: Topology,
        index: Callable[[str], str],
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._place = place
        self._index = index
        self._clock = clock
        self._monotonic = monotonic
        self._listed_at: dict[JobRef, float] = {}

    def list_jobs(self, jobs: Sequence[Job], use: PoolKind = PoolKind.COMMANDS) -> None:
        """Adds ``jobs``, which are all on one server, to the listings of their workflows; those there keep their place.

        A job's score is its creation time, or that of its first entry, or now. Nothing is raised: a server that is
        full or read-only can be read all the same. A look :data:`LISTED_SECONDS` later tries again.
        """
        now = self._monotonic()
        unlisted = [job for job in jobs if now >= self._listed_at.get(job.ref, -LISTED_SECONDS) + LISTED_SECONDS]
        if not unlisted:
            return
        if len(self._listed_at) + len(unlisted) > LISTED_JOBS:
            self._listed_at.clear()
        self._listed_at.update((job.ref, now) for job in unlisted)

        def add(client: Client) -> object:
            pipeline = client.pipeline(transaction=False)
            for job in unlisted:
                pipeline.execute_command(
                    "ZADD", self._index(job.ref.workflow_id), "NX", self._created_ms(job), job.ref.job_id
                )
            return pipeline.execute(raise_on_error=False)

        with contextlib.suppress(DriverError):
            self._place.run(unlisted[0].ref.workflow_id, add, use)

    def _created_ms(self, job: Job) -> int:
        seconds = seconds_of(job.created_at or "") or seconds_of(job.started_at or "") or self._clock()
        return round(seconds * 1000)
