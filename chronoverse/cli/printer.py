"""What ``chronoverse logs`` and ``chronoverse jobs`` print: which lines, how they look, and the exit code of a job."""

import json
import sys
from collections.abc import Iterable, Iterator
from itertools import islice, takewhile
from typing import Any, Final

import click

from chronoverse.cli.common import print_message
from chronoverse.client.client import Client, FoundJob, FoundLine
from chronoverse.client.follower import JobState, LogEvent, Notice, RedactedLines, name_gaps
from chronoverse.client.terminal import LineRenderer, gap_notice, plain_text, redaction_notice, sanitize
from chronoverse.errors import ChronoverseError, JobNotFound
from chronoverse.joblog.time_range import read_time
from chronoverse.joblog.values import Gap, JobRef, Line, Status

#: The exit codes of following a job that has no exit code of its own. 130 is what Ctrl-C leaves, 74 is EX_IOERR.
EXIT_CANCELED: Final = 130
EXIT_LOST: Final = 74
#: The exit code of a search that finds nothing, as grep's.
EXIT_NO_MATCH: Final = 1
#: The exit code when the time of a wait is over, as that of ``timeout``.
EXIT_TIMEOUT: Final = 124
#: The exit code of a search that could not look everywhere, as grep's.
EXIT_TROUBLE: Final = 2


class GroupSeparator:
    """Separates two groups of search results, as ``--`` does in grep's output."""


class Printer:
    """Prints lines to stdout, and everything else that a person should know to stderr.

    ``output`` is "text" or "json".
    """

    def __init__(self, *, timestamps: bool = False, output: str = "text", raw: bool = False) -> None:
        self._out = sys.stdout.buffer
        self._json = output == "json"
        self._renderer = LineRenderer(timestamps=timestamps, raw=raw)
        #: How many lines were printed.
        self.lines = 0

    def print(self, events: Iterable[LogEvent | GroupSeparator], flush: bool = False) -> JobState | None:
        """Prints ``events``, each at once if ``flush``. Returns the last job state among them."""
        state = None
        for event in events:
            if isinstance(event, Line):
                self.lines += 1
                self._write(json_text(event.to_json()) + "\n" if self._json else self._renderer.render(event), flush)
            elif isinstance(event, JobState):
                state = event
            elif isinstance(event, GroupSeparator):
                self._write("" if self._json else f"{self._renderer.close_line()}--\n", flush)
            else:
                self._write(self._renderer.close_line(), True)
                self._print_other(event)
        self._write(self._renderer.close_line(), True)
        return state

    def _print_other(self, event: Gap | RedactedLines | Notice) -> None:
        if isinstance(event, Gap):
            click.echo(gap_notice(event), err=True)
        elif isinstance(event, RedactedLines):
            click.echo(redaction_notice(event.first, event.last), err=True)
        else:
            print_message(event.reason)

    def _write(self, text: str, flush: bool) -> None:
        self._out.write(text.encode("utf-8", "replace"))
        if flush:
            self._out.flush()


def stored_lines(
    client: Client,
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
    client: Client,
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


def _find_line(client: Client, job: JobRef, **query: Any) -> tuple[int | None, int]:
    """The number of the first line that the ``query`` of a search finds, and the number up to which it has looked."""
    reached = query.get("offset") or 0

    def record(number: int) -> None:
        nonlocal reached
        reached = number

    found = next(client.search(job, "^", record, regex="true", limit=1, **query), None)
    return (None, reached) if found is None else (found.line.sequence_num, reached)


def search_results(
    client: Client,
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


def new_lines(client: Client, job: JobRef, *, context: int, **query: Any) -> Iterator[Line | GroupSeparator]:
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


def _group(found: Iterable[FoundLine], context: int) -> Iterator[Line | GroupSeparator]:
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


def print_found_jobs(jobs: Iterable[FoundJob], *, max_count: int, raw: bool) -> int:
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


def json_text(value: dict[str, Any]) -> str:
    """``value`` as JSON in ASCII, which no terminal interprets."""
    return json.dumps(value, separators=(",", ":"))


def jobs_table(jobs: Iterable[dict[str, Any]]) -> Iterator[str]:
    """One line of text for each job: its id, its status, when it started, and how many lines it has."""
    for job in jobs:
        status = str(job["status"])
        if job["exit_code"] not in (None, 0):
            status += f" ({job['exit_code']})"
        started = str(job["started_at"] or job["created_at"] or "-")
        yield plain_text(f"{job['id']:<32} {status:<14} {started:<24} {job['lines']:>12}")


def print_wait(answer: dict[str, Any], *, output: str, wants_line: bool) -> int:
    """Prints what came first, and returns the exit code of ``chronoverse wait``."""
    try:
        outcome, line, state = answer["outcome"], answer["log"], JobState.from_json(answer["job"])
        for gap in answer.get("gaps", []):
            print_message(gap_notice(Gap(gap["from"], gap["to"], str(gap["reason"]))))
        if line is not None:
            found = Line.from_json(line)
            text = json_text(line) + "\n" if output == "json" else LineRenderer().render(found._replace(partial=False))
            sys.stdout.buffer.write(text.encode("utf-8", "replace"))
    except (KeyError, TypeError, ValueError) as error:
        raise ChronoverseError("the service sent an unreadable answer") from error
    if outcome == "timeout":
        print_message("the time is over")
        return EXIT_TIMEOUT
    if wants_line:
        if line is None:
            print_message(f"the job ended without such a line: {state.status}")
        return 0 if line is not None else EXIT_NO_MATCH
    return exit_code(state)


def summary_text(summary: dict[str, Any]) -> Iterator[str]:
    """A job's summary for a person. Each line of the log comes with its number. Raises :class:`ChronoverseError`."""
    try:
        job, compared_with = summary["job"], summary["compared_with"]
        code = "" if job["exit_code"] is None else f", exit code {job['exit_code']}"
        yield plain_text(f"{job['id']} of {job['workflow_id']}: {job['status']}{code}, {job['lines']} lines")
        if compared_with is None:
            yield plain_text("No earlier job has COMPLETED, so nothing is known to be new.")
        else:
            count, jobs = summary["new"]["count"], ", ".join(map(str, compared_with))
            yield plain_text(f"{count} new lines, compared with {jobs}:")
        yield from map(_numbered, summary["new"]["first"])
        yield plain_text(f"{summary['errors']['count']} lines that look like errors:")
        yield from map(_numbered, summary["errors"]["first"])
        yield "The last lines:"
        yield from map(_numbered, summary["last"])
    except (KeyError, TypeError) as error:
        raise ChronoverseError("the service sent an unreadable summary") from error
    if summary.get("truncated"):
        yield "This is not all: more fits with a larger --bytes, and the log has the rest."


def _numbered(line: dict[str, Any]) -> str:
    repeated = f"  ({line['repeated']} such lines)" if "repeated" in line else ""
    text = sanitize(str(line["message"]), colour=False).replace("\n", " ")
    return plain_text(f"{line['sequence_num']:>9}  {text}{' …' if line.get('truncated') else ''}{repeated}")


def workflows_table(workflows: Iterable[dict[str, Any]]) -> Iterator[str]:
    """One line of text for each workflow: its id, when its newest job was created, and how many jobs it has and run.

    The service does not know the counts while the server that has the workflow's jobs does not answer.
    """
    for workflow in workflows:
        jobs, running = (count if isinstance(count := workflow[name], int) else "?" for name in ("jobs", "running"))
        newest = str(workflow["last_job_at"] or "-")
        yield plain_text(f"{workflow['id']:<32} {newest:<24} {jobs:>8} jobs {running:>6} running")


def created_since(jobs: Iterable[dict[str, Any]], since: str) -> Iterator[dict[str, Any]]:
    """The first of ``jobs``, which are listed newest first, up to one that was created before ``since``.

    A job of a foreign runner may not say when it was created. It does not end the list.
    """
    return takewhile(lambda job: (read_time(str(job["created_at"])) or since) >= since, jobs)


def exit_code(state: JobState) -> int:
    """The exit code of following a job: the job's own, as far as an exit code can say it."""
    if state.status is Status.COMPLETED:
        return 0
    if state.status in (Status.CANCELED, Status.LOST):
        return EXIT_CANCELED if state.status is Status.CANCELED else EXIT_LOST
    return state.exit_code if state.exit_code and 0 < state.exit_code < 256 else 1
