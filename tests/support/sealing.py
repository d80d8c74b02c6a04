"""Archives a part of a log at once, where a test does not want to wait for an archiver."""

import secrets
from typing import Final

from chronoverse.archive.codec import ChunkBuilder
from chronoverse.archive.object_store import ObjectStore
from chronoverse.joblog.values import JobRef
from chronoverse.store import Store

#: Seconds for which a test holds a job's archive lock.
LEASE_SECONDS: Final = 30
#: Bytes of a frame, so that a log of a few hundred lines has several.
FRAME_BYTES: Final = 2_000


def archive_up_to(
    store: Store, objects: ObjectStore, job: JobRef, to: int, *, trim: bool = False, frame_bytes: int = FRAME_BYTES
) -> None:
    """Archives all lines up to ``to`` in one chunk. With ``trim`` they are removed from the store."""
    found = store.get_job(job)
    assert found is not None
    token = secrets.token_hex()
    assert store.chunks.acquire_lock(job, token, LEASE_SECONDS)
    builder = ChunkBuilder(job, found.archived + 1, frame_bytes)
    builder.add(store.page(job, after=found.archived, count=to - found.archived), found.first)
    chunk, data = builder.finish()
    store.chunks.begin_upload(job, token, chunk.name)
    objects.put(chunk.name, data)
    store.chunks.commit_chunk(job, token, chunk, trim=chunk.last if trim else 0)
    store.chunks.release_lock(job, token)
