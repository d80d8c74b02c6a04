"""What the store keeps of archived logs: the record of each chunk, who may write the next one, and what is garbage."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from chronoverse.errors import ArchiveDamaged, Held
from chronoverse.joblog.chunk import Chunk
from chronoverse.joblog.entries import RawEntry
from chronoverse.joblog.values import JobRef
from chronoverse.store.driver import Script, translated
from chronoverse.store.permanence import is_permanent
from chronoverse.store.replies import known_by, refusal
from chronoverse.store.topology import PoolKind, Topology

#: Records read at a time, of some 10 KiB each. Somebody may have written millions: the first that is none ends the
#: reading.
RECORDS: Final = 500

#: Keys of a job by kind.
_Key = Callable[[JobRef, str], str]


class ChunkIndex:
    """The ``archive``, ``sealer`` and ``garbage`` keys of jobs; see the key map in :mod:`chronoverse.store`.

    Raises of any method: as those of :class:`chronoverse.store.Store`.
    """

    def __init__(self, place: Topology, key: _Key, index: Callable[[str], str]) -> None:
        self._place = place
        self._key = key
        self._index = index
        names = (
            "acquire_lock",
            "release_lock",
            "announce",
            "commit_chunk",
            "condemn",
            "throttle_runner",
            "complete",
            "mark_deleting",
            "delete",
        )
        # Or a server that is full of logs could never be rid of them.
        self._scripts: Final = {name: Script(name, allow_oom=True) for name in names}

    def chunk(self, job: JobRef, number: int) -> Chunk | None:
        """The chunk in which line ``number`` is, or the first behind it. None when no chunk reaches so far.

        Raises: :class:`ArchiveDamaged` for a record that is none.
        """
        key = self._key(job, "archive")
        found = self._command(job, "ZRANGE", key, number, "+inf", "BYSCORE", "LIMIT", 0, 1)
        if not found:
            return None
        chunk = Chunk.from_json(job, found[0])
        if chunk.last < number:
            raise ArchiveDamaged(f"the record of line {number} is filed under another number")
        return chunk

    def chunks(self, job: JobRef) -> list[Chunk]:
        """All of the job's chunks, in order. Raises: :class:`ArchiveDamaged` for a record that is none."""
        found: list[Chunk] = []
        while True:
            start = len(found)
            page = self._command(job, "ZRANGE", self._key(job, "archive"), start, start + RECORDS - 1)
            found += [Chunk.from_json(job, each) for each in page]
            if len(page) < RECORDS:
                return found

    def throttle_runner(self, job: JobRef, seconds: float) -> None:
        """Has the job's runner go slowly for as long, if it writes to the store itself: its log grows too fast.

        With 0 it may go at full speed again.
        """
        self._run("throttle_runner", job, ("job",), round(seconds * 1000))

    # One archiver at a time

    def acquire_lock(self, job: JobRef, token: str, lease_seconds: float) -> bool:
        """Takes the job's archiving for ``token``, or extends it. False when somebody else has it."""
        return self._run("acquire_lock", job, ("sealer",), token, round(lease_seconds * 1000)) == b"OK"

    def release_lock(self, job: JobRef, token: str) -> None:
        """Lets go of the job's archiving. Nothing happens when somebody else has it."""
        self._run("release_lock", job, ("sealer",), token)

    # What its holder does

    def announce(self, job: JobRef, token: str, name: str) -> None:
        """Writes down that an object of that name is about to be written: it is garbage until a record names it.

        ``name`` must never have been used before: see :meth:`Chunk.with_unique_name`. Raises: :class:`Fenced`.
        """
        self._run("announce", job, ("sealer", "garbage"), token, name)

    def condemn(self, job: JobRef, token: str, names: Sequence[str] = ()) -> dict[str, float]:
        """Decides that all objects that were written down are to be deleted, and ``names``, which were not.

        None of them can be recorded any more. The result has for each the seconds since that was decided.
        Whoever has lost the lease decides it for the objects that it has announced itself, and is told of no others.
        """
        keys = [self._key(job, kind) for kind in ("sealer", "garbage")]
        with translated():
            script = self._scripts["condemn"]
            answer = self._place.run(job.workflow_id, lambda client: script.run(client, keys, token, *names))
        pairs = zip(answer[::2], answer[1::2], strict=True)
        return {name.decode("utf-8", "replace"): float(seconds) for name, seconds in pairs}

    def garbage(self, job: JobRef) -> set[str]:
        """The names of the objects that are written down: about to be recorded, or to be deleted."""
        flat = self._command(job, "HGETALL", self._key(job, "garbage"))
        pairs = flat.items() if isinstance(flat, dict) else zip(flat[::2], flat[1::2], strict=True)
        return {name.decode("utf-8", "replace") for name, _ in pairs}

    def forget_garbage(self, job: JobRef, names: Sequence[str]) -> None:
        """Strikes out objects that were condemned and are deleted."""
        if names:
            self._command(job, "HDEL", self._key(job, "garbage"), *names)

    def is_permanent(self, job: JobRef, lease_seconds: float) -> bool | None:
        """Whether the job's records stay as they are after a power cut and a failover; see :func:`is_permanent`.

        It extends the archiving lease, since the question needs a write to ask about.
        """
        write = ("PEXPIRE", self._key(job, "sealer"), round(lease_seconds * 1000))
        with translated():
            return self._place.run(job.workflow_id, lambda client: is_permanent(client, *write), PoolKind.WAITS)

    def commit_chunk(
        self, job: JobRef, token: str, chunk: Chunk, *, trim: int = 0, last_entry: RawEntry | None = None
    ) -> None:
        """Makes ``chunk``, whose object was read back, part of the job's archive; lines up to ``trim`` leave the log.

        ``token`` is the lease's, by which the object was announced. With ``last_entry``, the last that was read for the
        chunk, nothing is sealed unless the log still has it. The log's last entry never leaves it. May be repeated.
        Raises: :class:`Fenced`, :class:`Deleted`, :class:`SequenceGap` when the archive goes on with another number.
        """
        args = (token, chunk.first, chunk.last, chunk.to_json(), trim, *known_by(last_entry), chunk.name)
        self._run("commit_chunk", job, ("log", "job", "sealer", "archive", "garbage"), *args)

    def complete(
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
        """Says that all of an ended job is archived, up to number ``archived``: the log itself goes after ``hot_ms``.

        ``state`` is what its hash shall say where it does not yet. May be repeated.
        Raises: :class:`Fenced`, :class:`SequenceGap` when the archive ends elsewhere.
        """
        fields = [each for pair in state.items() for each in pair]
        args = (token, archived, sha256, hot_ms, job.job_id, created_ms, *fields)
        self._run("complete", job, ("log", "job", "sealer", "archive"), *args, index=True)

    def swept(self, job: JobRef) -> None:
        """Notes that a complete job's objects are those that are recorded."""
        self._command(job, "HSET", self._key(job, "job"), "swept", "1")

    def mark_deleting(self, job: JobRef, token: str, tombstone_ms: int) -> None:
        """Hides the job from everybody, and refuses its runners: it is about to be deleted.

        For ``tombstone_ms`` milliseconds from now on nothing is written or read under its id, also when the job
        itself has gone. With 0 the id is free again after the deletion, unless it has a tombstone already.
        Raises: :class:`Fenced`, :class:`Held` by a live runner.
        """
        self._run("mark_deleting", job, ("log", "job", "lease", "sealer", "deleted"), token, tombstone_ms)

    def delete(self, job: JobRef, token: str) -> None:
        """Deletes all that the store has of a job that is doomed, the lease as well.

        Raises: :class:`Fenced`, :class:`Held` when it has begun anew since.
        """
        kinds = ("log", "job", "lease", "sealer", "archive", "audit", "garbage")
        self._run("delete", job, kinds, token, job.job_id, index=True)

    def _run(self, name: str, job: JobRef, kinds: Sequence[str], *args: Any, index: bool = False) -> bytes:
        keys = [self._key(job, kind) for kind in kinds]
        if index:
            keys.append(self._index(job.workflow_id))
        script = self._scripts[name]
        with translated():
            answer = self._place.run(job.workflow_id, lambda client: script.run(client, keys, *args), PoolKind.COMMANDS)
        if answer[0] == b"HELD":
            raise Held("a live runner holds this job")
        word: bytes = answer[0]
        if word not in (b"OK", b"TAKEN"):
            raise refusal(answer[0].decode(), answer[1:])
        return word

    def _command(self, job: JobRef, *command: Any) -> Any:
        with translated():
            return self._place.run(job.workflow_id, lambda client: client.execute_command(*command))
