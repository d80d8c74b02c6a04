"""What other people's programs import: publishing a job's log from Python. See :mod:`chronoverse.runner.api`."""

from chronoverse.runner.api import JobLog, JobLogHandler

__all__ = ["JobLog", "JobLogHandler"]
