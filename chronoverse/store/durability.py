"""How far a log is safe: asked on a connection of its own, since the question waits for a disk or a replica."""

import contextlib
from collections.abc import Callable
from enum import StrEnum
from typing import Any, Final

from chronoverse.errors import EmbeddedError, NotDurable, StoreError
from chronoverse.joblog.values import Attempt, JobRef
from chronoverse.store import replies
from chronoverse.store.appends import Keys
from chronoverse.store.driver import Client, DriverError, Script, translate, translated
from chronoverse.store.topology import PoolKind, Topology

#: Milliseconds for which one question waits for the disk or the replica. Less than a command may take.
WAIT_MS: Final = 2_000
#: Replicas that must have a line before it counts as replicated.
REPLICAS: Final = 1


class Durability(StrEnum):
    """When a line is safe: answered by the store, on its disk, or on a replica as well."""

    ACKED = "acked"
    FSYNCED = "fsynced"
    REPLICATED = "replicated"


class StoreDurabilityProbe:
    """Asks for one job at a time. ``sync``, where there is one, has this machine's disk take all that was written."""

    def __init__(
        self,
        place: Topology,
        durability: Durability,
        lease_ms: int,
        retention_ms: int,
        keys: Callable[[JobRef], Keys],
        sync: Callable[[], None] | None = None,
    ) -> None:
        self._place = place
        self._durability = durability
        self._lease_ms = lease_ms
        self._retention_ms = retention_ms
        self._keys = keys
        self._sync = sync
        self._script = Script("confirm")

    def confirm(self, attempt: Attempt, urgent: bool = False) -> int | None:
        """The number below which all is safe now, the terminal entry too; None when that could not be said in time.

        ``urgent``: worth a sync.
        Raises: :class:`Fenced`, :class:`NotDurable`.
        """
        with translated():
            return self._place.run(
                attempt.job.workflow_id, lambda client: self._confirm(client, attempt, urgent), PoolKind.WAITS
            )

    def _confirm(self, client: Client, attempt: Attempt, urgent: bool) -> int | None:
        if self._durability is Durability.REPLICATED:
            return self._asked(client, attempt, "WAIT", REPLICAS, WAIT_MS)
        if urgent and self._sync is not None:
            # A file may have gone between two looks (a rewrite), or may not be ours to open: ask the server then.
            with contextlib.suppress(EmbeddedError):
                following = self._written(client, attempt)
                if following is not None:
                    self._sync()
                    return following
        return self._asked(client, attempt, "WAITAOF", 1, 0, WAIT_MS)

    def _written(self, client: Client, attempt: Attempt) -> int | None:
        """As :meth:`confirm`, for what the server has handed to its machine's files.

        Two round trips: the server writes what a read of a connection has brought only when it has done all of it.
        """
        following = self._following(client.execute_command(*self._call(attempt)))
        info = client.execute_command("INFO", "persistence")
        # With everysec a write may stay in the server's own memory while its disk is busy. What is empty was written.
        return following if b"aof_enabled:1" in info and b"aof_buffer_length:0\r" in info else None

    def _asked(self, client: Client, attempt: Attempt, *question: Any) -> int | None:
        # Both on one connection, whose last write the question is about.
        pipeline = client.pipeline(transaction=False)
        pipeline.execute_command(*self._call(attempt))
        pipeline.execute_command(*question)
        answer, reply = pipeline.execute(raise_on_error=False)
        if isinstance(answer, DriverError):
            raise answer
        following = self._following(answer)
        if isinstance(reply, DriverError):
            # A server that has gone, or is no master any more, is asked again: only what nobody expects is final.
            if type(translate(reply)) is StoreError:
                raise NotDurable(f"the store cannot say what is on its disk: {reply}")
            raise reply
        copies = reply[0] if question[0] == "WAITAOF" else reply
        return following if copies >= (1 if question[0] == "WAITAOF" else REPLICAS) else None

    def _call(self, attempt: Attempt) -> tuple[Any, ...]:
        keys = self._keys(attempt.job)
        args = (attempt.token, self._lease_ms, self._retention_ms, attempt.attempt)
        return ("EVAL", self._script.source, len(keys), *keys, *args)

    @staticmethod
    def _following(answer: list[Any]) -> int:
        if answer[0] != b"OK":
            raise replies.refusal(answer[0].decode(), answer[1:])
        following: int = answer[1]
        return following
