"""``chronoverse jobs``: lists the jobs of a workflow."""

import contextlib
from collections.abc import Iterable, Iterator
from itertools import takewhile
from typing import Any

import click

from chronoverse.cli.common import identifier, moment, open_client, read_settings
from chronoverse.cli.options import output_option, status_option
from chronoverse.cli.printer import json_text
from chronoverse.client.terminal import plain_text
from chronoverse.joblog.time_range import read_time


@click.command()
@click.argument("workflow", type=identifier)
@status_option
@click.option(
    "--since", type=moment, metavar="TIME", help="Only jobs that were created then or later: a time, or 5m, 1h, 2d."
)
@output_option
def jobs(workflow: str, status: str | None, since: str | None, output: str) -> None:
    """List the jobs of WORKFLOW, newest first."""

    with contextlib.closing(open_client(read_settings(), workflow)) as client:
        found = client.jobs(workflow, status)
        if since is not None:
            found = created_since(found, since)
        for text in map(json_text, found) if output == "json" else jobs_table(found):
            click.echo(text)


def jobs_table(jobs: Iterable[dict[str, Any]]) -> Iterator[str]:
    """One line of text for each job: its id, its status, when it started, and how many lines it has."""
    for job in jobs:
        status = str(job["status"])
        if job["exit_code"] not in (None, 0):
            status += f" ({job['exit_code']})"
        started = str(job["started_at"] or job["created_at"] or "-")
        yield plain_text(f"{job['id']:<32} {status:<14} {started:<24} {job['lines']:>12}")


def created_since(jobs: Iterable[dict[str, Any]], since: str) -> Iterator[dict[str, Any]]:
    """The first of ``jobs``, which are listed newest first, up to one that was created before ``since``.

    A job of a foreign runner may not say when it was created. It does not end the list.
    """
    return takewhile(lambda job: (read_time(str(job["created_at"])) or since) >= since, jobs)
