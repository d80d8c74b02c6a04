"""The secret in the data directory, which signs and checks tokens when no key is configured.

``os.urandom`` does what :mod:`secrets` does, whose import takes 5 ms of every run.
"""

import contextlib
import os
import stat
from pathlib import Path

from chronoverse.errors import SettingsError
from chronoverse.files import draft_of


def secret_path(data_dir: Path) -> Path:
    return data_dir / "token.secret"


def local_secret(data_dir: Path) -> bytes:
    """The secret in ``data_dir``, made by the first process that needs it. Raises :class:`SettingsError`."""
    path = secret_path(data_dir)
    try:
        if not os.path.lexists(path):
            data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            content = os.urandom(48).hex().encode() + b"\n"
            with draft_of(path, content) as draft, contextlib.suppress(FileExistsError):
                os.link(draft, path)
        secret = read_own_file(path, 4_096, 0o077)
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from error
    if secret is None:
        raise SettingsError(f"{path} must be a file that only you can read: chown it, then chmod 600")
    if len(secret.strip()) < 32:
        raise SettingsError(f"{path} contains no secret: remove it to generate a new one")
    return secret.strip()


def read_own_file(path: Path, max_bytes: int, forbidden: int) -> bytes | None:
    """The file's first bytes. None unless it is a file of ours whose mode has none of ``forbidden``. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        is_ours = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & forbidden
        return file.read(max_bytes) if is_ours else None
