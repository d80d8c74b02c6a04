"""What a runner needs of a store, be it :class:`chronoverse.store.Store` or, through the service,
:class:`chronoverse.runner.http_log_writer.HttpLogWriter`: protocols, and the values that they exchange.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from chronoverse.joblog.model import Attempt, JobRef, Line, LineRun, Status


class AppendChannel(Protocol):
    """Sends appends without waiting, and receives their answers later, in order."""

    def send(self, attempt: Attempt, first: int, runs: Sequence[LineRun]) -> None: ...

    def receive(self) -> int: ...

    def reset(self) -> None: ...


class DurabilityProbe(Protocol):
    """Asks how much of a log is safe."""

    def confirm(self, attempt: Attempt, may_sync: bool = False) -> int | None:
        """The number below which all is safe, the terminal entry included; None when the time was too short.

        With ``may_sync`` it may force files to the disk. Raises: :class:`NotDurable` when it can never say;
        :class:`Fenced`, :class:`StoreError`.
        """


class LogWriter(Protocol):
    """Writes jobs' logs. :class:`chronoverse.store.Store` says what each method does and raises."""

    def open(self, job: JobRef, token: str, first: int | None = None) -> Attempt: ...

    def append_connection(self) -> AppendChannel: ...

    def append_lost(self, attempt: Attempt, first: int, last: int) -> int: ...

    def durability_probe(self) -> DurabilityProbe | None: ...

    def job_warnings(self, job: JobRef) -> list[str]: ...

    def renew(self, attempt: Attempt) -> None: ...

    def finish(
        self, attempt: Attempt, status: Status, exit_code: int | None, dropped: int, next_number: int
    ) -> None: ...


class JobResult(NamedTuple):
    """How the job ended."""

    status: Status
    exit_code: int | None


class Comparison(NamedTuple):
    """How far a log agrees with a copy of its lines: all lines below ``next_number`` are the same.

    ``differs``: the log has a line ``next_number`` too, and it is another one.
    """

    next_number: int
    differs: bool


def line_digest(line: Line) -> str:
    """SHA-256, in hexadecimal, of the line's JSON (``Line.to_json``). Copies of a line are compared by this."""
    return hashlib.sha256(line.encode()).hexdigest()
