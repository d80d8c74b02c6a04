"""Delivers what a runner left behind in a file: its lines, then how the job ended.

The file is removed only when the store has ended the job and has given back every line of the file.
"""

import contextlib
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Final

from chronoverse.errors import ArchiveDamaged, Closed, Deleted, ForeignLines, JobNotFound, SpoolError, SpoolNotInLog
from chronoverse.joblog.values import JobRef, Status, iso_timestamp
from chronoverse.runner.log_writer import JobResult, LogComparer, LogWriter
from chronoverse.runner.publisher import Publisher
from chronoverse.runner.readback import compare_spool, comparer_for
from chronoverse.runner.run import DELIVER_SECONDS, SIGNAL_POLL_SECONDS, close_and_report
from chronoverse.runner.spool.spool import Spool

#: The first line's number in a job that lines are published as under another id than their own.
FIRST_NUMBER: Final = 1


def resend_spool(
    path: Path,
    connect: Callable[[str], LogWriter],
    say: Callable[[str], None],
    *,
    comparer_for: Callable[[LogWriter], LogComparer] = comparer_for,
    job_id: str | None = None,
    lease_seconds: float = 30,
    seconds: float = DELIVER_SECONDS,
    service_url: str | None = None,
    clock: Callable[[], float] = time.time,
) -> bool:
    """Whether all of ``path`` is in the store, and ended; then the file is gone. Otherwise it stays as it is.

    ``connect`` gives the store of a workflow, and ``reader`` who reads it back. With ``job_id`` the lines are published
    as that job of their workflow, from line 1 on; it must have no lines yet. A runner that was killed could not say how
    its job ended: then the job counts as LOST. The lines of a job that was deleted are deleted as well, with ``path``.

    Raises: :class:`SpoolError` for a file that is none; :class:`SpoolNotInLog` when the job has ended (it was declared
    LOST meanwhile, say) and its log does not give back what the file holds; :class:`Held`, :class:`ForeignLines`,
    :class:`Deleted`, :class:`CorruptLog` or :class:`NotALog` when the job cannot be gone on with; :class:`StoreError`
    when the lines cannot be read back.
    """
    spool = Spool.recover(path, keep_all=True)
    job = _job_of(spool, path)
    if job_id is not None and job_id != job.job_id:
        job = JobRef(job.workflow_id, job_id)
        spool.reassign()
    known = spool.state.get("ending")
    ending = JobResult(Status(known[0]), known[1]) if known else JobResult(Status.LOST, None)
    connected = cache(partial(connect, job.workflow_id))
    first = FIRST_NUMBER if job_id is not None else None
    publisher = Publisher(connected, job, spool, say, lease_seconds=lease_seconds, first=first)
    publisher.end(ending, iso_timestamp(clock()))
    lines = spool.end - spool.first
    refusal: Closed | None = None
    delivered = was_published = False
    try:
        closed = _publish(publisher, seconds)
        was_published = True
        if closed or publisher.ended:
            refusal = _wrong(publisher, spool, lambda: comparer_for(connected()), job, path)
            if refusal is None and closed and ending.status is not Status.LOST:
                refusal = SpoolNotInLog(
                    f"{job} has all lines of {path}, but has not ended as it says: {_spell(ending)}"
                )
            delivered = refusal is None
    except KeyboardInterrupt:
        say("interrupted")
    except Closed as error:
        refusal = error
    finally:
        publisher.stop()
        # A job that has ended is no reason to publish its lines again, unless they were found to be missing.
        told = refusal if was_published else publisher.refusal
        close_and_report(publisher, say, service_url, delivered=delivered, refusal=told)
        if isinstance(publisher.refusal, Deleted) and not path.exists():
            say(f"{job} was deleted: {path} is gone, with the {lines} lines in it")
    if refusal is not None:
        raise refusal
    if delivered:
        say(f"{lines} lines of {job} are in the store, and {path} is gone")
    return delivered


def _job_of(spool: Spool, path: Path) -> JobRef:
    try:
        return JobRef(spool.state["workflow"], spool.state["job"])
    except KeyError as error:
        raise SpoolError(f"{path} does not say which job it belongs to") from error


def _publish(publisher: Publisher, seconds: float) -> Closed | None:
    """Publishes for up to ``seconds``. The store's answer that the job has ended already, if that was it.

    Raises every other refusal.
    """
    deadline = time.monotonic() + seconds
    with contextlib.suppress(Closed):
        publisher.start(seconds)
        while not publisher.join(SIGNAL_POLL_SECONDS) and time.monotonic() < deadline:
            pass
    refusal = publisher.refusal
    if refusal is None or (isinstance(refusal, Closed) and not isinstance(refusal, ForeignLines)):
        return refusal
    raise refusal


def _wrong(
    publisher: Publisher, spool: Spool, reader: Callable[[], LogComparer], job: JobRef, path: Path
) -> SpoolNotInLog | None:
    """What is to be said of the file's lines that the log does not give back; None when there are none."""
    hold = publisher.numbering
    if hold is None:
        return SpoolNotInLog(f"{job} has ended without the {spool.end - spool.first} lines of {path}")
    try:
        compared = compare_spool(reader(), job, spool, hold.base)
    except (JobNotFound, ArchiveDamaged) as error:
        raise SpoolNotInLog(f"the log of {job} does not give back the lines of {path}: {error}") from error
    spool.acknowledge(compared.next_number - hold.base)
    last = hold.base + spool.end - 1
    if compared.next_number > last:
        return None
    if compared.differs:
        reason = "was redacted, or is another runner's"
        return SpoolNotInLog(f"line {compared.next_number} of {job} is not as in {path}: it {reason}")
    return SpoolNotInLog(f"{job} has ended without lines {compared.next_number} to {last} of {path}")


def _spell(ending: JobResult) -> str:
    return ending.status if ending.exit_code is None else f"{ending.status} with exit code {ending.exit_code}"
