"""What reading needs of a store, and how much of it to ask for at once."""

from collections.abc import Hashable, Sequence
from typing import Final, Protocol

from chronoverse.errors import StoreError
from chronoverse.joblog.entries import Entry, RawEntry
from chronoverse.joblog.values import Job, JobRef

#: Bytes a read should bring, and the least and most lines asked for to get there.
READ_BYTES: Final = 2**20
READ_LINES: Final = (4, 2048)


class LiveReaderProtocol(Protocol):
    """Waits for many jobs at once; see :class:`chronoverse.store.live_reader.LiveReader`."""

    @property
    def tracks(self) -> bool: ...
    def read(self, cursors: dict[JobRef, int], count: int) -> list[tuple[JobRef, Sequence[RawEntry]]]: ...
    def interrupt(self) -> None: ...
    def silent_seconds(self, job: JobRef) -> float: ...
    def close(self) -> None: ...


class LogReader(Protocol):
    """What reading needs of a store; see :class:`chronoverse.store.Store`."""

    @property
    def one_server(self) -> bool: ...
    def server(self, job: JobRef) -> Hashable: ...
    def get_job(self, job: JobRef) -> Job | None: ...
    def get_jobs(self, jobs: Sequence[JobRef]) -> list[Job | StoreError | None]: ...
    def read(self, job: JobRef, after: int, count: int) -> Sequence[RawEntry]: ...
    def read_sequential(self, job: JobRef, after: int, count: int) -> Sequence[RawEntry]: ...
    def redactions(self, job: JobRef, count: int) -> Sequence[tuple[int, int]]: ...
    def reader(self, block_seconds: float) -> LiveReaderProtocol: ...


class Archive(Protocol):
    """What reading needs of the archive, for numbers that the job's record says are there.

    Raises of any method: :class:`ArchiveUnavailable`, :class:`ArchiveDamaged`.
    """

    def frames(self, job: JobRef, after: int, most_lines: int) -> tuple[bytes, int] | None:
        """Up to ``most_lines`` lines behind ``after`` as SSE frames, and the number reached.

        None where something else than one line for each number follows.
        """

    def entries(self, job: JobRef, after: int, count: int) -> Sequence[Entry]:
        """Up to ``count`` entries behind ``after``, upwards, and what has no number behind them."""

    def entries_before(self, job: JobRef, before: int, count: int) -> Sequence[Entry]:
        """Up to ``count`` entries before ``before``, downwards."""

    def forget(self, job: JobRef) -> None:
        """What is known of the job's chunks is not true any more."""


class AdaptiveBatch:
    """How many lines to ask for, learnt from what the last answer weighed. Starts small: nobody knows the lines yet."""

    def __init__(self) -> None:
        self.lines = 32

    def learn(self, lines: int, size: int) -> None:
        """After an answer of ``lines`` lines that came to ``size`` bytes."""
        least, most = READ_LINES
        fitting = READ_BYTES * lines // max(size, 1)
        self.lines = max(least, min(most, fitting, self.lines * 4))
