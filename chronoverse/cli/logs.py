"""The commands that read from the service: ``logs``, ``jobs``, ``search``, ``summary``, ``wait`` and others."""

import contextlib
import os
import secrets
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, Final

import click

from chronoverse.cli.common import duration, identifier, moment, open_client, print_message, read_settings
from chronoverse.joblog.values import MAX_NUMBER, JobRef, Status, parse_number

#: Lines of a job that a search of a workflow shows at most. The service allows no more.
_MAX_JOB_MATCHES: Final = 100
#: Seconds that ``--wait`` takes at most: a day.
_MAX_WAIT_SECONDS: Final = 86_400

_regex_option = click.option("--regex", is_flag=True, help="Q is a regular expression, in RE2's syntax.")
_search_option = click.option("--search", metavar="Q", help="Only lines that contain Q, in any case of letters.")
_status_option = click.option("--status", type=click.Choice(list(map(str, Status))), help="Only jobs that stand so.")
_stream_option = click.option("--stream", type=click.Choice(["stdout", "stderr"]), help="Only this stream's lines.")


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
@_stream_option
@click.option(
    "--wait", type=click.IntRange(0, _MAX_WAIT_SECONDS), metavar="SECONDS", help="With -f: the job may still come."
)
@click.option("-t", "--timestamps", is_flag=True, help="Show when each line was written.")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="How lines are printed.")
@_search_option
@_regex_option
@click.option(
    "--since",
    type=moment,
    metavar="TIME",
    help="Start with the first line of this time or later: ISO 8601, UTC unless it says otherwise, or 5m for 5 minutes"
    " ago. With --search: only lines of this time or later.",
)
@click.option("--until", type=moment, metavar="TIME", help="Stop after the last line of this time or before.")
@click.option("--new", is_flag=True, help="Only lines that are new, compared with the good runs before.")
@click.option("--against", type=identifier, metavar="JOB", help="With --new: compare with this job.")
@click.option("--context", type=click.IntRange(0, 50), default=0, metavar="N", help="Also N lines before and after.")
@click.option("--raw", is_flag=True, help="Leave control sequences in: only for output you trust.")
def logs(workflow: str, job: str, follow: bool, **options: Any) -> int:
    """Print the log of JOB in WORKFLOW, or what is found in it: exits with 1 when that is nothing."""
    search = {name: options.pop(name) for name in ("search", "regex", "since", "until", "context")}
    new, against = options.pop("new"), options.pop("against")
    if options["offset"] is not None and options["tail"] is not None:
        raise click.UsageError("--offset and --tail exclude each other")
    if not follow and (options["wait"] or options["offset"] == "latest"):
        raise click.UsageError("--wait and --offset latest make sense with -f only")
    if search["search"] is None and search["regex"]:
        raise click.UsageError("--regex goes with --search")
    if search["context"] and search["search"] is None and not new:
        raise click.UsageError("--context goes with --search or --new")
    if against is not None and not new:
        raise click.UsageError("--against goes with --new")
    others = (follow, options["tail"] is not None, *(search[name] is not None for name in ("search", "since", "until")))
    if new and any(others):
        raise click.UsageError("--new excludes --follow, --tail, --search, --since and --until")
    if follow and search["until"] is not None:
        raise click.UsageError("--until excludes --follow")
    if search["search"] is not None and not follow and options["tail"] is not None:
        raise click.UsageError("--search and --tail go together with -f only")
    if follow and search["context"]:
        raise click.UsageError("--context excludes --follow")
    from chronoverse.cli.printer import (
        EXIT_NO_MATCH,
        Printer,
        exit_code,
        follow_since,
        new_lines,
        search_results,
        stored_lines,
    )
    from chronoverse.client.follower import JobState

    ref = JobRef(workflow, job)
    printer = Printer(**{name: options[name] for name in ("timestamps", "output", "raw")})
    start = {name: options[name] for name in ("offset", "tail", "stream")}
    with contextlib.closing(open_client(read_settings(), workflow)) as client:
        if new:
            query = {"offset": options["offset"], "stream": options["stream"], "against": against}
            printer.print(new_lines(client, ref, context=search["context"], **query))
            return 0 if printer.lines else EXIT_NO_MATCH
        if search["search"] is not None and not follow:
            start.pop("tail")
            show_progress = sys.stderr.isatty() and not sys.stdout.isatty()
            printer.print(search_results(client, ref, show_progress=show_progress, **start, **search))
            return 0 if printer.lines else EXIT_NO_MATCH
        since, until = search["since"], search["until"]
        if not follow:
            printer.print(stored_lines(client, ref, since=since, until=until, **start))
            return 0
        start |= {"wait": options["wait"] or 0, "q": search["search"], "regex": search["regex"]}
        events = client.follow(ref, **start) if since is None else follow_since(client, ref, since=since, **start)
        state = printer.print(events, flush=True)
        return exit_code(state or JobState.from_json(client.job(ref)))


@click.command()
@click.argument("workflow", type=identifier)
@_status_option
@click.option(
    "--since", type=moment, metavar="TIME", help="Only jobs that were created then or later: a time, or 5m, 1h, 2d."
)
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="How jobs are printed.")
def jobs(workflow: str, status: str | None, since: str | None, output: str) -> None:
    """List the jobs of WORKFLOW, newest first."""
    from chronoverse.cli.printer import created_since, jobs_table, json_text

    with contextlib.closing(open_client(read_settings(), workflow)) as client:
        found = client.jobs(workflow, status)
        if since is not None:
            found = created_since(found, since)
        for text in map(json_text, found) if output == "json" else jobs_table(found):
            click.echo(text)


@click.command()
@click.argument("workflow", type=identifier)
@click.argument("text")
@click.option("--regex", is_flag=True, help="TEXT is a regular expression, in RE2's syntax.")
@_stream_option
@_status_option
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
    from chronoverse.cli.printer import print_found_jobs

    query = {"regex": "true" if regex else None, "per_job": max_count, **filters}
    with contextlib.closing(open_client(read_settings(), workflow)) as client:
        found = client.search_workflow(workflow, text, **query)
        return print_found_jobs(found, max_count=max_count, raw=raw)


@click.command()
@click.argument("workflow", type=identifier)
@click.argument("job", type=identifier)
@click.option("--for", "q", metavar="TEXT", help="Wait for a line that contains TEXT, in any case of letters.")
@click.option("--regex", is_flag=True, help="TEXT is a regular expression, in RE2's syntax.")
@click.option("--stream", type=click.Choice(["stdout", "stderr"]), help="Only a line of this stream.")
@click.option("--offset", type=click.IntRange(0, MAX_NUMBER), metavar="N", help="Only a line after line N.")
@click.option("--timeout", type=duration, metavar="TIME", help="How long to wait, such as 10m. By default for ever.")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="How the line is printed.")
def wait(workflow: str, job: str, output: str, timeout: int | None, **query: Any) -> int:
    """Wait until JOB prints a line, or ends.

    With --for, print the line and exit with 0; exit with 1 when the job ends without it. Without --for, wait for the
    end and exit with the job's own code. When the time is over, exit with 124.
    """
    if query["q"] is None and (query["regex"] or query["stream"] or query["offset"] is not None):
        raise click.UsageError("--regex, --stream and --offset go with --for")
    from chronoverse.cli.printer import print_wait

    with contextlib.closing(open_client(read_settings(), workflow)) as client:
        answer = client.wait(JobRef(workflow, job), seconds=timeout, **query)
        return print_wait(answer, output=output, wants_line=query["q"] is not None)


@click.command()
@click.argument("workflow", type=identifier)
@click.argument("job", type=identifier)
@click.option(
    "--bytes",
    "max_bytes",
    type=click.IntRange(1_024, 262_144),
    default=16_384,
    show_default=True,
    help="Bytes of the summary, as JSON.",
)
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="How it is printed.")
def summary(workflow: str, job: str, max_bytes: int, output: str) -> None:
    """Print what matters first of JOB: what is new in it, what looks like an error, and its last lines."""
    from chronoverse.cli.printer import json_text, summary_text

    with contextlib.closing(open_client(read_settings(), workflow)) as client:
        found = client.summary(JobRef(workflow, job), max_bytes)
        for text in [json_text(found)] if output == "json" else summary_text(found):
            click.echo(text)


@click.command()
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="How they are printed.")
def workflows(output: str) -> None:
    """List the workflows, the one with the newest job first."""
    from chronoverse.auth.tokens import EVERY_WORKFLOW
    from chronoverse.cli.printer import json_text, workflows_table

    with contextlib.closing(open_client(read_settings(), EVERY_WORKFLOW)) as client:
        found = client.workflows()
        for text in map(json_text, found) if output == "json" else workflows_table(found):
            click.echo(text)


@click.command()
@click.argument("workflow", type=identifier)
@click.argument("job", type=identifier)
@click.argument("file", required=False)
@click.option("--format", "form", type=click.Choice(["txt", "json", "jsonl"]), default="txt", show_default=True)
@_stream_option
@_search_option
@_regex_option
@click.option("--raw", is_flag=True, help="Leave colours and control sequences in: only for output you trust.")
def download(workflow: str, job: str, file: str | None, form: str, **options: Any) -> int:
    """Save the log of JOB as FILE, or as WORKFLOW-JOB.txt; - is the standard output.

    FILE appears, or is replaced, when the log has come as a whole.
    """
    if options["regex"] and options["search"] is None:
        raise click.UsageError("--regex goes with --search")
    if options["raw"] and form != "txt":
        raise click.UsageError("--raw goes with --format txt: JSON always has all of a line")
    query = {
        "format": form,
        "stream": options["stream"],
        "q": options["search"],
        "regex": "true" if options["regex"] else None,
        "control_sequences": "true" if options["raw"] else None,
    }
    with contextlib.closing(open_client(read_settings(), workflow)) as client:
        pieces = client.download(JobRef(workflow, job), **query)
        if file == "-":
            _write(sys.stdout.buffer, pieces)
            return 0
        path = Path(file or f"{workflow}-{job}.{form}")
        part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            with part.open("xb") as out:
                size = _write(out, pieces)
            part.replace(path)
        except OSError as error:
            print_message(f"{path}: {error.strerror}")
            return os.EX_CANTCREAT
        finally:
            part.unlink(missing_ok=True)
    print_message(f"saved {path} ({size:,} bytes)")
    return 0


def _write(out: BinaryIO, pieces: Iterable[bytes]) -> int:
    """Writes ``pieces`` to ``out``. Returns how many bytes they had."""
    return sum(out.write(piece) for piece in pieces)
