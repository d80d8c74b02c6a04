"""Retention policy, deletion of whole jobs, and orphaned objects."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from chronoverse.archive.derived import derived_names
from chronoverse.archive.job_objects import LOCK_SECONDS, ORPHAN_SECONDS, archive_lock
from chronoverse.archive.manifest import deletion_json, manifest_name, read_manifest
from chronoverse.archive.object_store import ObjectStore, StoredObject
from chronoverse.errors import ArchiveDamaged, ArchiveUnavailable, NotALog, NotPermanent
from chronoverse.joblog.chunk import combined_sha256, folder
from chronoverse.joblog.model import IDENTIFIER, JobRef
from chronoverse.store import Store
from chronoverse.store.catalog import ArchiveState


class RetentionPolicy(NamedTuple):
    """Where an archiver keeps lines, and for how long."""

    hot_bytes: int
    hot_seconds: float
    #: Seconds after which an ended job is deleted, unless its workflow has its own retention.
    retention_seconds: float
    running_seconds: float = 300.0
    orphan_seconds: float = ORPHAN_SECONDS
    lock_seconds: float = LOCK_SECONDS


def delete_job(
    store: Store,
    objects: ObjectStore | None,
    job: JobRef,
    *,
    tombstone_ms: int = 0,
    lock_seconds: float = LOCK_SECONDS,
    on_hidden: Callable[[], object] = lambda: None,
) -> None:
    """Deletes ``job`` everywhere: hides it from readers, deletes its objects, then its keys. Idempotent.

    The manifest is marked first and deleted last, so that an import never finds half a job. Blocks the job's id for
    ``tombstone_ms``, even across a crash of the store. Calls ``on_hidden`` once nothing can prevent the deletion.
    Raises :class:`Held` if a live runner holds the job, :class:`ArchiveBusy`, and the errors of store and archive.
    """
    with archive_lock(store, job, lock_seconds) as token:
        store.chunks.mark_deleting(job, token, tombstone_ms)
        on_hidden()
        if tombstone_ms:
            # Lets tail readers read the terminal entry, before a foreign runner can write under the same id.
            time.sleep(0.1)
            if store.chunks.is_permanent(job, lock_seconds) is False:
                raise NotPermanent(
                    "the store's disk, or a replica that was connected within repl-backlog-ttl, has not confirmed the"
                    " deletion: repeat it"
                )
        names = [each.name for each in objects.list(folder(job))] if objects is not None else []
        if objects is not None and names:
            manifest, mark = manifest_name(job), deletion_json(job, time.time())
            try:
                objects.put(manifest, mark)
            except ArchiveUnavailable:
                # If the disk is full, frees space: an import needs only chunks and manifest.
                for name in (each for each in names if each != manifest and not each.endswith(".jsonl.zst")):
                    objects.delete(name)
                objects.put(manifest, mark)
            for name in [*(each for each in names if each != manifest), manifest]:
                objects.delete(name)
        store.chunks.delete(job, token)
        store.workflows.job_deleted(job.workflow_id)


def has_leftovers(store: Store, objects: ObjectStore | None, job: JobRef) -> bool:
    """Whether an interrupted :func:`delete_job` has left anything. Raises the errors of :func:`delete_job`."""
    state = store.catalog.archive_state(job)
    return state.deleting or state.archived > 0 or (objects is not None and any(objects.list(folder(job))))


def apply_retention(store: Store, workflow_id: str, seconds: int | None, default_seconds: float) -> int:
    """Applies a workflow's new retention of ``seconds`` (None: ``default_seconds``) to its jobs.

    Sets the expiry of jobs that are not archived, and returns their number. For archived jobs, the archiver looks for a
    changed retention every 15 s. Raises the store's errors.
    """
    changed = 0
    for _, job_id in store.listing.positions(workflow_id):
        # Skips keys of another type, so that one bad key does not stop the rest.
        with contextlib.suppress(NotALog):
            changed += store.catalog.apply_retention(
                JobRef(workflow_id, job_id), seconds, default_seconds if seconds is None else seconds
            )
    return changed


def orphans(
    store: Store, objects: ObjectStore, now: float, retention_seconds: float, *, age: float = ORPHAN_SECONDS
) -> Iterator[tuple[StoredObject, str]]:
    """Every object older than ``age`` seconds that neither the store nor a valid manifest names, with the reason.

    A manifest is valid until its job's retention is over. Omits objects that the archiver will delete, and jobs whose
    records or manifest cannot be read. ``now`` is Unix time.
    """
    job: JobRef | None = None
    named: set[str] | None = None
    state: ArchiveState | None = None
    for stored in objects.list(""):
        owner = job_of(stored.name)
        if owner is None:
            continue
        if owner != job:
            job = owner
            state, named = None, None
            with contextlib.suppress(NotALog, ArchiveDamaged):
                state = store.catalog.archive_state(job)
                manifest = read_manifest(objects, job)
                keeps = manifest and manifest.keeps(state.retention(retention_seconds), now)
                if keeps and not state.archived:
                    continue
                chunks = store.chunks.chunks(job)
                named = {chunk.name for chunk in chunks} | store.chunks.garbage(job)
                if state.archived:
                    named |= {manifest_name(job), *derived_names(job, combined_sha256(chunks))}
                if manifest and keeps:
                    named |= manifest.names
        if named is None or stored.name in named or stored.written_at > now - age:
            continue
        yield stored, "not part of its job" if state and state.archived else "no such job in the store"


def job_of(name: str) -> JobRef | None:
    """The job whose folder contains an object, or None."""
    parts = name.split("/")
    is_in_folder = len(parts) == 3 and all(IDENTIFIER.fullmatch(part) for part in parts[:2])
    return JobRef(parts[0], parts[1]) if is_in_folder else None
