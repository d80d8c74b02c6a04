"""Sends commands and scripts to the server that has a workflow's keys. Converts the driver's errors to ours."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Final, TypeVar

import redis
from redis.exceptions import AskError, MovedError, NoScriptError

from chronoverse.errors import StoreError, StoreRefused, StoreUnavailable
from chronoverse.joblog.model import JobRef
from chronoverse.store.driver import Script, to_store_error, translate_errors
from chronoverse.store.keys import KeyMap
from chronoverse.store.replies import accepted
from chronoverse.store.topology import PoolKind, Result, Topology, Work

Answer = TypeVar("Answer")

JOBS_AT_ONCE: Final = 500


class Commands:
    """Sends commands over the connections of ``pool``, unless a call names another pool. ``keys`` makes key names."""

    def __init__(self, topology: Topology, keys: KeyMap, pool: PoolKind = PoolKind.COMMANDS) -> None:
        self.topology: Final = topology
        self.keys: Final = keys
        self.pool: Final = pool
        self.script_named: Final = cache(Script)

    def work(self, workflow_id: str, work: Work[Result], pool: PoolKind | None = None) -> Result:
        try:
            return self.topology.run(workflow_id, work, pool or self.pool)
        except redis.RedisError as error:
            raise to_store_error(error) from error

    def run(self, workflow_id: str, *command: Any, pool: PoolKind | None = None) -> Any:
        return self.work(workflow_id, lambda client: client.execute_command(*command), pool)

    def pipeline(
        self, workflow_id: str, commands: Sequence[tuple[Any, ...]], pool: PoolKind | None = None
    ) -> list[Any]:
        """The replies to ``commands``, sent in one round trip. A failed command's reply is the driver's error."""
        if not commands:
            return []

        def send(client: redis.Redis) -> list[Any]:
            pipeline = client.pipeline(transaction=False)
            for command in commands:
                pipeline.execute_command(*command)
            return pipeline.execute(raise_on_error=False)

        return self.work(workflow_id, send, pool)

    def script(self, name: str, workflow_id: str, keys: Sequence[str], *args: Any, pool: PoolKind | None = None) -> Any:
        script = self.script_named(name)
        return self.work(workflow_id, lambda client: script.run(client, keys, *args), pool)

    def ask(self, name: str, job: JobRef, kinds: Sequence[str], *args: Any, pool: PoolKind | None = None) -> list[Any]:
        """Runs a script on a job's keys. Returns the reply without its leading OK. Raises other replies' errors."""
        keys = [self.keys.of(job, kind) for kind in kinds]
        return accepted(self.script(name, job.workflow_id, keys, *args, pool=pool))

    def scripts(
        self, name: str, calls: Sequence[tuple[str, Sequence[str], Sequence[Any]]], pool: PoolKind | None = None
    ) -> list[Any]:
        """A script's replies, or errors, for ``calls`` (workflow id, keys, arguments) on one server."""
        sha = self.script_named(name).sha
        commands = [("EVALSHA", sha, len(keys), *keys, *args) for _, keys, args in calls]
        answers = self.pipeline(calls[0][0], commands, pool) if calls else []
        for at, (workflow_id, keys, args) in enumerate(calls):
            # Repeats the call if the server lacks the script, or the workflow has moved to another server.
            if isinstance(answers[at], NoScriptError | MovedError | AskError):
                try:
                    answers[at] = self.script(name, workflow_id, keys, *args, pool=pool)
                except StoreError as error:
                    answers[at] = error
            elif isinstance(answers[at], redis.RedisError):
                answers[at] = to_store_error(answers[at])
        return answers

    def by_server(
        self, jobs: Sequence[JobRef], ask: Callable[[Sequence[JobRef]], Sequence[Answer]]
    ) -> dict[JobRef, Answer | StoreError]:
        """Calls ``ask`` with the jobs of each server. Returns its answers, or an error for each job of an unreachable
        server.

        Raises :class:`StoreUnavailable` or :class:`StoreRefused` if all jobs have such an error.
        """
        found: dict[JobRef, Answer | StoreError] = {}
        for start in range(0, len(jobs), JOBS_AT_ONCE):
            with translate_errors():
                groups = self.topology.group_by_node(jobs[start : start + JOBS_AT_ONCE])
            for group in groups:
                try:
                    found.update(zip(group, ask(group), strict=True))
                except StoreUnavailable as error:
                    found.update(dict.fromkeys(group, error))
        errors = [answer for answer in found.values() if isinstance(answer, StoreUnavailable | StoreRefused)]
        if errors and len(errors) == len(found):
            raise errors[0]
        return found
