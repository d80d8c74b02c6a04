"""The interface of object stores, and an object store in files."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from chronoverse.errors import ArchiveDamaged, ArchiveUnavailable
from chronoverse.files import draft_of, sync


class StoredObject(NamedTuple):
    """An object in a listing: name, size in bytes, and when it was written (Unix seconds)."""

    name: str
    size: int
    written_at: float


class ObjectStore(Protocol):
    """Stores whole, immutable objects under names with slashes. Every method raises :class:`ArchiveUnavailable`."""

    def put(self, name: str, data: bytes) -> None:
        """Stores an object durably: it survives a power cut once this returns. Idempotent."""

    def get(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        """The object's bytes from ``start`` to ``stop`` or its end. Raises :class:`ArchiveDamaged` if missing."""

    def delete(self, name: str) -> None:
        """Deletes the object durably, if it exists: a power cut must not bring back redacted text."""

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """The objects whose names start with ``prefix``, which is empty or ends with a slash."""


class FileObjectStore:
    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def put(self, name: str, data: bytes) -> None:
        """Writes a temporary file, syncs it, and renames it, so that objects are never incomplete."""
        path = self._directory / name
        with _translate_errors():
            self._make_directory(path.parent)
            try:
                with draft_of(path, data) as draft:
                    draft.rename(path)
                self._sync_all(path.parent)
            except FileNotFoundError as error:
                # The object, the folder or the temporary file was deleted meanwhile.
                raise ArchiveUnavailable(f"{name} was deleted while it was written") from error

    def get(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        try:
            with _translate_errors(), (self._directory / name).open("rb") as file:
                # A record in the store can have any offset and size, and read() allocates as much as requested.
                size = os.fstat(file.fileno()).st_size
                start, stop = min(start, size), size if stop is None else min(stop, size)
                file.seek(start)
                return file.read(max(0, stop - start))
        except FileNotFoundError as error:
            raise ArchiveDamaged(f"the archive lacks {name}") from error

    def delete(self, name: str) -> None:
        with _translate_errors():
            path = self._directory / name
            path.unlink(missing_ok=True)
            with contextlib.suppress(FileNotFoundError):
                sync(path.parent)
            for parent in path.relative_to(self._directory).parents[:-1]:
                with contextlib.suppress(OSError):
                    (self._directory / parent).rmdir()

    def list(self, prefix: str) -> Iterator[StoredObject]:
        with _translate_errors():
            for path in sorted((self._directory / prefix).rglob("*")):
                with contextlib.suppress(FileNotFoundError):
                    status = path.stat()
                    if path.is_file():
                        yield StoredObject(str(path.relative_to(self._directory)), status.st_size, status.st_mtime)

    def _make_directory(self, directory: Path) -> None:
        """Creates ``directory`` and its parents with mode 0700. ``mkdir(parents=True)`` would not set the parents'."""
        if directory.is_dir():
            return
        if directory != self._directory:
            self._make_directory(directory.parent)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _sync_all(self, directory: Path) -> None:
        """Syncs ``directory`` and its parents, up to the archive directory's parent, as each can have a new entry."""
        for each in (directory, *directory.parents):
            sync(each)
            if each == self._directory.parent:
                return


@contextlib.contextmanager
def _translate_errors() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ArchiveUnavailable(f"the archive cannot be used: {error.strerror or error}") from error
