"""Naming a job on the command line: by a page's link, as the newest, and with completion; and what is printed."""

import json
import os
import pty
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, cast

import click
import pytest

from chronoverse.cli.common import LINKED_SERVICE
from chronoverse.cli.main import commands
from chronoverse.cli.names import expand_link
from chronoverse.cli.summary import _around, _seen, end_text, markdown, screen, summary_text, without_markup
from chronoverse.client.client import Client
from chronoverse.joblog.model import JobRef, Line, Status
from chronoverse.store import Store
from tests.cli.conftest import COMMAND, PATIENCE_SECONDS, Cli, environ
from tests.support.bench import ticking
from tests.support.servers import RedisServer
from tests.support.service import ROOT, Service

WORKFLOW: Final = "wf_names"
LINK: Final = "https://logs.example/ui/workflows/shop/jobs/build-7"


@pytest.fixture(scope="module")
def settings(service: Service, backend: RedisServer) -> dict[str, str]:
    """Settings for a service with a good run, a failed one, and a job that waits for a runner. Line 5 is red."""
    store = Store(backend.url, clock=ticking())
    for name, status, why in (("good", Status.COMPLETED, "done"), ("failed", Status.FAILED, "error: no space")):
        attempt = store.open(JobRef(WORKFLOW, name), "a" * 32)
        texts = [
            *(f"step {number}" for number in range(1, 5)),
            f"\x1b[31m{why}\x1b[0m",
            "\x1b[2J\x1b]52;c;eA==\x07b\ry\x08e",
        ]
        store.append(attempt, [Line(n, "", text, "stdout") for n, text in enumerate(texts, 1)])
        store.finish(attempt, status, int(status is Status.FAILED), 0, 7)
    store.register(JobRef(WORKFLOW, "waiting"))
    store.close()
    return {"URL": service.url, "TOKEN": service.token(f"{WORKFLOW}*")}


@pytest.mark.parametrize(
    ("command", "args", "expanded"),
    [
        ("logs", ["-f", LINK], ["-f", "shop", "build-7"]),
        ("logs", [f"{LINK}#L5", "-n"], ["shop", "build-7", "--lines", "5-5", "-n"]),
        ("logs", [f"{LINK}#L5-L9"], ["shop", "build-7", "--lines", "5-9"]),
        ("logs", [f"{LINK}/?q=x&stream=stderr#L118"], ["shop", "build-7", "--lines", "118-118"]),
        ("jobs", ["http://a:8000/logs/ui/workflows/shop"], ["shop"]),
        (
            "logs",
            ["https://logs.example/workflows/shop/jobs/build-7"],
            ["https://logs.example/workflows/shop/jobs/build-7"],
        ),
        ("logs", [f"see {LINK}"], [f"see {LINK}"]),
        ("logs", ["ftp://logs.example/ui/workflows/shop"], ["ftp://logs.example/ui/workflows/shop"]),
        ("logs", [f"{LINK}#L5", "--lines", "1-2"], ["shop", "build-7", "--lines", "1-2"]),
        ("logs", ["--lines=1-2", f"{LINK}#L5"], ["--lines=1-2", "shop", "build-7"]),
        ("logs", ["--search", LINK, "shop", "build-7"], ["--search", LINK, "shop", "build-7"]),
        ("seen", [f"{LINK}#L5"], ["shop", "build-7", "5"]),
        ("seen", [LINK, "9"], ["shop", "build-7", "9"]),
        ("download", [f"{LINK}#L5", "out.txt"], ["shop", "build-7", "out.txt"]),
        ("jobs", [LINK, "-o", "name"], ["shop", "-o", "name"]),
        ("search", [LINK, LINK], ["shop", LINK]),
        ("summary", ["--", LINK], ["--", LINK]),
        ("deliver", [LINK], [LINK]),
    ],
)
def test_a_link_is_accepted_for_ids(command: str, args: list[str], expanded: list[str]) -> None:
    """And for lines, where the command takes some. Values of options and texts are unchanged."""
    context = click.Context(commands)
    found = commands.get_command(context, command)
    assert found is not None
    assert expand_link(context, found, args) == expanded
    base = next((each for each in args if "/ui/" in each), "").partition("/ui/")[0]
    assert context.meta.get(LINKED_SERVICE) == (base if expanded != args else None)


def test_a_link_is_accepted_only_for_its_own_service(cli: Cli, settings: dict[str, str]) -> None:
    """Otherwise this service's token would be sent to another one."""
    page = f"/ui/workflows/{WORKFLOW}/jobs/failed#L5"
    assert cli("logs", settings["URL"] + page, **settings).stdout == "error: no space\n"
    for other in ("http://127.0.0.1:1", settings["URL"] + "0", settings["URL"][:-1]):
        refused = cli("logs", other + page, **settings)
        assert (refused.returncode, refused.stdout) == (os.EX_CONFIG, "")
        assert f"set CHRONOVERSE_URL={other}\n" in refused.stderr


@pytest.mark.parametrize(("name", "job"), [("@latest", "waiting"), ("@failed", "failed"), ("@good", "good")])
def test_the_newest_job(cli: Cli, settings: dict[str, str], name: str, job: str) -> None:
    opened = cli("open", WORKFLOW, name, **settings)
    assert opened.stdout == f"{settings['URL']}/ui/workflows/{WORKFLOW}/jobs/{job}\n"


def test_a_workflow_without_such_a_job(cli: Cli, settings: dict[str, str]) -> None:
    done = cli("logs", "wf_names_other", "@failed", **settings)
    assert (done.returncode, "no FAILED job in wf_names_other" in done.stderr) == (os.EX_NOINPUT, True)


@pytest.mark.parametrize(
    ("args", "numbers"),
    [
        (("--lines", "2-4"), [2, 3, 4]),
        (("--lines", "5-"), [5, 6]),
        (("--lines", "6"), [6]),
        (("--lines", "99-100"), []),
        (("--offset", "2", "--tail", "9"), [3, 4, 5, 6]),
        (("--offset", "2", "--tail", "2"), [5, 6]),
        (("-f", "--offset", "2", "--tail", "9"), [3, 4, 5, 6]),
        (("-f", "--offset", "2", "--tail", "2"), [5, 6]),
    ],
    ids=str,
)
def test_some_lines_with_their_numbers(
    cli: Cli, settings: dict[str, str], args: tuple[str, ...], numbers: list[int]
) -> None:
    done = cli("logs", "-n", WORKFLOW, "good", *args, **settings)
    assert [int(line.split()[0]) for line in done.stdout.splitlines()] == numbers
    assert all(line[6:8] == "  " for line in done.stdout.splitlines())


@pytest.mark.parametrize(
    ("words", "offered", "more"),
    [
        ("logs wf_n", [WORKFLOW], {}),
        (f"logs {WORKFLOW} ", ["waiting", "failed", "good"], {}),
        (f"seen {WORKFLOW} f", ["failed"], {}),
        (f"summary {WORKFLOW} @", ["@latest", "@failed", "@good"], {}),
        ("logs wf_nothing ", [], {}),
        ("logs wf_n", [], {"URL": "http://127.0.0.1:1"}),
    ],
)
def test_a_shell_completes_ids(
    cli_process: Cli, settings: dict[str, str], words: str, offered: list[str], more: dict[str, str]
) -> None:
    """Those visible to the token. Without retries if the service is away."""
    position = str(len(words.split(" ")))
    asked = {"COMP_WORDS": f"chronoverse {words}", "COMP_CWORD": position, "_CHRONOVERSE_COMPLETE": "bash_complete"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in asked.items():
            patch.setenv(name, value)
        done = cli_process(**{**settings, **more})
    assert [line.partition(",")[2] for line in done.stdout.splitlines() if line] == offered
    assert done.stderr == ""


def on_a_terminal(home: Path, settings: dict[str, str], *argv: str, **more: str) -> str:
    """What the program prints on a terminal."""
    ours, theirs = pty.openpty()
    try:
        env = {**environ(home, **settings), "TERM": "xterm", **more}
        subprocess.run([*COMMAND, *argv], env=env, stdout=theirs, check=True, timeout=PATIENCE_SECONDS)
        return os.read(ours, 10_000).decode().replace("\r\n", "\n")
    finally:
        os.close(theirs)
        os.close(ours)


def test_a_summary_fits_a_screen(tmp_path: Path, settings: dict[str, str]) -> None:
    """Status, the cause with surrounding lines, what is known about it, and the link. No line appears twice."""
    shown = on_a_terminal(tmp_path, settings, "summary", WORKFLOW, "@failed", NO_COLOR="1")
    assert shown.splitlines() == [
        "FAILED (exit code 1)  wf_names/failed, 6 lines",
        "",
        "Cause",
        "        3  step 3",
        "        4  step 4",
        ">       5  error: no space",
        "        6  bye",
        "New: no earlier run has this line.",
        "",
        f"{settings['URL']}/ui/workflows/{WORKFLOW}/jobs/failed#L5",
    ]
    full = on_a_terminal(tmp_path, settings, "summary", WORKFLOW, "@failed", "--full")
    assert "1 new line, compared with good" in full


def test_a_summary_as_markdown(cli: Cli, settings: dict[str, str]) -> None:
    """The cause in a code block, with links to lines."""
    url = f"{settings['URL']}/ui/workflows/{WORKFLOW}/jobs/failed"
    assert cli("summary", WORKFLOW, "@failed", "-o", "markdown", **settings).stdout.splitlines() == [
        f"### [wf_names/failed]({url}): FAILED, exit code 1",
        "",
        f"**Cause**, [line 5]({url}#L5):",
        "",
        "```text",
        "     3  step 3",
        "     4  step 4",
        "     5  error: no space",
        "     6  bye",
        "```",
        "",
        "New: no earlier run has this line.",
    ]


@pytest.mark.parametrize(
    ("job", "cause", "text"),
    [
        ({"exit_code": 127, "lines": 0}, None, "Command not found"),
        ({"exit_code": 3, "lines": 0}, None, "Failed without output"),
        ({"exit_code": 3}, {"kind": "last", "confidence": "low"}, None),
        ({"exit_code": 137}, {"kind": "new", "confidence": "low"}, "Killed, most likely out of memory"),
        ({"exit_code": 137, "labels": {"reason": "OOMKilled"}}, None, "Out of memory"),
        ({"exit_code": 137}, {"kind": "error", "confidence": "high"}, None),
        (
            {"status": "LOST", "exit_code": None},
            {"kind": "last", "confidence": "low"},
            "No sign of the runner since 2026-03-03T10:00:00.000Z",
        ),
    ],
)
def test_an_end_that_says_more_than_a_guess(
    job: dict[str, Any], cause: dict[str, Any] | None, text: str | None
) -> None:
    last = [{"sequence_num": 9, "timestamp": "2026-03-03T11:00+01:00", "message": "bye"}]
    summary = {"job": {"status": "FAILED", "lines": 9, **job}, "cause": cause, "errors": {"count": 1}, "last": last}
    assert end_text(summary) == text
    is_guess = cause is not None and cause["kind"] == "error"
    assert end_text({**summary, "errors": {"count": 0}}) == ("Killed, most likely out of memory" if is_guess else text)


def test_no_line_ends_the_code_block_of_markdown() -> None:
    """Nor does a label start one, or another line."""
    line = {"sequence_num": 1, "message": "```\n# <b>\x1b[2J", "timestamp": "", "stream": "stdout"}
    job = {"workflow_id": "w", "id": "j", "status": "RUNNING", "exit_code": None, "labels": {"k": "`a\n# b"}}
    summary = {"job": job, "cause": None, "last": [line], "slower": None, "verdict": None}
    assert list(markdown(summary, {}, "https://x"))[1:] == [
        "\n`k='a<U+000A># b`",
        "\n**Last lines**, [from 1](https://x#L1):\n",
        "````text\n     1  ```<U+000A># <b>\n````",
    ]


def test_the_text_of_a_line_is_that_of_the_page() -> None:
    """Without a time and the markup of CI systems. The page's scripts are tested with the same lines."""
    lines = json.loads((ROOT / "tests" / "data" / "markup.json").read_text("utf-8"))
    assert [[message, without_markup(message)] for message, _ in lines] == lines


def test_a_summary_strips_markup_of_ci_systems_and_truncates_long_lines_on_screen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A line that consists only of markup is omitted. An annotation keeps its location."""
    monkeypatch.setenv("COLUMNS", "40")
    messages = (
        "before the last five",
        "##[group]Set up",
        "##[endgroup]",
        "section_end:1:a\r\x1b[0Ksection_start:2:b[collapsed=true]\r\x1b[0KNext",
        "travis_fold:end:x",
        "",
        "::error file=a.py,line=3,title=t::no",
        "x" * 50,
    )
    last = [{"sequence_num": number, "message": message} for number, message in enumerate(messages, 1)]
    job = {"workflow_id": "w", "id": "j", "status": "COMPLETED", "exit_code": 0, "lines": 8}
    # The line after a pause can have been dropped.
    summary = {"job": job, "cause": None, "last": last, "slower": [{"before": None}], "verdict": None}
    shown = ["        2  Set up", "        4  Next", "        6  ", "        7  a.py:3: no"]
    assert list(screen(summary, {}, "https://x"))[3:-2] == [*shown, f"        8  {'x' * 28}…"]
    found = {"count": 7, "first": last}
    full = {**summary, "new": found, "errors": found, "compared_with": ["good"]}
    every = ["        1  before the last five", *shown, f"        8  {'x' * 50}"]
    assert [each for each in summary_text(full) if each.startswith((" ", "Slower"))] == every * 3
    (number, text) = every[2].split()
    cause = {"kind": "error", "confidence": "high", "from": 3, "to": 3, "line": last[3]}
    said = list(summary_text({**full, "cause": cause}))
    assert (said[1], said[2].split()) == ("Cause (line 3):", [number, text])


@pytest.mark.parametrize(("number", "shown"), [(1, "123"), (2, "1234"), (3, "12345"), (8, "6789"), (9, "789")])
def test_the_lines_around_a_cause(number: int, shown: str) -> None:
    """Two before and two after, also at the ends of the log."""
    lines = [Line(n, "2026-03-03T10:00:05.123Z", str(n), "stdout") for n in range(1, 10)]
    reader = SimpleNamespace(logs=lambda job, offset: iter(lines[offset or 0 :]))
    cause = {"kind": "error", "line": {"sequence_num": number}}
    summary = {"job": {"workflow_id": "w", "id": "j", "status": "FAILED", "exit_code": 1, "lines": 9}, "cause": cause}
    found = _around(cast(Client, reader), {**summary, "last": [], "end": None})
    assert "".join(line.message for line in found.values()) == shown


@pytest.mark.parametrize(
    ("seen", "text"),
    [
        ({}, ""),
        ({"COMPLETED": 0, "FAILED": 1}, "  [in 1 of 9 runs]"),
        ({"COMPLETED": 1}, "  [in 1 of 9 runs, 1 of them good]"),
        ({"COMPLETED": 0, "FAILED": 2}, "  [in 2 of 9 runs, first in a]"),
        ({"COMPLETED": 2, "CANCELED": 1, "LOST": 1}, "  [in 4 of 9 runs, 2 of them good, first in a]"),
    ],
)
def test_the_runs_that_had_a_line_are_counted(seen: dict[str, int], text: str) -> None:
    assert _seen({"seen": seen and {"looked_at": 9, "first_id": "a", **seen}}) == text


@pytest.mark.parametrize(("args", "has_color"), [((), True), (("--color", "never"), False)])
def test_a_terminal_gets_the_colors_of_a_log(
    tmp_path: Path, settings: dict[str, str], args: tuple[str, ...], has_color: bool
) -> None:
    """Other control sequences are removed."""
    shown = on_a_terminal(tmp_path, settings, "logs", WORKFLOW, "good", "--lines", "5-6", *args)
    assert ("\x1b[31m" in shown) is has_color
    assert "bye" in shown
    assert not re.search("\x1b(?!\\[(31|0)?m)|[\x07\x08\r]", shown)
    assert "\x1b" not in on_a_terminal(tmp_path, settings, "logs", WORKFLOW, "good", *args, NO_COLOR="1")
