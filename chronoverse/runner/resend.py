"""Delivers a spool file that a runner left: its lines, then the job's end.

Removes the file only once the job has ended, and each line was compared with the log.
"""

import contextlib
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

from chronoverse.errors import (
    ArchiveDamaged,
    Closed,
    Deleted,
    ForeignLines,
    JobNotFound,
    SpoolError,
    SpoolNotInLog,
    StaleToken,
)
from chronoverse.joblog.comparing import Comparison
from chronoverse.joblog.model import JobRef, Status
from chronoverse.joblog.terminal import counted
from chronoverse.runner import readback
from chronoverse.runner.publisher import JobResult, LogWriter, Publisher
from chronoverse.runner.readback import Compare
from chronoverse.runner.run import DELIVER_SECONDS, close_and_report, wait_delivered
from chronoverse.runner.spool.salvage import recover_whole
from chronoverse.runner.spool.spool import Spool


def resend_spool(
    path: Path,
    connect: Callable[[str], LogWriter],
    say: Callable[[str], None],
    *,
    comparer_for: Callable[[LogWriter], Compare] = readback.comparer_for,
    job_id: str | None = None,
    retry: bool = False,
    lease_seconds: float = 30,
    seconds: float = DELIVER_SECONDS,
    service_url: str | None = None,
    show: Callable[[str], object] = lambda text: None,
) -> bool:
    """Delivers the spool file ``path`` for up to ``seconds``. Returns whether all was delivered and the file deleted.

    To publish the lines as another job, pass its ``job_id`` (the job must have no lines), or ``retry`` for the first
    free JOB.N. Raises :class:`SpoolError` if the file is not a spool or, after delivering the undamaged lines, if it is
    damaged. Also raises :class:`SpoolNotInLog`, :class:`AppendRefused`, :class:`NotALog`, :class:`StoreError`.
    """
    spool, damage = recover_whole(path, in_place=True)
    if damage:
        say(damage)
    try:
        job = JobRef(spool.state["workflow"], spool.state["job"])
    except KeyError as error:
        raise SpoolError(f"{path} does not say which job it belongs to") from error
    if retry or job_id not in (None, job.job_id):
        job = JobRef(job.workflow_id, job_id or job.job_id)
        spool.reassign()
    saved = spool.state.get("ending")
    result = JobResult(Status(saved[0]), saved[1]) if saved else JobResult(Status.LOST, None)
    if result.status is Status.PENDING and spool.is_reassigned:
        # Later attempts are in another job's log, so this job must end here.
        result = JobResult(Status.FAILED, None)
    connect_once = cache(partial(connect, job.workflow_id))
    publisher = Publisher(connect_once, job, spool, say, lease_seconds=lease_seconds, find_free_id=retry)
    publisher.end(result)
    lines = spool.line_count
    refusal: Closed | None = None
    delivered = was_published = False
    try:
        closed = _publish(publisher, seconds, show)
        job, was_published = publisher.job, True
        if closed or publisher.ended:
            refusal = _verify(publisher, lambda: comparer_for(connect_once()), path)
            if refusal is None and closed and result.status is not Status.LOST:
                code = "" if result.exit_code is None else f" with exit code {result.exit_code}"
                refusal = SpoolNotInLog(f"{job} has all lines of {path}, but a different end: {result.status}{code}")
            delivered = refusal is None
    except KeyboardInterrupt:
        say("interrupted")
    finally:
        publisher.stop()
        # The user must choose another id only if the job ended without the file's lines.
        reported = refusal if was_published else publisher.refusal
        close_and_report(publisher, service_url, delivered=delivered, refusal=reported)
        if isinstance(publisher.refusal, Deleted) and not path.exists():
            say(f"{job} was deleted: removed {path}, with {counted(lines)}")
    if refusal is not None:
        raise refusal
    if delivered:
        one, many = f"line of {job} is", f"lines of {job} are"
        say(f"{counted(lines, one, many)} in the store; removed {path}")
        if damage:
            raise SpoolError("the file was damaged: the log lacks the lines that could not be read")
    return delivered


def _publish(publisher: Publisher, seconds: float, show: Callable[[str], object]) -> Closed | None:
    deadline = time.monotonic() + seconds
    with contextlib.suppress(Closed):
        publisher.start(seconds)
        wait_delivered(publisher, deadline - time.monotonic(), show)
    refusal = publisher.refusal
    if publisher.is_unreached and isinstance(publisher.last_error, StaleToken):
        raise publisher.last_error
    if refusal is None or (isinstance(refusal, Closed) and not isinstance(refusal, ForeignLines)):
        return refusal
    raise refusal


def _verify(publisher: Publisher, open_comparer: Callable[[], Compare], path: Path) -> SpoolNotInLog | None:
    """The error if the ended log lacks lines of the file, else None. Raises :class:`StoreError` if reading fails."""
    job, spool, base = publisher.job, publisher.spool, publisher.base
    if base is None:
        if spool.line_count == 0:
            return SpoolNotInLog(f"{job} has ended without the run of {path}, which printed nothing")
        return SpoolNotInLog(f"{job} has ended without the {counted(spool.line_count)} of {path}")
    try:
        comparison = _compare_spool(open_comparer(), job, spool, base)
    except (JobNotFound, ArchiveDamaged) as error:
        return SpoolNotInLog(f"the lines of {path} cannot be read from the log of {job}: {error}")
    next_number = comparison.next_number
    spool.acknowledge(next_number - base)
    last = base + spool.end - 1
    if next_number > last:
        return None
    if comparison.differs:
        reason = "it was redacted, or is another runner's"
        return SpoolNotInLog(f"line {next_number} of {job} differs from {path}: {reason}")
    return SpoolNotInLog(f"{job} has ended without lines {next_number} to {last} of {path}")


def _compare_spool(compare: Compare, job: JobRef, spool: Spool, base: int) -> Comparison:
    """Compares all lines in ``spool`` with the log. Lines that the spool lacks count as equal."""
    index = spool.first
    while (batch := spool.take(index)) and batch.runs:
        comparison = compare(job, batch.lines(base))
        next_index = comparison.next_number - base
        if comparison.differs or next_index <= batch.start:
            return Comparison(max(next_index, batch.start) + base, comparison.differs)
        index = next_index
    return Comparison(spool.end + base, differs=False)
