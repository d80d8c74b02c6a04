"""From a log in the store to chunks in the archive: one step at a time, each of which may be the last.

A chunk is read, put, read back, compared and only then recorded, which is when its lines may leave the log. Whoever
dies before that leaves an object that nothing records, but whose name is written down; whoever comes next begins with
what is recorded.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import orjson

from chronoverse.archive.codec import COMPRESSION_LEVEL, ChunkBuilder
from chronoverse.archive.job_objects import JobObjects, StepHook
from chronoverse.archive.object_store import ObjectStore
from chronoverse.joblog.chunk import CHUNK_BYTES, MANIFEST, Chunk, folder
from chronoverse.joblog.entries import RawEntry, entry_number
from chronoverse.joblog.values import Job, JobRef, iso_timestamp, seconds_of
from chronoverse.store import Store
from chronoverse.store.adaptive_batch import AdaptiveBatch
from chronoverse.store.catalog import ArchiveState


class ChunkWriter:
    """What is done to the log of one job under the :func:`archive_lock` that gave ``token``. ``at`` hears of each
    step."""

    def __init__(self, store: Store, objects: ObjectStore, job: JobRef, token: str, on_step: StepHook) -> None:
        self._store = store
        self._objects = objects
        self._job = job
        self._token = token
        self._on_step = on_step
        self._job_objects = JobObjects(store, objects, job, token, on_step=on_step)

    def write_chunk(
        self,
        state: ArchiveState,
        end: int,
        *,
        text_bytes: int = CHUNK_BYTES,
        trim: bool,
        level: int = COMPRESSION_LEVEL,
        on_page: Callable[[], object] = bool,
    ) -> Chunk | None:
        """Moves the next lines, of about ``text_bytes``, into the archive: those with numbers less than ``below``.

        With ``trim`` they leave the log. ``level`` is zstd's. ``meanwhile`` is called now and then.
        None when there are none.
        Raises: :class:`Fenced`, :class:`Deleted`, :class:`SequenceGap`, :class:`ArchiveDamaged`,
        :class:`ArchiveUnavailable`.
        """
        first = state.archived + 1 if state.archived else max(state.first, 1)
        builder = ChunkBuilder(self._job, first, level=level)
        last = self._fill(builder, state, end, text_bytes, on_page)
        if last is None or builder.last < builder.first:
            return None
        self._on_step("read")
        with self._job_objects.put_verified(*builder.finish()) as chunk:
            self._store.chunks.commit_chunk(
                self._job, self._token, chunk, trim=chunk.last if trim else 0, last_entry=last
            )
        self._on_step("sealed")
        return chunk

    def _fill(
        self, builder: ChunkBuilder, state: ArchiveState, end: int, text_bytes: int, on_page: Callable[[], object]
    ) -> RawEntry | None:
        """Fills ``packer``; the last entry that it took."""
        last: RawEntry | None = None
        # As few lines as bring some 1 MiB: thousands of lines may be of 64 KiB each.
        count = AdaptiveBatch()
        while builder.text_size < text_bytes and not builder.closed:
            entries = self._store.read_sequential(self._job, builder.last, count.lines)
            taken: Sequence[RawEntry] = entries
            if entries and entry_number(entries[-1][0]) >= end:
                taken = [entry for entry in entries if entry_number(entry[0]) < end]
            on_page()
            if not taken:
                break
            size = builder.added_size
            builder.add(taken, state.first)
            last = taken[-1]
            if len(taken) < count.lines:
                break
            count.learn(len(taken), builder.added_size - size)
        return last

    def complete(self, job: Job, hot_seconds: float, now: float) -> str | None:
        """Says that the whole log is in the archive; or what is wrong, and says nothing. Raises as :meth:`seal`.

        ``job`` has ended, and all up to its end was sealed. Its log stays in the store for ``log_seconds``.
        """
        chunks = self._store.chunks.chunks(self._job)
        if wrong := inconsistency(job, chunks):
            return wrong
        sha256 = combined_sha256(chunks)
        state = final_state(job, now)
        self._objects.put(f"{folder(self._job)}{MANIFEST}", manifest_json(job, state, chunks, sha256))
        self._on_step("manifest")
        self._store.chunks.mark_complete(
            self._job,
            self._token,
            archived=chunks[-1].last,
            sha256=sha256,
            hot_ms=round(hot_seconds * 1000),
            created_ms=round((seconds_of(state["created_at"]) or now) * 1000),
            state={**state, "archived_at": iso_timestamp(now)},
        )
        self._on_step("completed")
        return None


def inconsistency(job: Job, chunks: Sequence[Chunk]) -> str | None:
    """What is wrong with the chunks as the whole of an ended job's log, in words."""
    if job.end is None or not chunks:
        return "there is nothing to be complete"
    following = chunks[0].first
    for chunk in chunks:
        firsts = [frame.first for frame in chunk.frames]
        lasts = [frame.last for frame in chunk.frames]
        if chunk.first != following or firsts != [chunk.first, *(last + 1 for last in lasts[:-1])]:
            return f"the chunks do not follow each other at line {following}"
        if lasts[-1] != chunk.last:
            return f"a chunk does not end with its last line, {chunk.last}"
        following = chunk.last + 1
    if following != job.end.sequence_num:
        return f"the archive ends with line {following - 1}, the log with line {job.end.sequence_num - 1}"
    return None


def combined_sha256(chunks: Sequence[Chunk]) -> str:
    """One SHA-256 for all: of the chunks' own, in hexadecimal, in order."""
    return hashlib.sha256("".join(chunk.sha256 for chunk in chunks).encode()).hexdigest()


def final_state(job: Job, now: float) -> dict[str, Any]:
    """The hash of an ended job, as our own runner would have left it. Foreign ones leave none."""
    assert job.end is not None
    finished = job.finished_at if seconds_of(job.finished_at or "") else iso_timestamp(now)
    started = job.started_at if seconds_of(job.started_at or "") else finished
    state = {
        "status": job.status,
        "created_at": job.created_at or started,
        "started_at": started,
        "finished_at": finished,
        "lines": job.end.lines,
        "dropped": job.end.dropped,
    }
    return state if job.exit_code is None else {**state, "exit_code": job.exit_code}


def manifest_json(job: Job, state: dict[str, Any], chunks: Sequence[Chunk], sha256: str) -> bytes:
    """The job and the records of its chunks, as JSON."""
    known = {**job.to_json(), **state, "redactions": job.redactions, "archive_sha256": sha256}
    return orjson.dumps({"job": known, "chunks": [orjson.Fragment(chunk.to_json()) for chunk in chunks]})
