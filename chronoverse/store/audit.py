"""The audit trail: who deleted or redacted what, and who changed which settings. Each entry is logged, too.

One stream holds all workflows' entries. Only services and archivers can write it (docs/redis.md).
"""

import logging
from collections import Counter
from collections.abc import Callable
from itertools import chain
from typing import Any, Final

from chronoverse.joblog.model import iso_or_none
from chronoverse.store.commands import Commands

MAX_ENTRIES: Final = 100_000
#: Similar entries stored per process, subject and day. Most further ones are skipped, so that they evict no others.
_MAX_ALIKE: Final = 100
_MAX_TEXT: Final = 300

#: An entry's time (Unix ms by the store's clock), and its number among entries with the same time.
Position = tuple[int, int]

#: Logs every action and, if the settings enable it, every read. Independent of CHRONOVERSE_LOG_LEVEL.
audit_log: Final = logging.getLogger("chronoverse.audit")
audit_log.setLevel(logging.INFO)


class AuditTrail:
    """Writes and reads the trail. Raises what :class:`Store` raises. ``clock`` is in seconds."""

    def __init__(self, commands: Commands, clock: Callable[[], float]) -> None:
        self._commands = commands
        self._clock = clock
        #: How often each subject performed each action today.
        self._alike: Counter[tuple[str, str]] = Counter()
        self._day_began = clock()
        #: The trail's key. In a Cluster it selects the trail's server, as a workflow's id selects its jobs' server.
        self.slot: Final = commands.keys.audit_trail

    def record(self, sub: str, did: str, workflow_id: str, job_id: str | None, what: str) -> None:
        """Adds an entry. ``did`` is delete, redact, retention, limits, import or watch.

        After 100 similar entries in a day, only every hundredth is added. :data:`audit_log` gets all of them.
        """
        fields = {"sub": sub[:_MAX_TEXT], "did": did, "workflow_id": workflow_id, "what": what[:_MAX_TEXT]}
        if job_id is not None:
            fields["id"] = job_id
        audit_log.info("audit", extra={"fields": fields.copy()})
        if not 0 <= self._clock() - self._day_began < 86_400:
            self._alike.clear()
            self._day_began = self._clock()
        alike = sub, did
        count = self._alike[alike]
        if count >= _MAX_ALIKE:
            if count % _MAX_ALIKE:
                self._alike[alike] += 1
                return
            fields["what"] += f"; only the log has the next {_MAX_ALIKE - 1} entries"
        self._commands.script("record", self.slot, [self.slot], MAX_ENTRIES, *chain(*fields.items()))
        self._alike[alike] += 1

    def page(
        self, since_ms: int, until_ms: int | None, before: Position | None, count: int
    ) -> list[tuple[Position, dict[str, Any]]]:
        """Up to ``count`` entries between two times (Unix ms) and below position ``before``, newest first."""
        newest = "+" if until_ms is None else str(until_ms)
        if before is not None:
            newest = f"({before[0]}-{before[1]}"
        found = self._commands.run(self.slot, "XREVRANGE", self.slot, newest, since_ms, "COUNT", count)
        entries: list[tuple[Position, dict[str, Any]]] = []
        for entry_id, pairs in found:
            at_ms, number = map(int, entry_id.split(b"-"))
            texts = [each.decode("utf-8", "replace") for each in pairs]
            fields = dict(zip(texts[::2], texts[1::2], strict=True))
            known = {name: fields.get(name) for name in ("sub", "did", "workflow_id", "id", "what")}
            entries.append(((at_ms, number), {"at": iso_or_none(at_ms), **known}))
        return entries
