"""What ``chronoverse logs`` prints: where the lines come from, how they look, and what the job's end exits with."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, BinaryIO, Final

import click

from chronoverse.client.client import Client, FoundLine
from chronoverse.client.follower import JobState, LogEvent, Notice, Redaction, name_gaps
from chronoverse.client.terminal import LineRenderer, gap_notice, plain_text, redaction_notice
from chronoverse.joblog.values import Gap, JobRef, Line, Status

#: What following a job exits with when the job has no code of its own: 74 is EX_IOERR, 130 is what Ctrl-C leaves.
EXIT_CANCELED: Final = 130
EXIT_LOST: Final = 74
#: What a search exits with that finds nothing, as grep does.
EXIT_NO_MATCH: Final = 1


class GroupSeparator:
    """Stands between two lines that do not belong together."""


class Printer:
    """Prints lines to ``out``; ``note`` gets what stands in the place of lines, ``say`` what else there is to tell."""

    def __init__(
        self,
        out: BinaryIO,
        *,
        note: Callable[[str], object],
        say: Callable[[str], object],
        timestamps: bool = False,
        output: str = "text",
        raw: bool = False,
    ) -> None:
        self._out = out
        self._note = note
        self._say = say
        self._json = output == "json"
        self._rendering = LineRenderer(timestamps=timestamps, raw=raw)
        #: How many lines were printed.
        self.lines = 0

    def print(self, items: Iterable[LogEvent | GroupSeparator], flush: bool = False) -> JobState | None:
        """Prints ``items``, each at once if ``flush``; returns the last state among them."""
        state = None
        for item in items:
            if isinstance(item, Line):
                self.lines += 1
                self._write(_json_line(item) if self._json else self._rendering.render(item), flush)
            elif isinstance(item, JobState):
                state = item
            elif isinstance(item, GroupSeparator):
                self._write("" if self._json else f"{self._rendering.close_line()}--\n", flush)
            else:
                self._write(self._rendering.close_line(), True)
                self._print_notice(item)
        self._write(self._rendering.close_line(), True)
        return state

    def _print_notice(self, item: Gap | Redaction | Notice) -> None:
        if isinstance(item, Gap):
            self._note(gap_notice(item))
        elif isinstance(item, Redaction):
            self._note(redaction_notice(item.first, item.last))
        else:
            self._say(item.reason)

    def _write(self, text: str, flush: bool) -> None:
        self._out.write(text.encode("utf-8", "replace"))
        if flush:
            self._out.flush()


def _json_line(line: Line) -> str:
    return json_text(line.to_json()) + "\n"


def stored_lines(
    client: Client, job: JobRef, *, offset: int | None, tail: int | None, stream: str | None
) -> Iterator[Line | Gap]:
    """The lines that are there now, after ``offset`` or the last ``tail`` of them."""
    state = JobState.from_json(client.job(job))
    if tail is None:
        lines = client.logs(job, stream=stream, offset=offset)
        return name_gaps(lines, offset or 0, state) if stream is None else lines
    last = list(islice(client.logs(job, order="desc", stream=stream), tail))[::-1]
    return name_gaps(last, last[0].sequence_num - 1, state) if last and stream is None else iter(last)


def search_results(
    client: Client,
    job: JobRef,
    *,
    bar: bool,
    search: str,
    regex: bool,
    since: str | None,
    until: str | None,
    context: int,
    **query: Any,
) -> Iterator[Line | GroupSeparator]:
    """The lines that are found, with those beside them, each once, in groups that are :class:`Apart` as grep's are.

    ``bar`` has how far it has come shown on stderr.
    """
    asked = {**query, "regex": "true" if regex else None, "since": since, "until": until}
    asked |= {"before": context or None, "after": context or None}
    if not bar:
        yield from _grouped(client.search(job, search, **asked), context)
        return
    last = JobState.from_json(client.job(job)).last
    with click.progressbar(length=max(last, 1), label="searching", file=sys.stderr) as progress:

        def reached(place: int) -> None:
            progress.update(max(0, min(place, last) - progress.pos))

        yield from _grouped(client.search(job, search, reached, **asked), context)


def _grouped(found: Iterable[FoundLine], context: int) -> Iterator[Line | GroupSeparator]:
    """A group is what its matches and ``context`` numbers beside each cover, whether or not lines are there to see."""
    last = covered = 0
    before: list[Line] = []
    for line, beside in found:
        number = line.sequence_num
        if not beside:
            if context and covered and number - context > covered + 1:
                yield GroupSeparator()
            yield from before
            before, covered = [], number + context
        if number > last:
            last = number
            if number <= covered:
                yield line
            else:
                # Comes before a match, which says whether a group begins here.
                before.append(line)


def json_text(value: dict[str, Any]) -> str:
    """In ASCII, so that a terminal has nothing in it to obey."""
    return json.dumps(value, separators=(",", ":"))


def jobs_table(jobs: Iterable[dict[str, Any]]) -> Iterator[str]:
    """A line for each job: its id, how it stands, when it began, how many lines it has."""
    for job in jobs:
        status = str(job["status"])
        if job["exit_code"] not in (None, 0):
            status += f" ({job['exit_code']})"
        started = str(job["started_at"] or job["created_at"] or "-")
        yield plain_text(f"{job['id']:<32} {status:<14} {started:<24} {job['lines']:>12}")


def exit_code(state: JobState | dict[str, Any]) -> int:
    """What following a job exits with: as the job did, as far as that can be said in an exit code."""
    if isinstance(state, dict):
        state = JobState.from_json(state)
    if state.status is Status.COMPLETED:
        return 0
    if state.status in (Status.CANCELED, Status.LOST):
        return EXIT_CANCELED if state.status is Status.CANCELED else EXIT_LOST
    return state.exit_code if state.exit_code and 0 < state.exit_code < 256 else 1
