"""Prints lines and events of logs, and says with which code a command exits that follows a job."""

import sys
from collections.abc import Iterable
from typing import Any, Final

import click

from chronoverse.cli.common import print_message
from chronoverse.client.follower import JobState, LogEvent, Notice, RedactedLines
from chronoverse.client.terminal import LineRenderer, gap_notice, redaction_notice
from chronoverse.joblog.values import Gap, Line, Status

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


def exit_code(state: JobState) -> int:
    """The exit code of following a job: the job's own, as far as an exit code can say it."""
    if state.status is Status.COMPLETED:
        return 0
    if state.status in (Status.CANCELED, Status.LOST):
        return EXIT_CANCELED if state.status is Status.CANCELED else EXIT_LOST
    return state.exit_code if state.exit_code and 0 < state.exit_code < 256 else 1
