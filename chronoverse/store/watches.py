"""Workflows' watches and their waiting events (docs/redis.md). Runners cannot read the secrets."""

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

import orjson

from chronoverse.joblog.entries import RawEntry
from chronoverse.joblog.model import IDENTIFIER, JobRef, iso_or_none
from chronoverse.joblog.watches import RETRY_SECONDS, Event, Watch
from chronoverse.store.commands import Commands

#: Maximum watches per workflow, and maximum waiting events per watch (2 MB).
MAX_WATCHES: Final = 20
MAX_WAITING: Final = 10_000
#: Seconds for which a process claims a watch. A delivery can take almost as long.
CLAIM_SECONDS: Final = 15
#: Seconds after which another process gets a change that was read but not acknowledged.
IDLE_SECONDS: Final = 10.0
_GROUP: Final = "notify"


class KeptWatch(NamedTuple):
    """A stored watch, and the state of its deliveries.

    ``failures``: consecutive failures since ``failing_since_ms``; ``error``: the last one. ``delivered_ms``: the last
    success. ``waiting``: events not yet delivered. ``dropped``: events that were given up. Times are Unix times.
    """

    watch: Watch
    failures: int = 0
    failing_since_ms: int = 0
    error: str = ""
    delivered_ms: int = 0
    waiting: int = 0
    dropped: int = 0

    def to_json(self, now: float) -> dict[str, Any]:
        """The watch as JSON for answers, without its secret. ``now`` is Unix time."""
        is_failing = self.failures and now - self.failing_since_ms / 1000 >= RETRY_SECONDS
        return {
            **self.watch.to_json(),
            "state": "failing" if is_failing else "retrying" if self.failures else "ok",
            "error": self.error or None,
            "failing_since": iso_or_none(self.failing_since_ms) if self.failures else None,
            "delivered_at": iso_or_none(self.delivered_ms) if self.delivered_ms else None,
            "waiting": self.waiting,
            "dropped": self.dropped,
        }


class WatchStore:
    """Reads and writes watches. Raises the errors of :class:`Store`. After changes, calls ``changed(workflow_id)``."""

    def __init__(self, commands: Commands, changed: Callable[[str], object]) -> None:
        self._commands = commands
        self._keys = commands.keys
        self._changed = changed
        #: The key of the set of workflows with watches. In a Cluster it selects that set's server.
        self.slot: Final = commands.keys.watched

    def workflows(self) -> list[str]:
        return sorted(each.decode() for each in self._commands.run(self.slot, "SMEMBERS", self.slot))

    def fields(self, workflow_id: str) -> dict[str, bytes]:
        """The stored fields of a workflow's watches, keyed by name."""
        reply = self._commands.run(workflow_id, "HGETALL", self._keys.watches(workflow_id))
        found = reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))
        return {name.decode(): value for name, value in found.items()}

    def read(self, workflow_id: str) -> list[KeptWatch]:
        fields = self.fields(workflow_id)
        watches = [Watch(**orjson.loads(text)) for name, text in sorted(fields.items()) if ":" not in name]
        queues = [self._queue(each) for each in watches]
        asked = [command for each in queues for command in (("ZCARD", each), ("ZSCORE", each, ""))]
        found = self._commands.pipeline(workflow_id, asked)
        return [
            KeptWatch(watch, *orjson.loads(fields.get(f"{watch.id}:state", b"[]")))._replace(
                waiting=size - (gate is not None), dropped=int(fields.get(f"{watch.id}:dropped", 0))
            )
            for watch, size, gate in zip(watches, found[::2], found[1::2], strict=True)
        ]

    def put(self, watch: Watch) -> None:
        """Adds or replaces a watch."""
        workflow_id = watch.workflow_id
        self._change(workflow_id, "HSET", watch.id, _encode_now(watch), f"{watch.id}:state", "[]")
        # This comes last, because a concurrent deletion checks for watches after it removes the workflow.
        self._commands.run(self.slot, "SADD", self.slot, workflow_id)
        self.retry(watch)
        self._changed(workflow_id)

    def restore(self, workflow_id: str, fields: Mapping[str, bytes]) -> None:
        for name, text in fields.items():
            made = _encode_now(Watch(**orjson.loads(text)))
            self._commands.run(workflow_id, "HSETNX", self._keys.watches(workflow_id), name, made)
            self._commands.run(self.slot, "SADD", self.slot, workflow_id)

    def delete(self, workflow_id: str, watch_id: str) -> bool:
        """Removes a watch and its waiting messages. Returns whether it existed."""
        found = self._change(workflow_id, "HDEL", watch_id, f"{watch_id}:state", f"{watch_id}:dropped")
        self._commands.run(workflow_id, "DEL", self._keys.watch_queue(workflow_id, watch_id))
        if found and not self.fields(workflow_id):
            self._commands.run(self.slot, "SREM", self.slot, workflow_id)
            if self.fields(workflow_id):
                self._commands.run(self.slot, "SADD", self.slot, workflow_id)
        self._changed(workflow_id)
        return bool(found)

    def add(self, watch: Watch, event: Event, job_created_at: str = "") -> bool:
        """Queues an event, unless it was queued before for this job or too many wait. Returns whether it was queued."""
        keys = [self._keys.told(watch.workflow_id), self._queue(watch), self._keys.watches(watch.workflow_id)]
        args = (event.webhook_id(watch) + job_created_at, orjson.dumps(list(event)), MAX_WAITING, watch.id)
        return bool(self._commands.script("add_event", watch.workflow_id, keys, *args))

    def retry(self, watch: Watch) -> None:
        """Makes a watch's events due now, even during a retry delay."""
        self._commands.run(watch.workflow_id, "ZREM", self._queue(watch), "")

    def claim(self, refs: Sequence[JobRef]) -> dict[JobRef, tuple[KeptWatch, Event]]:
        """Claims the next due event of each watch. ``refs`` are ids of workflows and watches.

        No other process gets events of a claimed watch until the event is settled, or CLAIM_SECONDS have passed.
        """

        def ask(group: Sequence[JobRef]) -> list[Any]:
            keys, ms = self._keys, 1000 * CLAIM_SECONDS
            calls = [(of, [keys.watch_queue(of, name), keys.watches(of)], [ms, name]) for of, name in group]
            return self._commands.scripts("claim_event", calls)

        found = dict[JobRef, tuple[KeptWatch, Event]]()
        for ref, reply in self._commands.by_server(refs, ask).items():
            # An error means that nothing is due, or that only a later version can read the event.
            with contextlib.suppress(ValueError, TypeError):
                event, watch, state = orjson.loads(reply if isinstance(reply, bytes) else b"")
                found[ref] = KeptWatch(Watch(**watch), *state), Event(*event)
        return found

    def settle(self, kept: KeptWatch, event: Event, pause: float | None = None, *, dropped: bool = False) -> None:
        """Records a delivery as done, ``dropped`` or failed (with a ``pause``), and the watch's new state.

        After a failure, all of the watch's events are due in ``pause`` seconds, the failed one last.
        """
        watch, due = kept.watch, "" if pause is None else round(1000 * pause)
        keys = [self._queue(watch), self._keys.watches(watch.workflow_id)]
        args = (orjson.dumps(list(event)), due, watch.id, orjson.dumps(kept[1:5]), int(dropped))
        self._commands.script("settle_event", watch.workflow_id, keys, *args)

    def changes(
        self, workflow_ids: Iterable[str], known: Mapping[str, int]
    ) -> list[tuple[str, Sequence[RawEntry], int]]:
        """Each workflow's id, its next changes, and 0.

        Changes that were read over IDLE_SECONDS ago, but are not yet :meth:`done`, come first. If the stream has
        dropped changes that were not done and are after the number in ``known``, returns the workflow's id, no changes,
        and the number of its last change.
        """

        def ask(group: Sequence[JobRef]) -> list[Any]:
            keys, idle = self._keys, round(1000 * IDLE_SECONDS)
            args = [(of, [_GROUP, idle, known.get(of, 0), keys.watches(of)]) for of, _ in group]
            calls = [(of, [keys.of_workflow(of, "changes")], each) for of, each in args]
            return self._commands.scripts("take_changes", calls)

        found = self._commands.by_server([JobRef(each, "") for each in workflow_ids], ask)
        return [(ref.workflow_id, *reply) for ref, reply in found.items() if isinstance(reply, list)]

    def done(self, workflow_id: str, entries: Sequence[RawEntry]) -> None:
        """Records that the messages for these changes are queued."""
        key = self._keys.of_workflow(workflow_id, "changes")
        self._commands.run(workflow_id, "XACK", key, _GROUP, *(entry_id for entry_id, _ in entries))

    def running(self, workflow_id: str, most: int) -> list[JobRef]:
        """The workflow's running jobs; a random sample if there are more than ``most``."""
        key = self._keys.of_workflow(workflow_id, "running")
        found = (each.decode("ascii", "replace") for each in self._commands.run(workflow_id, "SRANDMEMBER", key, most))
        return [JobRef(workflow_id, job_id) for job_id in found if IDENTIFIER.fullmatch(job_id)]

    def _change(self, workflow_id: str, command: str, *args: str | bytes) -> int:
        watches, changes = self._keys.watches(workflow_id), self._keys.of_workflow(workflow_id, "changes")
        return int(self._commands.script("change_watch", workflow_id, [changes], _GROUP, watches, command, *args))

    def _queue(self, watch: Watch) -> str:
        return self._keys.watch_queue(watch.workflow_id, watch.id)


def _encode_now(watch: Watch) -> bytes:
    return orjson.dumps(replace(watch, made_ms=round(1000 * time.time())))
