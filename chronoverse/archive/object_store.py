"""What the archive needs of a place for objects; and what may go wrong there."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol


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
