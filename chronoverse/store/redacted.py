"""Redactions in the store: chunks put in the place of others, and the list of who had what taken out."""

from collections.abc import Callable
from typing import Any, Final

import orjson

from chronoverse.archive.records import Chunk
from chronoverse.entries import RawEntry
from chronoverse.joblog import JobRef
from chronoverse.store.driver import Script, translated
from chronoverse.store.places import Place, Use
from chronoverse.store.replies import known_by, refusal

#: Redactions of one job that are remembered: some 300 bytes each, and more than anybody reads.
AUDIT_ENTRIES: Final = 1000


class Redacted:
    """The ``audit`` keys of jobs. Raises of any method: as those of :class:`chronoverse.store.Store`."""

    def __init__(self, place: Place, key: Callable[[JobRef, str], str]) -> None:
        self._place = place
        self._key = key
        self._redact: Final = Script("redact")

    def redact(
        self,
        job: JobRef,
        token: str,
        chunk: Chunk,
        audit: dict[str, Any],
        *,
        old: Chunk | None = None,
        last_entry: RawEntry | None = None,
    ) -> None:
        """Puts ``chunk``, whose object was read back, in the place of ``old``; without that, behind all chunks.

        The store's own copy of its lines goes, and ``audit`` is remembered. With ``last_entry``, the last that was read
        for the chunk, nothing is done unless the log still has it. ``token`` is the archiving lease's. May be repeated.
        Raises: :class:`Fenced`, :class:`SequenceGap` when the archive or the log is not as it was.
        """
        keys = [self._key(job, kind) for kind in ("log", "job", "sealer", "archive", "audit")]
        args = (token, chunk.first, chunk.last, chunk.to_json(), old.to_json() if old else "")
        remembered = (orjson.dumps(audit), AUDIT_ENTRIES, *known_by(last_entry))
        with translated():
            answer = self._place.run(
                job.workflow_id, lambda client: self._redact.run(client, keys, *args, *remembered), Use.COMMANDS
            )
        if answer[0] != b"OK":
            raise refusal(answer[0].decode(), answer[1:])

    def audit(self, job: JobRef) -> list[dict[str, Any]]:
        """The newest :data:`AUDIT_ENTRIES` redactions, the oldest first."""
        return [orjson.loads(each) for each in self._range(job, AUDIT_ENTRIES)]

    def ranges(self, job: JobRef, count: int, use: Use = Use.COMMANDS) -> list[tuple[int, int]]:
        """The first and the last number of the newest ``count``, as far as they are remembered."""
        found = [orjson.loads(each) for each in self._range(job, count, use)]
        return [(each["from"], each["to"]) for each in found]

    def _range(self, job: JobRef, count: int, use: Use = Use.COMMANDS) -> list[bytes]:
        command = ("LRANGE", self._key(job, "audit"), -count, -1)
        with translated():
            found: list[bytes] = self._place.run(job.workflow_id, lambda client: client.execute_command(*command), use)
        return found
