"""Notices a store whose history went back: it was emptied, restored from an old copy, or has lost a part of its file.

Archivers move a time in the store on, the *age mark*. The bucket's object ``store-mark.json`` has one that it had
a minute ago or earlier. A store whose mark is older may not know objects that it has recorded, so archivers delete
nothing until an operator has removed the object. A power cut that cost the last seconds is no reason to stop.
"""

import contextlib
import logging
import time
from collections.abc import Callable
from typing import Final

import orjson

from chronoverse import metrics
from chronoverse.archive.object_store import ObjectStore
from chronoverse.errors import ArchiveDamaged, StoreRefused
from chronoverse.joblog.model import iso_timestamp
from chronoverse.store import Store

#: The object's name.
MARK: Final = "store-mark.json"
#: Seconds between two marks, and between two reads of the object.
MARK_SECONDS: Final = 60.0

log: Final = logging.getLogger(__name__)


class StoreHistory:
    """Compares the store with the bucket. ``clock`` is Unix time in seconds."""

    def __init__(self, store: Store, objects: ObjectStore, clock: Callable[[], float] = time.time) -> None:
        self._store: Final = store
        self._objects: Final = objects
        self._clock: Final = clock
        #: The bucket's mark, when it was read, and whether the log says that the store went back.
        self._known = 0.0
        self._read_at = float("-inf")
        self._reported = False

    def went_back(self) -> bool:
        """Whether the store has lost a part of its history. Moves the marks on if not. Raises as both stores do."""
        now = self._clock()
        if abs(now - self._read_at) >= MARK_SECONDS:
            self._known, self._read_at = self._read(), now
        mark = self._store.catalog.mark()
        went_back = mark < self._known
        if not went_back and now - mark >= MARK_SECONDS:
            # A store that is full must be relieved all the same.
            with contextlib.suppress(StoreRefused):
                self._store.catalog.move_mark(now)
            if mark > self._known:
                self._objects.put(MARK, orjson.dumps({"mark": mark, "time": iso_timestamp(mark)}))
                self._known = mark
        metrics.STORE_WENT_BACK.set(went_back)
        if went_back and not self._reported:
            log.error(
                "the store has lost its history: it is as it was at %s, and the archive has seen it at %s; nothing is "
                "deleted from the archive until its object %s is removed (docs/operations.md)",
                iso_timestamp(mark) if mark else "no time",
                iso_timestamp(self._known),
                MARK,
            )
        self._reported = went_back
        return went_back

    def _read(self) -> float:
        """The bucket's mark; 0 when it has none. Raises :class:`ArchiveDamaged` for one that cannot be read."""
        try:
            data = self._objects.get(MARK)
        except ArchiveDamaged:
            return 0.0
        try:
            return float(orjson.loads(data)["mark"])
        except (ValueError, TypeError, LookupError) as error:
            raise ArchiveDamaged(f"{MARK} in the archive cannot be read: remove it") from error
