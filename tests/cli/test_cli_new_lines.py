"""``chronoverse logs --new``: what it prints, and how it exits."""

import json
from collections.abc import Iterator

import pytest

from chronoverse.joblog.model import JobRef, Line, Status
from chronoverse.store import Store
from tests.cli.conftest import Cli
from tests.support.bench import ticking
from tests.support.servers import RedisServer
from tests.support.service import Service, serving

pytestmark = pytest.mark.long

WORKFLOW = "wf_new"
RUNS = {
    "good": (["started in 12 ms", "step a", "step b", "done"], Status.COMPLETED),
    "failed": (["started in 13 ms", "step a", "error: x", "step b", "step c", "gave up"], Status.FAILED),
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, server: RedisServer) -> Iterator[Service]:
    """A service with a good run, and a failed one after it."""
    with serving(tmp_path_factory.mktemp("service"), server.url) as service:
        store = Store(server.url, clock=ticking())
        for job_id, (messages, status) in RUNS.items():
            attempt = store.open(JobRef(WORKFLOW, job_id), "a" * 32)
            stamp = "2026-03-03T10:00:00.000Z"
            store.append(attempt, [Line(number, stamp, text, "stdout") for number, text in enumerate(messages, 1)])
            store.finish(attempt, status, 0, 0, len(messages) + 1)
        store.close()
        yield service


@pytest.fixture
def settings(service: Service) -> dict[str, str]:
    """The service, and a token for it."""
    return {"URL": service.url, "TOKEN": service.token()}


def test_new_lines_are_printed(cli: Cli, settings: dict[str, str]) -> None:
    """What they were compared with is on stderr."""
    done = cli("logs", WORKFLOW, "failed", "--new", **settings)
    assert (done.returncode, done.stdout) == (0, "error: x\nstep c\ngave up\n")
    assert done.stderr.endswith("compared with good\n")
    with_context = cli("logs", WORKFLOW, "failed", "--new", "--context", "1", "--offset", "4", **settings)
    assert with_context.stdout == "step b\nstep c\ngave up\n"
    as_json = cli("logs", WORKFLOW, "failed", "--new", "-o", "json", **settings)
    assert [json.loads(line)["sequence_num"] for line in as_json.stdout.splitlines()] == [3, 5, 6]


def test_a_job_may_be_named(cli: Cli, settings: dict[str, str]) -> None:
    """Compared with itself, it has nothing new: the exit code is grep's."""
    done = cli("logs", WORKFLOW, "good", "--new", "--against", "failed", **settings)
    assert (done.returncode, done.stdout) == (0, "done\n")
    done = cli("logs", WORKFLOW, "good", "--new", "--against", "good", **settings)
    assert (done.returncode, done.stdout) == (1, "")


def test_without_a_run_to_compare_with_it_says_so(cli: Cli, settings: dict[str, str]) -> None:
    """So does a name of no job."""
    done = cli("logs", WORKFLOW, "good", "--new", **settings)
    assert (done.returncode, done.stdout) == (66, "")
    assert "no job of this workflow has COMPLETED before good" in done.stderr
    assert cli("logs", WORKFLOW, "failed", "--new", "--against", "unknown", **settings).returncode == 66


@pytest.mark.parametrize(
    "arguments",
    [
        ("--new", "-f"),
        ("--new", "--tail", "3"),
        ("--new", "--search", "x"),
        ("--new", "--since", "5m"),
        ("--new", "--until", "5m"),
        ("--against", "good"),
        ("--context", "3"),
    ],
    ids=str,
)
def test_options_that_do_not_go_together(cli: Cli, settings: dict[str, str], arguments: tuple[str, ...]) -> None:
    """The command line is wrong."""
    assert cli("logs", WORKFLOW, "failed", *arguments, **settings).returncode == 64
