"""Verifies the objects that the store's records name: each must exist and be undamaged."""

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

from chronoverse.archive.codec import text_sha256
from chronoverse.archive.manifest import manifest_name, read_manifest
from chronoverse.archive.object_store import ObjectStore
from chronoverse.errors import ArchiveDamaged, NotALog
from chronoverse.joblog.model import JobRef
from chronoverse.store import Store


class Verified(NamedTuple):
    """An object, or a job whose records cannot be read, and the ``problem`` (empty if there is none)."""

    name: str
    problem: str = ""


def verify(store: Store, objects: ObjectStore) -> Iterator[Verified]:
    """Reads each object that the store names, except those replaced or deleted meanwhile.

    Raises the errors of the store and the object store.
    """
    seen: set[JobRef] = set()
    for page in store.catalog.jobs():
        for job in page.jobs:
            if job not in seen:
                seen.add(job)
                yield from _verify_job(store, objects, job)


def _verify_job(store: Store, objects: ObjectStore, job: JobRef) -> Iterator[Verified]:
    chunks = None
    try:
        chunks = store.chunks.chunks(job)
        for chunk in chunks:
            try:
                data = objects.get(chunk.name)
                is_named = f"-{hashlib.sha256(data).hexdigest()[:16]}" in chunk.name
                is_whole = is_named and text_sha256(chunk, data) == chunk.sha256
                problem = "" if is_whole else f"{chunk.name} is not what was archived"
            except ArchiveDamaged as error:
                problem = str(error)
            if not problem or chunk in store.chunks.chunks(job):
                yield Verified(chunk.name, problem)
        if store.catalog.archive_state(job).complete:
            name = manifest_name(job)
            try:
                problem = "" if read_manifest(objects, job) else f"the archive lacks {name}"
            except ArchiveDamaged as error:
                problem = str(error)
            if not problem or store.catalog.archive_state(job).complete:
                yield Verified(name, problem)
    except (ArchiveDamaged, NotALog) as error:
        if chunks != []:  # Otherwise the key is another program's, and nothing is archived.
            yield Verified(str(job), str(error))
