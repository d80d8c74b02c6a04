"""Detects a store that lost data, and an archive that was emptied or belongs to another store.

Archivers advance a time in the store, the *age mark*. ``store-mark.json`` in the archive has the archive's id, and the
mark of a minute ago. If the store's mark is older or its id differs, nothing is deleted until an operator confirms it.
"""

import contextlib
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import orjson

from chronoverse import metrics
from chronoverse.archive.object_store import ObjectStore
from chronoverse.errors import ArchiveDamaged, StoreRefused
from chronoverse.joblog.model import iso_timestamp
from chronoverse.store import Store

MARK: Final = "store-mark.json"
#: Exists while an archiver checks whether it can write.
PROBE: Final = f"{MARK}.probe"

log: Final = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class StoreHistory:
    """Compares the store with its archive. ``clock`` is Unix time in seconds."""

    _store: Store
    _objects: ObjectStore
    _clock: Callable[[], float] = time.time
    bucket_lost: bool = False
    _known: float = 0.0
    _id: str = ""
    _read_at: float = float("-inf")
    _reported: tuple[bool, bool] = (False, False)

    def went_back(self) -> bool:
        """Whether the store or the archive has lost a part of its history. If not, advances the age mark.

        Raises the errors of the store and the object store.
        """
        now, mark = self._clock(), self._store.catalog.mark()
        # A mark is written, and the archive's object read, once a minute.
        is_due, reads_again = now - mark >= 60.0, abs(now - self._read_at) >= 60.0
        if reads_again or (is_due and mark > self._known):
            self._known, self._id = self._read()
            self._read_at = now
            own = self._store.catalog.bucket()
            self.bucket_lost = bool(own) and self._id != own
        went_back = mark < self._known
        # An archiver with a fast clock may have moved the mark into the future.
        is_due |= reads_again and mark - now >= 60.0
        if is_due and not went_back and not self.bucket_lost:
            # Ignores the refusal of a full store, because archiving must continue.
            with contextlib.suppress(StoreRefused):
                self._store.catalog.move_mark(max(now, mark + 1))
            if mark > self._known:
                self._put(mark)
        metrics.STORE_WENT_BACK.set(went_back)
        metrics.BUCKET_LOST.set(self.bucket_lost)
        self._report(went_back, mark)
        return went_back or self.bucket_lost

    def is_incomplete(self) -> bool:
        """Like :meth:`went_back`, for programs other than archivers: only reads, and sets no metric."""
        known, archive_id = self._read()
        own = self._store.catalog.bucket()
        return self._store.catalog.mark() < known or (bool(own) and archive_id != own)

    def confirm(self) -> None:
        """Records that the store and the archive are complete and belong together.

        Raises the errors of the store and the object store.
        """
        with contextlib.suppress(ArchiveDamaged):
            self._id = self._read()[1]
        mark = self._store.catalog.mark()
        self._store.catalog.move_mark(self._clock())
        self._put(mark)

    def _put(self, mark: float) -> None:
        """Writes the archive's object, then the store's id: the store must never have an id that the archive lacks."""
        self._id = self._id or self._store.catalog.bucket() or secrets.token_hex(8)
        self._objects.put(MARK, orjson.dumps({"mark": mark, "time": iso_timestamp(mark), "bucket": self._id}))
        self._known = mark
        with contextlib.suppress(StoreRefused):
            self._store.catalog.set_bucket(self._id)

    def _report(self, went_back: bool, mark: float) -> None:
        before, self._reported = self._reported, (went_back, self.bucket_lost)
        if went_back and not before[0]:
            log.error(
                "the store lost data: %s, the archive's is of %s; nothing is deleted from the archive until "
                "`chronoverse archive --confirm-store` (docs/operations.md)",
                f"its age mark is of {iso_timestamp(mark)}" if mark else "it has no age mark",
                iso_timestamp(self._known),
            )
        if self.bucket_lost and not before[1]:
            log.error(
                "the archive does not belong to this store: %s; `chronoverse archive --verify` lists what is missing, "
                "and nothing is deleted until `chronoverse archive --confirm-store` (docs/operations.md)",
                f"its {MARK} names another store" if self._id else f"it has no {MARK}, as if it was emptied",
            )

    def _read(self) -> tuple[float, str]:
        """The archive's mark and id; 0 and "" if missing. Raises :class:`ArchiveDamaged` if invalid."""
        try:
            data = self._objects.get(MARK)
        except ArchiveDamaged:
            return 0.0, ""
        try:
            fields = orjson.loads(data)
            return float(fields["mark"]), str(fields.get("bucket") or self._store.catalog.bucket())
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise ArchiveDamaged(
                f"{MARK} in the archive cannot be read: run `chronoverse archive --confirm-store`"
            ) from error
