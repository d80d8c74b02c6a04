"""The objects of one job: written so that none is forgotten, and deleted when no record can name them any more.

An object's name is written down in the store before the object is written, and again in the step in which its record is
replaced. Until a record names it, it is *garbage*, and whoever holds the job's archiving lease next deletes it: the
next archiver, a redaction that is repeated, or the deletion of the job. What was written down nowhere, because the
store has lost its last seconds, is found in the job's folder.

An object that had a record is deleted only when the store cannot go back to that record, neither by a power cut nor by
a failover to a replica that is behind, or after an hour. Until then the old record can be read, should it come back.
"""

import contextlib
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from chronoverse.archive.codec import text_sha256
from chronoverse.archive.object_store import ObjectStore, StoredObject
from chronoverse.errors import ArchiveBusy, ArchiveDamaged, ArchiveUnavailable, ChronoverseError, StoreError
from chronoverse.joblog.chunk import MANIFEST, Chunk, folder, is_object_of
from chronoverse.joblog.values import JobRef, seconds_of
from chronoverse.store import Store

#: Seconds after which the archiving of a job may be taken from a process that is not heard of any more. One that lives
#: renews it three times in that time; a log that is written flat out grows by 350 MB in it.
LOCK_SECONDS: Final = 10.0
#: Seconds for which an object without a record may still be about to get one, and for which a store may go back to a
#: record where it does not say: far more than any step takes, and the time between two snapshots by Redis' own default.
ORPHAN_SECONDS: Final = 3_600.0
#: Seconds by which an object store's clock may be behind ours. S3 tells whole seconds.
CLOCK_SKEW_SECONDS: Final = 60.0
#: Called with the name of each step that was made.
StepHook = Callable[[str], None]


def ignore_step(step: str) -> None:
    """An :data:`At` for when nobody wants to hear of the steps."""


@contextlib.contextmanager
def archive_lock(store: Store, job: JobRef, seconds: float = LOCK_SECONDS) -> Iterator[str]:
    """The sole right to archive ``job``: a token, renewed for as long as this lasts. Raises :class:`ArchiveBusy`."""
    token = secrets.token_hex(16)
    if not store.chunks.acquire_lock(job, token, seconds):
        raise ArchiveBusy("somebody else archives the job just now")
    over = threading.Event()

    def renew() -> None:
        while not over.wait(seconds / 3):
            # When this fails the seal is refused, and says so.
            with contextlib.suppress(StoreError):
                if not store.chunks.acquire_lock(job, token, seconds):
                    return

    renewing = threading.Thread(target=renew, name="sealer", daemon=True)
    renewing.start()
    try:
        yield token
    finally:
        over.set()
        renewing.join()
        with contextlib.suppress(StoreError):
            store.chunks.release_lock(job, token)


class CollectedGarbage(NamedTuple):
    """What :meth:`JobObjects.collect` did: how many objects it deleted, and how many are left to be deleted later.

    ``permanent``: whether the store's records are there for good, as :func:`~chronoverse.store.durability.is_permanent`
    answers.
    """

    deleted: int
    remaining: int
    permanent: bool | None


class JobObjects:
    """The objects of ``job``, for the holder of its archiving lease: ``token``. ``at`` hears of each step."""

    def __init__(
        self,
        store: Store,
        objects: ObjectStore,
        job: JobRef,
        token: str,
        *,
        lease_seconds: float = LOCK_SECONDS,
        on_step: StepHook = ignore_step,
    ) -> None:
        self._store: Final = store
        self._objects: Final = objects
        self._job: Final = job
        self._token: Final = token
        self._lease_seconds: Final = lease_seconds
        self._on_step: Final = on_step

    @contextlib.contextmanager
    def put_verified(self, chunk: Chunk, data: bytes) -> Iterator[Chunk]:
        """Writes a chunk's object under a new name, reads it back, and gives the chunk under that name.

        Within the ``with`` the chunk is to be recorded. Where that fails the object is deleted. An error that only hid
        that it went well, such as a lost answer, is not raised.
        Raises: :class:`Fenced`, :class:`ArchiveDamaged`, :class:`ArchiveUnavailable`; and as the store does.
        """
        chunk = chunk.with_unique_name(secrets.token_hex(8))
        self._store.chunks.begin_upload(self._job, self._token, chunk.name)
        try:
            self._on_step("announced")
            self._objects.put(chunk.name, data)
            self._on_step("put")
            if text_sha256(chunk, self._objects.get(chunk.name)) != chunk.sha256:
                raise ArchiveDamaged(f"{chunk.name} was read back otherwise than it was written")
            self._on_step("read back")
            yield chunk
        except ChronoverseError:
            if not self._delete_unless_recorded(chunk.name):
                raise

    def _delete_unless_recorded(self, name: str) -> bool:
        """Deletes an object unless a record names it; whether one does. Where that fails it stays written down."""
        archived = self._store.chunks
        with contextlib.suppress(ChronoverseError):
            # Once it is condemned no record can name it that does not do so already. Another process may have struck
            # out the name before the object was there.
            condemned = archived.mark_garbage(self._job, self._token)
            if name not in condemned and any(chunk.name == name for chunk in archived.chunks(self._job)):
                return True
            self._objects.delete(name)
            archived.clear_garbage(self._job, [name])
        return False

    def collect_garbage(
        self, now: float, *, min_age: float, orphan_seconds: float = ORPHAN_SECONDS, check_permanence: bool = False
    ) -> CollectedGarbage:
        """Deletes the objects that no record names and none can name any more. It goes on where another broke off.

        Where the store may go back to older records, that is only what was condemned ``orphan_seconds`` ago.
        What was written down nowhere is deleted only if it is ``min_age`` seconds old. ``now`` is Unix time.
        With ``ask`` the store is asked whether its records are permanent also when there is nothing to delete.
        An object that the object store does not delete now is left, and stays written down.
        Raises: :class:`ArchiveUnavailable` when the folder cannot be listed, :class:`ArchiveDamaged`; and as the store.
        """
        archived = self._store.chunks
        unknown = self._unrecorded()
        old = [each.name for each in unknown if each.written_at <= now - min_age]
        condemned = archived.mark_garbage(self._job, self._token, old)
        permanent = archived.is_permanent(self._job, self._lease_seconds) if condemned or check_permanence else True
        recorded = {chunk.name for chunk in archived.chunks(self._job)}
        struck_out: list[str] = []
        deleted = 0
        for name, seconds in condemned.items():
            if not permanent and seconds < orphan_seconds:
                continue
            # A name that is recorded, or is not in the job's folder, was written down by a stranger.
            if is_object_of(self._job, name) and name not in recorded:
                try:
                    self._objects.delete(name)
                except ArchiveUnavailable:
                    continue
                self._on_step("object deleted")
                deleted += 1
            struck_out.append(name)
        archived.clear_garbage(self._job, struck_out)
        young = [each.name for each in unknown if each.name not in condemned]
        return CollectedGarbage(deleted, len(condemned) - len(struck_out) + len(young), permanent)

    def _unrecorded(self) -> Sequence[StoredObject]:
        """The objects in the job's folder that no record names.

        An emptied store has forgotten earlier jobs of the same name. Their objects are older than all that this job
        has, and are left to whoever looks for orphans.
        """
        listed = list(self._objects.list(folder(self._job)))
        named = {chunk.name for chunk in self._store.chunks.chunks(self._job)}
        known = self._store.get_job(self._job)
        created = seconds_of(known.created_at or "" if known else "") or 0.0
        began = min([created, *(each.written_at for each in listed if each.name in named)]) - CLOCK_SKEW_SECONDS
        manifest = f"{folder(self._job)}{MANIFEST}"
        return [each for each in listed if each.name not in named | {manifest} and each.written_at >= began]
