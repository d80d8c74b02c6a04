"""One scan of a subject at a time, in all workers of a service together."""

import contextlib
import fcntl
import threading
import time
from collections.abc import Iterator
from hashlib import blake2b
from typing import Final
from weakref import WeakValueDictionary

from chronoverse.errors import ShareExceeded

#: Seconds between two looks whether the subject's scan in another worker is over.
POLL_SECONDS: Final = 0.01


class ScanTurns:
    """Gives each subject (the user of a token) one turn at a time. Subjects do not wait for each other.

    A turn is a lock on one byte of ``file``, that of a :class:`~chronoverse.history.scans.endpoint.ScanEndpoint`. The
    kernel releases the locks of a process that dies, so no turn is lost with a worker.
    """

    def __init__(self, file: int) -> None:
        self._file: Final = file
        #: The kernel's locks belong to a whole process. Within it, a subject's scans wait here, in order.
        self._queues: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()

    @contextlib.contextmanager
    def hold(self, subject: str, deadline: float) -> Iterator[None]:
        """Holds the turn of ``subject`` during a ``with`` block.

        Raises :class:`ShareExceeded` when it is not free before the monotonic time ``deadline``.
        """
        queue = self._queues.setdefault(subject, threading.Lock())
        waited = not queue.acquire(blocking=False)
        if waited and not queue.acquire(timeout=max(deadline - time.monotonic(), 0)):
            raise _used_up()
        byte = int.from_bytes(blake2b(subject.encode(), digest_size=8).digest()) >> 2
        try:
            if waited:
                # The subject's scans in other workers get the turn in between.
                time.sleep(POLL_SECONDS)
            while not self._lock(byte):
                if time.monotonic() >= deadline:
                    raise _used_up()
                time.sleep(POLL_SECONDS)
            try:
                yield
            finally:
                fcntl.lockf(self._file, fcntl.LOCK_UN, 1, byte)
        finally:
            queue.release()

    def _lock(self, byte: int) -> bool:
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
        except BlockingIOError:
            return False
        return True


def _used_up() -> ShareExceeded:
    return ShareExceeded("other searches of this token were not over in time: it has one at a time")
