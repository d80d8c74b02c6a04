"""``chronoverse workflows``: lists the workflows."""

import contextlib
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import click

from chronoverse.cli.common import open_client, read_settings
from chronoverse.cli.options import list_output_option
from chronoverse.cli.printer import age, list_item, print_table
from chronoverse.client.terminal import plain_text
from chronoverse.joblog.model import Status


@click.command()
@click.option("--status", type=click.Choice(list(map(str, Status))), help="Only workflows whose newest job stands so.")
@list_output_option
def workflows(status: str | None, output: str) -> None:
    """List the workflows, the one with the newest job first."""
    from chronoverse.auth.minting import EVERY_WORKFLOW

    with contextlib.closing(open_client(read_settings(), EVERY_WORKFLOW)) as client:
        found = client.workflows(status)
        if output == "text" and sys.stdout.isatty():
            rows = ((str(each["id"]), age(each["last_job_at"]), *_counts(each)) for each in found)
            print_table(("WORKFLOW", "NEWEST", "JOBS", "RUNNING"), rows)
            return
        for text in workflows_table(found) if output == "text" else map(list_item(output), found):
            click.echo(text)


def workflows_table(workflows: Iterable[dict[str, Any]]) -> Iterator[str]:
    """One line of text for each workflow: its id, its newest job's status and time, and how many jobs it has and run.

    The service does not know the counts while the server that has the workflow's jobs does not answer.
    """
    for workflow in workflows:
        jobs, running = _counts(workflow)
        newest = str(workflow["last_job_at"] or "-")
        status = str(workflow.get("last_status") or "-")
        yield plain_text(f"{workflow['id']:<32} {status:<9} {newest:<24} {jobs:>8} jobs {running:>6} running")


def _counts(workflow: dict[str, Any]) -> tuple[str, str]:
    """How many jobs the workflow has, and how many of them run."""
    jobs, running = (str(count) if isinstance(count := workflow[name], int) else "?" for name in ("jobs", "running"))
    return jobs, running
