"""``chronoverse logs``: prints a log, follows it, or prints what is found in it."""

import contextlib
import sys
from collections.abc import Iterable, Iterator
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Any, Final

import click

from chronoverse.cli.common import identifier, moment, open_client, print_message, read_settings
from chronoverse.cli.options import output_option, regex_option, search_option, stream_option
from chronoverse.cli.printer import EXIT_NO_MATCH, GroupSeparator, Printer, exit_code
from chronoverse.client.follower import JobState, LogEvent, name_gaps
from chronoverse.client.terminal import plain_text
from chronoverse.errors import JobNotFound
from chronoverse.joblog.model import MAX_NUMBER, Gap, JobRef, Line, parse_number

if TYPE_CHECKING:
    from chronoverse.client.client import Client, FoundLine

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
@click.option("-n", "--tail", type=click.IntRange(0, MAX_NUMBER), metavar="N", help="Start with the last N lines.")
@stream_option
@click.option(
    "--wait", type=click.IntRange(0, _MAX_WAIT_SECONDS), metavar="SECONDS", help="With -f: the job may still come."
)
@click.option("-t", "--timestamps", is_flag=True, help="Show when each line was written.")
@output_option
@search_option
@regex_option
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


def stored_lines(
    client: "Client",
    job: JobRef,
    *,
    since: str | None,
    until: str | None,
    offset: int | None,
    tail: int | None,
    stream: str | None,
) -> Iterator[Line | Gap]:
    """The lines that the log has now, from the first one of ``since`` or later to the last one of ``until`` or earlier.

    ``offset`` and ``tail`` narrow that down. All lines in between are printed, whatever the clock was doing meanwhile.
    """
    state = JobState.from_json(client.job(job))
    first: int | None = (offset or 0) + 1
    last: int | None = state.last
    if since is not None:
        first, _ = _find_line(client, job, since=since, offset=offset, stream=stream)
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
    return name_gaps(lines, after, state._replace(last=last)) if stream is None else iter(lines)


def follow_since(
    client: "Client",
    job: JobRef,
    *,
    since: str,
    offset: int | str | None,
    tail: int | None,
    stream: str | None,
    q: str | None,
    regex: bool,
    wait: float,
) -> Iterator[LogEvent]:
    """Follows the log from the first line of ``since`` or later, or from the next line if there is none yet.

    ``offset`` and ``tail`` may let it start later. The others are those of :meth:`Client.follow`.
    """
    filters: dict[str, Any] = {"stream": stream, "q": q, "regex": regex}
    first, reached = None, 0
    if offset != "latest":
        try:
            first, reached = _find_line(client, job, since=since, offset=offset, stream=stream)
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


def _find_line(client: "Client", job: JobRef, **query: Any) -> tuple[int | None, int]:
    """The number of the first line that the ``query`` of a search finds, and the number up to which it has looked."""
    reached = query.get("offset") or 0

    def record(number: int) -> None:
        nonlocal reached
        reached = number

    found = next(client.search(job, "^", record, regex="true", limit=1, **query), None)
    return (None, reached) if found is None else (found.line.sequence_num, reached)


def search_results(
    client: "Client",
    job: JobRef,
    *,
    show_progress: bool,
    search: str,
    regex: bool,
    since: str | None,
    until: str | None,
    context: int,
    **query: Any,
) -> Iterator[Line | GroupSeparator]:
    """The lines that match and ``context`` lines before and after each, every line once.

    There is a :class:`GroupSeparator` where lines are left out, as in grep's output. ``show_progress`` shows on stderr
    how far the search has come.
    """
    asked = {**query, "regex": "true" if regex else None, "since": since, "until": until}
    asked |= {"before": context or None, "after": context or None}
    if not show_progress:
        yield from _group(client.search(job, search, **asked), context)
        return
    last = JobState.from_json(client.job(job)).last
    with click.progressbar(length=max(last, 1), label="searching", file=sys.stderr) as bar:

        def update(number: int) -> None:
            bar.update(max(0, min(number, last) - bar.pos))

        yield from _group(client.search(job, search, update, **asked), context)


def new_lines(client: "Client", job: JobRef, *, context: int, **query: Any) -> Iterator[Line | GroupSeparator]:
    """The lines that are new, and ``context`` lines before and after each, as :func:`search_results` has them.

    Prints the names of the jobs that the log is compared with to stderr.
    """
    found = client.new_lines(
        job,
        lambda names: print_message(f"compared with {plain_text(', '.join(names))}"),
        **query,
        before=context or None,
        after=context or None,
    )
    yield from _group(found, context)


def _group(found: "Iterable[FoundLine]", context: int) -> Iterator[Line | GroupSeparator]:
    """Puts separators between groups.

    A group covers the numbers of its matches, and ``context`` numbers before and after each. Whether all of these
    numbers have a line makes no difference.
    """
    last = covered = 0
    before: list[Line] = []
    for line, is_context in found:
        number = line.sequence_num
        if not is_context:
            if context and covered and number - context > covered + 1:
                yield GroupSeparator()
            yield from before
            before, covered = [], number + context
        if number > last:
            last = number
            if number <= covered:
                yield line
            else:
                # This line comes before a match. That match decides whether a new group begins here.
                before.append(line)
