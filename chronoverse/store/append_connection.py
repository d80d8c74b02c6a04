"""A runner's own connection, on which the next append may leave before the last one was answered."""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from chronoverse.errors import StoreUnavailable
from chronoverse.joblog.values import Attempt, JobRef, LineRun
from chronoverse.store import replies
from chronoverse.store.driver import Ask, Connection, DriverError, Script, ScriptForgotten, translated
from chronoverse.store.topology import Topology

#: Seconds of pause behind an append, at least, when an archiver asks for it: 5,000 short lines a second still go, and
#: the rest waits in the spool. Large appends pause for longer: no more than so many bytes a second go.
SLOW_SECONDS: Final = 0.1
SLOW_BYTES_PER_SECOND: Final = 2**20

#: A job's log, hash and lease.
Keys = tuple[str, str, str]


def arguments(attempt: Attempt, lease_ms: int, first: int, runs: Sequence[LineRun]) -> list[Any]:
    """What ``append.lua`` takes, its keys aside."""
    args: list[Any] = [attempt.token, lease_ms, first]
    for timestamp, stream, partial, messages in runs:
        args += (timestamp, stream, "1" if partial else "", len(messages), *messages)
    return args


class Appends:
    """Answers come in the order of the appends. After any error all that is under way counts as unanswered.

    Such an append may still be carried out, later even than one that follows on the next connection: it is
    compared like any other, and finds its lines there, or others missing before them.
    """

    def __init__(
        self,
        place: Topology,
        lease_ms: int,
        keys: Callable[[JobRef], Keys],
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._place = place
        self._sleep = sleep
        self._script: Final = Script("append")
        self._lease_ms = lease_ms
        self._keys = keys
        self._connection: Connection | None = None
        #: Where a Cluster's node has sent us, that is moving the keys: there each command says so.
        self._asked: Ask | None = None
        self._workflow_id = ""
        #: Bytes of each append that is under way.
        self._sizes: deque[int] = deque()

    def send(self, attempt: Attempt, first: int, runs: Sequence[LineRun]) -> None:
        """Begins to append the lines of ``runs`` from number ``first`` on. Raises as :meth:`Store.append` does."""
        keys = self._keys(attempt.job)
        args = arguments(attempt, self._lease_ms, first, runs)
        with self._whole():
            connection = self._connected(attempt.job.workflow_id)
            if self._asked:
                connection.send_command("ASKING", check_health=False)
            packed = connection.pack_command("EVALSHA", self._script.sha, len(keys), *keys, *args)
            connection.send_packed_command(packed, check_health=False)
            self._sizes.append(sum(map(len, packed)))

    def receive(self) -> int:
        """The next number, as the oldest unanswered append has left it. Raises as :meth:`Store.append` does."""
        with self._whole():
            answer = self._read(self._connection)
            if answer[0] != b"OK":
                raise replies.refusal(answer[0].decode(), answer[1:])
        size = self._sizes.popleft()
        if len(answer) > 2:
            self._sleep(max(SLOW_SECONDS, size / SLOW_BYTES_PER_SECOND))
        following: int = answer[1]
        return following

    def reset(self) -> None:
        """Forgets what is under way."""
        self._sizes.clear()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.disconnect()

    @contextlib.contextmanager
    def _whole(self) -> Iterator[None]:
        """All or nothing: any error forgets what is under way."""
        try:
            with translated():
                yield
        except BaseException as error:
            cause = error.__cause__
            # A MOVED is an Ask to the driver, but it is for good.
            self._asked = cause if type(cause) is Ask else None
            if isinstance(cause, DriverError):
                self._place.report_error(self._workflow_id, cause)
            self.reset()
            raise

    def _connected(self, workflow_id: str) -> Connection:
        connection = self._connection
        if connection is not None and not self._asked and not self._place.is_current(workflow_id, connection):
            raise StoreUnavailable("the job's keys are on another server now")
        if connection is None:
            self._workflow_id = workflow_id
            connection = self._connection = self._place.connection(workflow_id, asked=self._asked)
            connection.send_command("SCRIPT", "LOAD", self._script.source, check_health=False)
            connection.read_response()
        return connection

    def _read(self, connection: Any) -> list[Any]:
        try:
            if self._asked:
                connection.read_response()
            answer: list[Any] = connection.read_response()
        except ScriptForgotten as error:
            raise StoreUnavailable("the store has forgotten our scripts") from error
        return answer
