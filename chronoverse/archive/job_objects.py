"""A job's archive lock and objects: writes objects safely, and deletes garbage.

An object's name is in its job's *garbage* before it is written, until it is recorded. See docs/architecture.md.
"""

import contextlib
import secrets
import threading
import time
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Final, NamedTuple

from chronoverse.archive.codec import text_sha256
from chronoverse.archive.derived import derived_names
from chronoverse.archive.manifest import manifest_name, read_manifest
from chronoverse.archive.object_store import ObjectStore, StoredObject
from chronoverse.errors import ArchiveBusy, ArchiveDamaged, ArchiveUnavailable, ChronoverseError, StoreError
from chronoverse.joblog.chunk import Chunk, combined_sha256, folder, is_object_of, last_number_in
from chronoverse.joblog.model import Job, JobRef, seconds_of
from chronoverse.store import Store

#: Seconds after which a dead process's archive lock expires. A log can grow by 350 MB meanwhile.
LOCK_SECONDS: Final = 10.0
#: Seconds during which an object can still be recorded, or the store can roll back to an hourly snapshot.
ORPHAN_SECONDS: Final = 3_600.0
#: Maximum difference in seconds between the object store's clock and ours. S3's times are whole seconds.
CLOCK_SKEW_SECONDS: Final = 60.0


@contextlib.contextmanager
def archive_lock(
    store: Store, job: JobRef, seconds: float = LOCK_SECONDS, *, wait_seconds: float = 0.0
) -> Iterator[str]:
    """Holds ``job``'s archive lock, renewed by a thread. Raises :class:`ArchiveBusy` after ``wait_seconds``."""
    token, give_up_at = secrets.token_hex(16), time.monotonic() + wait_seconds
    while not store.chunks.acquire_lock(job, token, seconds):
        if time.monotonic() >= give_up_at:
            raise ArchiveBusy("another archiver holds the job")
        time.sleep(0.1)
    released = threading.Event()

    def renew() -> None:
        while not released.wait(seconds / 3):
            # If the lock is lost, the store refuses the next step with Fenced.
            with contextlib.suppress(StoreError):
                if not store.chunks.acquire_lock(job, token, seconds, extend=True):
                    return

    renewer = threading.Thread(target=renew, name="archive-lock", daemon=True)
    renewer.start()
    try:
        yield token
    finally:
        released.set()
        renewer.join()
        with contextlib.suppress(StoreError):
            store.chunks.release_lock(job, token)


class CollectedGarbage(NamedTuple):
    """How many objects were deleted, ``remaining`` until later, or ``kept`` only because the manifest names them.

    ``permanent``: see :func:`is_permanent`.
    """

    deleted: int
    remaining: int
    permanent: bool | None
    kept: int = 0


@dataclass(frozen=True, slots=True)
class JobObjects:
    store: Store
    objects: ObjectStore
    job: JobRef
    token: str
    lock_seconds: float = LOCK_SECONDS

    @contextlib.contextmanager
    def put_verified(self, chunk: Chunk, data: bytes, redactions: int = 0) -> Iterator[Chunk]:
        """Writes a chunk's object under a new name, verifies it, and yields the chunk with that name, to be recorded.

        Deletes the object unless the ``with`` block records it. Raises :class:`Fenced`, :class:`ArchiveDamaged`,
        :class:`ArchiveUnavailable`, and the store's errors.
        """
        chunk = chunk.with_unique_name(secrets.token_hex(8), redactions)
        job = self.store.get_job(self.job)
        self.store.chunks.begin_upload(self.job, self.token, chunk.name)
        try:
            self.objects.put(chunk.name, data)
            if text_sha256(chunk, self.objects.get(chunk.name)) != chunk.sha256:
                raise ArchiveDamaged(f"{chunk.name} failed read-back verification")
            yield chunk
        except ChronoverseError:
            if not self._delete_unless_recorded(chunk, redactions, job):
                raise

    def _delete_unless_recorded(self, chunk: Chunk, redactions: int, before: Job | None) -> bool:
        """Deletes the chunk's object unless it is recorded, or the store has lost lines that an import can restore.

        Returns whether the object is recorded. After an error, it stays garbage.
        """
        index = self.store.chunks
        with contextlib.suppress(ChronoverseError):
            if chunk.name not in index.mark_garbage(self.job, self.token):
                # Checks for lost lines first, because an import can restore them and record the object at any time.
                is_lost = self._is_lost(chunk, redactions, before)
                is_recorded = any(each.name == chunk.name for each in index.chunks(self.job))
                if is_recorded or is_lost:
                    return is_recorded
            # From now on, the object cannot be recorded.
            self.objects.delete(chunk.name)
            index.clear_garbage(self.job, [chunk.name])
        return False

    def _is_lost(self, chunk: Chunk, redactions: int, before: Job | None) -> bool:
        """Whether the store has lost the job, lines of the chunk, or a redaction, which an import can restore.

        The runner may have created the job again. ``before``: the job before the upload.
        """
        (job,) = self.store.get_jobs([self.job])
        if isinstance(job, StoreError):
            raise job
        if job is None:
            return not self.store.is_deleted(self.job)
        is_same = before is not None and before.created_at == job.created_at
        return not is_same or job.last < chunk.last or job.redactions < redactions

    def collect_garbage(
        self, now: float, *, min_age: float, orphan_seconds: float = ORPHAN_SECONDS, check_permanence: bool = False
    ) -> CollectedGarbage:
        """Deletes the job's garbage, and other objects in its folder that have no record.

        While the store can roll back, deletes only objects marked at least ``orphan_seconds`` ago. Unmarked objects
        must be ``min_age`` seconds old at ``now`` (Unix time). Keeps objects that the manifest names, unless a
        redaction replaced them. Raises the errors of the store and the object store.
        """
        index = self.store.chunks
        known = index.mark_garbage(self.job, self.token).values()
        if known and not check_permanence and all(each.merged and each.seconds < orphan_seconds for each in known):
            # A running job always has garbage from merges, and checking for permanence takes up to a second.
            return CollectedGarbage(0, len(known), None)
        found = self._unrecorded()
        named = self._named() if found or index.garbage(self.job) else frozenset()
        unrecorded = [each for each in found if each.name not in named]
        old = [each.name for each in unrecorded if each.written_at <= now - min_age]
        marked = index.mark_garbage(self.job, self.token, old)
        permanent = index.is_permanent(self.job, self.lock_seconds) if marked or check_permanence else True
        recorded = {chunk.name for chunk in index.chunks(self.job)}
        done: list[str] = []
        deleted = 0
        for name, mark in marked.items():
            if not permanent and mark.seconds < orphan_seconds:
                continue
            if name in named and not mark.replaced:
                # The store has lost the object's record, and only knows that the object was being written.
                done.append(name)
                continue
            # Other programs can write the garbage key. Recorded objects, and those outside the folder, are not deleted.
            if is_object_of(self.job, name) and name not in recorded:
                try:
                    self.objects.delete(name)
                except ArchiveUnavailable:
                    continue
                deleted += 1
            done.append(name)
        index.clear_garbage(self.job, done)
        young = [each.name for each in unrecorded if each.name not in marked]
        replaced = {name for name, mark in marked.items() if mark.replaced}
        kept = sum(each.name in named - replaced for each in found)
        return CollectedGarbage(deleted, len(marked) - len(done) + len(young), permanent, kept)

    def only_in_manifest(self, recorded: Set[str]) -> list[str]:
        """The existing objects that only the job's manifest names, and that were not replaced."""
        if not (unknown := self._named() - recorded):
            return []
        marked = self.store.chunks.mark_garbage(self.job, self.token)
        replaced = {name for name, mark in marked.items() if mark.replaced}
        return [each.name for each in self.objects.list(folder(self.job)) if each.name in unknown - replaced]

    def has_unknown_lines(self, last: int) -> bool:
        """Whether the folder has a chunk with lines after ``last`` that the store neither records nor deletes."""
        garbage = self.store.chunks.garbage(self.job)
        return any(last_number_in(each.name) > last for each in self._unrecorded() if each.name not in garbage)

    def _named(self) -> Set[str]:
        manifest = read_manifest(self.objects, self.job)
        return manifest.names if manifest else frozenset()

    def _unrecorded(self) -> Sequence[StoredObject]:
        """The folder's objects without a record, except those of earlier jobs with this id, which are older."""
        objects = list(self.objects.list(folder(self.job)))
        chunks = self.store.chunks.chunks(self.job)
        recorded = {chunk.name for chunk in chunks}
        job = self.store.get_job(self.job)
        created = seconds_of(job.created_at if job else None) or 0.0
        earliest = min([created, *(each.written_at for each in objects if each.name in recorded)]) - CLOCK_SKEW_SECONDS
        known = recorded | {manifest_name(self.job), *derived_names(self.job, combined_sha256(chunks))}
        return [each for each in objects if each.name not in known and each.written_at >= earliest]
