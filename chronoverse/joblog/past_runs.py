"""The runs of a workflow that have a line of a given shape, and the verdict on a failure. Pure."""

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any, Final, NamedTuple

from chronoverse.joblog.labels import has_labels
from chronoverse.joblog.model import Job, Status

#: Maximum runs with a line of the shape to list individually.
MAX_LISTED: Final = 20

_ENDS: Final = (Status.COMPLETED, Status.FAILED, Status.CANCELED, Status.LOST)
#: Statuses that a summary's entry always counts. The counts of other statuses are omitted if 0.
_ALWAYS: Final = (Status.COMPLETED, Status.FAILED)
_RED: Final = (Status.FAILED, Status.LOST)


class Run(NamedTuple):
    """An ended job, and the number of its first line of each wanted shape.

    The number is 0 if only the shape is known. ``first_lines`` is None if the job's shapes are unknown.
    """

    job: Job
    first_lines: Mapping[int, int] | None

    def occurrence(self, shape: int) -> dict[str, Any] | None:
        """The run's entry in a history's ``jobs``. None if the run has no line of the shape.

        ``sequence_num`` is the number of the first line of the shape, or None if only the shape is known.
        """
        number = None if self.first_lines is None else self.first_lines.get(shape)
        if number is None:
            return None
        return {
            "id": self.job.ref.job_id,
            "sequence_num": number or None,
            "started_at": self.job.started_at,
            "status": self.job.status,
        }


class PastRuns(NamedTuple):
    """A workflow's ended runs up to one job, newest first.

    ``is_whole`` is False if there was no time to read all requested runs. If ``own`` labels are given, such as the
    job's branch, the verdict first considers only the runs with these labels.
    """

    runs: Sequence[Run]
    is_whole: bool = True
    own: Sequence[Sequence[str]] = ()

    def history(self, shape: int) -> dict[str, Any]:
        """The answer of ``/logs/{n}/history`` for a line's shape."""
        occurrences = self._occurrences(shape)
        known = [run.job.status for run in self.runs if run.first_lines is not None]
        return {
            "looked_at": {**_count(known), "without_shapes": len(self.runs) - len(known)},
            "seen": _count([occurrence["status"] for occurrence in occurrences]),
            "first": occurrences[-1] if occurrences else None,
            "last": occurrences[0] if occurrences else None,
            "jobs": occurrences[:MAX_LISTED],
        }

    def seen(self, shape: int) -> dict[str, Any]:
        """A summary's entry for lines of this shape."""
        occurrences = self._occurrences(shape)
        first = occurrences[-1] if occurrences else dict.fromkeys(("started_at", "id", "sequence_num"))
        counts = _count([occurrence["status"] for occurrence in occurrences])
        looked_at = sum(run.first_lines is not None for run in self.runs)
        unknown = len(self.runs) - looked_at
        return {
            **{status: count for status, count in counts.items() if count or status in _ALWAYS},
            "first_started_at": first["started_at"],
            "first_id": first["id"],
            "first_sequence_num": first["sequence_num"],
            "looked_at": looked_at,
            **({"without_shapes": unknown} if unknown else {}),
        }

    def verdict(self, job: Job, shape: int) -> dict[str, Any] | None:
        """The verdict on the failure of ``job``: ``new``, ``since`` a run, or ``recurring``. See ``docs/answers.md``.

        ``shape`` is the shape of the job's most telling line. None if no verdict applies, or too little is known.
        """
        if self.own:
            is_own = [has_labels(run.job.labels, self.own) for run in self.runs]
            found = self._verdict([run for run, own in zip(self.runs, is_own, strict=True) if own], job, shape)
            others = [run for run, own in zip(self.runs, is_own, strict=True) if not own]
            if others and found and found["kind"] == "new":
                return self._verdict(others, job, shape)
            return found
        return self._verdict(self.runs, job, shape)

    def _verdict(self, runs: Sequence[Run], job: Job, shape: int) -> dict[str, Any] | None:
        # A canceled run is no evidence for or against the failure.
        runs = [run for run in runs if run.job.status is not Status.CANCELED]
        before = [run for run in runs if run.job.ref != job.ref]
        has = [run.occurrence(shape) is not None for run in before]
        red = [run.job.status in _RED for run in before]
        good = red.index(False) if False in red else len(before)
        if any(map(all, zip(has[good:], red[good:], strict=True))):
            return {"kind": "recurring", "id": None}
        if not self.is_whole or any(run.first_lines is None for run in runs):
            return None
        if not any(has):
            return {"kind": "new", "id": None}
        row = len([*takewhile(bool, has[:good])])
        if not row or has[good : good + 1] == [True]:
            return None
        return {"kind": "since", "id": before[row - 1].job.ref.job_id}

    def _occurrences(self, shape: int) -> list[dict[str, Any]]:
        return [occurrence for run in self.runs if (occurrence := run.occurrence(shape)) is not None]


def _count(statuses: Sequence[Status]) -> dict[str, int]:
    return {status.value: statuses.count(status) for status in _ENDS}
