"""The edge to the driver: connections to a server, scripts, and redis-py's errors as ours."""

import contextlib
import hashlib
import select
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import redis
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry

from chronoverse.errors import KeysMoving, NotALog, StoreError, StoreRefused, StoreUnavailable

#: Seconds a command may take before the store counts as unavailable. Far above any of our commands' cost.
COMMAND_TIMEOUT_SECONDS: Final = 5.0
#: Seconds a connection may take to open.
CONNECT_TIMEOUT_SECONDS: Final = 2.0
#: Connections for commands, per process. Commands take well under a millisecond, so few serve many.
COMMAND_CONNECTIONS: Final = 6
#: The first words of answers that mean "not now": no memory, no disk, no replica, not the master.
_REFUSALS: Final = frozenset({"OOM", "MISCONF", "NOREPLICAS", "READONLY"})

_SCRIPTS: Final = Path(__file__).parent / "scripts"

#: A reply that says the server has forgotten a script.
ScriptForgotten = redis.exceptions.NoScriptError
#: A client, as :func:`connect` makes it.
Client = redis.Redis
#: A connection that was closed, or cannot be opened. A command that took too long is not one of these.
Unreachable = redis.ConnectionError
TimedOut = redis.TimeoutError
#: A connection, as :func:`connection` makes it.
Connection = redis.Connection
#: Answers of a Cluster's node that has not the keys: another has them, or will have them.
Moved = redis.exceptions.MovedError
Ask = redis.exceptions.AskError
#: The server did not answer, or cannot at all.
Away = (redis.ConnectionError, redis.TimeoutError, redis.exceptions.ClusterDownError)
#: The server has a master, and so does not write.
NotMaster = redis.ReadOnlyError
#: The server's own word, on a connection that goes on.
ErrorReply = redis.ResponseError
#: What the driver gives, in the place of a reply, for a message that has been heard.
PUSH_CONSUMED: Final = object()
#: Anything redis-py may raise, or put in a pipeline's place of a reply.
DriverError = redis.RedisError


class Script:
    """A server-side script: sent once, run by its hash, sent again when the server has forgotten it.

    With ``allow_oom`` it is run by a server without memory, too, for it gives back more than it takes.
    """

    def __init__(self, name: str, *, allow_oom: bool = False) -> None:
        flags = "#!lua flags=allow-oom\n" if allow_oom else ""
        self.source = (
            flags + (_SCRIPTS / "common.lua").read_text("utf-8") + (_SCRIPTS / f"{name}.lua").read_text("utf-8")
        )
        self.sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()

    def run(self, client: redis.Redis, keys: Sequence[str], *args: Any) -> Any:
        try:
            return client.execute_command("EVALSHA", self.sha, len(keys), *keys, *args)
        except redis.exceptions.NoScriptError:
            return client.execute_command("EVAL", self.source, len(keys), *keys, *args)


def connect(url: str, *, retries: int, timeout: float = COMMAND_TIMEOUT_SECONDS, **options: Any) -> redis.Redis:
    """A client whose replies are left as the parser made them, and which repeats a command ``retries`` times.

    ``options`` are the driver's, for each connection. Raises ValueError for a bad ``url``.
    """
    client = redis.Redis(connection_pool=_pool(url, retries, timeout, options))
    # Replies as the parser made them: redis-py's reshaping costs half of a replay's time.
    client.response_callbacks.clear()
    # So that close() closes: a client does not own a pool that it was given.
    client.auto_close_connection_pool = True
    return client


def connection(url: str, *, timeout: float = COMMAND_TIMEOUT_SECONDS, **options: Any) -> Connection:
    """A connection that belongs to the caller; it opens when it is first used. As :func:`connect`, without retries."""
    pool = _pool(url, 0, timeout, options)
    made: Connection = pool.connection_class(**pool.connection_kwargs)
    return made


def hear_changes(made: Connection, hear: Callable[[Any], object]) -> bool:
    """Has ``hear`` called with each message of the server about changed keys, while a reply is being read.

    False where there can be none: a server says nothing unasked in RESP2, nor that it will not.
    """

    def heard(message: Any) -> object:
        hear(message)
        return PUSH_CONSUMED

    if made.get_protocol() not in (3, "3"):
        # Without hiredis, a parser that has no place for a handler.
        return False
    made._parser.set_invalidation_push_handler(heard)
    return True


def reply(made: Connection) -> Any:
    """The reply to what was sent; messages before it are heard.

    The driver would go a call deeper for each of them, and a thousand are too deep: they come when a script changes as
    many keys, or behind a server's pause.
    """
    while (answer := made.read_response(push_request=True)) is PUSH_CONSUMED:
        pass
    return answer


def wait_readable(made: Connection | None, other: socket.socket, seconds: float) -> None:
    """Waits until there is something to read from the connection, if any, or from ``other``."""
    if made is None or not made.can_read():
        poll = select.poll()
        for each in (other, made._sock) if made else (other,):
            poll.register(each, select.POLLIN)  # type: ignore[arg-type]
        poll.poll(seconds * 1000)


def refused_for_good(error: redis.RedisError) -> bool:
    """Whether the server will not do it next time either: it does not know the command, or forbids it to this user."""
    busy = str(error).startswith("BUSY ")  # with a script
    return isinstance(error, redis.exceptions.NoPermissionError) or (type(error) is redis.ResponseError and not busy)


def _pool(url: str, retries: int, timeout: float, options: dict[str, Any]) -> redis.BlockingConnectionPool:
    settings: dict[str, Any] = {
        "max_connections": COMMAND_CONNECTIONS,
        "timeout": COMMAND_TIMEOUT_SECONDS,
        "socket_timeout": timeout,
        "socket_connect_timeout": CONNECT_TIMEOUT_SECONDS,
        "socket_read_size": 262_144,
        "decode_responses": False,
        # Retrying hides the first answer, so only what may be repeated blindly is, and once: a pooled
        # connection that the server closed long ago costs exactly one. A time-out is no such thing: it has cost enough.
        "retry": Retry(NoBackoff(), retries, supported_errors=(redis.ConnectionError,)),
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }
    return redis.BlockingConnectionPool.from_url(url, **(settings | options))


class AskingClient(redis.Redis):
    """A client of the node that a slot is being moved to: each command says that it was sent on from the other one."""

    def __init__(self, client: Client) -> None:
        super().__init__(connection_pool=client.connection_pool)
        self.response_callbacks.clear()

    def execute_command(self, *args: Any, **options: Any) -> Any:
        pipeline = self.pipeline(transaction=False)
        pipeline.execute_command("ASKING")
        pipeline.execute_command(*args)
        reply = pipeline.execute(raise_on_error=False)[1]
        if isinstance(reply, DriverError):
            raise reply
        return reply


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Raises our errors for the driver's."""
    try:
        yield
    except redis.RedisError as error:
        raise translate(error) from error


def translate(error: redis.RedisError) -> StoreError:
    """Our error for redis-py's. Redis names a refusal by the first word of its message."""
    text = str(error)
    word = text.partition(" ")[0]
    if "WRONGTYPE" in text:
        return NotALog("the job's key in the store holds something that is not a log")
    if isinstance(error, redis.OutOfMemoryError | redis.ReadOnlyError) or word in _REFUSALS:
        return StoreRefused(f"the store will not write: {text}")
    if isinstance(error, Moved):
        return StoreUnavailable("the job's keys have just moved to another server")
    if isinstance(error, Ask | redis.exceptions.TryAgainError):
        return KeysMoving("the job's keys are being moved to another server")
    if isinstance(error, Away) or word == "UNBLOCKED":
        return StoreUnavailable(f"the store cannot be reached: {text}")
    return StoreError(f"the store gave an unexpected answer: {text}")
