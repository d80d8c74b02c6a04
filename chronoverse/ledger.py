"""What a runner needs of a store, wherever that is."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from chronoverse.joblog import Attempt, JobRef, Line, Status


class Ledger(Protocol):
    """What a runner needs of a store. :class:`chronoverse.store.Store` is one."""

    def open(self, job: JobRef, token: str) -> Attempt: ...

    def append(self, attempt: Attempt, lines: Sequence[Line]) -> int: ...

    def renew(self, attempt: Attempt) -> None: ...

    def finish(self, attempt: Attempt, status: Status, exit_code: int | None, dropped: int, following: int) -> None: ...


class Ending(NamedTuple):
    """How the job ended."""

    status: Status
    exit_code: int | None
