"""What the store keeps of archived logs: the record of each chunk, and who may write the next one."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from chronoverse.archive.records import Chunk
from chronoverse.entries import RawEntry
from chronoverse.errors import Held
from chronoverse.joblog import JobRef
from chronoverse.store.driver import Script, translated
from chronoverse.store.places import Place, Use
from chronoverse.store.replies import known_by, refusal

#: Keys of a job by kind.
_Key = Callable[[JobRef, str], str]


class Archived:
    """The ``archive`` and ``sealer`` keys of jobs; see the key map in :mod:`chronoverse.store`.

    Raises of any method: as those of :class:`chronoverse.store.Store`.
    """

    def __init__(self, place: Place, key: _Key, index: Callable[[str], str]) -> None:
        self._place = place
        self._key = key
        self._index = index
        names = ("claim", "release", "seal", "slow", "complete", "doom", "delete")
        # Or a server that is full of logs could never be rid of them.
        self._scripts: Final = {name: Script(name, frees=True) for name in names}

    def chunk(self, job: JobRef, number: int) -> Chunk | None:
        """The chunk in which line ``number`` is, or the first behind it. None when no chunk reaches so far."""
        key = self._key(job, "archive")
        found = self._command(job, "ZRANGE", key, number, "+inf", "BYSCORE", "LIMIT", 0, 1)
        return Chunk.from_json(found[0]) if found else None

    def chunks(self, job: JobRef) -> list[Chunk]:
        """All of the job's chunks, in order."""
        return [Chunk.from_json(each) for each in self._command(job, "ZRANGE", self._key(job, "archive"), 0, -1)]

    def slow_down(self, job: JobRef, seconds: float) -> None:
        """Has the job's runner go slowly for as long, if it writes to the store itself: its log grows too fast."""
        self._run("slow", job, ("job",), round(seconds * 1000))

    # One archiver at a time

    def claim(self, job: JobRef, token: str, lease_seconds: float) -> bool:
        """Takes the job's archiving for ``token``, or extends it. False when somebody else has it."""
        return self._run("claim", job, ("sealer",), token, round(lease_seconds * 1000)) == b"OK"

    def release(self, job: JobRef, token: str) -> None:
        """Lets go of the job's archiving. Nothing happens when somebody else has it."""
        self._run("release", job, ("sealer",), token)

    # What its holder does

    def seal(self, job: JobRef, token: str, chunk: Chunk, *, trim: int = 0, last_entry: RawEntry | None = None) -> None:
        """Makes ``chunk``, whose object was read back, part of the job's archive; lines up to ``trim`` leave the log.

        ``token`` is the lease's. With ``last_entry``, the last that was read for the chunk, nothing is sealed unless
        the log still has it. The log's last entry never leaves it. May be repeated.
        Raises: :class:`Fenced`, :class:`SequenceGap` when the archive goes on with another number.
        """
        args = (token, chunk.first, chunk.last, chunk.to_json(), trim, *known_by(last_entry))
        self._run("seal", job, ("log", "job", "sealer", "archive"), *args)

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

    def doom(self, job: JobRef, token: str, tombstone_ms: int) -> None:
        """Hides the job from everybody, and refuses its runners: it is about to be deleted.

        For ``tombstone_ms`` milliseconds from now on nothing is written or read under its id, also when the job
        itself has gone. With 0 the id is free again after the deletion, unless it has a tombstone already.
        Raises: :class:`Fenced`, :class:`Held` by a live runner.
        """
        self._run("doom", job, ("log", "job", "lease", "sealer", "deleted"), token, tombstone_ms)

    def delete(self, job: JobRef, token: str) -> None:
        """Deletes all that the store has of a job that is doomed, the lease as well.

        Raises: :class:`Fenced`, :class:`Held` when it has begun anew since.
        """
        kinds = ("log", "job", "lease", "sealer", "archive", "audit")
        self._run("delete", job, kinds, token, job.job_id, index=True)

    def _run(self, name: str, job: JobRef, kinds: Sequence[str], *args: Any, index: bool = False) -> bytes:
        keys = [self._key(job, kind) for kind in kinds]
        if index:
            keys.append(self._index(job.workflow_id))
        script = self._scripts[name]
        with translated():
            answer = self._place.run(job.workflow_id, lambda client: script.run(client, keys, *args), Use.COMMANDS)
        if answer[0] == b"HELD":
            raise Held("a live runner holds this job")
        word: bytes = answer[0]
        if word not in (b"OK", b"TAKEN"):
            raise refusal(answer[0].decode(), answer[1:])
        return word

    def _command(self, job: JobRef, *command: Any) -> Any:
        with translated():
            return self._place.run(job.workflow_id, lambda client: client.execute_command(*command))
