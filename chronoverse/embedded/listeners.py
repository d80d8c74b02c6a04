"""Records where the service of a data directory listens, so that no other service gets its tokens.

Each listening socket has a file in ``<data_dir>/listeners`` that contains its inode. While Linux lists that inode in
``/proc/net/tcp``, no other process can listen at that address. On other systems, only the file is checked.
"""

import contextlib
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from chronoverse.files import draft_of
from chronoverse.settings import reached_at

#: A service bound to one of these can be reached at every address of the same family.
_WILDCARDS: Final = ("0.0.0.0", "::")


def record(data_dir: Path, listener: socket.socket) -> Path | None:
    if listener.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    host, port, *_ = listener.getsockname()
    folder = data_dir / "listeners"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = _path(data_dir, host, port)
    with draft_of(path, str(os.fstat(listener.fileno()).st_ino).encode()) as draft:
        draft.rename(path)
    return path


def is_service(data_dir: Path, host: str, port: int) -> bool:
    """Whether the service of ``data_dir``, and no other program, listens at ``port`` on the addresses of ``host``."""
    try:
        found = {address[0] for *_, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except OSError:
        return False
    ours = {address for address in found if _is_recorded(data_dir, str(address), port)}
    for address in found - ours if ours else ():
        # A listener on this machine accepts connections within a second.
        with contextlib.suppress(OSError), socket.create_connection((str(address), port), 1.0):
            return False
    return bool(ours)


def local_service_url(data_dir: Path) -> str | None:
    """The URL of the service of ``data_dir``, or None if it does not listen on this machine."""
    for path in sorted((data_dir / "listeners").glob("*:*")):
        host, _, port = path.name.rpartition(":")
        if port.isdecimal() and _is_recorded(data_dir, host, int(port)):
            return reached_at(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
    return None


def _is_recorded(data_dir: Path, address: str, port: int) -> bool:
    for name in (address, *_WILDCARDS):
        with contextlib.suppress(OSError):
            inode = _path(data_dir, name, port).read_text(encoding="ascii")
            if sys.platform != "linux" or inode in _listening_inodes():
                return True
    return False


def _listening_inodes() -> Iterator[str]:
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(FileNotFoundError), open(f"/proc/net/{name}", encoding="ascii") as rows:
            for row in rows:
                columns = row.split()
                if columns[3] == "0A":  # the state of a listening socket
                    yield columns[9]


def _path(data_dir: Path, host: str, port: int) -> Path:
    return data_dir / "listeners" / f"{host}:{port}"
