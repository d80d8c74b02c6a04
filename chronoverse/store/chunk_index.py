"""The store's data about archived logs: chunk records, redactions, the archive lock, and garbage."""

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import orjson

from chronoverse.errors import ArchiveDamaged
from chronoverse.joblog.chunk import Chunk, combined_sha256, redactions_in
from chronoverse.joblog.entries import RawEntry
from chronoverse.joblog.model import MAX_NUMBER, JobRef
from chronoverse.store.catalog import DERIVED_VERSION
from chronoverse.store.commands import Commands
from chronoverse.store.durability import is_permanent
from chronoverse.store.keys import ARCHIVE_LOCK, JOB_KEYS
from chronoverse.store.replies import entry_fingerprint
from chronoverse.store.topology import PoolKind

#: Maximum stored redactions per job, about 300 bytes each.
_AUDIT_ENTRIES: Final = 1000


class GarbageMark(NamedTuple):
    """How long an object has been garbage, and whether a redaction ``replaced`` it or a larger chunk ``merged`` it."""

    seconds: float
    replaced: bool
    merged: bool


class ChunkIndex:
    """Jobs' ``archive``, ``audit``, ``sealer`` and ``garbage`` keys (docs/redis.md). Raises the errors of Store."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands

    def chunk(self, job: JobRef, number: int) -> Chunk | None:
        """The chunk with line ``number``, or the next chunk. Raises :class:`ArchiveDamaged` for an invalid record."""
        found = self._run(job, "ZRANGE", "archive", number, "+inf", "BYSCORE", "LIMIT", 0, 1)
        if not found:
            return None
        chunk = Chunk.from_json(job, found[0])
        if chunk.last < number:
            raise ArchiveDamaged(f"the record of line {number} is filed under another number")
        return chunk

    def first_chunks(self, jobs: Sequence[JobRef]) -> dict[JobRef, Chunk]:
        """The first chunk of each of ``jobs``, in a few round trips. Omits those that cannot be read."""

        def read(jobs: Sequence[JobRef]) -> list[Any]:
            keys = [self._commands.keys.of(job, "archive") for job in jobs]
            return self._commands.pipeline(jobs[0].workflow_id, [("ZRANGE", key, 0, 0) for key in keys])

        found: dict[JobRef, Chunk] = {}
        for job, reply in self._commands.by_server(jobs, read).items():
            with contextlib.suppress(ArchiveDamaged):
                if isinstance(reply, list) and reply:
                    found[job] = Chunk.from_json(job, reply[0])
        return found

    def chunks(self, job: JobRef) -> list[Chunk]:
        """All of the job's chunks, in order. Raises :class:`ArchiveDamaged` for an invalid record."""
        found: list[Chunk] = []
        # Reads pages of 500 records of about 10 KiB. Stops at an invalid record: someone may have added millions.
        while page := self._run(job, "ZRANGE", "archive", len(found), len(found) + 499):
            found += [Chunk.from_json(job, record) for record in page]
        return found

    def throttle_runner(self, job: JobRef, seconds: float) -> None:
        """For ``seconds``, makes the job's runner pause after each append."""
        self._commands.ask("throttle_runner", job, ("job",), round(seconds * 1000))

    def acquire_lock(self, job: JobRef, token: str, lease_seconds: float, *, extend: bool = False) -> bool:
        """Acquires the archive lock; with ``extend``, only extends it. Returns False if another archiver holds it."""
        key = self._commands.keys.of(job, ARCHIVE_LOCK)
        args = token, round(lease_seconds * 1000), int(extend)
        return bool(self._commands.script("acquire_lock", job.workflow_id, [key], *args))

    def release_lock(self, job: JobRef, token: str) -> None:
        self._commands.ask("release_lock", job, (ARCHIVE_LOCK,), token)

    # The following methods are for the holder of the lock. ``token`` is the token that acquired it.

    def begin_upload(self, job: JobRef, token: str, name: str) -> None:
        """Adds an object's ``name`` to the garbage before the object is written. Raises :class:`Fenced`."""
        self._commands.ask("begin_upload", job, (ARCHIVE_LOCK, "garbage"), token, name)

    def mark_garbage(self, job: JobRef, token: str, names: Sequence[str] = ()) -> dict[str, GarbageMark]:
        """Marks ``names`` and all garbage for deletion, and returns it. Without the lock, only the caller's uploads."""
        keys = [self._commands.keys.of(job, kind) for kind in (ARCHIVE_LOCK, "garbage")]
        answer = self._commands.script("mark_garbage", job.workflow_id, keys, token, *names)
        marks = zip(answer[::3], answer[1::3], answer[2::3], strict=True)
        return {
            name.decode("utf-8", "replace"): GarbageMark(float(seconds), why == b"replaced", why == b"merged")
            for name, seconds, why in marks
        }

    def garbage(self, job: JobRef) -> set[str]:
        reply = self._run(job, "HGETALL", "garbage")
        names = reply if isinstance(reply, dict) else reply[::2]
        return {name.decode("utf-8", "replace") for name in names}

    def clear_garbage(self, job: JobRef, names: Sequence[str]) -> None:
        """Removes the names of deleted objects from the garbage."""
        if names:
            self._run(job, "HDEL", "garbage", *names)

    def mark_replaced(self, job: JobRef, names: Iterable[str]) -> None:
        """Marks objects whose text was redacted in others as garbage, though the manifest may name them."""
        if marks := [each for name in names for each in (name, f"replaced:{time.time():.0f}")]:
            self._run(job, "HSET", "garbage", *marks)

    def is_permanent(self, job: JobRef, lease_seconds: float) -> bool | None:
        """Whether the job's records survive a power cut and a failover; see :func:`durability.is_permanent`."""
        write = ("PEXPIRE", self._commands.keys.of(job, ARCHIVE_LOCK), round(lease_seconds * 1000))
        return self._commands.work(job.workflow_id, lambda client: is_permanent(client, *write), PoolKind.WAITS)

    def commit_chunk(
        self,
        job: JobRef,
        token: str,
        chunk: Chunk,
        *,
        trim: int = 0,
        last_entry: RawEntry | None = None,
        old: Chunk | None = None,
    ) -> None:
        """Records ``chunk`` after the others, or in place of ``old``. Trims the log up to ``trim``, except its last
        entry.

        With ``last_entry``, refuses if the log no longer contains it. Idempotent. Raises :class:`Fenced`,
        :class:`Deleted`, :class:`SequenceGap`.
        """
        numbers = (old.last + 1 if old else chunk.first, chunk.last)
        args = (token, *numbers, chunk.to_json(), trim, *entry_fingerprint(last_entry), chunk.name)
        replaced = (old.to_json(), old.name) if old else ("", "")
        self._commands.ask("commit_chunk", job, ("log", "job", ARCHIVE_LOCK, "archive", "garbage"), *args, *replaced)

    def mark_complete(
        self,
        job: JobRef,
        token: str,
        chunks: Sequence[Chunk],
        *,
        hot_ms: int,
        created_ms: int,
        state: Mapping[str, Any],
    ) -> None:
        """Records that an ended job and its derived objects are archived. The log expires after ``hot_ms``. Idempotent.

        ``state`` provides fields that the job's hash lacks. Raises :class:`Fenced`, :class:`SequenceGap`.
        """
        fields = [each for pair in state.items() for each in pair]
        whole = chunks[-1].last, combined_sha256(chunks)
        args = (token, *whole, hot_ms, job.job_id, created_ms, DERIVED_VERSION, *fields)
        self._commands.ask("mark_complete", job, ("log", "job", ARCHIVE_LOCK, "archive", "jobs"), *args)

    def import_job(
        self,
        job: JobRef,
        chunks: Sequence[tuple[Chunk, int, int]],
        fields: Mapping[str, Any],
        *,
        created_ms: int,
        wait_seconds: float | None,
        redactions: int,
        has_lost_data: bool = False,
        is_same: Callable[[], bool | None] = lambda: None,
    ) -> bool | None:
        """Recreates a job from ``chunks`` and the job hash's ``fields``. Idempotent.

        Each chunk comes with two counts: the bytes it adds to quotas, and its lines over quota. ``has_lost_data``: the
        store has lost data, so archivers must not delete objects. ``is_same``: whether store and
        chunks have the same time in a line; None if they share no line.

        Returns False if the store already has the whole job; None if its runner is still resending lines: call again. A
        job without an end becomes LOST after ``wait_seconds`` without its runner. Raises :class:`Deleted`, and
        :class:`ArchiveDamaged` for another job with this id, or if lines were redacted since ``chunks`` were read.
        """
        wait_ms = "" if wait_seconds is None else round(wait_seconds * 1000)
        numbers = (
            job.job_id,
            created_ms,
            chunks[0][0].first,
            chunks[-1][0].last,
            fields.get("created_at", ""),
            wait_ms,
        )
        flat = [each for pair in fields.items() for each in pair]
        records = [each for chunk, *counts in chunks for each in (chunk.last, chunk.to_json(), *counts)]
        kinds = ("log", "job", "lease", "archive", "jobs")

        def ask(compared: str) -> int:
            args = *numbers, redactions, int(has_lost_data), compared, len(flat), *flat, *records
            return int(self._commands.ask("import_job", job, kinds, *args)[0])

        answer = ask("")
        if answer == 5:
            answer = ask({True: "1", False: "0", None: "-"}[is_same()])
        if answer == 3:
            raise ArchiveDamaged("the store has another job with this id: the archived lines are not shown")
        if answer == 4:
            raise ArchiveDamaged("its lines are being redacted: repeat the import")
        return (False, True, None)[answer]

    def mark_swept(self, job: JobRef) -> None:
        self._run(job, "HSET", "job", "swept", "1")

    def mark_deleting(self, job: JobRef, token: str, tombstone_ms: int) -> None:
        """Begins a deletion: hides the job, refuses its runners, and sets a tombstone for ``tombstone_ms``.

        Raises :class:`Fenced`, and :class:`Held` if a live runner holds the job.
        """
        kinds = ("log", "job", "lease", ARCHIVE_LOCK, "deleted", "archive", "garbage")
        self._commands.ask("mark_deleting", job, kinds, token, tombstone_ms)

    def delete(self, job: JobRef, token: str) -> None:
        """Deletes a job that is marked for deletion, except its tombstone. Raises :class:`Fenced`, :class:`Held`."""
        first = ("log", "job", ARCHIVE_LOCK)
        others = [kind for kind in JOB_KEYS if kind not in (*first, "deleted")]
        self._commands.ask("delete", job, (*first, *others, "jobs"), token, job.job_id)

    def redact(
        self,
        job: JobRef,
        token: str,
        chunk: Chunk,
        audit: dict[str, Any],
        *,
        old: Chunk | None = None,
        last_entry: RawEntry | None = None,
    ) -> bool:
        """Replaces the record of ``old`` with ``chunk``, whose object was verified. Without ``old``, appends ``chunk``.

        Also marks the object of ``old`` as garbage, trims the store's log, and stores ``audit``. Idempotent. Returns
        False if the old text may remain in the store's memory, because the log is too large to rewrite. Raises
        :class:`Fenced`, and :class:`SequenceGap` if archive or log changed.
        """
        kinds = ("log", "job", ARCHIVE_LOCK, "archive", "audit", "garbage")
        args = (token, chunk.first, chunk.last, chunk.to_json(), old.to_json() if old else "")
        names = (chunk.name, old.name if old else "", redactions_in([chunk.name]))
        more = (orjson.dumps(audit), _AUDIT_ENTRIES, *entry_fingerprint(last_entry), *names)
        return bool(self._commands.ask("redact", job, kinds, *args, *more)[0])

    def audit(self, job: JobRef) -> list[dict[str, Any]]:
        """The newest :data:`_AUDIT_ENTRIES` redactions, oldest first. Omits invalid ones."""
        return [each for each in self.redactions(job, _AUDIT_ENTRIES) if _names_its_author(each)]

    def redactions(self, job: JobRef, count: int) -> list[dict[str, Any]]:
        """The newest ``count`` redactions, oldest first. Their numbers are validated, but not their texts."""
        texts = self._run(job, "LRANGE", "audit", -count, -1)
        return [redaction for text in texts if (redaction := _redaction(text)) is not None]

    def _run(self, job: JobRef, command: str, kind: str, *args: Any) -> Any:
        return self._commands.run(job.workflow_id, command, self._commands.keys.of(job, kind), *args)


def _redaction(text: bytes) -> dict[str, Any] | None:
    try:
        redaction = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(redaction, dict):
        return None
    numbers = [redaction.get(name) for name in ("from", "to", "count")]
    return redaction if all(type(each) is int and 0 < each <= MAX_NUMBER for each in numbers) else None


def _names_its_author(redaction: dict[str, Any]) -> bool:
    texts = [redaction.get("at"), redaction.get("subject")]
    optional = [redaction.get(name) or "" for name in ("request_id", "reason")]
    return all(isinstance(each, str) for each in (*texts, *optional))
