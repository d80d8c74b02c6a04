"""The public API: publish and follow job logs from Python.

See :mod:`chronoverse.runner.api`, and :meth:`chronoverse.client.client.Client.follow`.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from chronoverse.client.client import Client
from chronoverse.client.follower import (
    JobChange,
    JobState,
    LogEvent,
    Notice,
    RedactedLines,
    Reset,
    UpToDate,
    WorkflowEvent,
)
from chronoverse.joblog.model import Gap, JobRef, Line
from chronoverse.runner.api import JobLog, JobLogHandler, JobLogStream
from chronoverse.runner.spool.spool_file import SpoolRoom
from chronoverse.settings import ca_file_or_setting

__all__ = [
    "Gap",
    "JobChange",
    "JobLog",
    "JobLogHandler",
    "JobLogStream",
    "JobState",
    "Line",
    "Notice",
    "RedactedLines",
    "Reset",
    "SpoolRoom",
    "UpToDate",
    "follow",
    "follow_workflow",
]


def follow(
    service: str,
    workflow: str,
    job: str,
    *,
    token: str | Callable[[], str | None] | None = None,
    ca_file: Path | str | None = None,
    **options: Any,
) -> Iterator[LogEvent]:
    """Follows a job's log at the URL ``service`` until the job ends. Reconnects as needed.

    ``ca_file`` is as for :meth:`JobLog.open`. ``options`` are those of :meth:`Client.follow`, such as ``offset``,
    ``tail`` and ``q``; see there for what is yielded and raised.
    """
    with closing(Client(service, token, ca_file=ca_file_or_setting(ca_file))) as client:
        yield from client.follow(JobRef(workflow, job), **options)


def follow_workflow(
    service: str,
    workflow: str,
    *,
    token: str | Callable[[], str | None] | None = None,
    ca_file: Path | str | None = None,
    **options: Any,
) -> Iterator[WorkflowEvent]:
    """Follows a workflow's jobs, endlessly. ``options`` are those of :meth:`Client.follow_workflow`."""
    with closing(Client(service, token, ca_file=ca_file_or_setting(ca_file))) as client:
        yield from client.follow_workflow(workflow, **options)
