"""Delivers what a runner left behind: its lines, then how the job ended."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from chronoverse.errors import Deleted, SpoolError
from chronoverse.joblog import JobRef, Status, iso_timestamp
from chronoverse.ledger import Ending, Ledger
from chronoverse.publisher import Publisher
from chronoverse.runner import DELIVER_SECONDS, SIGNAL_POLL_SECONDS, leave
from chronoverse.spool import Spool


def deliver(
    path: Path,
    connect: Callable[[str], Ledger],
    say: Callable[[str], None],
    *,
    lease_seconds: float = 30,
    seconds: float = DELIVER_SECONDS,
    through: str | None = None,
    clock: Callable[[], float] = time.time,
) -> bool:
    """Whether all of ``path`` is in the store, and ended; then the file is gone. Otherwise it stays as it is.

    ``connect`` gives the store of a workflow. A runner that was killed could not say how its job ended: then the job
    counts as LOST.
    When the job was deleted, ``path`` is deleted as well.
    Raises :class:`SpoolError`, and what the store says to a job that cannot be gone on with: :class:`Held`,
    :class:`Closed` (it was declared LOST meanwhile, say), :class:`Deleted`, :class:`Tainted`, :class:`NotALog`.
    """
    spool = Spool.recover(path)
    try:
        job = JobRef(spool.state["workflow"], spool.state["job"])
        status, code = spool.state.get("ending") or (Status.LOST, None)
        publisher = Publisher(partial(connect, job.workflow_id), job, spool, say, lease_seconds=lease_seconds)
    except (KeyError, TypeError, ValueError) as error:
        raise SpoolError(f"{path} does not say which job it belongs to") from error
    publisher.end(Ending(Status(status), code), iso_timestamp(clock()))
    waiting = spool.end - spool.first
    try:
        publisher.start(seconds)
        _wait(publisher, seconds)
    except KeyboardInterrupt:
        say("interrupted")
    finally:
        publisher.stop()
        leave(publisher, say, through)
        if isinstance(publisher.refusal, Deleted):
            say(f"{job} was deleted: {path} is gone, with the {waiting} lines in it")
    if publisher.ended:
        say(f"{waiting} lines of {job} are in the store, and {path} is gone")
    return publisher.ended


def _wait(publisher: Publisher, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not publisher.join(SIGNAL_POLL_SECONDS) and time.monotonic() < deadline:
        pass
