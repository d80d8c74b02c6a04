"""What other people's programs import: publishing a job's log from Python. See :mod:`chronoverse.runner.api`."""

from chronoverse.runner.api import JobLog, JobLogHandler, JobLogStream
from chronoverse.runner.spool.spool_file import SpoolRoom

__all__ = ["JobLog", "JobLogHandler", "JobLogStream", "SpoolRoom"]
