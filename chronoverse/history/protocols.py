"""What readers of logs need of a store and of an archive."""

from collections.abc import Hashable, Sequence
from typing import Protocol

from chronoverse.errors import StoreError
from chronoverse.joblog.entries import Entry, RawEntry
from chronoverse.joblog.values import Job, JobRef


class MultiJobReader(Protocol):
    """Waits for many jobs at once; see :class:`chronoverse.store.live_reader.LiveReader`."""

    def watch(self, job: JobRef, cursor: int, *, again: bool = False) -> None: ...
    def unwatch(self, job: JobRef) -> None: ...
    def read(self, count: int) -> Sequence[tuple[JobRef, int, Sequence[RawEntry] | StoreError]]: ...
    def silent_seconds(self, job: JobRef) -> float: ...
    def close(self) -> None: ...


class LogReader(Protocol):
    """What readers need of a store; see :class:`chronoverse.store.Store`."""

    @property
    def single_server(self) -> bool: ...
    def server_of(self, job: JobRef) -> Hashable: ...
    def get_job(self, job: JobRef) -> Job | None: ...
    def get_jobs(self, jobs: Sequence[JobRef]) -> list[Job | StoreError | None]: ...
    def read(self, job: JobRef, after: int, count: int) -> Sequence[RawEntry]: ...
    def read_sequential(self, job: JobRef, after: int, count: int) -> Sequence[RawEntry]: ...
    def redactions(self, job: JobRef, count: int) -> Sequence[tuple[int, int]]: ...
    def live_reader(self, block_seconds: float) -> MultiJobReader: ...


class Archive(Protocol):
    """What readers need of an archive. They ask only for numbers that are archived, as the job says.

    Every method raises :class:`ArchiveUnavailable` or :class:`ArchiveDamaged`.
    """

    def frames(self, job: JobRef, after: int, max_lines: int) -> tuple[bytes, int] | None:
        """Up to ``max_lines`` lines after line ``after`` as event frames, and the last number in them.

        None when something other than one line for each number follows.
        """

    def entries(self, job: JobRef, after: int, count: int) -> Sequence[Entry]:
        """Up to ``count`` entries after line ``after``, upwards, and the entries out of sequence among them."""

    def entries_before(self, job: JobRef, before: int, count: int) -> Sequence[Entry]:
        """Up to ``count`` entries before ``before``, downwards."""

    def forget(self, job: JobRef) -> None:
        """Drops everything cached of the job, because its chunks were changed."""
