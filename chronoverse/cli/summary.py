"""``chronoverse summary``: prints the most important lines of a job."""

import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Final
from urllib.parse import unquote

import click

from chronoverse.cli import common, names
from chronoverse.client.client import Client, reading
from chronoverse.joblog.causes import EXIT_MEANINGS
from chronoverse.joblog.model import JobRef, Line, read_time
from chronoverse.joblog.terminal import counted, plain_text, sanitize
from chronoverse.settings import Settings, no_color

_VERDICTS: Final = {
    "new": "New: no earlier run has this line.",
    "since": "Every failure since {id} has it.",
    "recurring": "Flaky: in {seen} of the last {runs} runs, with passing runs in between.",
}
#: The time before each line of a log downloaded from GitHub, and the markup of CI systems at the start of a line, both
#: as in the page's markup.js. ``place`` is an annotation's file and line.
_TIME: Final = re.compile(r"\A\ufeff?\d{4}-\d\d-\d\dT[\d:.]+Z ")
_MARKUP: Final = re.compile(
    r"(?:(?:\x1b\[0?K)?(?:section_(?:start|end):\d+:[\w.-]+(?:\[[^\]\r\n]*\])?|travis_(?:fold|time):(?:start|end):[\w.:,=-]+)"
    r"[\r\n]*(?:\x1b\[0?K)?)+"
    r"|::(?:group|endgroup|error|warning|notice|debug)(?: (?P<place>[^\n]{0,500}?))?::"
    r"|##\[(?:group|endgroup|error|warning|debug|section|command)\]|\[command\]"
)


@click.command()
@names.job_arguments
@common.integer_option("Maximum size in bytes, as JSON.", (1_024, 262_144), 16_384, "--bytes", "max_bytes")
@common.against_label_option
@click.option("--full", is_flag=True, help="On a terminal: all new lines and all errors.")
@common.output_option_of(
    ("text", "markdown", "json", "jsonl"), "Output format; markdown is for step summaries, notes and e-mails."
)
def summary(workflow: str, job: str, max_bytes: int, against_label: list[str], full: bool, output: str) -> None:
    """Print why JOB failed, its new lines, and its last lines.

    For a failed job, begins with the most likely cause. Very long logs are scanned from the end, for at most two
    minutes. Fits on one screen of a terminal unless --full is given.
    """
    is_screen = output == "text" and sys.stdout.isatty() and not full
    route = "/workflows/{}/jobs/{}/summary"
    query: dict[str, Any] = {"bytes": max_bytes, "against_label": against_label, "seconds": 120}
    with common.open_client(workflow, job) as client:
        with common.status_line() as show:
            found = client.read_complete(route, workflow, job, show=lambda found: show(looked_at(found)), **query)
        if is_screen or output == "markdown":
            around, url = _around(client, found), common.page_url(Settings.from_env(), workflow, job)
            for text in (screen if is_screen else markdown)(found, around, url):
                click.echo(text, color=False if no_color() else None)
            return
    common.print_found(found, output, summary_text)


def _around(client: Client, summary: dict[str, Any]) -> dict[int, Line]:
    with reading("summary"):
        if end_text(summary) or not (cause := summary["cause"]) or cause["kind"] == "last":
            return {}
        number, job = int(cause["line"]["sequence_num"]), JobRef(summary["job"]["workflow_id"], summary["job"]["id"])
    found = islice(client.logs(job, offset=max(0, number - 3) or None), 5)
    return {line.sequence_num: line for line in found if line.sequence_num <= number + 2}


def end_text(summary: Mapping[str, Any]) -> str | None:
    """Why the job failed, according to its exit code or silence. None if a log line explains more."""
    job, cause = summary["job"], summary.get("cause")
    if job["status"] == "LOST":
        # A foreign runner's timestamp can be any text.
        last = next((read_time(str(line["timestamp"])) for line in summary["last"][-1:]), None)
        return f"No sign of the runner{f' since {last}' if last else ''}"
    is_oom = (job.get("labels") or {}).get("reason") == "OOMKilled"
    said = "Out of memory" if is_oom else EXIT_MEANINGS.get(job["exit_code"])
    is_guess = cause and (cause.get("confidence") == "low" or (summary.get("errors") or {}).get("count") == 0)
    if cause and cause["kind"] != "last" and not (said and is_guess):
        return None
    return said or ("Failed without output" if job["status"] == "FAILED" and not job["lines"] else None)


def screen(summary: dict[str, Any], around: Mapping[int, Line], url: str) -> Iterator[str]:
    """Formats the summary for one terminal screen: status, the cause with the lines ``around`` it, and the last lines.

    Shows each line once. Raises :class:`ChronoverseError`.
    """
    with reading("summary"):
        job, cause = summary["job"], summary["cause"]
        code = f" (exit code {job['exit_code']})" if job["exit_code"] else ""
        color = {"COMPLETED": "green", "RUNNING": "blue", "PENDING": None}.get(job["status"], "red")
        title = f"{job['workflow_id']}/{job['id']}, {counted(job['lines'])}"
        yield f"{click.style(plain_text(job['status'] + code), fg=color, bold=True)}  {plain_text(title)}"
        if labels := job.get("labels"):
            yield plain_text("  ".join(f"{key}={value}" for key, value in labels.items()))
        if text := end_text(summary):
            yield ""
            yield click.style(f"{text}.", bold=True)
        elif around:
            yield ""
            yield click.style("Cause" if cause.get("confidence") == "high" else "Most likely cause", bold=True)
            number = cause["line"]["sequence_num"]
            for line in _visible(line.to_json() for line in around.values()):
                if line["sequence_num"] == number:
                    yield click.style(f">{_fitted(line, rows=3)[1:]}", fg="red", bold=True)
                else:
                    yield _fitted(line)
            url += f"#L{number}"
        if around and (sentence := verdict_sentence(summary)):
            yield sentence
        yield from _slower_text(summary)
        if last := _last(summary, around)[-5:]:
            yield ""
            yield click.style("Last lines", bold=True)
            yield from map(_fitted, last)
        yield ""
        yield url


def markdown(summary: dict[str, Any], around: Mapping[int, Line], url: str) -> Iterator[str]:
    """Like :func:`screen`, in Markdown. The job's text is escaped. Raises :class:`ChronoverseError`."""
    with reading("summary"):
        job, cause = summary["job"], summary["cause"]
        code = "" if job["exit_code"] is None else f", exit code {job['exit_code']}"
        yield plain_text(f"### [{job['workflow_id']}/{job['id']}]({url}): {job['status']}{code}")
        if labels := job.get("labels"):
            yield "\n" + ", ".join(
                f"`{_one_line(f'{key}={value}').replace('`', chr(39))}`" for key, value in labels.items()
            )
        if text := end_text(summary):
            yield f"\n**{text}**"
        elif around:
            number = cause["line"]["sequence_num"]
            title = "Cause" if cause.get("confidence") == "high" else "Most likely cause"
            yield f"\n**{title}**, [line {number}]({url}#L{number}):\n"
            yield _fenced(_visible(line.to_json() for line in around.values()))
        if around and (sentence := verdict_sentence(summary)):
            yield f"\n{sentence}"
        for number, text in _slower(summary).items():
            yield f"\nSlower than any good run: [{text}]({url}#L{number})"
        if last := _last(summary, around)[-10:]:
            yield f"\n**Last lines**, [from {last[0]['sequence_num']}]({url}#L{last[0]['sequence_num']}):\n"
            yield _fenced(last)


def _last(summary: Mapping[str, Any], around: Iterable[int]) -> list[dict[str, Any]]:
    """The last lines that have text and come after the lines ``around`` the cause."""
    shown = max(around, default=0)
    return [line for line in _visible(summary["last"]) if line["sequence_num"] > shown]


def _visible(lines: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yields the lines without CI markup. Skips lines that are only markup."""
    for line in lines:
        if (text := without_markup(str(line["message"]))) or not line["message"]:
            yield {**line, "message": text}


def without_markup(message: str) -> str:
    """The text after a time and CI markup. The text of an annotation begins with its file and line."""
    message = _TIME.sub("", message)
    if not (found := _MARKUP.match(message)):
        return message
    named = dict(pair.split("=", 1) for pair in (found["place"] or "").split(",") if "=" in pair)
    place = "".join(f"{unquote(named[key])}:" for key in ("file", "line") if "file" in named and key in named)
    return f"{place} {message[found.end() :]}" if place else message[found.end() :]


def _fitted(line: dict[str, Any], rows: int = 1) -> str:
    """A numbered line, cut to ``rows`` rows of the terminal."""
    text, most = numbered(line), rows * shutil.get_terminal_size().columns
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _fenced(lines: Iterable[dict[str, Any]]) -> str:
    text = "\n".join(f"{line['sequence_num']:>6}  {_one_line(line['message'])}" for line in lines)
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}"


def _one_line(message: str) -> str:
    return sanitize(str(message), colour=False).replace("\n", " ")


def verdict_sentence(summary: dict[str, Any]) -> str | None:
    """A sentence about earlier runs in which the cause was seen, or None."""
    if not (verdict := summary.get("verdict")):
        return None
    seen = summary["cause"]["line"].get("seen") or {}
    runs = sum(seen.get(end, 0) for end in ("COMPLETED", "FAILED", "CANCELED", "LOST"))
    sentence = _VERDICTS[verdict["kind"]].format(id=verdict["id"], seen=runs, runs=seen.get("looked_at"))
    if verdict["kind"] == "recurring" and not seen:
        sentence = "Flaky: earlier failures have it, with passing runs in between."
    return plain_text(sentence)


def summary_text(summary: dict[str, Any]) -> Iterator[str]:
    """Formats a job's summary as text, with line numbers. Raises :class:`ChronoverseError`."""
    with reading("summary"):
        job, compared_with = summary["job"], summary["compared_with"]
        code = "" if job["exit_code"] is None else f", exit code {job['exit_code']}"
        yield plain_text(f"{job['id']} of {job['workflow_id']}: {job['status']}{code}, {counted(job['lines'])}")
        if labels := job.get("labels"):
            yield plain_text(", ".join(f"{key}={value}" for key, value in labels.items()))
        cause = None
        if text := end_text(summary):
            yield f"{text}."
        elif cause := summary.get("cause"):
            title = "Last lines" if cause["kind"] == "last" else "Cause"
            likely = "Most likely cause" if title == "Cause" and cause.get("confidence") == "low" else title
            first, last = cause["from"], cause["to"]
            yield f"{likely} ({f'line {first:,}' if first == last else f'lines {first:,}-{last:,}'}):"
            yield numbered(cause["line"])
        if cause and (sentence := verdict_sentence(summary)):
            yield sentence
        elif cause and (unknown := cause["line"].get("seen", {}).get("without_shapes")):
            yield f"Unknown whether it is new: {counted(unknown, 'run', 'runs')} could not be read."
        yield from _slower_text(summary)
        if compared_with is None:
            yield "No earlier job has COMPLETED: nothing to compare with."
        else:
            chosen = f" with {baseline['label']}" if (baseline := summary.get("baseline")) else ""
            jobs = ", ".join(map(str, compared_with)) + chosen
            yield _how_many(summary, "new", "new line", "new lines", f", compared with {jobs}")
        yield from map(numbered, _visible(summary["new"]["first"]))
        yield _how_many(summary, "errors", "line that looks like an error", "lines that look like errors")
        yield from map(numbered, _visible(summary["errors"]["first"]))
        if last_lines := [*map(numbered, _visible(summary["last"]))]:
            yield from ("Last lines:", *last_lines)
    if summary.get("complete") is False:
        yield "Not all lines are scanned yet: repeat the command to continue."
    elif summary.get("truncated"):
        yield "Truncated: use a larger --bytes, or read the log."


def looked_at(summary: dict[str, Any]) -> str:
    """Describes the progress of an incomplete summary. Raises :class:`ChronoverseError`."""
    with reading("summary"):
        last = summary["job"]["last_sequence_num"]
        return f"scanned {last + 1 - summary['scanned_to']:,} of {last:,} lines"


def _how_many(summary: dict[str, Any], kind: str, one: str, many: str, more: str = "") -> str:
    count, first = summary[kind]["count"], summary[kind]["first"]
    if count is None:
        found = sum(line.get("repeated", 1) for line in first) or "none"
        text = f"{many}: {looked_at(summary)}, {found} so far"
    else:
        text = counted(count, one, many)
    return plain_text(f"{text}{more}{':' if first else '.'}")


def _slower(summary: Mapping[str, Any]) -> dict[int, str]:
    """The pauses that were longer than in any good run, keyed by the number of the line after the pause."""
    pauses = {pause["before"]["sequence_num"]: pause for pause in summary.get("slower") or () if pause["before"]}
    return {
        number: f"{common.took(pause['seconds'])} before line {number:,}{common.usually(pause['usual'])}"
        for number, pause in pauses.items()
    }


def _slower_text(summary: Mapping[str, Any]) -> Iterator[str]:
    if slower := _slower(summary):
        yield f"Slower than any good run: {'; '.join(slower.values())}."


def numbered(line: dict[str, Any]) -> str:
    """A line with its number, and how often and where it was seen."""
    repeated = f"  ({line['repeated']} times)" if "repeated" in line else ""
    cut = " …" if line.get("truncated") else ""
    text = _one_line(without_markup(line["message"]) or line["message"])
    return plain_text(f"{line['sequence_num']:>9}  {text}{cut}{repeated}{_seen(line)}")


def _seen(line: dict[str, Any]) -> str:
    """Describes the runs in which the line was seen. Empty if the service is too old to report them."""
    if not (seen := line.get("seen")):
        return ""
    total = sum(seen.get(end, 0) for end in ("COMPLETED", "FAILED", "CANCELED", "LOST"))
    good = f", {seen['COMPLETED']} of them good" if seen["COMPLETED"] else ""
    first = f", first in {seen['first_id']}" if total > 1 else ""
    return f"  [in {total} of {seen['looked_at']} runs{good}{first}]"
