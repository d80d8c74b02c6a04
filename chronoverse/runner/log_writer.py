"""What a runner needs of a store, wherever that is."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import orjson

from chronoverse.joblog.values import Attempt, JobRef, Line, Status


class LogWriter(Protocol):
    """What a runner needs of a store. :class:`chronoverse.store.Store` is one."""

    def open(self, job: JobRef, token: str, first: int | None = None) -> Attempt: ...

    def append(self, attempt: Attempt, lines: Sequence[Line]) -> int: ...

    def append_lost(self, attempt: Attempt, first: int, last: int) -> int: ...

    def renew(self, attempt: Attempt) -> None: ...

    def finish(
        self, attempt: Attempt, status: Status, exit_code: int | None, dropped: int, next_number: int
    ) -> None: ...


@runtime_checkable
class SupportsEvictionWarnings(Protocol):
    """A store whose server's settings can be looked at."""

    def eviction_warnings(self, job: JobRef) -> list[str]:
        """Warnings where the job's server may throw its log away. Raises: :class:`StoreError`."""


class Comparison(NamedTuple):
    """How far a log has lines that somebody else has a copy of: the same ones up to number ``following`` - 1.

    ``differs``: it has a line of the number ``following`` as well, but another one.
    """

    next_number: int
    differs: bool


def line_digest(line: Line) -> str:
    """SHA-256, in hexadecimal, of the line's JSON (``Line.to_json``): by this, copies of a line are compared."""
    return hashlib.sha256(orjson.dumps(line.to_json())).hexdigest()


@runtime_checkable
class LogComparer(Protocol):
    """Who reads a job's lines back. :class:`chronoverse.runner.http_log_writer.HttpLogWriter` is one."""

    def compare(self, job: JobRef, lines: Sequence[Line]) -> Comparison:
        """Compares consecutive ``lines`` (one at least) with the log's, as many as are read at once.

        Raises: :class:`JobNotFound`, :class:`StoreError`.
        """


class JobResult(NamedTuple):
    """How the job ended."""

    status: Status
    exit_code: int | None
