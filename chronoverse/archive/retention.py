"""How archived jobs go: whole, everywhere, when their time is over; and objects that nothing records."""

import contextlib
from collections.abc import Iterator
from typing import Final, NamedTuple

from chronoverse.archive.job_objects import LOCK_SECONDS, ORPHAN_SECONDS, StepHook, archive_lock, ignore_step
from chronoverse.archive.object_store import ObjectStore, StoredObject
from chronoverse.errors import ArchiveDamaged, NotALog
from chronoverse.joblog.chunk import MANIFEST, folder
from chronoverse.joblog.values import IDENTIFIER, JobRef
from chronoverse.store import Store
from chronoverse.store.catalog import ArchiveState

#: Jobs of a listing read at a time.
PAGE_JOBS: Final = 1_000


class RetentionPolicy(NamedTuple):
    """What is kept where, and for how long."""

    hot_bytes: int
    hot_seconds: float
    retention_seconds: float
    orphan_seconds: float = ORPHAN_SECONDS
    lock_seconds: float = LOCK_SECONDS


def delete_job(
    store: Store,
    objects: ObjectStore | None,
    job: JobRef,
    *,
    tombstone_ms: int = 0,
    lock_seconds: float = LOCK_SECONDS,
    on_step: StepHook = ignore_step,
) -> None:
    """Deletes ``job`` everywhere: nobody sees it any more, then its objects go, then its keys. May be repeated.

    ``tombstone_ms`` is for how many milliseconds nothing can come under its id again. A job whose time is over leaves
    no tombstone: nobody asked for its lines to be gone, and its id may be used again.
    Raises: :class:`Held` by a live runner, :class:`ArchiveBusy`, :class:`ArchiveUnavailable`; and as the store does.
    """
    with archive_lock(store, job, lock_seconds) as token:
        store.chunks.mark_deleting(job, token, tombstone_ms)
        on_step("doomed")
        if objects is not None:
            for stored in list(objects.list(folder(job))):
                objects.delete(stored.name)
                on_step("object deleted")
        store.chunks.delete(job, token)
        on_step("deleted")


def has_leftovers(store: Store, objects: ObjectStore | None, job: JobRef) -> bool:
    """Whether there is anything of a job that nobody sees: a :func:`delete_job` broke off. Raises: as it does."""
    survey = store.catalog.archive_state(job)
    return survey.deleting or survey.archived > 0 or (objects is not None and any(objects.list(folder(job))))


def apply_retention(store: Store, workflow_id: str, seconds: int | None, default_seconds: float) -> int:
    """Has the store keep a workflow's jobs for ``own`` seconds behind their end, or else ``common``: it was changed.

    Those that are archived are the archiver's, which asks each time. How many jobs there were that are not.
    Raises: as the store does.
    """
    kept = 0
    for job in _all_jobs(store, workflow_id):
        # A job whose keys are of other types is skipped, so that it does not stop the rest.
        with contextlib.suppress(NotALog):
            kept += store.catalog.apply_retention(job, seconds, default_seconds if seconds is None else seconds)
    return kept


def _all_jobs(store: Store, workflow_id: str) -> Iterator[JobRef]:
    """The workflow's jobs as a listing has them, some of which may be gone; none is missed because others go."""
    before: tuple[float, str] | None = None
    while page := store.listing.page(workflow_id, before, PAGE_JOBS):
        yield from (JobRef(workflow_id, job_id) for _, job_id in page)
        before = page[-1]


class Orphan(NamedTuple):
    """An object that the store does not know; ``why``, in words."""

    stored: StoredObject
    reason: str


def orphans(store: Store, objects: ObjectStore, now: float, *, age: float = ORPHAN_SECONDS) -> Iterator[Orphan]:
    """Every object older than ``age`` that the store does not name. A store that was emptied names none.

    An object that is named by the manifest of its folder, and is not part of what the store has, is one as well.
    Objects that are written down as garbage are left to the archiver, and so are those of a job whose records cannot be
    read.
    """
    job: JobRef | None = None
    named: set[str] | None = None
    survey: ArchiveState | None = None
    for stored in objects.list(""):
        found = _job_of(stored.name)
        if found is None:
            continue
        if found != job:
            job = found
            survey, named = None, None
            with contextlib.suppress(NotALog, ArchiveDamaged):
                survey = store.catalog.archive_state(job)
                named = {chunk.name for chunk in store.chunks.chunks(job)} | store.chunks.garbage(job)
        if named is None or stored.name in named or stored.written_at > now - age:
            continue
        if survey is not None and survey.archived and stored.name.endswith(f"/{MANIFEST}"):
            continue
        yield Orphan(stored, "no part of its job" if survey and survey.archived else "the store has no such job")


def _job_of(name: str) -> JobRef | None:
    """Whose folder an object is in, where it is in one."""
    parts = name.split("/")
    if len(parts) != 3 or not all(IDENTIFIER.fullmatch(part) for part in parts[:2]):
        return None
    return JobRef(parts[0], parts[1])
