"""``chronoverse jobs``: lists the jobs of a workflow."""

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import takewhile
from typing import Any

import click

from chronoverse.cli.common import identifier, moment, open_client, read_settings
from chronoverse.cli.options import list_output_option, status_option
from chronoverse.cli.printer import age, list_item, print_table, spoken, unix_seconds
from chronoverse.client.terminal import plain_text
from chronoverse.joblog.model import iso_timestamp, read_time


@click.command()
@click.argument("workflow", type=identifier)
@status_option
@click.option(
    "--since", type=moment, metavar="TIME", help="Only jobs that were created then or later: a time, or 5m, 1h, 2d."
)
@list_output_option
def jobs(workflow: str, status: str | None, since: str | None, output: str) -> None:
    """List the jobs of WORKFLOW, newest first."""

    with contextlib.closing(open_client(read_settings(), workflow)) as client:
        found = client.jobs(workflow, status)
        if since is not None:
            found = created_since(found, since)
        if output == "text" and sys.stdout.isatty():
            print_table(("JOB", "STATUS", "AGE", "DURATION", "LINES"), map(_row, found))
            return
        for text in jobs_table(found) if output == "text" else map(list_item(output), found):
            click.echo(text)


def jobs_table(jobs: Iterable[dict[str, Any]]) -> Iterator[str]:
    """One line of text for each job: its id, its status, when it started, and how many lines it has."""
    for job in jobs:
        status = str(job["status"])
        if job["exit_code"] not in (None, 0):
            status += f" ({job['exit_code']})"
        started = str(job["started_at"] or job["created_at"] or "-")
        yield plain_text(f"{job['id']:<32} {status:<14} {started:<24} {job['lines']:>12}")


def _row(job: dict[str, Any]) -> tuple[str, ...]:
    """A job's cells in the table for a terminal."""
    code = "" if job["exit_code"] in (None, 0) else f" ({job['exit_code']})"
    started = job["started_at"]
    ended = job["finished_at"] or (iso_timestamp(time.time()) if job["status"] == "RUNNING" else None)
    duration = spoken(unix_seconds(ended) - unix_seconds(started)) if started and ended else "-"
    return str(job["id"]), f"{job['status']}{code}", age(started or job["created_at"]), duration, str(job["lines"])


def created_since(jobs: Iterable[dict[str, Any]], since: str) -> Iterator[dict[str, Any]]:
    """The first of ``jobs``, which are listed newest first, up to one that was created before ``since``.

    A job of a foreign runner may not say when it was created. It does not end the list.
    """
    return takewhile(lambda job: (read_time(str(job["created_at"])) or since) >= since, jobs)
