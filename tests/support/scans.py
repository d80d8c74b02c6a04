"""Jobs with given lines, and the scan server's application without its server."""

import itertools
from collections.abc import Sequence
from typing import Final

from chronoverse.archive.object_store import ObjectStore
from chronoverse.archive.reader import ArchiveReader
from chronoverse.history.scans.app import ScanApp
from chronoverse.joblog.labels import Labels
from chronoverse.joblog.model import JobRef, Line, Status
from chronoverse.store import Store
from tests.support.bench import NOW

#: The application's monotonic time at first, in seconds.
BEGAN: Final = 1000.0


def write_job(
    store: Store,
    job_id: str,
    lines: Sequence[Line | str],
    status: Status | None = Status.COMPLETED,
    labels: Labels = (),
) -> None:
    """Writes a job of the workflow ``wf_1`` with these lines or messages. With ``status`` None, it keeps running."""
    attempt = store.open(JobRef("wf_1", job_id), "token", labels=labels)
    if lines:
        numbered = enumerate(lines, 1)
        store.append(
            attempt, [Line(at, NOW, each, "stdout") if isinstance(each, str) else each for at, each in numbered]
        )
    if status is not None:
        store.finish(attempt, status, 3 if status is Status.FAILED else 0, 0, len(lines) + 1)


def scan_app(store: Store, objects: ObjectStore | None, ticks: float = 0.0) -> ScanApp:
    """The application. Each reading of its clock advances it by ``ticks`` seconds."""
    times = itertools.count()
    return ScanApp(store, ArchiveReader(objects, store.chunks.chunk), 65_536, lambda: BEGAN + ticks * next(times))
