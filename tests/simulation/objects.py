"""An in-memory object store that is slow, rejects requests, and drops what it did not confirm."""

import time
from collections.abc import Iterator
from typing import Final

from chronoverse.archive.object_store import StoredObject
from chronoverse.errors import ArchiveDamaged, ArchiveUnavailable
from tests.simulation.kernel import loop, world


class Bucket:
    """The objects, and their store's faults. Times are ends of faults."""

    def __init__(self) -> None:
        self.objects: Final[dict[str, tuple[bytes, float]]] = {}
        self.away_until = self.slow_until = 0.0


class SimObjectStore:
    """A client of the bucket. See :class:`chronoverse.archive.object_store.ObjectStore`."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    def put(self, name: str, data: bytes) -> None:
        self._wait()
        if world.chance.random() < 0.5:
            self._store(name, data)
        self._wait()
        self._store(name, data)
        world.tell(world.process_name, f"put {name} ({len(data)} bytes)")

    def _store(self, name: str, data: bytes) -> None:
        self._bucket.objects[name] = data, time.time()

    def get(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        self._wait()
        found = self._bucket.objects.get(name)
        if found is None:
            raise ArchiveDamaged(f"the archive lacks {name}")
        return found[0][start:stop]

    def delete(self, name: str) -> None:
        self._wait()
        if self._bucket.objects.pop(name, None) is not None:
            world.tell(world.process_name, f"deleted {name}")

    def list(self, prefix: str) -> Iterator[StoredObject]:
        self._wait()
        for name in sorted(self._bucket.objects):
            if name.startswith(prefix) and (found := self._bucket.objects.get(name)):
                yield StoredObject(name, len(found[0]), found[1])

    def _wait(self) -> None:
        chance = world.chance.random
        time.sleep(chance() * (3.0 if loop.time < self._bucket.slow_until else 0.02))
        if loop.time < self._bucket.away_until and chance() < 0.8:
            raise ArchiveUnavailable("the archive does not answer")
