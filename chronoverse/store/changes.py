"""A workflow's changes: a stream of its jobs' states. Scripts that change a job append its state (``note_change``)."""

import json
from typing import Any, NamedTuple

from chronoverse.errors import StoreError
from chronoverse.joblog.entries import RawEntry, entry_number
from chronoverse.joblog.events import error_frame
from chronoverse.joblog.model import IDENTIFIER, Job, JobRef, Status
from chronoverse.store.replies import parse_job


class Change(NamedTuple):
    """One change. ``job`` is the job's new state, or the last known state of a ``deleted`` job."""

    number: int
    job: Job
    deleted: bool

    def to_json(self) -> dict[str, Any]:
        return {**self.job.to_json(), "status": "DELETED" if self.deleted else self.job.status}


class ChangesState(Job):
    """A workflow's stored changes, treated as a log with numbers ``first`` to ``last`` that never ends."""

    def to_frame(self) -> bytes:
        """Empty, because each change has its own frame."""
        return b""

    def end_of_log(self, cursor: int, lease_seconds: float) -> bytes | None:
        """An ``error`` frame if the reader is ahead because the store lost changes; else None."""
        return None if cursor <= self.last else error_frame("the store has lost changes of this workflow")


def read_change(workflow_id: str, entry: RawEntry) -> Change:
    """Parses an entry of the stream. Raises :class:`StoreError` for an invalid entry."""
    entry_id, fields = entry
    try:
        named = dict(zip(fields[::2], fields[1::2], strict=True))
        job_id = named[b"id"].decode("ascii")
        if not IDENTIFIER.fullmatch(job_id):
            raise ValueError(job_id)
        ref = JobRef(workflow_id, job_id)
        # Labels are untrusted and can be invalid UTF-8.
        state = named[b"state"].decode("latin-1")
        job = parse_job(ref, _reply(json.loads(state)) if state else None) or Job(ref, Status.PENDING)
        return Change(entry_number(entry_id), job, named[b"status"] == b"DELETED")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError(f"invalid change {entry_id.decode('ascii', 'replace')} of {workflow_id}") from error


def _reply(answer: Any) -> Any:
    """The reply of ``settle_job.lua``, parsed from the stored JSON. Lua encodes an empty list as an object."""
    if isinstance(answer, list | dict):
        return [_reply(each) for each in answer]
    return answer.encode("latin-1") if isinstance(answer, str) else answer
