"""What the store holds of archived logs: the records of chunks, the archive lock, and the garbage of each job."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from chronoverse.errors import ArchiveDamaged, Held
from chronoverse.joblog.chunk import Chunk
from chronoverse.joblog.entries import RawEntry
from chronoverse.joblog.model import JobRef
from chronoverse.store.commands import run_command, run_script
from chronoverse.store.driver import Script, translate_errors
from chronoverse.store.durability import is_permanent
from chronoverse.store.keys import ARCHIVE_LOCK, JOB_KEYS, KeyMap
from chronoverse.store.replies import entry_fingerprint, refusal_error
from chronoverse.store.topology import PoolKind, Topology

#: Records read at a time, of some 10 KiB each. The key may hold millions of other values: reading ends at the first
#: value that is no record.
RECORDS_PER_READ: Final = 500


class GarbageMark(NamedTuple):
    """An object is to be deleted since ``seconds``. ``replaced`` says that a redaction has replaced it."""

    seconds: float
    replaced: bool


class ChunkIndex:
    """The ``archive``, ``sealer`` and ``garbage`` keys of jobs; see the key map in :mod:`chronoverse.store`.

    Before an object is written, its name is added to the garbage (:meth:`begin_upload`). The script that records the
    chunk takes it out again. So every object has a record or is garbage, wherever an archiver dies.

    Every method raises as those of :class:`chronoverse.store.Store`.
    """

    def __init__(self, topology: Topology, keys: KeyMap) -> None:
        self._topology = topology
        self._keys = keys
        names = (
            "acquire_lock",
            "release_lock",
            "begin_upload",
            "commit_chunk",
            "mark_garbage",
            "throttle_runner",
            "mark_complete",
            "mark_deleting",
            "delete",
        )
        # A server that is full of logs must run these scripts: logs leave it only by them.
        self._scripts: Final = {name: Script(name, allow_oom=True) for name in names}

    def chunk(self, job: JobRef, number: int) -> Chunk | None:
        """The chunk that holds line ``number``, or else the first after that line. None when there is none.

        Raises :class:`ArchiveDamaged` for a value that is no record.
        """
        key = self._keys.of(job, "archive")
        found = self._command(job, "ZRANGE", key, number, "+inf", "BYSCORE", "LIMIT", 0, 1)
        if not found:
            return None
        chunk = Chunk.from_json(job, found[0])
        if chunk.last < number:
            raise ArchiveDamaged(f"the record of line {number} is filed under another number")
        return chunk

    def chunks(self, job: JobRef) -> list[Chunk]:
        """All of the job's chunks, in order. Raises :class:`ArchiveDamaged` for a value that is no record."""
        found: list[Chunk] = []
        while True:
            start = len(found)
            page = self._command(job, "ZRANGE", self._keys.of(job, "archive"), start, start + RECORDS_PER_READ - 1)
            found += [Chunk.from_json(job, record) for record in page]
            if len(page) < RECORDS_PER_READ:
                return found

    def throttle_runner(self, job: JobRef, seconds: float) -> None:
        """Makes the job's runner pause after each append for ``seconds`` from now: its log grows too fast.

        Works on runners that write to the store directly. With 0 the runner may go at full speed again.
        """
        self._run("throttle_runner", job, ("job",), round(seconds * 1000))

    # The archive lock

    def acquire_lock(self, job: JobRef, token: str, lease_seconds: float) -> bool:
        """Takes the job's archive lock for ``token``, or extends it. False when another archiver has it."""
        return self._run("acquire_lock", job, (ARCHIVE_LOCK,), token, round(lease_seconds * 1000)) == b"OK"

    def release_lock(self, job: JobRef, token: str) -> None:
        """Releases the job's archive lock. Does nothing when another archiver has it."""
        self._run("release_lock", job, (ARCHIVE_LOCK,), token)

    # What the holder of the lock does. ``token`` is the one that it took the lock with.

    def begin_upload(self, job: JobRef, token: str, name: str) -> None:
        """Adds the name of an object that is about to be written to the garbage. It stays there until it has a record.

        ``name`` must never have been used before: see :meth:`Chunk.with_unique_name`. Raises :class:`Fenced`.
        """
        self._run("begin_upload", job, (ARCHIVE_LOCK, "garbage"), token, name)

    def mark_garbage(self, job: JobRef, token: str, names: Sequence[str] = ()) -> dict[str, GarbageMark]:
        """Marks all objects in the garbage, and those of ``names``, for deletion. None can get a record any more.

        A caller that has lost the lock marks and gets only the objects whose upload it began itself.
        """
        keys = [self._keys.of(job, kind) for kind in (ARCHIVE_LOCK, "garbage")]
        answer = run_script(self._topology, job.workflow_id, self._scripts["mark_garbage"], keys, token, *names)
        marks = zip(answer[::3], answer[1::3], answer[2::3], strict=True)
        return {
            name.decode("utf-8", "replace"): GarbageMark(float(seconds), bool(replaced))
            for name, seconds, replaced in marks
        }

    def garbage(self, job: JobRef) -> set[str]:
        """The names of all objects in the garbage: those whose upload has begun, and those marked for deletion."""
        flat = self._command(job, "HGETALL", self._keys.of(job, "garbage"))
        pairs = flat.items() if isinstance(flat, dict) else zip(flat[::2], flat[1::2], strict=True)
        return {name.decode("utf-8", "replace") for name, _ in pairs}

    def clear_garbage(self, job: JobRef, names: Sequence[str]) -> None:
        """Removes the names of objects that were marked and are deleted by now."""
        if names:
            self._command(job, "HDEL", self._keys.of(job, "garbage"), *names)

    def is_permanent(self, job: JobRef, lease_seconds: float) -> bool | None:
        """Whether the job's records survive a power cut and a failover; see :func:`is_permanent` for the values.

        It extends the archive lock, since the question needs a write that it can be about.
        """
        write = ("PEXPIRE", self._keys.of(job, ARCHIVE_LOCK), round(lease_seconds * 1000))
        with translate_errors():
            return self._topology.run(job.workflow_id, lambda client: is_permanent(client, *write), PoolKind.WAITS)

    def commit_chunk(
        self, job: JobRef, token: str, chunk: Chunk, *, trim: int = 0, last_entry: RawEntry | None = None
    ) -> None:
        """Records ``chunk``, whose object was read back, and removes lines up to ``trim`` from the log.

        ``token`` is also the one of :meth:`begin_upload`. With ``last_entry``, the last that was read for the chunk,
        nothing is done unless the log still has it. The log's last entry is never removed. May be repeated.
        Raises :class:`Fenced`, :class:`Deleted`, :class:`SequenceGap` when the archive's next number is another.
        """
        args = (token, chunk.first, chunk.last, chunk.to_json(), trim, *entry_fingerprint(last_entry), chunk.name)
        self._run("commit_chunk", job, ("log", "job", ARCHIVE_LOCK, "archive", "garbage"), *args)

    def mark_complete(
        self,
        job: JobRef,
        token: str,
        *,
        archived: int,
        sha256: str,
        hot_ms: int,
        created_ms: int,
        state: Mapping[str, Any],
    ) -> None:
        """Notes that all of an ended job is archived, up to number ``archived``. The log expires after ``hot_ms``.

        The fields of ``state`` are added to the job's hash where they are missing. May be repeated.
        Raises :class:`Fenced`, :class:`SequenceGap` when the archive ends elsewhere.
        """
        fields = [each for pair in state.items() for each in pair]
        args = (token, archived, sha256, hot_ms, job.job_id, created_ms, *fields)
        self._run("mark_complete", job, ("log", "job", ARCHIVE_LOCK, "archive"), *args, listing=True)

    def mark_swept(self, job: JobRef) -> None:
        """Notes that a complete job has no objects but those that are recorded."""
        self._command(job, "HSET", self._keys.of(job, "job"), "swept", "1")

    def mark_deleting(self, job: JobRef, token: str, tombstone_ms: int) -> None:
        """Hides the job from readers and refuses its runners: it is about to be deleted.

        For ``tombstone_ms`` milliseconds from now nothing is written or read under its id, even after the job is gone.
        With 0 the id is free again after the deletion, unless it has a tombstone already.
        Raises :class:`Fenced`; :class:`Held` when a live runner holds the job.
        """
        self._run("mark_deleting", job, ("log", "job", "lease", ARCHIVE_LOCK, "deleted"), token, tombstone_ms)

    def delete(self, job: JobRef, token: str) -> None:
        """Deletes all that the store has of a job that :meth:`mark_deleting` has marked, the archive lock as well.

        Raises :class:`Fenced`; :class:`Held` when the job has begun anew since.
        """
        first = ("log", "job", ARCHIVE_LOCK)
        others = [kind for kind in JOB_KEYS if kind not in (*first, "deleted")]
        self._run("delete", job, (*first, *others), token, job.job_id, listing=True)

    def _run(self, name: str, job: JobRef, kinds: Sequence[str], *args: Any, listing: bool = False) -> bytes:
        keys = [self._keys.of(job, kind) for kind in kinds]
        if listing:
            keys.append(self._keys.listing(job.workflow_id))
        answer = run_script(self._topology, job.workflow_id, self._scripts[name], keys, *args)
        if answer[0] == b"HELD":
            raise Held("a live runner holds this job")
        word: bytes = answer[0]
        if word not in (b"OK", b"TAKEN"):
            raise refusal_error(answer[0].decode(), answer[1:])
        return word

    def _command(self, job: JobRef, *command: Any) -> Any:
        return run_command(self._topology, job.workflow_id, *command)
