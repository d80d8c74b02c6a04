"""``chronoverse search``: searches all jobs of a workflow, and prints what it finds as grep does."""

import contextlib
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import click

from chronoverse.cli.common import identifier, moment, open_client, print_message, read_settings
from chronoverse.cli.options import status_option, stream_option
from chronoverse.cli.printer import EXIT_NO_MATCH, EXIT_TROUBLE
from chronoverse.client.terminal import LineRenderer, plain_text

if TYPE_CHECKING:
    from chronoverse.client.client import FoundJob

#: Lines of a job that a search of a workflow shows at most. The service allows no more.
_MAX_JOB_MATCHES: Final = 100


@click.command()
@click.argument("workflow", type=identifier)
@click.argument("text")
@click.option("--regex", is_flag=True, help="TEXT is a regular expression, in RE2's syntax.")
@stream_option
@status_option
@click.option(
    "--since", type=moment, metavar="TIME", help="Only jobs that started then or later: a time, or 5m, 1h, 2d."
)
@click.option("--until", type=moment, metavar="TIME", help="Only jobs that started then or before.")
@click.option(
    "-m",
    "--max-count",
    type=click.IntRange(1, _MAX_JOB_MATCHES),
    default=_MAX_JOB_MATCHES,
    show_default=True,
    help="Lines of each job, at most.",
)
@click.option("--raw", is_flag=True, help="Leave control sequences in: only for output you trust.")
def search(workflow: str, text: str, regex: bool, max_count: int, raw: bool, **filters: str | None) -> int:
    """Print the lines that contain TEXT in any job of WORKFLOW, as JOB:NUMBER:line, the newest job first.

    The exit code is that of grep: 0 when a line was found, 1 when none was, 2 when a job could not be searched.
    """

    query = {"regex": "true" if regex else None, "per_job": max_count, **filters}
    with contextlib.closing(open_client(read_settings(), workflow)) as client:
        found = client.search_workflow(workflow, text, **query)
        return print_found_jobs(found, max_count=max_count, raw=raw)


def print_found_jobs(jobs: "Iterable[FoundJob]", *, max_count: int, raw: bool) -> int:
    """Prints the lines as grep prints those of many files. Returns grep's exit code.

    Names on stderr each job with more than ``max_count`` matches, and each that could not be searched.
    """
    out = sys.stdout.buffer
    counts: dict[str, int] = {}
    failed = False
    for job in jobs:
        renderer = LineRenderer(raw=raw)
        for found in job.lines:
            text = renderer.render(found.line) + renderer.close_line()
            out.write(f"{plain_text(job.job_id)}:{found.line.sequence_num}:{text}".encode("utf-8", "replace"))
        out.flush()
        counts[job.job_id] = counts.get(job.job_id, 0) + len(job.lines)
        if job.error:
            failed = True
            print_message(f"{job.job_id}: {job.error}")
        elif job.has_more and counts[job.job_id] >= max_count:
            print_message(f"{job.job_id}: there are more than {max_count} such lines")
    return EXIT_TROUBLE if failed else 0 if counts else EXIT_NO_MATCH
