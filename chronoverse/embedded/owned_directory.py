"""A service's temporary directories. If the service is killed, the next one removes them."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import BinaryIO, Final

#: The file that the owner keeps locked while it is alive.
LOCK_NAME: Final = "owner.lock"


def make(prefix: str) -> Path:
    """Makes a directory; the caller must :func:`keep` it. Removes this user's abandoned directories with ``prefix``."""
    for lock in Path(tempfile.gettempdir()).glob(f"{prefix}*/{LOCK_NAME}"):
        with contextlib.suppress(OSError), lock.open("rb") as file:
            if os.fstat(file.fileno()).st_uid == os.geteuid():
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=prefix))


def keep(directory: Path) -> BinaryIO:
    """Marks ``directory`` as owned until this process and all its forks have closed the returned file."""
    name = directory / LOCK_NAME
    if not name.exists():
        # Locks the file before it gets its name, so that a file with this name is unlocked only if its owner is dead.
        fresh = directory / f"{LOCK_NAME}.new"
        file = fresh.open("wb")
        fcntl.flock(file, fcntl.LOCK_SH)
        fresh.rename(name)
        return file
    found = name.open("rb+")
    fcntl.flock(found, fcntl.LOCK_SH)
    return found
