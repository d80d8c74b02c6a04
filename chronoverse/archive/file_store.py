"""The archive as files below a directory."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from chronoverse.archive.object_store import StoredObject
from chronoverse.errors import ArchiveDamaged, ArchiveUnavailable

#: What the name of a file begins with that is still being written. No object's does.
_TEMPORARY_PREFIX = ".writing-"


class FileObjectStore:
    """Objects below ``directory``, which is made when it is first written to. See :class:`ObjectStore`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def put(self, name: str, data: bytes) -> None:
        """Writes a file beside it, has that on the disk, and renames it: the object is there whole or not at all."""
        path = self._directory / name
        with _translate_errors():
            self._make_directory(path.parent)
            writing = path.with_name(f"{_TEMPORARY_PREFIX}{secrets.token_hex(8)}")
            try:
                descriptor = os.open(writing, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                with open(descriptor, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                writing.rename(path)
            except FileNotFoundError as error:
                # Somebody has emptied the folder meanwhile, and so deleted it, or has swept what was half written.
                raise ArchiveUnavailable(f"{name} was deleted while it was written") from error
            except BaseException:
                writing.unlink(missing_ok=True)
                raise
            self._sync(path.parent)

    def get(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        try:
            with _translate_errors(), (self._directory / name).open("rb") as file:
                # A record may ask for any place and any size, and Python makes room for all that it is asked to read.
                size = os.fstat(file.fileno()).st_size
                start, stop = min(start, size), size if stop is None else min(stop, size)
                file.seek(start)
                return file.read(max(0, stop - start))
        except FileNotFoundError as error:
            raise ArchiveDamaged(f"the archive holds no {name}") from error

    def delete(self, name: str) -> None:
        with _translate_errors():
            path = self._directory / name
            path.unlink(missing_ok=True)
            for parent in path.relative_to(self._directory).parents[:-1]:
                with contextlib.suppress(OSError):
                    (self._directory / parent).rmdir()

    def list(self, prefix: str) -> Iterator[StoredObject]:
        with _translate_errors():
            for path in sorted((self._directory / prefix).rglob("*")):
                with contextlib.suppress(FileNotFoundError):
                    found = path.stat()
                    if path.is_file():
                        yield StoredObject(str(path.relative_to(self._directory)), found.st_size, found.st_mtime)

    def _make_directory(self, directory: Path) -> None:
        """Makes ``directory`` and those above it. Only this user may enter those that are below the archive's own.

        ``mkdir(parents=True)`` would give the mode to the last one only.
        """
        if directory.is_dir():
            return
        if directory != self._directory:
            self._make_directory(directory.parent)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _sync(self, directory: Path) -> None:
        """The entries of ``directory`` and those above it that may be new, safe on the disk."""
        for each in (directory, *directory.parents):
            handle = os.open(each, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
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
