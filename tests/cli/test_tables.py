"""Lists in all formats, suggested ids, progress on a terminal, and the examples of ``--help``."""

import json
import re
import shlex
from pathlib import Path
from typing import Final

import click
import orjson
import pytest

from chronoverse.cli.listing import print_table
from chronoverse.cli.main import commands, main
from tests.cli.conftest import Cli
from tests.support.commands import visible_commands
from tests.support.scripted import ScriptedService, answer, problem

JOB = (
    b'{"id":"job_1","workflow_id":"wf_1","status":"FAILED","attempt":1,"created_at":"2026-03-03T10:00:00.000Z",'
    b'"started_at":"2026-03-03T10:00:00.000Z","finished_at":"2026-03-03T11:30:00.000Z","exit_code":3,"lines":7,'
    b'"dropped":0,"first_sequence_num":1,"last_sequence_num":7}'
)
JOBS = answer("200 OK", b'{"jobs":[' + JOB + b'],"cursor":null}')


@pytest.mark.parametrize("no_colour", ["", "1"])
@pytest.mark.parametrize(
    ("end", "duration"),
    [
        (b"03T11:30:00.000", "1h30m"),
        (b"04T11:01:01.000", "1d1h"),
        (b"04T10:30:00.000", "1d"),
        (b"03T10:00:00.091", "0.091 s"),
        (b"03T10:00:00.000", "0 s"),
        (b"03T09:30:00.000", "-"),
    ],
)
def test_on_a_terminal_jobs_are_a_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], no_colour: str, end: bytes, duration: str
) -> None:
    """With a header, ages and durations. A failed status is red, unless NO_COLOR is set.

    If a job ends before it starts, its runner's clock was set back, or this machine's is slow.
    """
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", no_colour)
    jobs = b'{"jobs":[' + JOB.replace(b"03T11:30:00.000", end) + b'],"cursor":null}'
    with ScriptedService(answer("200 OK", jobs)) as service:
        monkeypatch.setenv("CHRONOVERSE_URL", service.url)
        assert main(["jobs", "wf_1"]) == 0
    head, row = capsys.readouterr().out.splitlines()

    assert head.split() == ["JOB", "STATUS", "AGE", "DURATION", "LINES"]
    assert "FAILED (3)" in row
    assert re.search(rf"  {duration} +7$", row)
    assert ("\x1b[31m" in row) == (not no_colour)


def test_a_table_strips_control_sequences_from_its_cells(capsys: pytest.CaptureFixture[str]) -> None:
    """An id from the service can neither control the terminal nor start a line."""
    print_table(("A", "B"), [("x\x1b[2J\ny", "1")])

    assert capsys.readouterr().out == "A    B\nx y  1\n"


def test_a_long_name_does_not_shift_other_rows_of_a_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is not truncated, since users copy it. The last column is."""
    monkeypatch.setenv("COLUMNS", "60")
    print_table(("JOB", "STATUS", "LABELS"), [("a" * 70, "OK", "x"), ("b", "OK", "x" * 60)])

    long, short = capsys.readouterr().out.splitlines()[1:]
    assert long == f"{'a' * 70}  OK      x"
    assert (len(short), short[-1]) == (60, "…")


WATCH: Final[dict[str, object]] = {
    **dict.fromkeys(("on", "seconds", "waiting", "dropped", "error", "state")),
    "id": "w",
    "url": "u",
    "status": [],
    "label": {},
    "same": [],
}


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"waiting": 2, "dropped": 0}, "w u 2 waiting, 0 dropped"),
        ({"waiting": 0, "dropped": 2}, "w u 0 waiting, 2 dropped"),
        ({"on": "silent", "seconds": 90, "state": "retrying", "error": "no"}, "w silent 90s u retrying no"),
        ({"on": "end", "status": ["FAILED", "LOST"], "label": {"a": "1", "b": "2"}}, "w end FAILED LOST a=1,b=2 u"),
        ({"on": "change", "same": ["a", "b"]}, "w change same a,b u"),
    ],
)
def test_a_watch_is_printed_with_what_it_has(cli: Cli, changes: dict[str, object], shown: str) -> None:
    with ScriptedService(answer("200 OK", json.dumps({"watches": [WATCH | changes]}).encode())) as service:
        assert cli("watches", "wf", URL=service.url).stdout.split() == shown.split()


FOUND = (
    b'{"jobs":[{"id":"job_1","logs":[{"timestamp":"2026-03-03T10:00:00.000Z","message":"oops","sequence_num":7,'
    b'"stream":"stderr"}],"more":%b}],"cursor":%b}'
)


def test_a_search_prints_objects_or_ids(cli: Cli) -> None:
    """Each line comes with its job's id. The matches of a job can be on several pages."""
    pages = [answer("200 OK", FOUND % more) for more in ((b"true", b'"c1"'), (b"true", b'"c2"'), (b"false", b"null"))]
    with ScriptedService(*pages * 3) as service:
        text, lines, ids = (
            cli("search", "wf_1", "oops", "-m", "2", "-o", form, URL=service.url, TOKEN="a.b.c")
            for form in ("text", "jsonl", "name")
        )

    assert (text.stdout, ids.stdout) == ("job_1:7:oops\n" * 3, "job_1\n")
    assert text.stderr == "chronoverse: job_1: more than 2 matches\n"
    objects = map(json.loads, lines.stdout.splitlines())
    assert [(each["id"], each["sequence_num"], each["message"]) for each in objects] == [("job_1", 7, "oops")] * 3


def test_a_job_without_a_time_does_not_end_a_list(cli: Cli) -> None:
    """The first one that is older than the given time does."""
    times = ("2026-03-04T10:00:00.000Z", None, "2026-03-03T10:00:00.000Z", "2026-03-02T10:00:00.000Z")
    state = {"status": "FAILED", "exit_code": None, "started_at": None, "finished_at": None, "lines": 1}
    jobs = [{**state, "id": f"job_{number}", "created_at": each} for number, each in enumerate(times)]
    with ScriptedService(answer("200 OK", orjson.dumps({"jobs": jobs, "cursor": None}))) as service:
        done = cli("jobs", "wf_1", "--since", "2026-03-03", "-o", "name", URL=service.url, TOKEN="a.b.c")
    assert done.stdout.split() == ["job_0", "job_1", "job_2"]


def test_the_runs_of_all_pages_are_joined(cli: Cli) -> None:
    """Pages go from new runs to old ones. Only the newest 20 are printed."""
    runs = [{"id": f"job_{n}", "sequence_num": 1, "status": "FAILED", "started_at": None} for n in range(24, 0, -1)]
    ends = {"COMPLETED": 0, "FAILED": 8, "CANCELED": 0, "LOST": 0}
    common = {"id": "job_24", "sequence_num": 7, "seen": ends, "looked_at": {**ends, "without_shapes": 1}}
    none = {**common, "seen": dict.fromkeys(ends, 0), "jobs": [], "first": None, "last": None}
    bodies = [{**common, "jobs": runs[at : at + 8], "first": runs[at + 7], "last": runs[at]} for at in (0, 8, 16)]
    pages = [
        answer("200 OK", orjson.dumps({**each, "cursor": cursor}))
        for each, cursor in zip((none, *bodies, none), ("c1", "c2", "c3", "c4", None), strict=True)
    ]
    with ScriptedService(*pages * 2) as service:
        shown, whole = (
            cli("seen", "wf_1", "job_24", "7", "-o", form, URL=service.url, TOKEN="a.b.c").stdout
            for form in ("text", "json")
        )
    found = json.loads(whole)
    assert [found[name] and found[name]["id"] for name in ("first", "last")] == ["job_1", "job_24"]
    assert [each["id"] for each in found["jobs"]] == [each["id"] for each in runs[:20]]
    assert shown.splitlines()[:3] == [
        "Line 7 of job_24 was seen in 24 of 40 runs: 24 FAILED.",
        "5 more runs could not be read.",
        "First in job_1:1  FAILED",
    ]


LINE: Final = {"timestamp": "2026-03-03T10:00:00.000Z", "message": "x", "sequence_num": 5, "stream": "stdout"}
WAITED: Final = {"outcome": "matched", "log": LINE, "cursor": 5, "job": json.loads(JOB)}
GAPS: Final = {"gaps": [{"from": 2, "to": 3, "reason": "trimmed"}, {"from": 4, "to": 4, "reason": "quota"}]}
GONE: Final = "--- lines 2-3 are gone (trimmed) ---\n--- line 4 is gone (quota) ---\n"


@pytest.mark.parametrize(
    ("command", "answered", "code", "said"),
    [
        ("wait wf_1 job_1 --for x", WAITED | GAPS, 0, GONE),
        ("wait wf_1 job_1 --for x -o json", WAITED | GAPS, 0, GONE),
        (
            "wait wf_1 job_1 --for x",
            WAITED | {"outcome": "ended", "log": None},
            1,
            "chronoverse: the job ended without a match: FAILED\n",
        ),
        ("wait wf_1 job_1", WAITED | {"outcome": "ended", "log": None}, 3, ""),
        (
            "search wf_1 x",
            {"jobs": [{"id": "a", "logs": [], "error": "no"}], "cursor": None},
            2,
            "chronoverse: a: no\n",
        ),
        ("search wf_1 x -m 2", {"jobs": [{"id": "a", "logs": [LINE], "more": True}], "cursor": None}, 0, ""),
    ],
)
def test_what_is_said_beside_the_lines(
    cli: Cli, command: str, answered: dict[str, object], code: int, said: str
) -> None:
    with ScriptedService(answer("200 OK", orjson.dumps(answered))) as service:
        done = cli(*command.split(), URL=service.url, TOKEN="a.b.c")
    assert (done.returncode, done.stderr) == (code, said)
    assert ("x" in done.stdout) == (code == 0)


MISSING = problem("404 Not Found", "There is nothing here.")
NO_JOBS = answer("200 OK", b'{"jobs":[],"cursor":null}')
WORKFLOWS = answer("200 OK", b'{"workflows":[{"id":"wf_1"}],"cursor":null}')


@pytest.mark.parametrize(
    "command",
    ["logs X", "logs -f X", "logs --new X", "logs --new wf_1 job_2 --against jbo_1", "summary X", "delete -y X"],
)
def test_a_missing_job_is_reported_with_similar_ids(cli: Cli, command: str) -> None:
    """Whatever the command. The job that one is compared with can be missing, too."""
    with ScriptedService(MISSING, JOBS) as service:
        done = cli(*command.replace("X", "wf_1 jbo_1").split(), URL=service.url, TOKEN="a.b.c")

    assert (done.returncode, done.stderr) == (66, "chronoverse: no job jbo_1 in wf_1: did you mean job_1?\n")


@pytest.mark.parametrize("command", [("jobs", "wf_2"), ("search", "wf_2", "oops")], ids=str)
def test_a_workflow_without_jobs_is_unknown(cli: Cli, command: tuple[str, ...]) -> None:
    """An empty list would hide a typo."""
    with ScriptedService(*[NO_JOBS] * 3, WORKFLOWS) as service:
        done = cli(*command, URL=service.url, TOKEN="a.b.c")

    sentence = "workflow wf_2: not found, or no access: did you mean wf_1?"
    assert (done.returncode, done.stdout, done.stderr) == (66, "", f"chronoverse: {sentence}\n")


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_download_shows_its_progress(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, is_terminal: bool
) -> None:
    """On a terminal, in one line that is erased at the end."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: is_terminal)
    with ScriptedService(answer("200 OK", b"x" * 100_000)) as service:
        monkeypatch.setenv("CHRONOVERSE_URL", service.url)
        assert main(["download", "wf_1", "job_1", str(tmp_path / "log.txt")]) == 0

    shown, _, said = capsys.readouterr().err.rpartition("chronoverse: saved")
    assert said.endswith("(100,000 bytes)\n")
    assert shown.startswith("\r\x1b[K") == shown.endswith(" bytes\r\x1b[K") == is_terminal


def test_progress_has_no_control_sequences(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    page = answer("200 OK", b'{"jobs":[],"cursor":null}', Searched_To="job_1\x1b[2J!")
    with ScriptedService(page, JOBS) as service:
        monkeypatch.setenv("CHRONOVERSE_URL", service.url)
        assert main(["search", "wf_1", "oops"]) == 1
    assert "searched up to job job_1!" in capsys.readouterr().err


@pytest.mark.parametrize(("command", "what"), [(("jobs", "wf_1"), "list"), (("seen", "wf_1", "job_1", "1"), "history")])
def test_a_malformed_list_is_an_error(cli: Cli, command: tuple[str, ...], what: str) -> None:
    """One line, without a traceback."""
    with ScriptedService(answer("200 OK", b'{"jobs":[{"id":"job_1"}],"cursor":null}')) as service:
        done = cli(*command, URL=service.url, TOKEN="a.b.c")

    assert (done.returncode, done.stderr) == (70, f"chronoverse: the service sent an unreadable {what}\n")


@pytest.mark.parametrize("name", visible_commands())
def test_the_help_of_each_command_has_a_valid_example(name: str) -> None:
    """The command accepts its arguments. The help describes the command, and mentions no internal function."""
    command = visible_commands()[name]
    assert command.help
    assert all("Repeatable" in str(each.help) for each in command.params if each.multiple)
    # A command caches the names of its help option. With another context, -h would fail in later tests.
    program_context = click.Context(commands, **commands.context_settings)
    text, _, examples = command.get_help(click.Context(command, program_context, name)).rpartition("Examples:\n")
    assert not re.search(r"\s_|IDENTIFIER|DURATION|MOMENT|SERVICE_URL", text)
    assert len(examples.splitlines()) >= 2
    for example in examples.splitlines():
        # Only the service knows the newest job.
        program, called, *arguments = shlex.split(
            re.sub("@latest|@failed", "build-7", example.replace("CHRONOVERSE_URL=https://logs.example.com", ""))
        )
        assert (program, called) == ("chronoverse", name)
        command.make_context(name, arguments, program_context)
