"""A runner's own connection, on which an append may be sent before the one before it is answered."""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import redis
from redis.exceptions import AskError, NoScriptError

from chronoverse.errors import QuotaReached, StoreUnavailable
from chronoverse.joblog.model import Attempt, LineRun
from chronoverse.store.commands import Commands
from chronoverse.store.driver import Script, translate_errors
from chronoverse.store.keys import RUNNER_KEYS
from chronoverse.store.replies import accepted

#: Seconds of pause after an append, at least, when an archiver asks for it. 5,000 short lines a second still pass, and
#: the rest waits in the spool. Large appends pause for longer: at most ``SLOW_BYTES_PER_SECOND`` pass.
SLOW_SECONDS: Final = 0.1
SLOW_BYTES_PER_SECOND: Final = 2**20


def append_arguments(attempt: Attempt, lease_ms: int, first: int, runs: Sequence[LineRun]) -> list[Any]:
    """The arguments of ``append.lua``, without its keys."""
    args: list[Any] = [attempt.token, attempt.attempt, lease_ms, first]
    for timestamp, stream, partial, messages in runs:
        args += (timestamp, stream, "1" if partial else "", len(messages), *messages)
    return args


class AppendConnection:
    """Sends appends, and receives their answers in the same order.

    An error other than :class:`QuotaReached`, which is an answer, leaves all that are under way unanswered.

    The server may still carry out an unanswered append, even after one that is sent on the next connection. That does
    no harm: the script finds its lines in the log already, or finds that lines before them are missing.
    """

    def __init__(self, commands: Commands, lease_ms: int, sleep: Callable[[float], None] = time.sleep) -> None:
        self._topology = commands.topology
        self._keys = commands.keys
        self._sleep = sleep
        self._script: Final = Script("append")
        self._lease_ms = lease_ms
        self._connection: redis.Connection | None = None
        #: The ASK answer of a Cluster's node that is moving the keys. It names the other node, which wants ASKING
        #: before each command.
        self._redirect: AskError | None = None
        self._workflow_id = ""
        #: The size in bytes of each append that is under way.
        self._sizes: deque[int] = deque()

    def send(self, attempt: Attempt, first: int, runs: Sequence[LineRun]) -> None:
        """Sends the lines of ``runs``, the first with the number ``first``. Raises as :meth:`Store.append` does."""
        keys = [self._keys.of(attempt.job, kind) for kind in RUNNER_KEYS]
        args = append_arguments(attempt, self._lease_ms, first, runs)
        with self._reset_on_error():
            connection = self._connected(attempt.job.workflow_id)
            if self._redirect:
                connection.send_command("ASKING", check_health=False)
            packed = connection.pack_command("EVALSHA", self._script.sha, len(keys), *keys, *args)
            connection.send_packed_command(packed, check_health=False)
            self._sizes.append(sum(map(len, packed)))

    def receive(self) -> int:
        """The next number after the oldest unanswered append. Raises as :meth:`Store.append` does."""
        connection: Any = self._connection
        size = self._sizes.popleft()
        with self._reset_on_error():
            try:
                if self._redirect:
                    connection.read_response()
                next_number, *slow = accepted(connection.read_response())
            except NoScriptError as error:
                raise StoreUnavailable("the store has forgotten our scripts") from error
        if slow:
            self._sleep(max(SLOW_SECONDS, size / SLOW_BYTES_PER_SECOND))
        return int(next_number)

    def reset(self) -> None:
        """Closes the connection, and forgets the appends that are under way."""
        self._sizes.clear()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.disconnect()

    @contextlib.contextmanager
    def _reset_on_error(self) -> Iterator[None]:
        try:
            with translate_errors():
                yield
        except QuotaReached:
            raise
        except BaseException as error:
            cause = error.__cause__
            # The driver's class for MOVED is a subclass of the one for ASK. A MOVED answer is not remembered here.
            self._redirect = cause if type(cause) is AskError else None
            if isinstance(cause, redis.RedisError):
                self._topology.report_error(self._workflow_id, cause)
            self.reset()
            raise

    def _connected(self, workflow_id: str) -> redis.Connection:
        connection = self._connection
        if connection is not None and not self._redirect and not self._topology.is_current(workflow_id, connection):
            raise StoreUnavailable("the job's keys are on another server now")
        if connection is None:
            self._workflow_id = workflow_id
            connection = self._connection = self._topology.new_connection(workflow_id, self._redirect)
            connection.send_command("SCRIPT", "LOAD", self._script.source, check_health=False)
            connection.read_response()
        return connection
