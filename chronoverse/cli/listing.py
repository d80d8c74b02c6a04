"""``chronoverse jobs`` and ``chronoverse workflows``, and how lists are printed."""

import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice, takewhile
from typing import Any, Final

import click

from chronoverse.cli import common, names
from chronoverse.client.client import Client, read_items, reading
from chronoverse.client.follower import JobChange, Notice, Reset
from chronoverse.joblog.model import read_time, seconds_of
from chronoverse.joblog.terminal import plain_text
from chronoverse.settings import no_color

_HEAD: Final = ("JOB", "STATUS", "AGE", "DURATION", "LINES")


@click.command()
@names.workflow_argument
@common.status_option("Only jobs with this status.")
@common.jobs_label_option
@common.time_option("--since", "Jobs created since this time or age, such as 5m or 2d.")
@click.option("-n", "--limit", type=common.Integer(1), metavar="N", help="At most N jobs.")
@click.option("-w", "--watch", is_flag=True, help="Keep the list current; when piped, print each change.")
@common.list_output_option
def jobs(workflow: str, since: str | None, limit: int | None, watch: bool, output: str, **filters: Any) -> None:
    """List the jobs of WORKFLOW, newest first."""
    if watch and since is not None:
        raise click.UsageError("--watch and --since cannot be combined")
    with common.open_client(workflow) as client:
        if watch:
            _watch(client, workflow, output, min(limit or 1_000, 1_000), **filters)
            return
        pages = client.pages("/workflows/{}/jobs", workflow, limit=min(limit or 1_000, 1_000), **filters)
        found: Iterable[dict[str, Any]] = (job for page in pages for job in read_items(page, "jobs", dict))
        if since is not None:
            # A job of another program's runner may lack created_at. Such a job does not end the list.
            found = takewhile(lambda job: (read_time(str(job["created_at"])) or since) >= since, found)
        if not print_list(islice(found, limit), output, _HEAD, _job_row, _job_text):
            common.require_jobs(client, workflow)


def _watch(client: Client, workflow: str, output: str, limit: int, status: str | None, label: list[str]) -> None:
    is_list = output == "text" and sys.stdout.isatty()
    show, known = common.item_text(output, _job_text), dict[str, dict[str, Any]]()
    # A list filtered by status must also get changes to other statuses.
    asked = None if is_list else status
    for event in client.follow_workflow(workflow, jobs=limit, status=asked, label=label):
        if isinstance(event, Notice):
            common.print_message(event.reason)
        elif isinstance(event, JobChange) and not is_list:
            click.echo(show(event.job))
        elif isinstance(event, JobChange):
            known[event.job_id] = event.job
        elif isinstance(event, Reset):
            known.clear()
        elif is_list:
            wanted = [job for job in known.values() if job["status"] != "DELETED" and status in (None, job["status"])]
            newest = sorted(wanted, key=lambda job: (str(job["created_at"]), job["id"]), reverse=True)
            click.echo("\x1b[H\x1b[2J", nl=False)
            print_table(_HEAD, map(_job_row, newest[: min(limit, shutil.get_terminal_size().lines - 2)]))


@click.command()
@common.status_option("Workflows whose newest job has this status.")
@common.list_output_option
def workflows(status: str | None, output: str) -> None:
    """List workflows, newest job first."""
    with common.open_client("*") as client:
        pages = client.pages("/workflows", limit=1_000, status=status)
        found = (workflow for page in pages for workflow in read_items(page, "workflows", dict))
        print_list(found, output, ("WORKFLOW", "STATUS", "LAST RUN", "JOBS", "RUNNING"), _workflow_row, _workflow_text)


def print_list(
    items: Iterable[dict[str, Any]],
    output: str,
    head: tuple[str, ...],
    row: Callable[[dict[str, Any]], tuple[str, ...]],
    text: Callable[[dict[str, Any]], str],
) -> int:
    """Prints ``items`` in the format ``output``. On a terminal, text is a table. Returns the number of items."""
    count, show = 0, common.item_text(output, text)
    with reading("list"):
        if output == "text" and sys.stdout.isatty():
            rows = list(map(row, items))
            print_table(head, rows)
            return len(rows)
        for item in items:
            click.echo(show(item))
            count += 1
    return count


def print_table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    """Prints a table on a terminal. Statuses are colored unless NO_COLOR is set."""
    colours = {} if no_color() else {"FAILED": "red", "LOST": "red", "RUNNING": "blue"}
    plain = [[plain_text(cell).replace("\n", " ") for cell in row] for row in (head, *rows)]
    *widths, _ = (max(map(len, column)) for column in zip(*plain, strict=True))
    columns = shutil.get_terminal_size().columns - 2 * len(widths)
    # A few long names must not push all rows beyond the edge. The names are not cut, because users copy them.
    widths[0] = min(widths[0], max(20, columns - sum(widths[1:]) - 24))
    room = max(16, columns - sum(widths))
    for row in plain:
        row[-1] = row[-1] if len(row[-1]) <= room else f"{row[-1][: room - 1]}…"
    widths.append(0)
    for number, row in enumerate(plain):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        for column, cell in enumerate(row):
            if number and (colour := colours.get(cell.split(" ")[0])):
                cells[column] = click.style(cells[column], fg=colour)
        click.echo("  ".join(cells).rstrip())


def _job_text(job: dict[str, Any]) -> str:
    started = str(job["started_at"] or job["created_at"] or "-")
    return f"{job['id']:<32} {_status(job):<14} {started:<24} {job['lines']:>12}{_labels(job)}"


def _job_row(job: dict[str, Any]) -> tuple[str, ...]:
    started = seconds_of(str(job["started_at"]))
    ended = time.time() if job["status"] == "RUNNING" else seconds_of(str(job["finished_at"]))
    duration = common.took(ended - started) if started and ended and ended >= started else "-"
    return (
        str(job["id"]),
        _status(job),
        _age(job["started_at"] or job["created_at"]),
        duration,
        f"{job['lines']}{_labels(job)}",
    )


def _labels(job: dict[str, Any]) -> str:
    # The branch comes first, because a narrow terminal may have room for only one label.
    labels = sorted(job.get("labels", {}).items(), key=lambda label: label[0] != "branch")
    return "".join(f"  {key}={value}" for key, value in labels)


def _status(job: dict[str, Any]) -> str:
    return f"{job['status']}" if job["exit_code"] in (None, 0) else f"{job['status']} ({job['exit_code']})"


def _workflow_text(workflow: dict[str, Any]) -> str:
    jobs, running = _counts(workflow)
    newest, status = workflow["last_job_at"] or "-", workflow.get("last_status") or "-"
    return f"{workflow['id']:<32} {status!s:<9} {newest!s:<24} {jobs:>8} jobs {running:>6} running"


def _workflow_row(workflow: dict[str, Any]) -> tuple[str, ...]:
    status = str(workflow.get("last_status") or "-")
    return str(workflow["id"]), status, _age(workflow["last_job_at"]), *_counts(workflow)


def _counts(workflow: dict[str, Any]) -> Iterator[str]:
    return (str(count) if isinstance(count := workflow[name], int) else "?" for name in ("jobs", "running"))


def _age(timestamp: Any) -> str:
    then = seconds_of(str(timestamp))
    return "-" if then is None else common.spoken(max(0, time.time() - then))
