"""What the end of a job means for the readers of its log. Pure.

A log ends with its first terminal entry. What a foreign runner writes after that is malformed: it belongs to no log,
and no route shows it. A stream that has sent every line before that entry sends the closing frames, and nothing after
them. A log may also go away: it expires, or somebody deletes it.
"""

from typing import Final

from chronoverse.joblog import events
from chronoverse.joblog.values import End, Job

#: The error for a reader whose log expired or was deleted while it was read.
LOG_IS_GONE: Final = "the log is gone from the store: it expired or was deleted"


def is_past_end(job: Job | None, cursor: int) -> bool:
    """Whether ``cursor`` is at the end of the log or after it, so that whatever the store has there is not shown."""
    return job is not None and job.end is not None and cursor >= job.end.sequence_num


def closing_frames(job: Job, end: End, lease_seconds: float) -> bytes:
    """The last frames of a stream: the job's final state, then ``end``, or ``error`` when the job was lost."""
    return job.ended(end).to_frame() + end.to_frame(round(lease_seconds))


def end_of_log(job: Job, cursor: int, lease_seconds: float) -> bytes | None:
    """The last frames for a reader that has all lines up to ``cursor``. None while more lines may follow.

    A reader may be past the terminal entry: then the store has lost lines that it once had, and the frame is an
    ``error`` that says which.
    """
    end = job.end
    if end is None or end.sequence_num > cursor + 1:
        return None
    if end.sequence_num <= cursor:
        return events.error_frame(f"the store lost lines {end.sequence_num} to {cursor} of this log")
    return closing_frames(job, end, lease_seconds)
