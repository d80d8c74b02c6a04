"""Prints lines and events of logs, and says with which code a command exits that follows a job."""

import sys
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, Final

import click

from chronoverse.cli.common import print_message
from chronoverse.client.follower import JobState, LogEvent, Notice, RedactedLines
from chronoverse.client.terminal import LineRenderer, gap_notice, plain_text, redaction_notice
from chronoverse.joblog.model import Gap, Line, Status
from chronoverse.settings import no_color

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


def json_text(value: dict[str, Any]) -> str:
    """``value`` as JSON in ASCII, which no terminal interprets."""
    import json  # which takes 10 ms, and few commands need it

    return json.dumps(value, separators=(",", ":"))


def spoken(seconds: float) -> str:
    """A duration as the commands read it, with its two largest units.

    >>> spoken(5_400), spoken(7_776_000), spoken(0.4)
    ('1h30m', '90d', '0s')
    """
    left, words = int(seconds), list[str]()
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)):
        number, left = divmod(left, size)
        if number or (unit == "s" and not words):
            words.append(f"{number}{unit}")
        elif words:
            break
    return "".join(words[:2])


def unix_seconds(timestamp: Any) -> float:
    """The Unix time of a timestamp of the service; 0 for what is none."""
    try:
        return datetime.fromisoformat(str(timestamp)).timestamp()
    except ValueError:
        return 0


def age(timestamp: Any) -> str:
    """How long ago a timestamp of the service was, by our clock."""
    return "-" if not (then := unix_seconds(timestamp)) else spoken(max(0, time.time() - then))


def list_item(output: str) -> Callable[[dict[str, Any]], str]:
    """What prints one job or workflow with ``-o json``, ``jsonl`` or ``name``."""
    return (lambda item: plain_text(str(item["id"]))) if output == "name" else json_text


def print_table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    """Prints a table on a terminal. Statuses are coloured unless NO_COLOR is set."""
    colours = {} if no_color() else {"FAILED": "red", "LOST": "red", "RUNNING": "blue"}
    plain = [[plain_text(cell).replace("\n", " ") for cell in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*plain, strict=True)]
    for number, row in enumerate(plain):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        for column, cell in enumerate(row):
            if number and (colour := colours.get(cell.split(" ")[0])):
                cells[column] = click.style(cells[column], fg=colour)
        click.echo("  ".join(cells).rstrip())


def exit_code(state: JobState) -> int:
    """The exit code of following a job: the job's own, as far as an exit code can say it."""
    if state.status is Status.COMPLETED:
        return 0
    if state.status in (Status.CANCELED, Status.LOST):
        return EXIT_CANCELED if state.status is Status.CANCELED else EXIT_LOST
    return state.exit_code if state.exit_code and 0 < state.exit_code < 256 else 1
