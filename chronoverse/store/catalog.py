"""Which logs there are, how large they are, and what is to be archived or deleted of them."""

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

from chronoverse.errors import NotALog, StoreUnavailable
from chronoverse.joblog.entries import entry_number
from chronoverse.joblog.values import IDENTIFIER, JobRef, parse_number
from chronoverse.store.driver import Client, Script, translated
from chronoverse.store.topology import PoolKind, Topology

#: Keys that one SCAN looks at: some 0.2 ms of the server's time.
SCAN_KEYS: Final = 1_000
#: Sizes asked for in one round trip.
SIZE_BATCH: Final = 500
#: Nodes of a stream whose sizes are added up for an estimate of the whole.
SAMPLED_NODES: Final = 10
#: Seconds for which a workflow's own setting keeps its jobs at most: ten years, as for the common one. A number beyond
#: what Redis takes for a time to live would fail the scripts of all jobs of the workflow.
RETENTION_SECONDS: Final = 315_360_000

_Key = Callable[[JobRef, str], str]


class ArchiveState(NamedTuple):
    """What is known of a job's archiving. Numbers are 0, and texts empty, where nothing is known.

    ``ended_seconds`` is for how long the store has known of the job's end, by its own clock; None where it does not.
    ``first`` and ``last`` are the first and the last number in the log itself, ``holds_log`` whether there is one.
    ``retention_seconds`` is the workflow's own, if it has one.
    """

    archived: int
    complete: bool
    deleting: bool
    swept: bool
    ended_seconds: float | None
    archived_at: str
    retention_seconds: int | None
    first: int
    last: int
    holds_log: bool


class CatalogPage(NamedTuple):
    """Some of the store's jobs: those that have a log or an archive, and those that have ``garbage`` to delete."""

    jobs: list[JobRef]
    garbage: list[JobRef]


class JobCatalog:
    """All the jobs of a store, for whoever archives them. Raises: as :class:`chronoverse.store.Store`."""

    def __init__(self, place: Topology, prefix: str, key: _Key) -> None:
        self._place = place
        self._key = key
        self._prefix = prefix
        # Both also for a server that is full.
        self._survey: Final = Script("archive_state", allow_oom=True)
        self._keep: Final = Script("apply_retention", allow_oom=True)
        identifier = IDENTIFIER.pattern.encode()
        pattern = rb"%b:\{(%b)\}:(%b):(log|archive|garbage)" % (re.escape(prefix.encode()), identifier, identifier)
        self._name: Final = re.compile(pattern)

    def jobs(self) -> Iterator[CatalogPage]:
        """Every job, a few at a time, some of them more than once, some pages empty."""
        away: StoreUnavailable | None = None
        with translated():
            masters = self._place.masters()
        for client in masters:
            try:
                yield from self._jobs_of(client)
            except StoreUnavailable as error:
                # A Cluster's other servers are asked all the same.
                away = error
        if away is not None:
            raise away

    def _jobs_of(self, client: Client) -> Iterator[CatalogPage]:
        cursor: Any = 0
        while cursor != b"0":
            with translated():
                pattern = f"{self._prefix}:{{*"
                cursor, keys = client.execute_command("SCAN", cursor, "MATCH", pattern, "COUNT", SCAN_KEYS)
            page = CatalogPage([], [])
            for found in filter(None, map(self._name.fullmatch, keys)):
                place = page.garbage if found[3] == b"garbage" else page.jobs
                place.append(JobRef(found[1].decode(), found[2].decode()))
            yield page

    def sizes(self, jobs: Sequence[JobRef]) -> dict[JobRef, int]:
        """Bytes that their logs take, about. A log that is gone takes none, one whose server is away is not named."""
        sizes: dict[JobRef, int] = {}
        for start in range(0, len(jobs), SIZE_BATCH):
            with translated():
                parts = self._place.group_by_node(jobs[start : start + SIZE_BATCH])
            for part in parts:
                with contextlib.suppress(StoreUnavailable), translated():
                    answers = self._place.run(part[0].workflow_id, partial(self._ask, part))
                    known = zip(part, answers, strict=True)
                    sizes.update({job: answer if isinstance(answer, int) else 0 for job, answer in known})
        return sizes

    def _ask(self, jobs: Sequence[JobRef], client: Client) -> list[Any]:
        pipeline = client.pipeline(transaction=False)
        for job in jobs:
            pipeline.execute_command("MEMORY", "USAGE", self._key(job, "log"), "SAMPLES", SAMPLED_NODES)
        return pipeline.execute(raise_on_error=False)

    def archive_state(self, job: JobRef) -> ArchiveState:
        """One job's archiving, as it is now."""
        keys = [self._key(job, kind) for kind in ("log", "job", "archive")]
        keys.append(self._settings(job.workflow_id))
        with translated():
            answer = self._place.run(job.workflow_id, lambda client: self._survey.run(client, keys))
        archived, state, deleting, swept, ended_ms, completed, retention, first, last = answer
        return ArchiveState(
            archived=_number(archived) or 0,
            complete=state == b"complete",
            deleting=bool(deleting),
            swept=bool(swept),
            ended_seconds=int(ended_ms) / 1000 if ended_ms else None,
            archived_at=completed.decode("utf-8", "replace"),
            retention_seconds=_retention(retention),
            first=entry_number(first) if first else 0,
            last=entry_number(last) if last else 0,
            holds_log=bool(last),
        )

    # What a workflow has of its own

    def retention(self, workflow_id: str, use: PoolKind = PoolKind.COMMANDS) -> int | None:
        """Seconds for which the workflow's logs are kept, where it is not the common setting."""
        try:
            answer = self._command(workflow_id, "HGET", self._settings(workflow_id), "retention_seconds", use=use)
        except NotALog:
            # The settings' key is no hash, so that the workflow has none.
            return None
        return None if answer is None else _retention(answer)

    def retention_ms(self, workflow_id: str, use: PoolKind = PoolKind.COMMANDS) -> int | None:
        """The same in milliseconds."""
        seconds = self.retention(workflow_id, use)
        return None if seconds is None else 1000 * seconds

    def set_retention(self, workflow_id: str, seconds: int | None) -> None:
        """Sets that, or with None makes it the common setting again: for jobs that begin now; see
        :meth:`apply_retention`.
        """
        key = self._settings(workflow_id)
        if seconds is None:
            self._command(workflow_id, "HDEL", key, "retention_seconds")
        else:
            self._command(workflow_id, "HSET", key, "retention_seconds", seconds)

    def apply_retention(self, job: JobRef, own_seconds: int | None, seconds: float) -> bool:
        """Has a job be kept as its workflow says now, which has ``own_seconds`` or none of its own.

        One that has ended and that the store alone has goes ``seconds`` after its end was seen: at once, when that is
        over. False when there is no such job, or the archive has it whole.
        """
        keys = [self._key(job, kind) for kind in ("log", "job")]
        args = ("" if own_seconds is None else 1000 * own_seconds, round(seconds * 1000))
        with translated():
            return bool(self._place.run(job.workflow_id, lambda client: self._keep.run(client, keys, *args)))

    def _settings(self, workflow_id: str) -> str:
        return f"{self._prefix}:{{{workflow_id}}}:settings"

    def _command(self, workflow_id: str, *command: Any, use: PoolKind = PoolKind.COMMANDS) -> Any:
        with translated():
            return self._place.run(workflow_id, lambda client: client.execute_command(*command), use)


def _retention(text: bytes) -> int | None:
    seconds = _number(text)
    return None if seconds is None else min(seconds, RETENTION_SECONDS)


def _number(text: bytes) -> int | None:
    return parse_number(text.decode("utf-8", "replace"))
