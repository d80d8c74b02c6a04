"""``chronoverse logs`` and ``chronoverse jobs``: reading from the service."""

import contextlib
import sys
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import click

from chronoverse.cli.common import bearer_token, identifier, moment, print_message
from chronoverse.joblog.values import MAX_NUMBER, JobRef, Status, parse_number
from chronoverse.settings import Settings

if TYPE_CHECKING:
    from chronoverse.client.client import Client

#: Seconds that ``--wait`` takes at most: a day.
_MAX_WAIT_SECONDS: Final = 86_400


def _offset(text: str) -> int | str:
    number = parse_number(text)
    if number is None and text != "latest":
        raise click.BadParameter("give a line's number, or 'latest'")
    return text if number is None else number


@click.command()
@click.argument("workflow", type=identifier)
@click.argument("job", type=identifier)
@click.option("-f", "--follow", is_flag=True, help="Go on until the job ends, and exit with its code.")
@click.option("--offset", type=_offset, help="Start after this line.")
@click.option("--tail", type=click.IntRange(0, MAX_NUMBER), metavar="N", help="Start with the last N lines.")
@click.option("--stream", type=click.Choice(["stdout", "stderr"]), help="Only this stream's lines.")
@click.option(
    "--wait", type=click.IntRange(0, _MAX_WAIT_SECONDS), metavar="SECONDS", help="With -f: the job may still come."
)
@click.option("-t", "--timestamps", is_flag=True, help="Show when each line was written.")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="How lines are printed.")
@click.option("--search", metavar="Q", help="Only lines that contain Q, in any case of letters.")
@click.option("--regex", is_flag=True, help="Q is a regular expression, in RE2's syntax.")
@click.option(
    "--since",
    type=moment,
    metavar="TIME",
    help="Start with the first line of this time or later: ISO 8601, UTC unless it says otherwise, or 5m for 5 minutes"
    " ago. With --search: only lines of this time or later.",
)
@click.option("--until", type=moment, metavar="TIME", help="Stop after the last line of this time or before.")
@click.option("--context", type=click.IntRange(0, 50), default=0, metavar="N", help="Also N lines before and after.")
@click.option("--raw", is_flag=True, help="Leave control sequences in: only for output you trust.")
def logs(workflow: str, job: str, follow: bool, **options: Any) -> int:
    """Print the log of JOB in WORKFLOW, or what is found in it: exits with 1 when that is nothing."""
    search = {name: options.pop(name) for name in ("search", "regex", "since", "until", "context")}
    if options["offset"] is not None and options["tail"] is not None:
        raise click.UsageError("--offset and --tail exclude each other")
    if not follow and (options["wait"] or options["offset"] == "latest"):
        raise click.UsageError("--wait and --offset latest make sense with -f only")
    if search["search"] is None and (search["regex"] or search["context"]):
        raise click.UsageError("--regex and --context go with --search")
    if follow and search["until"] is not None:
        raise click.UsageError("--until excludes --follow")
    if search["search"] is not None and (follow or options["tail"] is not None):
        raise click.UsageError("--search excludes --follow and --tail")
    from chronoverse.cli.printer import (
        EXIT_NO_MATCH,
        Printer,
        exit_code,
        follow_since,
        lines_in_range,
        search_results,
        stored_lines,
    )

    ref = JobRef(workflow, job)
    printer = Printer(
        sys.stdout.buffer,
        print_notice=partial(click.echo, err=True),
        print_message=print_message,
        **{name: options[name] for name in ("timestamps", "output", "raw")},
    )
    start = {name: options[name] for name in ("offset", "tail", "stream")}
    with contextlib.closing(_open_client(Settings.from_env(), workflow)) as client:
        if search["search"] is not None:
            start.pop("tail")
            show_progress = sys.stderr.isatty() and not sys.stdout.isatty()
            printer.print(search_results(client, ref, show_progress=show_progress, **start, **search))
            return 0 if printer.lines else EXIT_NO_MATCH
        since, until = search["since"], search["until"]
        if not follow:
            printer.print(
                stored_lines(client, ref, **start)
                if since is until is None
                else lines_in_range(client, ref, since=since, until=until, **start)
            )
            return 0
        start["wait"] = options["wait"] or 0
        events = client.follow(ref, **start) if since is None else follow_since(client, ref, since=since, **start)
        state = printer.print(events, flush=True)
        return exit_code(state or client.job(ref))


@click.command()
@click.argument("workflow", type=identifier)
@click.option("--status", type=click.Choice([status.value for status in Status]), help="Only jobs that stand so.")
@click.option(
    "--since", type=moment, metavar="TIME", help="Only jobs that were created then or later: a time, or 5m, 1h, 2d."
)
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="How jobs are printed.")
def jobs(workflow: str, status: str | None, since: str | None, output: str) -> None:
    """List the jobs of WORKFLOW, newest first."""
    from chronoverse.cli.printer import created_since, jobs_table, json_text

    with contextlib.closing(_open_client(Settings.from_env(), workflow)) as client:
        found = client.jobs(workflow, status)
        if since is not None:
            found = created_since(found, since)
        for text in map(json_text, found) if output == "json" else jobs_table(found):
            click.echo(text)


def _open_client(settings: Settings, workflow: str) -> "Client":
    """A client that may read ``workflow``."""
    from chronoverse.client.client import Client

    return Client(settings.url, bearer_token(settings, settings.url, workflow, "logs", "logs:read"))
