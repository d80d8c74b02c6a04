"""``chronoverse workflows``: lists the workflows."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import click

from chronoverse.cli.common import open_client, read_settings
from chronoverse.cli.options import output_option
from chronoverse.cli.printer import json_text
from chronoverse.client.terminal import plain_text
from chronoverse.joblog.values import Status


@click.command()
@click.option("--status", type=click.Choice(list(map(str, Status))), help="Only workflows whose newest job stands so.")
@output_option
def workflows(status: str | None, output: str) -> None:
    """List the workflows, the one with the newest job first."""
    from chronoverse.auth.minting import EVERY_WORKFLOW

    with contextlib.closing(open_client(read_settings(), EVERY_WORKFLOW)) as client:
        found = client.workflows(status)
        for text in map(json_text, found) if output == "json" else workflows_table(found):
            click.echo(text)


def workflows_table(workflows: Iterable[dict[str, Any]]) -> Iterator[str]:
    """One line of text for each workflow: its id, its newest job's status and time, and how many jobs it has and run.

    The service does not know the counts while the server that has the workflow's jobs does not answer.
    """
    for workflow in workflows:
        jobs, running = (count if isinstance(count := workflow[name], int) else "?" for name in ("jobs", "running"))
        newest = str(workflow["last_job_at"] or "-")
        status = str(workflow.get("last_status") or "-")
        yield plain_text(f"{workflow['id']:<32} {status:<9} {newest:<24} {jobs:>8} jobs {running:>6} running")
