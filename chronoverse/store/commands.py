"""Commands to the server that has a workflow's keys. They raise our errors instead of the driver's."""

from collections.abc import Sequence
from typing import Any

from chronoverse.store.driver import Client, Script, translate_errors
from chronoverse.store.topology import PoolKind, Topology


def run_command(topology: Topology, workflow_id: str, *command: Any, pool: PoolKind = PoolKind.COMMANDS) -> Any:
    """The reply to one command."""
    with translate_errors():
        return topology.run(workflow_id, lambda client: client.execute_command(*command), pool)


def run_script(
    topology: Topology,
    workflow_id: str,
    script: Script,
    keys: Sequence[str],
    *args: Any,
    pool: PoolKind = PoolKind.COMMANDS,
) -> Any:
    """The reply of a script."""
    with translate_errors():
        return topology.run(workflow_id, lambda client: script.run(client, keys, *args), pool)


def run_pipeline(
    topology: Topology,
    workflow_id: str,
    commands: Sequence[tuple[Any, ...]],
    pool: PoolKind = PoolKind.COMMANDS,
) -> list[Any]:
    """The replies to ``commands``, which are sent in one round trip. An error about one of them stands as its reply."""
    if not commands:
        return []

    def send(client: Client) -> list[Any]:
        pipeline = client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        return pipeline.execute(raise_on_error=False)

    with translate_errors():
        return topology.run(workflow_id, send, pool)
