"""Moves the lines of one job from the store into chunks, and completes the archive of an ended job.

A chunk is read from the store, written, read back, compared, and only then recorded, in one step with the trim of the
store. A process that dies leaves at most an object without a record, whose name is in the job's garbage.
"""

from collections.abc import Callable, Sequence
from typing import Any

from chronoverse.archive.codec import COMPRESSION_LEVEL, ChunkBuilder
from chronoverse.archive.job_objects import JobObjects, StepHook
from chronoverse.archive.manifest import manifest_json, manifest_name
from chronoverse.archive.object_store import ObjectStore
from chronoverse.archive.shape_sets import ShapeSetBuilder, shape_set_name
from chronoverse.errors import AppendRefused
from chronoverse.joblog.chunk import CHUNK_BYTES, Chunk, combined_sha256
from chronoverse.joblog.entries import RawEntry, entry_number
from chronoverse.joblog.model import Job, JobRef, iso_timestamp
from chronoverse.store import Store
from chronoverse.store.catalog import ArchiveState
from chronoverse.store.prefetch import AdaptiveBatch


class ChunkWriter:
    """Archives the log of one job. ``token`` is that of the :func:`archive_lock` that the caller holds."""

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
        on_page: Callable[[], object] = lambda: None,
    ) -> Chunk | None:
        """Moves the next lines, about ``text_bytes`` of JSON, into the archive. Their numbers are less than ``end``.

        With ``trim`` they are removed from the store. ``level`` is zstd's. ``on_page`` is called after each read of the
        store. Returns None when there are no such lines.
        Raises :class:`Fenced`, :class:`Deleted`, :class:`SequenceGap`, :class:`ArchiveDamaged`,
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
        self._on_step("committed")
        return chunk

    def _fill(
        self, builder: ChunkBuilder, state: ArchiveState, end: int, text_bytes: int, on_page: Callable[[], object]
    ) -> RawEntry | None:
        """Fills ``builder`` from the store. Returns the last entry that was added, if it can not the terminal one."""
        last: RawEntry | None = None
        # Each read brings about 1 MiB, since thousands of lines may have 64 KiB each.
        batch = AdaptiveBatch()
        while builder.text_size < text_bytes:
            entries = self._store.read_sequential(self._job, builder.last, batch.lines)
            wanted: Sequence[RawEntry] = entries
            if entries and entry_number(entries[-1][0]) >= end:
                wanted = [entry for entry in entries if entry_number(entry[0]) < end]
            on_page()
            if not wanted:
                break
            size = builder.added_size
            builder.add(wanted, state.first)
            if builder.closed:
                # A log that was written again may have the same terminal entry. The line before it tells them apart.
                return [last or wanted[-1], *wanted[:-1]][-1]
            last = wanted[-1]
            if len(wanted) < batch.lines:
                break
            batch.learn(len(wanted), builder.added_size - size)
        return last

    def complete(
        self, job: Job, hot_seconds: float, now: float, ended_at: float, shapes: ShapeSetBuilder | None = None
    ) -> str | None:
        """Writes the manifest, and notes in the store that the whole log of the ended ``job`` is archived.

        The log stays in the store for ``hot_seconds`` more. ``now`` and ``ended_at`` are Unix times: the store knows
        of the end since then. The set of ``shapes`` is written, too, if it was made of these chunks. Returns None,
        or in words what is wrong with the chunks; then nothing was written. Raises as :meth:`write_chunk` does.
        """
        chunks = self._store.chunks.chunks(self._job)
        if wrong := inconsistency(job, chunks):
            return wrong
        if shapes is not None and shapes.name == shape_set_name(self._job, chunks):
            self._objects.put(shapes.name, shapes.shapes.to_bytes())
            self._on_step("shapes")
        sha256 = combined_sha256(chunks)
        state = final_state(job)
        earlier = self._job_objects.only_in_manifest({chunk.name for chunk in chunks})
        manifest = manifest_json(job, state, chunks, sha256, ended_at, earlier)
        self._objects.put(manifest_name(self._job), manifest)
        self._on_step("manifest")
        try:
            self._store.chunks.mark_complete(
                self._job,
                self._token,
                archived=chunks[-1].last,
                sha256=sha256,
                hot_ms=round(hot_seconds * 1000),
                created_ms=round((job.created_seconds or now) * 1000),
                state={**state, "archived_at": iso_timestamp(now)},
            )
        except AppendRefused:
            # Without the lock, the chunks may have been redacted before the shapes of the old text were written.
            if shapes is not None:
                self._objects.delete(shapes.name)
            raise
        self._on_step("completed")
        return None


def inconsistency(job: Job, chunks: Sequence[Chunk]) -> str | None:
    """Why the chunks are not the whole log of an ended job, in words; None when they are."""
    if job.end is None or not chunks:
        return "there is nothing to be complete"
    expected = chunks[0].first
    for chunk in chunks:
        firsts = [frame.first for frame in chunk.frames]
        lasts = [frame.last for frame in chunk.frames]
        if chunk.first != expected or firsts != [chunk.first, *(last + 1 for last in lasts[:-1])]:
            return f"the chunks do not follow each other at line {expected}"
        if lasts[-1] != chunk.last:
            return f"a chunk does not end with its last line, {chunk.last}"
        expected = chunk.last + 1
    if expected != job.end.sequence_num:
        return f"the archive ends with line {expected - 1}, the log with line {job.end.sequence_num - 1}"
    return None


def final_state(job: Job) -> dict[str, Any]:
    """The fields of an ended job's hash, as our own runner leaves them. Foreign runners leave none.

    They say what the job has said of itself before, and leave out what it has not said.
    """
    names = ("status", "created_at", "started_at", "finished_at", "lines", "dropped", "exit_code")
    return {name: value for name in names if (value := getattr(job, name)) is not None}
