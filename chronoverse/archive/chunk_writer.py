"""Moves a job's lines from the store into chunks, and completes the archive of an ended job."""

from collections.abc import Callable, Sequence

from chronoverse.archive.codec import COMPRESSION_LEVEL, ChunkBuilder, text_sha256
from chronoverse.archive.derived import DerivedBuilder, derived_names
from chronoverse.archive.job_objects import JobObjects
from chronoverse.archive.manifest import manifest_json, manifest_name
from chronoverse.errors import AppendRefused, ArchiveDamaged
from chronoverse.joblog.chunk import CHUNK_BYTES, Chunk, combined_sha256, redactions_in
from chronoverse.joblog.entries import RawEntry, entry_number, read_entries
from chronoverse.joblog.model import Gap, Job, iso_timestamp
from chronoverse.store.adaptive_batch import AdaptiveBatch
from chronoverse.store.catalog import ArchiveState


def write_chunk(
    to: JobObjects,
    state: ArchiveState,
    end: int,
    *,
    text_bytes: int = CHUNK_BYTES,
    trim: int = 0,
    merge: bool = False,
    level: int = COMPRESSION_LEVEL,
    on_page: Callable[[], object] = lambda: None,
) -> Chunk | None:
    """Moves the next lines below ``end``, about ``text_bytes`` of JSON, into the archive. None if no lines are left.

    Trims lines up to ``trim`` from the store. ``merge`` replaces a small last chunk with a new chunk that begins
    with the small one's lines. Calls ``on_page`` after each read. Raises :class:`Fenced`, :class:`Deleted`,
    :class:`SequenceGap`, :class:`ArchiveDamaged`, :class:`ArchiveUnavailable`.
    """
    first = state.archived + 1 if state.archived else max(state.first, 1)
    old, data = _small_chunk(to, state.archived) if merge and state.archived else (None, b"")
    builder = ChunkBuilder(to.job, old.first if old else first, level=level)
    if old:
        builder.add_chunk(old, data)

    def read(after: int, count: int) -> Sequence[RawEntry]:
        entries = to.store.read(to.job, after, count)
        on_page()
        return entries

    last = fill(builder, read, state.first, end, text_bytes=text_bytes)
    if last is None or builder.last < first:
        return None
    with to.put_verified(*builder.finish(), redactions_in([old.name]) if old else 0) as chunk:
        to.store.chunks.commit_chunk(to.job, to.token, chunk, trim=min(trim, chunk.last), last_entry=last, old=old)
    return chunk


def _small_chunk(to: JobObjects, last: int) -> tuple[Chunk | None, bytes]:
    """The chunk that ends with line ``last``, and its object. None if the chunk is large or its object is lost."""
    chunk = to.store.chunks.chunk(to.job, last)
    if chunk is None or chunk.last != last or chunk.text_size >= 2**20 or chunk.is_lost:  # 1 MiB: about one read.
        return None, b""
    try:
        data = to.objects.get(chunk.name)
        return (chunk, data) if text_sha256(chunk, data) == chunk.sha256 else (None, b"")
    except ArchiveDamaged:
        return None, b""


def fill(
    builder: ChunkBuilder,
    read: Callable[[int, int], Sequence[RawEntry]],
    first_stored: int,
    end: int,
    *,
    text_bytes: int = CHUNK_BYTES,
    change: Callable[[Sequence[RawEntry], int], Sequence[RawEntry]] = lambda entries, after: entries,
) -> RawEntry | None:
    """Fills ``builder`` with about ``text_bytes`` of entries below ``end``. ``change`` converts each batch.

    ``read`` returns entries after a line, about as many as requested; ``first_stored`` is the store's first number.
    Returns the last entry read, but the terminal entry only if it is the only one.
    """
    last: RawEntry | None = None
    batch = AdaptiveBatch()
    while builder.text_size < text_bytes and builder.last < end - 1:
        entries = read(builder.last, batch.lines)
        wanted: Sequence[RawEntry] = entries
        if entries and entry_number(entries[-1][0]) >= end:
            wanted = [entry for entry in entries if entry_number(entry[0]) < end]
        if not wanted:
            break
        size = builder.added_size
        if builder.last == 0 and _is_lost(wanted[0]):
            # Lost lines get their own chunk, so that an import can replace it.
            builder.add(wanted[:1], first_stored)
            return wanted[0]
        builder.add(change(wanted, builder.last), first_stored)
        if builder.closed:
            # Returns the line before the terminal entry, because a rewritten log can have the same terminal entry.
            return [last or wanted[-1], *wanted[:-1]][-1]
        last = wanted[-1]
        batch.learn(len(wanted), builder.added_size - size)
    return last


def _is_lost(entry: RawEntry) -> bool:
    first = next(read_entries([entry], 0))
    return isinstance(first, Gap) and first.reason == "lost"


def complete(
    to: JobObjects, job: Job, hot_seconds: float, now: float, ended_at: float, derived: DerivedBuilder
) -> str | None:
    """Writes the manifest, and records that the whole log of the ended ``job`` is archived.

    Also writes the shapes and the timeline, if ``derived`` has exactly the log's chunks. The log stays in the store for
    ``hot_seconds``. Times are Unix seconds. Returns None; if the chunks are not the whole log, writes nothing and
    returns the reason. Raises what :func:`write_chunk` raises.
    """
    chunks = to.store.chunks.chunks(to.job)
    if wrong := inconsistency(job, chunks):
        return wrong
    sha256 = combined_sha256(chunks)
    derived_objects = derived_names(to.job, sha256)
    if derived.missing(chunks) == []:
        timeline = derived.lines.timeline.timeline(job.finished_at)
        for name, data in zip(derived_objects, (derived.lines.shapes.to_bytes(), timeline.to_bytes()), strict=True):
            to.objects.put(name, data)
    # The fields that our runner sets in the job's hash; foreign runners set none.
    names = ("status", "created_at", "started_at", "finished_at", "lines", "dropped", "exit_code")
    state = {name: value for name in names if (value := getattr(job, name)) is not None}
    labels = {"labels": len(job.labels)} if job.labels else {}
    earlier = to.only_in_manifest({chunk.name for chunk in chunks})
    to.objects.put(manifest_name(to.job), manifest_json(job, state, chunks, sha256, ended_at, earlier))
    try:
        to.store.chunks.mark_complete(
            to.job,
            to.token,
            chunks,
            hot_ms=round(hot_seconds * 1000),
            created_ms=round((job.created_seconds or now) * 1000),
            state={**state, **labels, "archived_at": iso_timestamp(now)},
        )
    except AppendRefused:
        # The lock was lost, so the chunks may have been redacted before these objects with old text were written.
        if to.store.chunks.chunks(to.job) != chunks:
            for name in derived_objects:
                to.objects.delete(name)
        raise
    return None


def inconsistency(job: Job, chunks: Sequence[Chunk]) -> str | None:
    """Why the chunks are not the whole log of an ended job. None if they are the whole log."""
    if job.end is None or not chunks:
        return "the log has no end"
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
