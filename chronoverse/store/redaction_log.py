"""Redactions in the store: replaces the records of chunks, and lists who redacted what."""

from typing import Any, Final

import orjson

from chronoverse.joblog.chunk import Chunk
from chronoverse.joblog.entries import RawEntry
from chronoverse.joblog.model import MAX_NUMBER, JobRef
from chronoverse.store.commands import run_command, run_script
from chronoverse.store.driver import Script
from chronoverse.store.keys import ARCHIVE_LOCK, KeyMap
from chronoverse.store.replies import entry_fingerprint, refusal_error
from chronoverse.store.topology import PoolKind, Topology

#: The most redactions of one job that are stored, some 300 bytes each.
AUDIT_ENTRIES: Final = 1000


class RedactionLog:
    """The ``audit`` keys of jobs. Every method raises as those of :class:`chronoverse.store.Store`."""

    def __init__(self, topology: Topology, keys: KeyMap) -> None:
        self._topology = topology
        self._keys = keys
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
        """Records ``chunk``, whose object was read back, instead of ``old``; without ``old``, after all other chunks.

        In the same step the object of ``old`` becomes garbage, the lines leave the store's log, and ``audit`` is added
        to the list. With ``last_entry``, the last that was read for the chunk, nothing is done unless the log still has
        it. ``token`` is the one of the archive lock and of the upload. May be repeated.
        Raises :class:`Fenced`, :class:`SequenceGap` when the archive or the log has changed.
        """
        keys = [self._keys.of(job, kind) for kind in ("log", "job", ARCHIVE_LOCK, "archive", "audit", "garbage")]
        args = (token, chunk.first, chunk.last, chunk.to_json(), old.to_json() if old else "")
        names = (chunk.name, old.name if old else "")
        more = (orjson.dumps(audit), AUDIT_ENTRIES, *entry_fingerprint(last_entry), *names)
        answer = run_script(self._topology, job.workflow_id, self._redact, keys, *args, *more)
        if answer[0] != b"OK":
            raise refusal_error(answer[0].decode(), answer[1:])

    def audit(self, job: JobRef) -> list[dict[str, Any]]:
        """The newest :data:`AUDIT_ENTRIES` redactions, the oldest first. Values that are no redaction are left out."""
        return [each for each in self._newest(job, AUDIT_ENTRIES) if _names_its_author(each)]

    def ranges(self, job: JobRef, count: int, pool: PoolKind = PoolKind.COMMANDS) -> list[tuple[int, int]]:
        """The first and the last number of the newest ``count`` redactions, as far as they are stored."""
        return [(each["from"], each["to"]) for each in self._newest(job, count, pool)]

    def _newest(self, job: JobRef, count: int, pool: PoolKind = PoolKind.COMMANDS) -> list[dict[str, Any]]:
        key = self._keys.of(job, "audit")
        found: list[bytes] = run_command(self._topology, job.workflow_id, "LRANGE", key, -count, -1, pool=pool)
        return [redaction for text in found if (redaction := _parse(text)) is not None]


def _parse(text: bytes) -> dict[str, Any] | None:
    """One redaction. None for any other value: other programs may write the key, too."""
    try:
        redaction = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(redaction, dict):
        return None
    numbers = [redaction.get(name) for name in ("from", "to", "count")]
    return redaction if all(type(each) is int and 0 < each <= MAX_NUMBER for each in numbers) else None


def _names_its_author(redaction: dict[str, Any]) -> bool:
    names = ("at", "subject")
    optional = ("request_id", "reason")
    texts = [*(redaction.get(name) for name in names), *(redaction.get(name) or "" for name in optional)]
    return all(isinstance(each, str) for each in texts)
