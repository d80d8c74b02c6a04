"""Redactions in the store: chunks put in the place of others, and the list of who had what taken out."""

from collections.abc import Callable
from typing import Any, Final

import orjson

from chronoverse.joblog.chunk import Chunk
from chronoverse.joblog.entries import RawEntry
from chronoverse.joblog.values import MAX_NUMBER, JobRef
from chronoverse.store.driver import Script, translated
from chronoverse.store.replies import known_by, refusal
from chronoverse.store.topology import PoolKind, Topology

#: Redactions of one job that are remembered: some 300 bytes each, and more than anybody reads.
AUDIT_ENTRIES: Final = 1000


class RedactionLog:
    """The ``audit`` keys of jobs. Raises of any method: as those of :class:`chronoverse.store.Store`."""

    def __init__(self, place: Topology, key: Callable[[JobRef, str], str]) -> None:
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

        The object of ``old`` is garbage from then on. The store's own copy of the lines goes, and ``audit`` is
        remembered. With ``last_entry``, the last that was read for the chunk, nothing is done unless the log still has
        it. ``token`` is the archiving lease's, by which the object of ``chunk`` was announced. May be repeated.
        Raises: :class:`Fenced`, :class:`SequenceGap` when the archive or the log is not as it was.
        """
        keys = [self._key(job, kind) for kind in ("log", "job", "sealer", "archive", "audit", "garbage")]
        args = (token, chunk.first, chunk.last, chunk.to_json(), old.to_json() if old else "")
        names = (chunk.name, old.name if old else "")
        remembered = (orjson.dumps(audit), AUDIT_ENTRIES, *known_by(last_entry), *names)
        with translated():
            answer = self._place.run(
                job.workflow_id, lambda client: self._redact.run(client, keys, *args, *remembered), PoolKind.COMMANDS
            )
        if answer[0] != b"OK":
            raise refusal(answer[0].decode(), answer[1:])

    def audit(self, job: JobRef) -> list[dict[str, Any]]:
        """The newest :data:`AUDIT_ENTRIES` redactions, the oldest first. What is no redaction is left out."""
        return [each for each in self._newest(job, AUDIT_ENTRIES) if _names_its_author(each)]

    def ranges(self, job: JobRef, count: int, use: PoolKind = PoolKind.COMMANDS) -> list[tuple[int, int]]:
        """The first and the last number of the newest ``count``, as far as they are remembered."""
        return [(each["from"], each["to"]) for each in self._newest(job, count, use)]

    def _newest(self, job: JobRef, count: int, use: PoolKind = PoolKind.COMMANDS) -> list[dict[str, Any]]:
        command = ("LRANGE", self._key(job, "audit"), -count, -1)
        with translated():
            found: list[bytes] = self._place.run(job.workflow_id, lambda client: client.execute_command(*command), use)
        return [entry for each in found if (entry := _entry(each)) is not None]


def _entry(text: bytes) -> dict[str, Any] | None:
    """One redaction, or None: whoever may write a job's keys may have written something else there."""
    try:
        said = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(said, dict):
        return None
    numbers = [said.get(name) for name in ("from", "to", "count")]
    return said if all(type(each) is int and 0 < each <= MAX_NUMBER for each in numbers) else None


def _names_its_author(said: dict[str, Any]) -> bool:
    texts = [said.get("at"), said.get("subject"), said.get("request_id") or "", said.get("reason") or ""]
    return all(isinstance(each, str) for each in texts)
