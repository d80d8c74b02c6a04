"""The file in which the workers of a node share an issuer's keys, and the lock that lets one of them fetch at a time.

Whoever can write the file can make tokens. So it is read only if it is ours, and if nobody else can write it.
"""

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import orjson

from chronoverse.auth.local_secret import draft_of, read_own_file
from chronoverse.errors import SettingsError

#: Bytes of a record as JSON, at most: a key set of 256 KiB, of which every character may be escaped.
MAX_RECORD_BYTES: Final = 2 * 262_144 + 1_024


@dataclass(frozen=True, slots=True)
class FetchRecord:
    """When the keys were fetched last, and what came. Times are Unix times at which a fetch began; 0 is never."""

    #: The last fetch, whether or not it succeeded.
    tried_at: float = 0.0
    #: The last fetch that succeeded.
    fetched_at: float = 0.0
    #: The key set that it brought, as JSON.
    document: bytes = b""

    @property
    def failed(self) -> bool:
        """Whether the last fetch brought no keys."""
        return self.fetched_at < self.tried_at

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """The record that :meth:`to_json` has written. Raises ValueError, TypeError, KeyError or AttributeError."""
        found = orjson.loads(text)
        return cls(float(found["tried_at"]), float(found["fetched_at"]), found["document"].encode())

    def to_json(self) -> bytes:
        """The record for other processes."""
        times = {"tried_at": self.tried_at, "fetched_at": self.fetched_at}
        return orjson.dumps({**times, "document": self.document.decode()})


def key_set_name(url: str) -> str:
    """What the keys at ``url`` are kept under. Nobody learns the URL from it."""
    return hashlib.sha256(url.encode()).hexdigest()[:16]


class KeySetFile:
    """The file for the keys at ``url``, in ``directory``. Raises :class:`SettingsError` when that cannot be written."""

    def __init__(self, directory: Path, url: str) -> None:
        name = f"jwks-{key_set_name(url)}"
        self._path = directory / f"{name}.json"
        self._lock_path = directory / f"{name}.lock"
        self._seen: tuple[int, int, int] | None = None
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self.lock():
                pass
        except OSError as error:
            raise SettingsError(f"{directory} (CHRONOVERSE_DATA_DIR) cannot be written: {error.strerror}") from error

    @contextlib.contextmanager
    def lock(self) -> Iterator[bool]:
        """Holds the lock, and yields True. Yields False at once if somebody else holds it. Raises OSError."""
        descriptor = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(descriptor)

    def read_if_changed(self) -> FetchRecord | None:
        """The record, if it has changed since the last call, and the file is whole and ours alone. Otherwise None."""
        try:
            status = os.stat(self._path, follow_symlinks=False)
        except OSError:
            return None
        seen = status.st_ino, status.st_mtime_ns, status.st_size
        if seen == self._seen:
            return None
        self._seen = seen
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
            content = read_own_file(self._path, MAX_RECORD_BYTES, 0o022)
            return None if content is None else FetchRecord.from_json(content)
        return None

    def write(self, record: FetchRecord) -> None:
        """Replaces the file, completely or not at all. Only the holder of the lock may do that. Raises OSError."""
        with draft_of(self._path, record.to_json()) as draft:
            os.replace(draft, self._path)
