"""What the archive needs of a place for objects; and what may go wrong there."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol
from urllib.parse import unquote, urlsplit


class StoredObject(NamedTuple):
    """An object that is there: its name, its bytes, and when it was written, in Unix seconds."""

    name: str
    size: int
    written_at: float


class ObjectStore(Protocol):
    """Whole objects under names with slashes. An object that was put is never changed, only deleted.

    Raises of any method: :class:`ArchiveUnavailable` when the place does not answer, and is worth a retry.
    """

    def put(self, name: str, data: bytes) -> None:
        """Stores an object whole, safe from a power cut when this returns. Putting the same again changes nothing."""

    def get(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        """Its bytes from ``start`` up to ``stop``. Raises :class:`ArchiveDamaged` when there is no such object."""

    def delete(self, name: str) -> None:
        """Deletes it; nothing happens when there is no such object."""

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """The objects whose names start with ``prefix``, which ends with a slash."""


def open_object_store(url: str) -> ObjectStore:
    """The place that ``CHRONOVERSE_ARCHIVE_URL`` names: ``file:///DIRECTORY`` or ``s3://BUCKET/PREFIX``.

    Raises: :class:`SettingsError` when what it takes is not installed.
    """
    # Both import this module.
    from chronoverse.archive.file_store import FileObjectStore
    from chronoverse.archive.s3_store import S3ObjectStore

    parts = urlsplit(url)
    if parts.scheme == "s3":
        return S3ObjectStore(parts.netloc, unquote(parts.path))
    return FileObjectStore(Path(unquote(parts.path)))
