"""A worker's caches of the archive: objects, lines and chunk records. Safe for threads and greenlets."""

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future
from itertools import islice
from typing import Final, Generic, TypeVar

from cachetools import LRUCache

from chronoverse.errors import ArchiveUnavailable
from chronoverse.joblog.chunk import Chunk
from chronoverse.joblog.model import JobRef

#: Seconds for which a cached chunk record is used, because a redaction replaces records.
RECORD_SECONDS: Final = 1.0
#: Maximum cached chunk records, about 20 KiB each.
RECORDS: Final = 128

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class SingleFlightCache(Generic[_Key, _Value]):
    """An LRU cache of up to ``max_bytes``. Concurrent callers share one load."""

    def __init__(self, max_bytes: int) -> None:
        self._lock = threading.Lock()
        self._cached: LRUCache[_Key, tuple[_Value, float]] = LRUCache(max_bytes, getsizeof=lambda cached: cached[1])
        self._loading: dict[_Key, Future[_Value]] = {}

    def get(self, key: _Key, load: Callable[[], tuple[_Value, float]]) -> _Value:
        """The cached value, or the value that ``load`` returns as (value, size in bytes).

        Raises what ``load`` raises, and :class:`ArchiveUnavailable` after waiting 60 s for another caller.
        """
        while True:
            with self._lock:
                cached = self._cached.get(key)
                if cached is not None:
                    return cached[0]
                loading = self._loading.get(key)
                if loading is None:
                    mine = self._loading[key] = Future()
            if loading is None:
                return self._load(key, mine, load)
            try:
                return loading.result(60)
            except CancelledError:
                # The greenlet that was loading the value was stopped: start over.
                continue
            except TimeoutError as error:
                raise ArchiveUnavailable("reading the archive timed out after 60 s") from error

    def forget(self, matches: Callable[[_Key], bool]) -> None:
        """Drops values with matching keys. Loads in progress still return their values, but do not cache them."""
        with self._lock:
            for known in (self._cached, self._loading):
                for key in [key for key in known if matches(key)]:
                    del known[key]

    def _load(self, key: _Key, mine: "Future[_Value]", load: Callable[[], tuple[_Value, float]]) -> _Value:
        try:
            value, size = load()
        except BaseException as error:
            with self._lock:
                if self._loading.get(key) is mine:
                    del self._loading[key]
            if isinstance(error, Exception):
                mine.set_exception(error)
            else:
                mine.cancel()
            raise
        with self._lock:
            if self._loading.get(key) is mine:
                del self._loading[key]
                # An LRUCache raises ValueError for a value that is larger than the whole cache.
                if size <= self._cached.maxsize:
                    self._cached[key] = value, size
        mine.set_result(value)
        return value


class ChunkRecordCache:
    """The last :data:`RECORDS` chunk records from ``find``. Each is used for :data:`RECORD_SECONDS`."""

    def __init__(
        self, find: Callable[[JobRef, int], Chunk | None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._find: Final = find
        self._clock: Final = clock
        self._lock = threading.Lock()
        self._records: dict[tuple[JobRef, int], tuple[Chunk, float]] = {}
        self._forgotten = 0

    def chunk(self, job: JobRef, number: int) -> Chunk | None:
        """The chunk with line ``number``, or the next one. The record can be :data:`RECORD_SECONDS` old."""
        earliest = self._clock() - RECORD_SECONDS
        with self._lock:
            # Tries the newest records first, because a search loads twenty, and then uses each once.
            for (ref, last), (chunk, asked_at) in reversed(self._records.items()):
                if ref == job and chunk.first <= number <= last and asked_at >= earliest:
                    return chunk
        return self.fresh_chunk(job, number)

    def load(self, find: Callable[[], Mapping[JobRef, Chunk]]) -> None:
        """Caches the records that ``find`` reads in one call."""
        asked = self._forgotten, self._clock()
        self._add(find(), asked)

    def fresh_chunk(self, job: JobRef, number: int) -> Chunk | None:
        """Like :meth:`chunk`, but always reads the store. Caches the record."""
        asked = self._forgotten, self._clock()
        chunk = self._find(job, number)
        if chunk is not None:
            self._add({job: chunk}, asked)
        return chunk

    def _add(self, found: Mapping[JobRef, Chunk], asked: tuple[int, float]) -> None:
        with self._lock:
            # Caches nothing if records were dropped since the request: these can be older than a redaction.
            for job, chunk in found.items() if asked[0] == self._forgotten else ():
                self._records.pop((job, chunk.last), None)
                self._records[job, chunk.last] = chunk, asked[1]
            for key in [*islice(self._records, max(len(self._records) - RECORDS, 0))]:
                del self._records[key]

    def forget(self, job: JobRef) -> None:
        with self._lock:
            self._forgotten += 1
            for key in [key for key in self._records if key[0] == job]:
                del self._records[key]
