"""Where a scan server listens, and what it shares with the workers."""

import os
import shutil
import socket
import sys
import tempfile
from pathlib import Path
from typing import Final


class ScanEndpoint:
    """A Unix socket that listens, and a file. The service's master makes both, and the workers, its forks, have them.

    On Linux neither has a name in the file system. So nobody else can connect, and nothing that cleans temporary files
    can remove them. While the scan server starts again, connections wait in the socket's queue.
    """

    def __init__(self) -> None:
        #: Handed to the scan server.
        self.listener: Final = socket.socket(socket.AF_UNIX)
        directory = tempfile.mkdtemp(prefix="chronoverse-")
        #: What this process and its forks connect to.
        self.path = Path(directory, "socket")
        if sys.platform != "linux":
            self.listener.bind(str(self.path))
        else:
            # A socket's path may have 107 bytes, and the directory's alone may have more.
            handle = os.open(directory, os.O_PATH)
            self.listener.bind(f"/proc/self/fd/{handle}/socket")
            self.path = Path("/proc/self/fd", str(os.open(self.path, os.O_PATH)))
            os.close(handle)
            shutil.rmtree(directory)
        self.listener.listen()
        #: Its first byte says whether the scan server runs. Its other bytes do not exist, and are locked: see
        #: :class:`chronoverse.history.scans.turns.ScanTurns`.
        with tempfile.TemporaryFile() as file:
            self.file: Final = os.dup(file.fileno())
        os.pwrite(self.file, b"?", 0)

    def report(self, is_up: bool) -> None:
        """Says whether the scan server runs."""
        os.pwrite(self.file, bytes([is_up]), 0)

    @property
    def is_up(self) -> bool | None:
        """What was reported last, by any process. None while the scan server starts for the first time."""
        return {b"\0": False, b"\1": True}.get(os.pread(self.file, 1, 0))
