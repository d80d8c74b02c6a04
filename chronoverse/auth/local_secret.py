"""The secret in the data directory, which signs and checks tokens when no key is configured."""

import contextlib
import os
import secrets
import stat
from pathlib import Path

from chronoverse.errors import SettingsError


def secret_path(data_dir: Path) -> Path:
    """The file of the secret in ``data_dir``, which may not exist yet."""
    return data_dir / "token.secret"


def local_secret(data_dir: Path) -> bytes:
    """The secret in ``data_dir``. The first process that needs it makes it; several may try at the same time.

    Raises :class:`SettingsError` when the file cannot be used, when others can read it, or when it is too short.
    """
    path = secret_path(data_dir)
    try:
        with contextlib.suppress(FileNotFoundError):
            return _read_secret(path)
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write_secret(path)
        return _read_secret(path)
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from error


def _read_secret(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise SettingsError(f"{path} must be a file that only you can read: chown it, then chmod 600")
        # Bytes read of the secret's file, at most. We write 65.
        secret = file.read(4_096).strip()
    if len(secret) < 32:
        raise SettingsError(f"{path} holds no secret: remove it, and a new one is made")
    return secret


def _write_secret(path: Path) -> None:
    """Writes a new secret to ``path``, completely or not at all. An existing file is not changed."""
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(secrets.token_urlsafe(48).encode() + b"\n")
            file.flush()
            os.fsync(descriptor)
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink()
