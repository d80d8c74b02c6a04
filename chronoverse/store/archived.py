"""What the store keeps of archived logs: the record of each chunk, and who may write the next one."""

from collections.abc import Callable
from typing import Any, Final

from chronoverse.archive.records import Chunk
from chronoverse.joblog import JobRef
from chronoverse.store.driver import Script, translated
from chronoverse.store.places import Place, Use
from chronoverse.store.replies import refusal

#: Keys of a job by kind.
_Key = Callable[[JobRef, str], str]


class Archived:
    """The ``archive`` and ``sealer`` keys of jobs; see the key map in :mod:`chronoverse.store`.

    Raises of any method: as those of :class:`chronoverse.store.Store`.
    """

    def __init__(self, place: Place, key: _Key) -> None:
        self._place = place
        self._key = key
        self._seal: Final = Script("seal")

    def chunk(self, job: JobRef, number: int) -> Chunk | None:
        """The chunk in which line ``number`` is, or the first behind it. None when no chunk reaches so far."""
        key = self._key(job, "archive")
        found = self._command(job, "ZRANGE", key, number, "+inf", "BYSCORE", "LIMIT", 0, 1)
        return Chunk.from_json(found[0]) if found else None

    def chunks(self, job: JobRef) -> list[Chunk]:
        """All of the job's chunks, in order."""
        return [Chunk.from_json(each) for each in self._command(job, "ZRANGE", self._key(job, "archive"), 0, -1)]

    def seal(self, job: JobRef, token: str, chunk: Chunk, *, trim: int = 0) -> None:
        """Makes ``chunk``, whose object was read back, part of the job's archive; lines up to ``trim`` leave the log.

        ``token`` is the lease's. May be repeated. Raises: :class:`Fenced`, :class:`SequenceGap` when the archive goes
        on with another number.
        """
        keys = [self._key(job, kind) for kind in ("log", "job", "sealer", "archive")]
        args = (token, chunk.first, chunk.last, chunk.to_json(), trim)
        with translated():
            answer = self._place.run(job.workflow_id, lambda client: self._seal.run(client, keys, *args), Use.COMMANDS)
        if answer[0] != b"OK":
            raise refusal(answer[0].decode(), answer[1:])

    def claim(self, job: JobRef, token: str, lease_seconds: float) -> bool:
        """Takes the job's archiving for ``token``, or extends it. False when somebody else has it."""
        key, lease_ms = self._key(job, "sealer"), round(lease_seconds * 1000)
        if self._command(job, "SET", key, token, "NX", "PX", lease_ms):
            return True
        if self._command(job, "GET", key) != token.encode():
            return False
        return bool(self._command(job, "PEXPIRE", key, lease_ms))

    def _command(self, job: JobRef, *command: Any) -> Any:
        with translated():
            return self._place.run(job.workflow_id, lambda client: client.execute_command(*command))
