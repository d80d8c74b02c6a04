"""All jobs of the store, for archivers: their sizes, archive state and retention."""

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import redis

from chronoverse.errors import NotALog, StoreError, StoreUnavailable
from chronoverse.joblog import shapes, timelines
from chronoverse.joblog.entries import entry_number
from chronoverse.joblog.model import IDENTIFIER, JobRef, parse_number
from chronoverse.store.commands import Commands
from chronoverse.store.driver import translate_errors
from chronoverse.store.topology import PoolKind

#: Maximum seconds of a workflow's retention: ten years, like the service's maximum. Redis refuses very large times.
RETENTION_SECONDS: Final = 315_360_000
#: The format versions of an archived log's derived objects: set of shapes, and timeline.
DERIVED_VERSION: Final = f"{shapes.VERSION}.{timelines.VERSION}"

#: The age mark's sorted set also has a member with score 0: this prefix and the bucket's id.
_BUCKET: Final = "bucket:"


class ArchiveState(NamedTuple):
    """How much of a job is archived. Unknown numbers are 0; unknown texts are empty.

    ``complete``: the job has ended and is archived, since ``archived_at``. ``has_derived``: its shapes and timeline are
    archived, too, in the current format. ``swept``: all its objects have records. ``ended_at`` (Unix seconds): when the
    store first saw the end. ``first``, ``last``: lines in the store. ``retention_seconds``: the workflow's own.
    """

    archived: int
    complete: bool
    has_derived: bool
    deleting: bool
    swept: bool
    ended_seconds: float | None
    ended_at: float | None
    archived_at: str
    retention_seconds: int | None
    first: int
    last: int

    def retention(self, common_seconds: float) -> float:
        return common_seconds if self.retention_seconds is None else self.retention_seconds


class CatalogPage(NamedTuple):
    """Jobs with a log or an archive, jobs with ``garbage``, and workflows with settings."""

    jobs: list[JobRef]
    garbage: list[JobRef]
    settings: list[str]


class WorkflowSettings(NamedTuple):
    """A workflow's settings. None: the service's setting applies; 0: no limit. Times are Unix ms."""

    retention_seconds: int | None = None
    job_bytes: int | None = None
    day_bytes: int | None = None
    changed_ms: int = 0
    saved_ms: int = 0

    @property
    def own(self) -> dict[str, int | None]:
        return {"retention_seconds": self.retention_seconds, "job_bytes": self.job_bytes, "day_bytes": self.day_bytes}


class JobCatalog:
    """All jobs of a store, for archivers. Raises what :class:`chronoverse.store.Store` raises."""

    def __init__(self, commands: Commands, clock: Callable[[], float]) -> None:
        self._commands = commands
        self._keys = commands.keys
        self._clock = clock
        prefix, identifier = re.escape(self._keys.prefix.encode()), IDENTIFIER.pattern.encode()
        self._key_pattern: Final = re.compile(
            rb"%b:\{(%b)\}:(?:settings|(%b):(log|archive|garbage))" % (prefix, identifier, identifier)
        )

    def jobs(self) -> Iterator[CatalogPage]:
        """All jobs, in pages. A job can appear more than once, and a page can be empty."""
        failure: StoreUnavailable | None = None
        with translate_errors():
            masters = self._commands.topology.masters()
        for client in masters:
            try:
                yield from self._jobs_of(client)
            except StoreUnavailable as error:
                # Continue with the Cluster's other servers.
                failure = error
        if failure is not None:
            raise failure

    def _jobs_of(self, client: redis.Redis) -> Iterator[CatalogPage]:
        cursor: Any = 0
        while cursor != b"0":
            with translate_errors():
                pattern = f"{self._keys.prefix}:{{*"
                # Keys per SCAN: about 0.2 ms of the server.
                cursor, keys = client.execute_command("SCAN", cursor, "MATCH", pattern, "COUNT", 1_000)
            page = CatalogPage([], [], [])
            for found in filter(None, map(self._key_pattern.fullmatch, keys)):
                if found[2] is None:
                    page.settings.append(found[1].decode())
                    continue
                jobs = page.garbage if found[3] == b"garbage" else page.jobs
                jobs.append(JobRef(found[1].decode(), found[2].decode()))
            yield page

    def mark(self) -> float:
        """The age mark, in Unix seconds; 0 if there is none. See :mod:`chronoverse.archive.store_history`."""
        key = self._keys.mark
        return float(self._commands.run(key, "ZSCORE", key, "archivers") or 0)

    def move_mark(self, seconds: float) -> None:
        """Advances the age mark to ``seconds``; never moves it back."""
        key = self._keys.mark
        self._commands.run(key, "ZADD", key, "GT", round(seconds), "archivers")

    def bucket(self) -> str:
        """The id of this store's archive. Empty if not yet known."""
        found = self._commands.run(self._keys.mark, "ZRANGE", self._keys.mark, 0, 0, "BYSCORE")
        names = [each.decode("utf-8", "replace") for each in found]
        return next((each.removeprefix(_BUCKET) for each in names if each.startswith(_BUCKET)), "")

    def set_bucket(self, bucket: str) -> None:
        key, old = self._keys.mark, self.bucket()
        if bucket != old:
            self._commands.run(key, "ZADD", key, 0, f"{_BUCKET}{bucket}")
            self._commands.run(key, "ZREM", key, f"{_BUCKET}{old}")

    def sizes(self, jobs: Sequence[JobRef]) -> dict[JobRef, int]:
        """The estimated bytes of each job's log; 0 for a deleted log. Omits jobs on unreachable servers."""

        def ask(group: Sequence[JobRef]) -> list[int]:
            # The server estimates the size from ten of the stream's nodes.
            commands = [("MEMORY", "USAGE", self._keys.log(job), "SAMPLES", 10) for job in group]
            answers = self._commands.pipeline(group[0].workflow_id, commands)
            return [answer if isinstance(answer, int) else 0 for answer in answers]

        with contextlib.suppress(StoreUnavailable):
            return {job: size for job, size in self._commands.by_server(jobs, ask).items() if isinstance(size, int)}
        return {}

    def archive_state(self, job: JobRef) -> ArchiveState:
        keys = [self._keys.of(job, kind) for kind in ("log", "job", "archive", "settings")]
        answer = self._commands.script("archive_state", job.workflow_id, keys)
        archived, state, deleting, swept, ended_ms, archived_at, retention, first, last, seen_ms, derived = answer
        return ArchiveState(
            archived=parse_number(archived.decode("utf-8", "replace")) or 0,
            complete=state == b"complete",
            has_derived=state == b"complete" and derived == DERIVED_VERSION.encode(),
            deleting=bool(deleting),
            swept=bool(swept),
            ended_seconds=int(ended_ms) / 1000 if ended_ms else None,
            ended_at=int(seen_ms) / 1000 if seen_ms else None,
            archived_at=archived_at.decode("utf-8", "replace"),
            retention_seconds=_retention(retention),
            first=entry_number(first) if first else 0,
            last=entry_number(last) if last else 0,
        )

    def settings(self, workflow_ids: Sequence[str]) -> dict[str, WorkflowSettings]:
        """The settings of these workflows. Omits unreadable ones."""
        answers = self._on_settings(workflow_ids, "HMGET", *WorkflowSettings._fields)
        return {each: _settings(answer) for each, answer in answers.items() if isinstance(answer, list)}

    def settings_of(self, workflow_id: str, pool: PoolKind | None = None) -> WorkflowSettings:
        """The workflow's settings. All unset if its key is not a hash."""
        key = self._keys.of_workflow(workflow_id, "settings")
        with contextlib.suppress(NotALog):
            return _settings(self._commands.run(workflow_id, "HMGET", key, *WorkflowSettings._fields, pool=pool))
        return WorkflowSettings()

    def change_settings(self, workflow_id: str, **changes: int | None) -> None:
        """Changes a workflow's settings; None removes one. Quotas apply at once, the retention only to later jobs."""
        changes = {"changed_ms": round(1000 * self._clock()), **changes}
        key = self._keys.of_workflow(workflow_id, "settings")
        if removed := [name for name, value in changes.items() if value is None]:
            self._commands.run(workflow_id, "HDEL", key, *removed)
        # The time is set last, so that an archiver that has just read the old settings will read them again.
        fields = [each for name, value in changes.items() if value is not None for each in (name, value)]
        self._commands.run(workflow_id, "HSET", key, *fields)

    def settings_saved(self, workflow_id: str, changed_ms: int) -> None:
        """Records that the archive has the workflow's settings as of ``changed_ms``."""
        self._commands.run(workflow_id, "HSET", self._keys.of_workflow(workflow_id, "settings"), "saved_ms", changed_ms)

    def common_bounds(self, pool: PoolKind | None = None) -> list[int] | None:
        """The service's quotas, for workflows without their own. None if unknown. Never raises."""
        key = self._keys.limits
        with contextlib.suppress(StoreError):
            found = _numbers(self._commands.run(key, "HMGET", key, "job_bytes", "day_bytes", pool=pool))
            return None if None in found else [each or 0 for each in found]
        return None

    def set_common_bounds(self, job_bytes: int, day_bytes: int, list_workflows: Callable[[], Sequence[str]]) -> None:
        """If the service's quotas changed, sets them for new jobs and for running jobs of the listed workflows."""
        if (self.common_bounds() or [0, 0]) == [job_bytes, day_bytes]:
            return
        fields = ("common_job_bytes", job_bytes, "common_day_bytes", day_bytes)
        self._on_settings(list_workflows(), "HSET", *fields)
        key = self._keys.limits
        self._commands.run(key, "HSET", key, "job_bytes", job_bytes, "day_bytes", day_bytes)
        # Repeated for workflows whose jobs began meanwhile.
        self._on_settings(list_workflows(), "HSET", *fields)

    def bytes_today(self, workflow_ids: Sequence[str], day: int) -> dict[str, int]:
        """Message bytes that each workflow stored on ``day`` (days since 1970). Omits workflows without a quota."""
        answers = self._on_settings(workflow_ids, "HMGET", "day", "bytes_today")
        found = {each: _numbers(answer) for each, answer in answers.items() if isinstance(answer, list)}
        return {each: size for each, (its_day, size) in found.items() if its_day == day and size}

    def _on_settings(self, workflow_ids: Sequence[str], command: str, *args: Any) -> dict[str, Any]:
        """Runs a command on each workflow's settings. Returns the replies, including errors."""

        def ask(refs: Sequence[JobRef]) -> list[Any]:
            commands = [(command, self._keys.of_workflow(ref.workflow_id, "settings"), *args) for ref in refs]
            return self._commands.pipeline(refs[0].workflow_id, commands)

        found = self._commands.by_server([JobRef(each, "") for each in workflow_ids], ask)
        return {ref.workflow_id: answer for ref, answer in found.items()}

    def apply_retention(self, job: JobRef, own_seconds: int | None, seconds: float) -> bool:
        """Applies a retention of ``seconds`` to a job that has begun. ``own_seconds``: the workflow's own, or None.

        An ended job expires ``seconds`` after its end was first seen. Returns False if the job does not exist, or is
        archived completely.
        """
        keys = [self._keys.of(job, kind) for kind in ("log", "job")]
        args = ("" if own_seconds is None else 1000 * own_seconds, round(seconds * 1000))
        return bool(self._commands.script("apply_retention", job.workflow_id, keys, *args))


def _numbers(values: Sequence[bytes | None]) -> list[int | None]:
    return [parse_number((each or b"").decode("utf-8", "replace")) for each in values]


def _settings(values: Sequence[bytes | None]) -> WorkflowSettings:
    job_bytes, day_bytes, changed_ms, saved_ms = _numbers(values[1:])
    return WorkflowSettings(_retention(values[0] or b""), job_bytes, day_bytes, changed_ms or 0, saved_ms or 0)


def _retention(text: bytes) -> int | None:
    seconds = parse_number(text.decode("utf-8", "replace"))
    return None if seconds is None else min(seconds, RETENTION_SECONDS)
