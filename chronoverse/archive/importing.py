"""Restores the jobs of an archive in a store that has lost them.

An ended job has a manifest with everything that the store knew. Other jobs have only chunks: an import rebuilds their
records from the objects, and the job then waits for its runner, or becomes LOST. Imports are idempotent, and several
can run at once.
"""

import contextlib
import math
import re
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, groupby
from operator import add, attrgetter
from typing import Any, Final, NamedTuple, TypeAlias

import orjson

from chronoverse.archive.chunk_writer import fill
from chronoverse.archive.codec import ChunkBuilder, read_chunk, rewrite
from chronoverse.archive.derived import derived_names
from chronoverse.archive.manifest import Manifest, manifest_name, read_manifest
from chronoverse.archive.object_store import ObjectStore, StoredObject
from chronoverse.archive.reader import ArchiveReader
from chronoverse.archive.retention import job_of
from chronoverse.archive.store_history import MARK, StoreHistory
from chronoverse.archive.workflow_settings import import_settings, read_watches, settings_name, settings_owner
from chronoverse.errors import ArchiveDamaged, Deleted, NotALog, StoreError
from chronoverse.joblog.chunk import Chunk, combined_sha256, redactions_in
from chronoverse.joblog.entries import Entry, entry_number, read_entries
from chronoverse.joblog.labels import read_labels
from chronoverse.joblog.model import (
    REDACTED_MESSAGE,
    Gap,
    Job,
    JobRef,
    Line,
    Status,
    iso_timestamp,
    parse_number,
    seconds_of,
)
from chronoverse.store import Store
from chronoverse.store.catalog import DERIVED_VERSION

_CHUNK_NAME: Final = re.compile(r"(\d{15})-(\d{15})-[0-9a-f]{16}(-lost)?(-[0-9a-f]+)?\.jsonl\.zst", re.ASCII)
_DERIVED_NAME: Final = re.compile(r"(?:shapes\d+|timeline[\d.]+)-[0-9a-f]{32}", re.ASCII)


class Imported(NamedTuple):
    """A restored or already ``known`` job (``waits`` if it has no end), a ``problem``, or a workflow's settings."""

    job: JobRef | None
    name: str = ""
    problem: str = ""
    known: bool = False
    waits: bool = False


#: A job to restore after the others, and a function that does so. It returns None while it is too early.
_Later: TypeAlias = tuple[JobRef, Callable[[], Imported | None]]
#: Returns up to a count of entries after a number.
_Read: TypeAlias = Callable[[JobRef, int, int], Sequence[Entry]]


def import_jobs(store: Store, objects: ObjectStore, lease_seconds: float) -> Iterator[Imported]:
    """Restores every job that is missing from the store, entirely or in part.

    A job without an end waits ``lease_seconds`` for its runner. A job whose runner is resending lines comes last.
    Reports damaged and foreign objects. Raises the errors of the store and the object store.
    """
    later, has_lost_data = list[_Later](), True
    with contextlib.suppress(ArchiveDamaged):
        has_lost_data = StoreHistory(store, objects).is_incomplete()
    for job, listed in groupby(objects.list(""), lambda each: job_of(each.name)):
        if job is None:
            # Omits the mark, the probe, and their drafts. A workflow can have such a name, but its objects' names have
            # a slash.
            names = (each.name for each in listed if "/" in each.name or MARK not in each.name)
            yield from (_settings_or_problem(store, objects, name) for name in names)
            continue
        one = _Import(store, objects, job, list(listed), has_lost_data)
        yield from _or_problem(job, partial(one.run, lease_seconds, time.time()))
        yield from one.problems
        if one.retry:
            later.append((job, one.retry))
    give_up_at = time.monotonic() + lease_seconds
    while later and time.monotonic() < give_up_at:
        time.sleep(0.1)
        for each in tuple(later):
            if found := list(_or_problem(*each)):
                later.remove(each)
                yield from found
    for job, _ in later:
        yield Imported(job, str(job), "its runner is still resending lines: repeat the import")


def _settings_or_problem(store: Store, objects: ObjectStore, name: str) -> Imported:
    if (workflow_id := settings_owner(name)) is None:
        return Imported(None, name, "not part of an archive")
    try:
        if name != settings_name(workflow_id):
            read_watches(objects, workflow_id)
            return Imported(None, name, known=True)
        return Imported(None, name, known=not import_settings(store, objects, workflow_id))
    except ArchiveDamaged as error:
        return Imported(None, name, str(error))


def _or_problem(job: JobRef, make: Callable[[], Imported | None]) -> Iterator[Imported]:
    try:
        if found := make():
            yield found
    except Deleted:
        yield Imported(job, str(job), "the job was deleted, but its objects were not")
    except (ArchiveDamaged, NotALog) as error:
        yield Imported(job, str(job), str(error))


def wait_for_ends(store: Store, jobs: Sequence[JobRef], seconds: float) -> int:
    """Waits up to ``seconds`` for each job to become LOST, or its runner to return. Returns how many are LOST."""
    give_up_at, lost, left = time.monotonic() + seconds, 0, list(jobs)
    while left and time.monotonic() < give_up_at:
        time.sleep(0.2)
        found = dict(zip(left, store.get_jobs(left), strict=True))
        lost += sum(isinstance(job, Job) and job.status is Status.LOST for job in found.values())
        # The import is the first attempt; a returning runner makes the second.
        left = [
            ref
            for ref, job in found.items()
            if isinstance(job, StoreError) or (job is not None and job.end is None and job.attempt == 1)
        ]
    return lost


class _Found(NamedTuple):
    """A chunk, and its object's time. ``rank``: its counts of redacted lines, lines and line numbers."""

    rank: tuple[int, ...]
    written_at: float
    chunk: Chunk


class _Chain(NamedTuple):
    """A chunk and the chain of chunks before it. ``rank``: the sum of their ranks."""

    last: int
    rank: tuple[int, ...]
    chunk: Chunk | None
    before: "_Chain | None"


@dataclass(slots=True)
class _Import:
    """The import of one job with the objects ``listed`` in the archive. Adds errors to ``problems``."""

    store: Store
    objects: ObjectStore
    job: JobRef
    listed: Sequence[StoredObject]
    #: Whether archivers must not delete anything, because the store has lost data.
    has_lost_data: bool
    problems: list[Imported] = field(default_factory=list)
    #: Retries the import, which was refused because the job's runner is resending lines.
    retry: Callable[[], Imported | None] | None = None
    #: Bytes of messages and number of lines over quota in each chunk read, by the chunk's name.
    counts: dict[str, tuple[int, int]] = field(default_factory=dict)
    #: Numbers of lines that are redacted in any of the objects read so far.
    redacted: set[int] = field(default_factory=set)
    #: Names of objects that the manifest may still name, but whose text was redacted in others.
    replaced: set[str] = field(default_factory=set)

    def run(self, wait_seconds: float, now: float) -> Imported | None:
        """Imports the job. Returns None if it needs a ``retry``, or if the folder has no objects of a job."""
        manifest = read_manifest(self.objects, self.job)
        if manifest and "deleted_at" in manifest.fields:
            raise Deleted
        spans = self._spans()
        if manifest is None and not spans:
            return None
        redactions = redactions_in(each.name for each in self.listed)
        records = _records(self.job, manifest)
        if records and self._has_continued(records[-1].last, spans):
            manifest, records = None, []
        is_checked = manifest is None and not self.has_lost_data
        if is_checked and self.store.catalog.archive_state(self.job).archived >= max(last for _, last in spans):
            return Imported(self.job, known=True)
        chunks = self._recorded_chunks(records, spans) if records else self._found_chunks(spans)
        if not chunks:
            raise ArchiveDamaged("no line can be read")
        fields = _ended_fields(manifest, now) if manifest else _running_fields(chunks, spans)
        # Compared before the store's own lines are added.
        is_same = partial(self._is_same, chunks)
        unreadable = {each.name for each in self.problems}
        damaged = [span for span, found in spans.items() for each in found if each.name in unreadable]
        chunks = [*chain.from_iterable(self._stored_lines(each, damaged) for each in chunks)]
        if chunks == records:
            # If the chunks differ from the manifest, an archiver completes the archive again.
            sha256 = combined_sha256(chunks)
            fields |= {"archive_state": "complete", "archive_sha256": sha256, "archived_at": iso_timestamp(now)}
            if {*derived_names(self.job, sha256)} <= {each.name for each in self.listed}:
                fields["archive_shapes"] = DERIVED_VERSION
        created = seconds_of(fields.get("created_at") or fields.get("started_at")) or now
        # Object names also count redactions that are newer than the manifest.
        said = parse_number(str(manifest.fields["job"].get("redactions"))) if manifest else 0
        redactions = max(said or 0, redactions)
        make = partial(self._put_job, chunks, fields, created, None if manifest else wait_seconds, redactions, is_same)
        found = make()
        self.retry = make if found is None else None
        return found

    def _put_job(
        self,
        chunks: Sequence[Chunk],
        fields: dict[str, Any],
        created: float,
        wait_seconds: float | None,
        redactions: int,
        is_same: Callable[[], bool | None],
    ) -> Imported | None:
        self.store.chunks.mark_replaced(self.job, self.replaced)
        counts = {} if wait_seconds is None else self.counts
        counted = [(chunk, *counts.get(chunk.name, (0, 0))) for chunk in chunks]
        is_new = self.store.chunks.import_job(
            self.job,
            counted,
            fields,
            created_ms=round(created * 1000),
            wait_seconds=wait_seconds,
            redactions=redactions,
            has_lost_data=self.has_lost_data,
            is_same=is_same,
        )
        if is_new is None:
            return None
        if is_new:
            self.store.workflows.add(self.job.workflow_id, created * 1000)
        return Imported(self.job, known=not is_new, waits=is_new and wait_seconds is not None)

    def _has_continued(self, last: int, spans: dict[tuple[int, int], list[StoredObject]]) -> bool:
        """Whether the job continued after the end in its manifest, line ``last``, because a store had lost that end."""
        name = manifest_name(self.job)
        ended_at = max((each.written_at for each in self.listed if each.name == name), default=math.inf)
        return any(each.written_at > ended_at for span, found in spans.items() if span[1] > last for each in found)

    def _is_same(self, chunks: Sequence[Chunk]) -> bool | None:
        """Whether the first line shared by store and ``chunks`` has the same time in both. None if there is none."""
        recorded = self.store.chunks.chunks(self.job)
        for read in (ArchiveReader(self.objects, self.store.chunks.chunk).entries, self._log_entries):
            # The store can name objects that no longer exist.
            with contextlib.suppress(ArchiveDamaged):
                if lines := self._shared_line(read, chunks):
                    return lines[0].timestamp == lines[1].timestamp
        times = [{frame.earliest for each in some for frame in each.frames} - {""} for some in (recorded, chunks)]
        return not times[0].isdisjoint(times[1]) or None

    def _log_entries(self, job: JobRef, after: int, count: int) -> Sequence[Entry]:
        return list(read_entries(self.store.page(job, after=after, count=count), after))

    def _shared_line(self, read: _Read, chunks: Sequence[Chunk]) -> tuple[Line, Line] | None:
        """The first line present in both ``read`` and ``chunks``."""

        def find(_: JobRef, number: int) -> Chunk | None:
            return next((each for each in chunks if number <= each.last), None)

        given, after = ArchiveReader(self.objects, find), 0
        while (one := self._line(read, after)) and (other := self._line(given.entries, after)):
            if one.sequence_num == other.sequence_num:
                return one, other
            after = max(one.sequence_num, other.sequence_num) - 1
        return None

    def _line(self, read: _Read, after: int) -> Line | None:
        """The first line after number ``after``, if it has a time."""
        while (found := read(self.job, after, 1)) and isinstance(found[0], Gap):
            after = found[0].last
        return found[0] if found and isinstance(found[0], Line) and found[0].timestamp else None

    def _spans(self) -> dict[tuple[int, int], list[StoredObject]]:
        spans: dict[tuple[int, int], list[StoredObject]] = {}
        for each in self.listed:
            name = each.name.rpartition("/")[2]
            if found := _CHUNK_NAME.fullmatch(name):
                spans.setdefault((int(found[1]), int(found[2])), []).append(each)
            elif each.name != manifest_name(self.job) and not _DERIVED_NAME.fullmatch(name):
                self._report(each.name, "not part of a job, or incomplete")
        return spans

    def _recorded_chunks(
        self, records: Sequence[Chunk], spans: dict[tuple[int, int], list[StoredObject]]
    ) -> list[Chunk]:
        """The chunks of an ended job. For a chunk that a redaction has rewritten, reads the new object.

        Reads all objects if some chunks only declare lines lost, or if an object with other numbers has redacted lines,
        which a runner has since sent again.
        """
        own = {(each.first, each.last) for each in records}
        others = (each.name for span, found in spans.items() if span not in own for each in found)
        chunks, is_cut = list[Chunk](), any(each.is_lost for each in records) or redactions_in(others) > 0
        read = list(self._read(chain.from_iterable(spans.values()))) if is_cut else []
        for record in records:
            found = spans.get((record.first, record.last), [])
            if record.is_lost and read:
                chunks += self._best_chunks(read, record.first, record.last)
            elif [(each.name, each.size) for each in found] == [(record.name, record.size)]:
                chunks.append(self._put(record, 0, None))
            # An earlier job with this id can have a chunk with the same numbers, but not the same times.
            elif same := sorted(each for each in self._read(found) if _times(each.chunk) == _times(record)):
                chunks.append(self._put(same[-1].chunk, 0, None))
                for each in same:
                    if each.rank[0] < same[-1].rank[0] and each.rank[1] <= same[-1].rank[1]:
                        self.replaced.add(each.chunk.name)
            else:
                # Readers get an error for these lines, as for any damaged object, until the object is restored.
                chunks.append(record)
                if record.name not in (each.name for each in found):
                    self._report(record.name, "the object is missing")
        return chunks

    def _found_chunks(self, spans: dict[tuple[int, int], list[StoredObject]]) -> list[Chunk]:
        """The chunks of a job without a manifest, in order."""
        found = list(self._read(chain.from_iterable(spans.values())))
        first, last = min(first for first, _ in spans), max(last for _, last in spans)
        return self._best_chunks(found, first, last) if found else []

    def _best_chunks(self, found: Sequence[_Found], first: int, last: int) -> list[Chunk]:
        """Chunks of all lines from ``first`` to ``last``, in order.

        Where objects overlap, picks the combination with the most redacted lines, then the most lines. Fills holes with
        parts of other objects, or with chunks that declare their lines lost.
        """
        if first > last:
            return []
        shared = [each for each in found if each.chunk.first <= last and first <= each.chunk.last]
        shared = [each for each in shared if not each.chunk.is_lost] or shared
        # Sorted by last number. Each chain is the best of those that end at or before its last number.
        chains, parts = [_Chain(0, (0, 0, 0), None, None)], dict[str, bytes]()
        inside = [self._part(each, first, last, parts) for each in shared]
        for rank, _, chunk in sorted(inside, key=lambda each: (each.chunk.last, each.written_at)):
            before = chains[bisect_left(chains, chunk.first, key=attrgetter("last")) - 1]
            rank = tuple(map(add, before.rank, rank))
            if rank >= chains[-1].rank:
                chains.append(_Chain(chunk.last, rank, chunk, before))
        if len(chains) == 1:
            return [self._put_lost(first, last)]
        chunks, best = list[Chunk](), chains[-1]
        while best.chunk and best.before:
            chunks += self._best_chunks(found, best.last + 1, last)[::-1]
            chunks.append(self._put(best.chunk, best.rank[0] - best.before.rank[0], parts.get(best.chunk.name)))
            last, best = best.chunk.first - 1, best.before
        chunks += self._best_chunks(found, first, last)[::-1]
        return chunks[::-1]

    def _stored_lines(self, lost: Chunk, damaged: Sequence[tuple[int, int]]) -> list[Chunk]:
        """Chunks with the lines that ``lost`` declares lost, if an old copy of the store has the last of them.

        A ``damaged`` object with these lines may have redacted them.
        """
        if not lost.is_lost or any(first <= lost.last and lost.first <= last for first, last in damaged):
            return [lost]
        found = self.store.page(self.job, after=lost.first - 1, count=1)
        first = start = entry_number(found[0][0]) if found else lost.last + 1
        chunks = list[Chunk]()
        while first <= lost.last:
            builder = ChunkBuilder(self.job, first)
            fill(builder, partial(self.store.read, self.job), first, lost.last + 1)
            if builder.last < first:
                return [lost]
            chunk, data = builder.finish()
            if not all(frame.plain for frame in chunk.frames):
                return [lost]
            chunks.append(self._put(self._found(_name(chunk, 0), data, 0.0).chunk, 0, data))
            first = chunk.last + 1
        if not chunks:
            return [lost]
        return [self._put_lost(lost.first, start - 1), *chunks] if start > lost.first else chunks

    def _read(self, listed: Iterable[StoredObject]) -> Iterator[_Found]:
        """The chunks of readable objects. Reports damaged objects."""
        for each in listed:
            try:
                yield self._found(each.name, self.objects.get(each.name), each.written_at)
            except ArchiveDamaged as error:
                self._report(each.name, str(error))

    def _found(self, name: str, data: bytes, written_at: float) -> _Found:
        first = int(name.rpartition("/")[2][:15])
        chunk, redacted, lines, self.counts[name] = read_chunk(self.job, name, first, data, REDACTED_MESSAGE)
        self.redacted.update(redacted)
        return _Found((len(redacted), lines, chunk.last + 1 - chunk.first), written_at, chunk)

    def _part(self, whole: _Found, first: int, last: int, parts: dict[str, bytes]) -> _Found:
        """Lines ``first`` to ``last`` of a chunk. If the chunk has more lines, adds the new object to ``parts``."""
        chunk = whole.chunk
        if first <= chunk.first and chunk.last <= last:
            return whole
        builder = ChunkBuilder(self.job, max(first, chunk.first))
        builder.add_part(chunk, self.objects.get(chunk.name), last)
        part, data = builder.finish()
        name = _name(part, redactions_in([chunk.name]))
        parts[name] = data
        return self._found(name, data, whole.written_at)

    def _put(self, chunk: Chunk, count: int, data: bytes | None) -> Chunk:
        """Redacts the chunk's lines that any object has redacted; ``count`` already are. Stores the object if new."""
        numbers = {number for number in self.redacted if chunk.first <= number <= chunk.last}

        def change(line: Line) -> Line | None:
            is_affected = line.sequence_num in numbers and line.message != REDACTED_MESSAGE
            return line._replace(message=REDACTED_MESSAGE) if is_affected else None

        if len(numbers) > count:
            with contextlib.suppress(ArchiveDamaged):
                old, every = data or self.objects.get(chunk.name), range(chunk.first, chunk.last + 1)
                if rewritten := rewrite(self.job, chunk, old, every, change):
                    if data is None:
                        self.replaced.add(chunk.name)
                    new, data, _ = rewritten
                    chunk = self._found(_name(new, redactions_in(each.name for each in self.listed)), data, 0).chunk
        if data:
            self.objects.put(chunk.name, data)
        return chunk

    def _put_lost(self, first: int, last: int) -> Chunk:
        builder = ChunkBuilder(self.job, first)
        builder.add([(b"%d-0" % last, [b"event", b"lost", b"from", b"%d" % first])])
        chunk, data = builder.finish()
        self.objects.put(chunk.name, data)
        return chunk

    def _report(self, name: str, problem: str) -> None:
        if all(each.name != name for each in self.problems):
            self.problems.append(Imported(self.job, name, problem))


def _name(chunk: Chunk, redactions: int) -> str:
    """The name of a new object, the same in each import."""
    return chunk.with_unique_name(chunk.sha256[:16], redactions).name


def _times(chunk: Chunk) -> tuple[str, str]:
    """The earliest and latest time of the chunk's lines. A redaction does not change them."""
    return min(each.earliest for each in chunk.frames), max(each.latest for each in chunk.frames)


def _records(job: JobRef, manifest: Manifest | None) -> list[Chunk]:
    if manifest is None:
        return []
    fields = manifest.fields["job"]
    try:
        is_own = (fields["workflow_id"], fields["id"]) == job and Status(fields["status"]).terminal
        chunks = [Chunk.from_json(job, orjson.dumps(each)) for each in manifest.fields["chunks"]]
    except (ValueError, TypeError, LookupError) as error:
        raise ArchiveDamaged(f"the manifest of {job} cannot be read") from error
    if not is_own or not chunks:
        raise ArchiveDamaged(f"the manifest of {job} does not describe an ended job with this id")
    return chunks


def _ended_fields(manifest: Manifest, now: float) -> dict[str, Any]:
    said = manifest.fields["job"]
    names = ("status", "attempt", "created_at", "started_at", "finished_at", "exit_code", "lines", "dropped")
    fields: dict[str, Any] = {name: str(said[name]) for name in names if said.get(name) is not None}
    if labels := read_labels(said.get("labels")):
        fields |= {"labels": len(labels), **{f"label:{key}": value for key, value in labels}}
    if manifest.ended_at is not None:
        # Keeps the time from which retention counts, as if nothing had been lost.
        fields["end_seen_ms"] = str(round(1000 * min(manifest.ended_at, now)))
    return fields


def _running_fields(chunks: Sequence[Chunk], spans: dict[tuple[int, int], list[StoredObject]]) -> dict[str, Any]:
    earliest = next((frame.earliest for frame in chunks[0].frames if frame.earliest), "")
    began = earliest or iso_timestamp(min(each.written_at for found in spans.values() for each in found))
    return {"status": Status.RUNNING, "attempt": 1, "created_at": began, "started_at": began}
