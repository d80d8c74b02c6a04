"""``chronoverse logs``: prints, follows or searches a log. Also prints logs for other commands."""

import os
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice, takewhile
from operator import attrgetter
from typing import Any, Final

import click

from chronoverse.cli import common, names
from chronoverse.cli.follow import follow_jobs, print_jobs
from chronoverse.client.client import PAGE_LINES, Client, read_items
from chronoverse.client.follower import JobState, LogEvent, Notice, name_gaps, read_line
from chronoverse.errors import JobNotFound
from chronoverse.joblog.model import MAX_NUMBER, Gap, JobRef, Line, Status, parse_number
from chronoverse.joblog.terminal import LineRenderer, gap_notice, plain_text, redaction_notice

_SEARCH: Final = "/workflows/{}/jobs/{}/logs/search"


def _offset(text: str) -> int | str:
    number = parse_number(text)
    if number is None and text != "latest":
        raise click.BadParameter("expected a line number or 'latest'")
    return text if number is None else number


def _wait(text: str) -> int:
    return 0 if text == "0" else common.duration(text)


@click.command()
@partial(names.job_arguments, required=False)
@click.option(
    "-f",
    "--follow",
    is_flag=True,
    help="Follow until the job ends, and exit with its code. Without JOB: all running jobs, and those that start.",
)
@common.status_option("With -f and without JOB: jobs with this status. Default: running.")
@common.label_option("With -f and without JOB: jobs with this label. Repeatable; all must match.")
@click.option("--until-idle", is_flag=True, help="With -f and without JOB: exit when no job is running.")
@click.option("--offset", type=_offset, metavar="N|latest", help="Start after this line number.")
@click.option("--lines", type=common.line_range, metavar="N[-M]", help="Line number or range.")
@click.option("--tail", type=common.Integer(0, MAX_NUMBER), metavar="N", help="Start with the last N lines.")
@common.stream_option
@click.option("--wait", type=_wait, default="0", metavar="TIME", help="With -f: how long to wait for the job to exist.")
@click.option("-n", "--numbers", is_flag=True, help="Show line numbers.")
@click.option("-t", "--timestamps", is_flag=True, help="Show timestamps.")
@common.color_option
@common.output_option
@common.search_option
@common.regex_option
@common.time_option(
    "--since",
    "Start at the first line at or after this time: ISO 8601 (UTC by default) or an age, such as 5m. With --search:"
    " only lines at or after this time.",
)
@common.time_option("--until", "End at the last line at or before this time.")
@click.option("--new", is_flag=True, help="Lines that no earlier good run has.")
@click.option("--against", type=common.identifier, metavar="JOB", help="With --new: compare with this job.")
@common.against_label_option
@click.option("--context", type=common.Integer(0, 50), default=0, metavar="N", help="Show N lines before and after.")
@common.raw_option
def logs(
    workflow: str,
    job: str | None,
    follow: bool,
    status: str | None,
    label: list[str],
    until_idle: bool,
    offset: int | str | None,
    lines: tuple[int, int | None] | None,
    tail: int | None,
    stream: str | None,
    wait: int,
    search: str | None,
    regex: bool,
    since: str | None,
    until: str | None,
    new: bool,
    against: str | None,
    against_label: list[str],
    context: int,
    **printing: Any,
) -> int:
    """Print, follow or search the log of JOB. With -f and without JOB, follow all jobs of WORKFLOW.

    Exits with 1 if --search or --new finds nothing; with -f, with the job's exit code.
    """
    contradictions = {
        "without JOB, -f is required": job is None and not follow,
        "--status, --label and --until-idle cannot be combined with JOB": job and (status or label or until_idle),
        "--lines, --offset, --since and --wait require JOB": job is None
        and (lines or wait or offset is not None or since is not None),
        "--lines cannot be combined with --follow, --offset, --tail, --search, --since, --until or --new": lines
        and (follow or new or any(each is not None for each in (offset, tail, search, since, until))),
        "--offset latest and --tail cannot be combined": offset == "latest" and tail is not None,
        "--wait and --offset latest require -f": not follow and (wait or offset == "latest"),
        "--regex requires --search": regex and search is None,
        "--context requires --search or --new": context and search is None and not new,
        "--against and --against-label require --new": (against is not None or against_label) and not new,
        "--against and --against-label cannot be combined": against is not None and against_label,
        "--new cannot be combined with --follow, --tail, --search, --since or --until": new
        and (follow or any(each is not None for each in (tail, search, since, until))),
        "--until and --follow cannot be combined": follow and until is not None,
        "--search with --tail requires -f": search is not None and not follow and tail is not None,
        "--context and --follow cannot be combined": follow and context,
    }
    for sentence, is_so in contradictions.items():
        if is_so:
            raise click.UsageError(sentence)
    output, colour = printing.pop("output"), common.keeps_colors(printing.pop("color"))
    skips_numbers = stream is not None and search is None and not new
    renderer = LineRenderer(colour=colour, skips_numbers=skips_numbers, **printing)
    start: dict[str, Any]
    if job is None:
        start = {"tail": tail, "stream": stream, "q": search, "regex": regex}
        with common.open_client(workflow) as client:
            followed = follow_jobs(client, workflow, status or Status.RUNNING, label, until_idle=until_idle, **start)
            print_jobs(followed, renderer, output)
        return 0
    ref = JobRef(workflow, job)
    first, last = lines or (1, None)
    start = {"offset": first - 1 if lines else offset, "stream": stream}
    around = {"before": context or None, "after": context or None}
    with common.open_client(workflow, job) as client:
        if follow:
            start |= {"tail": tail, "wait": wait, "q": search, "regex": regex}
            is_narrowed = since is not None or (offset is not None and tail is not None)
            events = follow_from(client, ref, since, **start) if is_narrowed else client.follow(ref, **start)
            _, state = print_log(events, renderer, output=output, flush=True)
            return exit_code(state or client.state(ref))
        if not new and search is None:
            stored = stored_lines(client, ref, since=since, until=until, last=last, tail=tail, **start)
            print_log(stored, renderer, output=output)
            return 0
        if new:
            if against is not None:
                with common.naming_near_ids(client, workflow, against):
                    client.job(JobRef(workflow, against))
            found = new_lines(client, ref, against=against, against_label=against_label, **start, **around)
        else:
            query = {"q": search, "regex": regex, "since": since, "until": until}
            found = search_results(client, ref, **query, **start, **around)
        count, _ = print_log(grouped(found, context), renderer, output=output)
        return 0 if count else 1  # as grep


def stored_lines(
    client: Client,
    job: JobRef,
    *,
    since: str | None,
    until: str | None,
    last: int | None,
    tail: int | None,
    **start: Any,
) -> Iterator[Line | Gap]:
    """The stored lines and gaps, from the first line at or after ``since`` to the last line at or before ``until``.

    ``last`` is the highest line number. ``tail`` and ``start`` (an offset and a stream) narrow the range. Includes all
    lines in the range, even if the clock went backwards.
    """
    state, stream = client.state(job), start["stream"]
    first: int | None = (start["offset"] or 0) + 1
    last = state.last if last is None else min(last, state.last)
    if since is not None:
        first, _ = _find_line(client, job, since=since, **start)
    if until is not None:
        last, _ = _find_line(client, job, until=until, stream=stream, order="desc")
    if first is None or last is None:
        return iter(())
    after = first - 1
    lines: Iterable[Line]
    if tail is None:
        lines = takewhile(lambda line: line.sequence_num <= last, client.logs(job, stream=stream, offset=after or None))
    else:
        newest = client.logs(job, order="desc", stream=stream, offset=last + 1)
        lines = list(islice(takewhile(lambda line: line.sequence_num >= first, newest), tail))[::-1]
        after = lines[0].sequence_num - 1 if lines else last
    if stream is not None:
        return _named_in_long_lines(client, job, lines)
    return _named(lines, after, last + 1, state.first)


def _named(lines: Iterable[Line], start: int, end: int, first: int) -> Iterator[Line | Gap]:
    # Pages do not give a gap's reason, but lines before the first readable one were trimmed.
    for each in name_gaps(lines, attrgetter("sequence_num"), start, end, first):
        yield each._replace(reason="") if isinstance(each, Gap) and each.reason == "missing" else each


def _is_before(number: int, line: Line) -> bool:
    return line.sequence_num < number


def _named_in_long_lines(client: Client, job: JobRef, lines: Iterable[Line]) -> Iterator[Line | Gap]:
    """The ``lines`` of one stream, and the gaps between the parts of its long lines."""
    after = MAX_NUMBER
    for line in lines:
        number = line.sequence_num
        if number > after + 1:
            others = takewhile(partial(_is_before, number), client.logs(job, offset=after, page_size=number - after))
            yield from (each for each in _named(others, after, number, 1) if isinstance(each, Gap))
        after = number if line.partial else MAX_NUMBER
        yield line


def follow_from(
    client: Client,
    job: JobRef,
    since: str | None,
    *,
    offset: int | str | None,
    tail: int | None,
    wait: float,
    **filters: Any,
) -> Iterator[LogEvent]:
    """Follows the log from the first line at or after ``since``, or from the next line if no such line exists yet."""
    first, reached = None, offset if isinstance(offset, int) else 0
    if since is not None and offset != "latest":
        try:
            first, reached = _find_line(client, job, since=since, offset=offset, stream=filters["stream"])
        except JobNotFound:
            if not wait:
                raise
    after = first - 1 if first is not None else reached
    if offset == "latest" or tail is None:
        yield from client.follow(job, offset=after if offset != "latest" else offset, wait=wait, **filters)
        return
    for event in client.follow(job, tail=tail, wait=wait, **filters):
        number = event.sequence_num if isinstance(event, Line) else event.last if isinstance(event, Gap) else None
        if number is None or number > after:
            yield event


def _find_line(client: Client, job: JobRef, **query: Any) -> tuple[int | None, int]:
    """The number of the first match of ``query``, and the last number searched."""
    reached = query.get("offset") or 0
    for page in client.pages(_SEARCH, *job, q="^", regex=True, limit=1, **query):
        if found := read_items(page, "logs", _found_line):
            return found[0][0].sequence_num, reached
        reached = page.get("reached", reached)
    return None, reached


def search_results(client: Client, job: JobRef, **query: Any) -> Iterator[tuple[Line, bool]]:
    """Yields matches and context lines (marked True), ascending. A page can repeat the last page's context."""
    is_shown = sys.stderr.isatty() and not sys.stdout.isatty()
    last = client.state(job).last if is_shown else 0
    with common.status_line() as show:
        for page in client.pages(_SEARCH, *job, limit=PAGE_LINES, **query):
            yield from read_items(page, "logs", _found_line)
            if last and "reached" in page:
                show(f"searched {min(page['reached'], last):,} of {last:,} lines")


def new_lines(client: Client, job: JobRef, **query: Any) -> Iterator[tuple[Line, bool]]:
    """Yields the new lines, in the form of :func:`search_results`. Prints which jobs the log is compared with."""
    is_said = False
    for page in client.pages("/workflows/{}/jobs/{}/logs/new", *job, limit=PAGE_LINES, **query):
        lines = read_items(page, "logs", _found_line)
        # Before the first lines or the last page, the service may not yet have read all runs to compare with.
        if not is_said and (lines or page.get("cursor") is None):
            common.print_message(f"compared with {plain_text(', '.join(read_items(page, 'compared_with', str)))}")
            is_said = True
        yield from lines


def _found_line(value: dict[str, Any]) -> tuple[Line, bool]:
    return read_line(value), bool(value.get("context"))


def grouped(found: Iterable[tuple[Line, bool]], context: int) -> Iterator[Line | None]:
    """Yields the matches, and ``context`` lines before and after each match. Yields each line once.

    Yields None between two groups, where grep prints ``--``. A group covers the line numbers of its matches and
    ``context`` numbers before and after each, even if some of these lines are missing.
    """
    last = covered = 0
    before: list[Line] = []
    for line, is_context in found:
        number = line.sequence_num
        if not is_context:
            if context and covered and number - context > covered + 1:
                yield None
            yield from before
            before, covered = [], number + context
        if number > last:
            last = number
            if number <= covered:
                yield line
            else:
                # This context line precedes a match, which decides whether a new group begins.
                before.append(line)


def print_log(
    events: Iterable[LogEvent | None], renderer: LineRenderer, *, output: str = "text", flush: bool = False
) -> tuple[int, JobState | None]:
    """Prints lines to stdout and notices to stderr. Flushes after each if ``flush``."""
    count, state = 0, None

    def write(text: str, flush: bool = flush) -> None:
        sys.stdout.buffer.write(text.encode("utf-8", "replace"))
        if flush:
            sys.stdout.buffer.flush()

    for event in events:
        if isinstance(event, Line):
            count += 1
            write(common.json_text(event.to_json()) + "\n" if output != "text" else renderer.render(event))
        elif event is None:
            write("" if output != "text" else f"{renderer.close_line()}--\n")
        elif isinstance(event, JobState):
            state = event
        else:
            write(renderer.close_line(), flush=True)
            if isinstance(event, Notice):
                common.print_message(event.reason)
            else:
                notice = gap_notice(event) if isinstance(event, Gap) else redaction_notice(event.first, event.last)
                click.echo(notice, err=True)
    write(renderer.close_line(), flush=True)
    return count, state


def exit_code(state: JobState) -> int:
    """The exit code of a command that follows a job: the job's code if it can be an exit code."""
    if state.status is Status.COMPLETED:
        return 0
    if state.status in (Status.CANCELED, Status.LOST):
        # The exit code after Ctrl-C is 130.
        return 130 if state.status is Status.CANCELED else os.EX_IOERR
    return state.exit_code if state.exit_code and 0 < state.exit_code < 256 else 1
