"""The driver, redis-py: clients, connections, scripts, and the conversion of its errors."""

import contextlib
import hashlib
import select
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import redis
from redis.backoff import NoBackoff
from redis.exceptions import AskError, MovedError, NoPermissionError, NoScriptError, TryAgainError
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry

from chronoverse.errors import KeysMoving, NotALog, StoreError, StoreRefused, StoreUnavailable
from chronoverse.store.keys import JOB_KEYS, WORKFLOW_KEYS

#: Seconds after which a command fails and the store is considered unavailable. All our commands take far less.
COMMAND_TIMEOUT_SECONDS: Final = 5.0
#: Connections per pool and process. Commands take well under a millisecond, so few connections serve many callers.
COMMAND_CONNECTIONS: Final = 6
_REFUSALS: Final = frozenset({"OOM", "MISCONF", "NOREPLICAS", "READONLY"})

_SCRIPTS: Final = Path(__file__).parent / "scripts"

NO_ANSWER = (redis.ConnectionError, redis.TimeoutError, redis.exceptions.ClusterDownError)
#: Returned instead of a reply when a message was passed to its handler.
_PUSH_CONSUMED: Final = object()


class Script:
    """A Lua script in ``scripts/``. Run by its hash, and sent if the server lacks it.

    Scripts with ``flags=allow-oom``, which free memory, also run on a server that is out of memory.
    """

    def __init__(self, name: str) -> None:
        types = ", ".join(f"{kind} = '{type}'" for kind, type in {**JOB_KEYS, **WORKFLOW_KEYS}.items())
        common, script = ((_SCRIPTS / f"{file}.lua").read_text("utf-8") for file in ("common", name))
        flags = "#!lua flags=allow-oom\n"
        first = flags if script.startswith(flags) else ""
        self.source = f"{first}local function key_types() return {{{types}}} end\n{common}{script.removeprefix(flags)}"
        self.sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()

    def run(self, client: redis.Redis, keys: Sequence[str], *args: Any) -> Any:
        """Runs the script on the client's server, and returns its reply. Raises the driver's errors."""
        try:
            return client.execute_command("EVALSHA", self.sha, len(keys), *keys, *args)
        except NoScriptError:
            return client.execute_command("EVAL", self.source, len(keys), *keys, *args)


def new_client(url: str, *, retries: int, timeout: float = COMMAND_TIMEOUT_SECONDS, **options: Any) -> redis.Redis:
    """A client that retries commands, and does not convert replies. Raises ValueError for a bad ``url``."""
    client = redis.Redis(connection_pool=_pool(url, retries, timeout, options))
    # Without this, redis-py converts replies, which takes half of a replay's time.
    client.response_callbacks.clear()
    # Otherwise the client's close() would not close the pool passed to it.
    client.auto_close_connection_pool = True
    return client


def new_connection(url: str, **options: Any) -> redis.Connection:
    """A connection owned by the caller. Opens on first use, and does not retry."""
    pool = _pool(url, 0, COMMAND_TIMEOUT_SECONDS, options)
    connection: redis.Connection = pool.connection_class(**pool.connection_kwargs)
    return connection


def check_tls_files(connection: redis.Connection) -> None:
    """Raises ValueError if a file that the URL of ``connection`` names for TLS cannot be used. Opens no connection."""
    if not isinstance(connection, redis.SSLConnection):
        return
    files = {name: getattr(connection, name) for name in ("ca_certs", "certfile", "keyfile")}
    try:
        context = ssl.create_default_context(cafile=connection.ca_certs)
        if connection.certfile or connection.keyfile:
            # Without a password, OpenSSL would ask for it on the terminal.
            password = connection.certificate_password or ""
            context.load_cert_chain(connection.certfile or "", connection.keyfile, password)
    except OSError as error:
        given = ", ".join(f"ssl_{name}={value}" for name, value in files.items() if value)
        raise ValueError(f"{given}: {error.strerror or error}") from error


def set_changed_keys_handler(connection: redis.Connection, handler: Callable[[Any], object]) -> bool:
    """Calls ``handler`` with each invalidation message received during a read. Returns False in RESP2 (no messages)."""

    def consume(message: Any) -> object:
        handler(message)
        return _PUSH_CONSUMED

    if connection.get_protocol() not in (3, "3"):
        return False
    # redis-py has no public API for a single connection's handler.
    connection._parser.set_invalidation_push_handler(consume)
    return True


def read_reply(connection: redis.Connection) -> Any:
    """The reply to a command, or the server's error.

    ``push_request`` makes the driver return after each pushed message, instead of recursing.
    """
    try:
        while (answer := connection.read_response(push_request=True)) is _PUSH_CONSUMED:
            pass
    except redis.ResponseError as error:
        return error
    return answer


def take_message(connection: redis.Connection) -> bool:
    """Passes the next invalidation message to its handler. Returns False if none has arrived.

    Raises the driver's ConnectionError for any other message, and if the connection is lost.
    """
    try:
        answer = connection.read_response(push_request=True, timeout=0, disconnect_on_error=False)
    except redis.TimeoutError:
        return False
    if answer is not _PUSH_CONSUMED:
        # Replies no longer match commands, or the handler failed: the driver returns its error.
        raise redis.ConnectionError("unexpected message instead of an invalidation")
    return True


def has_buffered(connection: redis.Connection) -> bool:
    """Whether the driver has received at least part of the next message."""
    # The public can_read() would also poll the socket, in a round of gevent's event loop.
    parser: Any = connection._parser
    return bool(parser._reader.has_data())


def wait_readable(connection: redis.Connection | None, other: socket.socket, seconds: float) -> bool:
    """Waits until ``connection``, if any, or ``other`` is readable. Returns whether ``other`` is."""
    poll = select.poll()
    poll.register(other, select.POLLIN)
    if connection is not None:
        # redis-py has no public API for a connection's socket.
        poll.register(connection._sock, select.POLLIN)  # type: ignore[arg-type]
    return other.fileno() in dict(poll.poll(seconds * 1000))


def _pool(url: str, retries: int, timeout: float, options: dict[str, Any]) -> redis.BlockingConnectionPool:
    defaults: dict[str, Any] = {
        "max_connections": COMMAND_CONNECTIONS,
        "timeout": COMMAND_TIMEOUT_SECONDS,
        "socket_timeout": timeout,
        "socket_connect_timeout": 2.0,
        "decode_responses": False,
        # A retry hides the first answer, so only idempotent commands are retried. One retry is enough if the server
        # closed a pooled connection long ago. Timeouts are not retried, because the retry would take as long again.
        "retry": Retry(NoBackoff(), retries, supported_errors=(redis.ConnectionError,)),
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
        # Otherwise each connection sends CLIENT SETINFO, which the documented ACLs forbid.
        "driver_info": None,
    }
    return redis.BlockingConnectionPool.from_url(url, **(defaults | options))


class AskingClient(redis.Redis):
    """A client of the node to which a slot is being moved. The node refuses commands unless ASKING precedes them.

    https://redis.io/docs/latest/commands/asking/
    """

    def __init__(self, client: redis.Redis) -> None:
        super().__init__(connection_pool=client.connection_pool)
        self.response_callbacks.clear()

    def execute_command(self, *args: Any, **options: Any) -> Any:
        pipeline = self.pipeline(transaction=False)
        pipeline.execute_command("ASKING")
        pipeline.execute_command(*args)
        reply = pipeline.execute(raise_on_error=False)[1]
        if isinstance(reply, redis.RedisError):
            raise reply
        return reply


@contextlib.contextmanager
def translate_errors() -> Iterator[None]:
    """Converts the driver's errors to ours."""
    try:
        yield
    except redis.RedisError as error:
        raise to_store_error(error) from error


def to_store_error(error: redis.RedisError) -> StoreError:
    """Converts an error of redis-py to ours. The first word of a server's error message is its kind."""
    text = str(error).rstrip(".")  # our messages continue after this text
    word = text.partition(" ")[0]
    if "WRONGTYPE" in text:
        return NotALog("the job's key in the store is not a log")
    if isinstance(error, redis.OutOfMemoryError | redis.ReadOnlyError) or word in _REFUSALS:
        # Redis names the script's digest, which means nothing to users.
        return StoreRefused(f"the store rejects writes: {text.partition('. script: ')[0]}")
    if isinstance(error, MovedError):
        return StoreUnavailable("the job's keys have just moved to another server")
    if isinstance(error, AskError | TryAgainError):
        return KeysMoving("the job's keys are being moved to another server")
    if isinstance(error, redis.AuthenticationError):
        return StoreUnavailable(f"the store rejects our user or password: {text}")
    if isinstance(error, NoPermissionError):
        return StoreError(f"the store's ACL denies this: {text}")
    # BUSY: another client's script runs for too long.
    if isinstance(error, NO_ANSWER) or word in ("BUSY", "UNBLOCKED"):
        return StoreUnavailable(f"the store is unreachable: {text}")
    return StoreError(f"unexpected answer from the store: {text}")
