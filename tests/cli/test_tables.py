"""Lists as tables on a terminal, ids alone, statuses in any case, and the examples of ``--help``."""

import shlex

import click
import pytest

from chronoverse.cli.listing import print_table, spoken
from chronoverse.cli.main import main
from tests.cli.conftest import Cli
from tests.support.commands import visible_commands
from tests.support.scripted import ScriptedService, answer

JOB = (
    b'{"id":"job_1","workflow_id":"wf_1","status":"FAILED","attempt":1,"created_at":"2026-03-03T10:00:00.000Z",'
    b'"started_at":"2026-03-03T10:00:00.000Z","finished_at":"2026-03-03T11:30:00.000Z","exit_code":3,"lines":7,'
    b'"dropped":0,"first_sequence_num":1,"last_sequence_num":7}'
)
JOBS = answer("200 OK", b'{"jobs":[' + JOB + b'],"cursor":null}')


@pytest.mark.parametrize("no_colour", ["", "1"])
def test_on_a_terminal_jobs_are_a_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], no_colour: str
) -> None:
    """It has a head, ages and durations. A failed status is red, unless NO_COLOR is set."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", no_colour)
    with ScriptedService(JOBS) as service:
        monkeypatch.setenv("CHRONOVERSE_URL", service.url)
        assert main(["jobs", "wf_1"]) == 0
    head, row = capsys.readouterr().out.splitlines()

    assert head.split() == ["JOB", "STATUS", "AGE", "DURATION", "LINES"]
    assert "FAILED (3)" in row
    assert row.endswith("  1h30m     7")
    assert ("\x1b[31m" in row) == (not no_colour)


def test_a_table_has_no_control_sequences_of_its_cells(capsys: pytest.CaptureFixture[str]) -> None:
    """An id from the service cannot act on the terminal, and cannot begin a line."""
    print_table(("A", "B"), [("x\x1b[2J\ny", "1")])

    assert capsys.readouterr().out == "A    B\nx y  1\n"


def test_ids_alone_and_statuses_in_small_letters(cli: Cli) -> None:
    """The service is asked for the status as it spells it."""
    with ScriptedService(JOBS) as service:
        done = cli("jobs", "wf_1", "-o", "name", "--status", "failed", URL=service.url, TOKEN="a.b.c")

    assert (done.returncode, done.stdout) == (0, "job_1\n")
    assert service.requests[0].query["status"] == "FAILED"


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0s"), (90, "1m30s"), (5_400, "1h30m"), (7_776_000, "90d"), (90_061, "1d1h")]
)
def test_a_duration_is_shown_as_commands_read_it(seconds: float, words: str) -> None:
    """With its two largest units."""
    assert spoken(seconds) == words


@pytest.mark.parametrize("name", visible_commands())
def test_the_help_of_each_command_has_an_example_that_can_be_parsed(name: str) -> None:
    """The arguments are those that the command takes."""
    command = visible_commands()[name]
    _, _, example = command.get_help(click.Context(command, info_name=name)).rpartition("Example:\n")
    program, called, *arguments = shlex.split(example)

    assert (program, called) == ("chronoverse", name)
    command.make_context(name, arguments)
