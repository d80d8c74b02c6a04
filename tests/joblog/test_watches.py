"""Which jobs a watch for changes compares."""

from dataclasses import replace

import pytest

from chronoverse.joblog.labels import check_labels
from chronoverse.joblog.model import Job, JobRef, Status
from chronoverse.joblog.watches import Watch


@pytest.mark.parametrize(
    ("status", "labels", "compares"),
    [
        (Status.COMPLETED, {"kind": "ci", "branch": "main"}, True),
        (Status.LOST, {"kind": "ci", "branch": "main", "commit": "c"}, True),
        (Status.RUNNING, {"kind": "ci", "branch": "main"}, False),
        (Status.CANCELED, {"kind": "ci", "branch": "main"}, False),
        (Status.COMPLETED, {"kind": "ci", "branch": "next"}, False),
        (Status.COMPLETED, {"kind": "ci"}, False),
        (Status.COMPLETED, {"branch": "main"}, False),
    ],
)
def test_the_job_to_compare_with(status: Status, labels: dict[str, str], compares: bool) -> None:
    """It has ended, has the watch's labels, and the same value of each label in ``same``."""
    kind = check_labels({"kind": "ci"})
    watch = Watch(workflow_id="w", watch_id="main", on="change", url="", secret="", label=kind, same=("branch",))
    job, other = Job(JobRef("w", "2"), Status.FAILED), Job(JobRef("w", "1"), status, labels=check_labels(labels))
    assert watch.compares(replace(job, labels=check_labels({"kind": "ci", "branch": "main"})), other) is compares
