"""The scan server's socket, and the locks that it shares with workers."""

import contextlib
import fcntl
import math
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Final

from chronoverse.errors import ShareExceeded
from chronoverse.fair_lock import FairLock

#: Seconds between checks whether the subject's scan in another worker has ended.
_POLL_SECONDS: Final = 0.01


class ScanEndpoint:
    """A listening Unix socket and a lock file, created by the service's master for its forks.

    On Linux, the socket's file is deleted immediately.

    While the scan server restarts, connections wait in the socket's queue.
    """

    def __init__(self, platform: str = sys.platform) -> None:
        self.listener: Final = socket.socket(socket.AF_UNIX)
        directory = tempfile.mkdtemp(prefix="chronoverse-")
        self.path = Path(directory, "socket")
        if platform != "linux":
            self.listener.bind(str(self.path))
        else:
            # A socket's path is limited to 107 bytes, and the directory's path alone can be longer.
            handle = os.open(directory, os.O_PATH)
            self.listener.bind(f"/proc/self/fd/{handle}/socket")
            self.path = Path("/proc/self/fd", str(os.open(self.path, os.O_PATH)))
            os.close(handle)
            shutil.rmtree(directory)
        self.listener.listen()
        #: The file's first byte is 1 while the scan server runs. :class:`ScanTurns` locks bytes beyond the file's end.
        with tempfile.TemporaryFile() as file:
            self.file: Final = os.dup(file.fileno())
        os.pwrite(self.file, b"?", 0)

    def report(self, is_up: bool) -> None:
        os.pwrite(self.file, bytes([is_up]), 0)

    @property
    def is_up(self) -> bool | None:
        return {b"\0": False, b"\1": True}.get(os.pread(self.file, 1, 0))


class ScanTurns:
    """One turn at a time per subject (the user of a token): a lock on a byte of an endpoint's ``file``."""

    def __init__(self, file: int) -> None:
        self._file: Final = file
        #: A kernel lock belongs to a whole process. A subject's scans within this process queue here.
        self._queues: Final = FairLock(0, _used_up, at_once=math.inf, each=1)

    @contextlib.contextmanager
    def hold(self, subject: str, deadline: float) -> Iterator[None]:
        """Holds ``subject``'s turn. Raises :class:`ShareExceeded` if another scan still has it at ``deadline``."""
        byte = int.from_bytes(blake2b(subject.encode(), digest_size=8).digest()) >> 2
        with self._queues.hold(subject, max(deadline - time.monotonic(), 0)) as waited:
            if waited:
                # Lets the subject's scans in other workers get a turn.
                time.sleep(_POLL_SECONDS)
            while True:
                try:
                    fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
                    break
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        raise _used_up() from None
                time.sleep(_POLL_SECONDS)
            try:
                yield
            finally:
                fcntl.lockf(self._file, fcntl.LOCK_UN, 1, byte)


def _used_up(_: str = "") -> ShareExceeded:
    return ShareExceeded("timed out waiting for other searches of this token: only one runs at a time")
