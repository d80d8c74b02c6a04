"""The socket under a stream: bounded, and watched for the client's leaving. Without such a socket, nothing is done."""

import _socket
import contextlib
import errno
import os
import socket
from collections.abc import Callable
from typing import Any, Final

import gevent
import gevent.socket

#: Seconds one write may take before its viewer is dropped. gunicorn has no write timeout of its own.
SEND_SECONDS: Final = 20.0
#: Bytes the kernel may hold for one viewer; left alone it would take megabytes for one that stopped reading.
SEND_BUFFER_BYTES: Final = 64 * 2**10
#: Milliseconds unacknowledged data may stay out: a half-open connection is dropped after that, not in 20 minutes.
USER_TIMEOUT_MS: Final = 20_000


def tune(environ: dict[str, Any]) -> socket.socket | None:
    """Bounds the request's socket for streaming, and returns it where the server is gunicorn with gevent."""
    sock: Any = environ.get("gunicorn.socket")
    if not isinstance(sock, gevent.socket.socket):
        return None
    sock.settimeout(SEND_SECONDS)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
    tuned: socket.socket = sock
    return tuned


def half_close(sock: socket.socket) -> None:
    """No further request is read from it: whoever waits for one sees the end."""
    # gevent's own shutdown would have the reader fail instead, as if the descriptor were gone.
    with contextlib.suppress(OSError), contextlib.closing(_socket.socket(fileno=os.dup(sock.fileno()))) as plain:
        plain.shutdown(socket.SHUT_RD)


def unresponsive(error: OSError) -> bool:
    """Whether ``error`` says of a peer that it took nothing for too long, or that its machine is not there any more."""
    return isinstance(error, TimeoutError) or error.errno == errno.EHOSTUNREACH


def on_hangup(sock: _socket.socket, left: Callable[[str], None]) -> Callable[[], None]:
    """Calls ``left`` once when the peer closes; without it that is noticed two heartbeats late. Returns the undoing.

    It is told ``left``, or ``slow`` when the kernel gave up a peer that took nothing for :data:`USER_TIMEOUT_MS`.

    In a greenlet of its own: the hub itself may not even wait for a lock, and what it was told is lost when it has to.
    """
    watcher = gevent.get_hub().loop.io(sock.fileno(), 1)
    watching = True

    def readable() -> None:
        why = "left"
        try:
            gone = not sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError as error:
            gone = True
            why = "slow" if unresponsive(error) else "left"
        # A client that sends on after its request is not watched further: the data would wake us for ever.
        watcher.stop()
        if gone:
            gevent.spawn(leave, why)

    def leave(why: str) -> None:
        if watching:
            left(why)

    def undo() -> None:
        nonlocal watching
        watching = False
        watcher.stop()
        watcher.close()

    watcher.start(readable)
    return undo
