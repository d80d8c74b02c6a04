"""A runner's own connection, on which the next append may leave before the last one was answered."""

from collections.abc import Callable, Sequence
from typing import Any, Final

import redis

from chronoverse.errors import StoreUnavailable
from chronoverse.joblog import Attempt, JobRef, Run
from chronoverse.store import replies
from chronoverse.store.driver import Script, ScriptForgotten, translated

#: A job's log, hash and lease.
Keys = tuple[str, str, str]


def arguments(attempt: Attempt, lease_ms: int, first: int, runs: Sequence[Run]) -> list[Any]:
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

    def __init__(self, client: redis.Redis, lease_ms: int, keys: Callable[[JobRef], Keys]) -> None:
        self._pool: Final = client.connection_pool
        self._script: Final = Script("append")
        self._lease_ms = lease_ms
        self._keys = keys
        self._connection: Any = None

    def send(self, attempt: Attempt, first: int, runs: Sequence[Run]) -> None:
        """Begins to append the lines of ``runs`` from number ``first`` on. Raises as :meth:`Store.append` does."""
        keys = self._keys(attempt.job)
        args = arguments(attempt, self._lease_ms, first, runs)
        try:
            with translated():
                connection = self._connected()
                packed = connection.pack_command("EVALSHA", self._script.sha, len(keys), *keys, *args)
                connection.send_packed_command(packed, check_health=False)
        except BaseException:
            self.reset()
            raise

    def receive(self) -> int:
        """The next number, as the oldest unanswered append has left it. Raises as :meth:`Store.append` does."""
        try:
            with translated():
                answer = self._read(self._connection)
            if answer[0] != b"OK":
                raise replies.refusal(answer[0].decode(), answer[1:])
        except BaseException:
            self.reset()
            raise
        following: int = answer[1]
        return following

    def reset(self) -> None:
        """Forgets what is under way."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.disconnect()
            self._pool.release(connection)

    def _connected(self) -> Any:
        if self._connection is None:
            self._connection = self._pool.get_connection()
            self._connection.send_command("SCRIPT", "LOAD", self._script.source, check_health=False)
            self._connection.read_response()
        return self._connection

    @staticmethod
    def _read(connection: Any) -> list[Any]:
        try:
            answer: list[Any] = connection.read_response()
        except ScriptForgotten as error:
            raise StoreUnavailable("the store has forgotten our scripts") from error
        return answer
