"""Archives in chunks of a few frames, as an archiver writes them."""

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from chronoverse.archive.codec import ChunkBuilder
from chronoverse.archive.object_store import FileObjectStore, ObjectStore
from chronoverse.archive.reader import ArchiveReader
from chronoverse.joblog.chunk import FRAME_BYTES, Chunk
from chronoverse.joblog.entries import RawEntry
from chronoverse.joblog.model import JobRef
from chronoverse.store import Store

JOB = JobRef("wf_1", "job_1")
#: Lease of a job's archive lock, in seconds.
LOCK_SECONDS: Final = 30
#: Size of a small frame in bytes: a log of a few hundred lines has several.
SMALL_FRAME_BYTES: Final = 2_000


def raw_line(number: int, message: str, *more: bytes, timestamp: str = "2026-03-03T10:00:05.123Z") -> RawEntry:
    """A line as the store returns it."""
    fields = [b"timestamp", timestamp.encode(), b"message", message.encode(), b"stream", b"stderr", *more]
    return (b"%d-0" % number, fields)


class ArchiveBuilder:
    """Builds a job's archive in ``objects``.

    Keeps the chunk records in memory, where an archive reader finds them through :meth:`chunk`.
    """

    def __init__(self, objects: ObjectStore, job: JobRef = JOB, first: int = 1) -> None:
        self.objects = objects
        self.job = job
        self.chunks: list[Chunk] = []
        self.first = first
        #: Number of chunk record lookups.
        self.lookups = 0

    def chunk(self, job: JobRef, number: int) -> Chunk | None:
        self.lookups += 1
        return next((each for each in self.chunks if job == self.job and each.last >= number), None)

    def add(self, entries: Sequence[RawEntry], frame_bytes: int = FRAME_BYTES) -> Chunk:
        """Adds a chunk with these entries."""
        builder = ChunkBuilder(self.job, self.chunks[-1].last + 1 if self.chunks else self.first, frame_bytes)
        builder.add(entries)
        chunk, data = builder.finish()
        self.objects.put(chunk.name, data)
        self.chunks.append(chunk)
        return chunk

    def fill(self, entries: Sequence[RawEntry], chunk_entries: int, frame_bytes: int) -> None:
        """Adds all ``entries`` in chunks of ``chunk_entries``, with frames of about ``frame_bytes``."""
        while entries:
            cut = chunk_entries
            while cut < len(entries) and not entries[cut][0].endswith(b"-0"):
                cut += 1
            self.add(entries[:cut], frame_bytes)
            entries = entries[cut:]

    @classmethod
    def in_directory(cls, directory: Path, first: int = 1) -> "ArchiveBuilder":
        """An archive stored in files below ``directory``."""
        return cls(FileObjectStore(directory), first=first)

    def reader(self) -> ArchiveReader:
        """A reader with empty caches."""
        return ArchiveReader(self.objects, self.chunk)


def archive_up_to(
    store: Store,
    objects: ObjectStore,
    job: JobRef,
    to: int,
    *,
    trim: bool = False,
    frame_bytes: int = SMALL_FRAME_BYTES,
) -> None:
    """Archives all lines up to ``to`` as one chunk, without an archiver. ``trim`` removes them from the store."""
    found = store.get_job(job)
    assert found is not None
    token = secrets.token_hex()
    assert store.chunks.acquire_lock(job, token, LOCK_SECONDS)
    builder = ChunkBuilder(job, found.archived + 1, frame_bytes)
    builder.add(store.page(job, after=found.archived, count=to - found.archived), found.first)
    chunk, data = builder.finish()
    store.chunks.begin_upload(job, token, chunk.name)
    objects.put(chunk.name, data)
    store.chunks.commit_chunk(job, token, chunk, trim=chunk.last if trim else 0)
    store.chunks.release_lock(job, token)
