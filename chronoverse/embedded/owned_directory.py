"""Temporary directories of a service. If the service is killed, they remain until the next one removes them."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import BinaryIO, Final

#: The file in the directory that its owner has locked, which shows whether the owner is alive.
LOCK_NAME: Final = "owner.lock"


def make(prefix: str) -> Path:
    """Makes a directory for the caller to :func:`keep`. Removes this user's ownerless ones with ``prefix``."""
    for lock in Path(tempfile.gettempdir()).glob(f"{prefix}*/{LOCK_NAME}"):
        with contextlib.suppress(OSError), lock.open("rb") as file:
            if os.fstat(file.fileno()).st_uid == os.geteuid():
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=prefix))


def keep(directory: Path) -> BinaryIO:
    """Marks ``directory`` as owned until the returned file is closed, here and in all forks."""
    name = directory / LOCK_NAME
    if not name.exists():
        # A file with that name is always locked while its owner lives: it gets the name afterwards.
        fresh = directory / f"{LOCK_NAME}.new"
        file = fresh.open("wb")
        fcntl.flock(file, fcntl.LOCK_SH)
        fresh.rename(name)
        return file
    found = name.open("rb+")
    fcntl.flock(found, fcntl.LOCK_SH)
    return found
