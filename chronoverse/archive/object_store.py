"""The interface of an object store."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol


class StoredObject(NamedTuple):
    """An object as a listing shows it: its name, its size in bytes, and when it was written, in Unix seconds."""

    name: str
    size: int
    written_at: float


class ObjectStore(Protocol):
    """Stores whole objects under names with slashes. An object that was put is never changed, only deleted.

    Every method raises :class:`ArchiveUnavailable` when the object store does not answer.
    """

    def put(self, name: str, data: bytes) -> None:
        """Stores a whole object. It survives a power cut once this has returned. Putting the same again is harmless."""

    def get(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        """The object's bytes from ``start`` up to ``stop``. Raises :class:`ArchiveDamaged` if there is no such object.

        A ``stop`` beyond the object's end is cut to its end.
        """

    def delete(self, name: str) -> None:
        """Deletes the object. Nothing happens if there is no such object."""

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """The objects whose names start with ``prefix``, which is empty or ends with a slash."""
