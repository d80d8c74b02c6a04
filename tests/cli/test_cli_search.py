"""``chronoverse logs --search`` and ``--new``, and ``jobs``: requests, output and exit codes."""

import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from chronoverse.archive.retention import delete_job
from chronoverse.cli.profile import profile_text
from chronoverse.cli.summary import summary_text
from chronoverse.joblog.model import JobRef, Line, Status, iso_timestamp
from chronoverse.store import Store
from tests.cli.conftest import Cli
from tests.support.bench import ticking
from tests.support.scripted import ScriptedService, answer
from tests.support.servers import RedisServer
from tests.support.service import Service
from tests.support.waiting import wait_until
from tests.web.routes.foreign import Foreign, ask_all

WORKFLOW = "wf_search"
NEW_WORKFLOW = "wf_new"
#: A good run, then a failed one.
RUNS = {
    "good": (["started in 12 ms", "step a", "step b", "done"], Status.COMPLETED),
    "failed": (["started in 13 ms", "step a", "error: x", "step b", "step c", "gave up"], Status.FAILED),
}


@pytest.fixture(scope="module", autouse=True)
def jobs(backend: RedisServer) -> None:
    """Three jobs, one of them failed, and one of two streams."""
    store = Store(backend.url)
    for name, status, code in (("job_1", Status.COMPLETED, 0), ("job_2", Status.FAILED, 3)):
        attempt = store.open(JobRef(WORKFLOW, name), "a" * 32)
        times = [f"2026-03-03T10:{minute:02}:00.000Z" for minute in range(20)]
        store.append(attempt, [Line(n, time, f"step {n}", "stdout") for n, time in enumerate(times, 1)])
        store.finish(attempt, status, code, 0, 21)
    store.register(JobRef(WORKFLOW, "job_3"))
    store.register(JobRef(WORKFLOW, "deleted"))
    delete_job(store, None, JobRef(WORKFLOW, "deleted"), tombstone_ms=3_600_000)
    attempt = store.open(JobRef("wf_streams", "job_4"), "a" * 32)
    lines = [Line(n, times[0], f"a{n}", "stdout" if n in (1, 4, 8) else "stderr") for n in range(1, 10)]
    store.append(attempt, lines)
    store.finish(attempt, Status.COMPLETED, 0, 0, 10)
    store.close()


@pytest.fixture
def ask(cli: Cli, service: Service) -> Cli:
    """A command with settings that can read all of these workflows."""
    return partial(cli, URL=service.url, TOKEN=service.token())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--search", "STEP 7"), [7]),
        (("--search", "step (7|9)$", "--regex", "--context", "1"), [6, 7, 8, 9, 10]),
        (("--search", "step", "--since", "2026-03-03T10:17:00Z", "--until", "2026-03-03T10:18:30Z"), [18, 19]),
        (("--search", "step", "--offset", "18"), [19, 20]),
        (("--search", "nothing"), []),
        (("--since", "2026-03-03T10:17:00Z"), [18, 19, 20]),
        (("--since", "2026-03-03T12:17:00.000+02:00"), [18, 19, 20]),
        (("--since", "2026-03-03T10:16:00.001"), [18, 19, 20]),
        (("--until", "2026-03-03T10:01:30Z"), [1, 2]),
        (("--since", "2026-03-03T10:04:00Z", "--until", "2026-03-03T10:05:00Z"), [5, 6]),
        (("--since", "2026-03-03T10:04:00Z", "--offset", "18"), [19, 20]),
        (("--since", "2026-03-03T10:04:00Z", "--tail", "1", "--until", "2026-03-03T10:06:59Z"), [7]),
        (("--since", "2026-03-03T10:18:00Z", "--tail", "9"), [19, 20]),
        (("--since", "5m"), []),
        (("--until", "2026-03-03"), []),
        (("--since", "2026-03-03", "--until", "1h30m"), list(range(1, 21))),
        # Following ends with the job, and exits with the job's code.
        (("-f", "--since", "2026-03-03T10:17:00Z"), [18, 19, 20]),
        (("-f", "--since", "2026-03-03T10:04:00Z", "--offset", "18"), [19, 20]),
        (("-f", "--since", "2026-03-03T10:04:00Z", "--tail", "2"), [19, 20]),
        (("-f", "--since", "2026-03-03T10:18:00Z", "--tail", "9"), [19, 20]),
        (("-f", "--since", "2026-03-03T10:04:00Z", "--offset", "latest"), []),
        (("-f", "--since", "5m"), []),
    ],
    ids=str,
)
def test_selected_lines(ask: Cli, arguments: tuple[str, ...], expected: list[int]) -> None:
    """By text or by time. Only a search that finds nothing exits with 1, as grep does."""
    done = ask("logs", WORKFLOW, "job_1", *arguments)

    assert (done.returncode, done.stderr) == (1 if "--search" in arguments and not expected else 0, "")
    assert done.stdout.splitlines() == [f"step {number}" for number in expected]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("step (3|5|9)$", "--context", "1"), "2 3 4 5 6 -- 8 9 10"),
        (("step (3|6|11)$", "--context", "1"), "2 3 4 5 6 7 -- 10 11 12"),
        (("step (1|20)$", "--context", "2"), "1 2 3 -- 18 19 20"),
        (("step (3|9)$",), "3 9"),
    ],
    ids=str,
)
def test_groups_of_context_are_separated(ask: Cli, arguments: tuple[str, ...], expected: str) -> None:
    """With grep's separator. JSON has none, since programs have the numbers."""
    asked = ("logs", WORKFLOW, "job_1", "--regex", "--search", *arguments)

    assert ask(*asked).stdout.replace("step ", "").split() == expected.split()
    printed = [json.loads(line) for line in ask(*asked, "-o", "json").stdout.splitlines()]
    assert [str(line["sequence_num"]) for line in printed] == expected.replace("-- ", "").split()


def test_groups_are_formed_by_number(ask: Cli) -> None:
    """Lines of the other stream in between do not matter. A failed search is not an empty result."""
    asked = ("--search", "a", "--context", "1", "--stream", "stdout")

    assert ask("logs", "wf_streams", "job_4", *asked).stdout.split() == ["a1", "a4", "--", "a8"]
    assert ask("logs", WORKFLOW, "nobody", *asked).returncode == 66
    assert ask("logs", "wf_streams", "job_4", "--regex", "--search", "(").returncode == 65


def test_lines_between_two_in_the_range_are_printed(ask: Cli, backend: RedisServer) -> None:
    """A runner's clock can be set back. Its lines stay together, unless one stream is selected."""
    store = Store(backend.url)
    attempt = store.open(JobRef("wf_clock", "job_5"), "a" * 32)
    times = [f"2026-03-03T10:{minute:02}:00.000Z" for minute in (1, 3, 2, 4, 3, 5)]
    store.append(attempt, [Line(n, time, f"a{n}", "stderr" if n == 3 else "stdout") for n, time in enumerate(times, 1)])
    store.close()
    asked = ("--since", "2026-03-03T10:03:00Z", "--until", "2026-03-03T10:03:00Z")

    assert ask("logs", "wf_clock", "job_5", *asked).stdout.split() == ["a2", "a3", "a4", "a5"]
    one_stream = ask("logs", "wf_clock", "job_5", *asked, "--stream", "stdout")
    assert one_stream.stdout.split() == ["a2", "a4", "a5"]


def test_following_a_job_from_a_future_time(ask: Cli) -> None:
    """With --wait, the job may still appear. Without, it is not found."""
    never = ask("logs", "-f", WORKFLOW, "nobody", "--since", "5m", "--wait", "1s")

    assert never.returncode == 66
    assert never.stderr == "chronoverse: the job did not appear within 1 s\n"
    assert ask("logs", "-f", WORKFLOW, "nobody", "--since", "5m").returncode == 66


def test_jobs_are_listed(ask: Cli) -> None:
    """Newest first, in text and JSON; those created at a time or later, or with a status."""
    text = ask("jobs", WORKFLOW).stdout.splitlines()
    assert [line.split()[:2] for line in text] == [["job_3", "PENDING"], ["job_2", "FAILED"], ["job_1", "COMPLETED"]]
    assert "(3)" in text[1]
    listed = [json.loads(line) for line in ask("jobs", WORKFLOW, "-o", "json").stdout.splitlines()]

    def names(*options: str) -> list[str]:
        return ask("jobs", WORKFLOW, "-o", "name", *options).stdout.split()

    assert names("--since", listed[1]["created_at"]) == ["job_3", "job_2"]
    assert (len(names("--since", "1h")), names("--since", "2100-01-01")) == (3, [])
    assert (names("--status", "failed"), names("-n", "2")) == (["job_2"], ["job_3", "job_2"])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("STEP 20",), ["job_2:20:step 20", "job_1:20:step 20"]),
        (("step [12]$", "--regex", "--status", "FAILED"), ["job_2:1:step 1", "job_2:2:step 2"]),
        (("step 1", "-m", "1"), ["job_2:1:step 1", "job_1:1:step 1"]),
        (("step", "--stream", "stderr"), []),
        (("step", "--until", "2001-01-01"), []),
        (("nothing",), []),
    ],
    ids=str,
)
def test_a_search_of_a_workflow(ask: Cli, arguments: tuple[str, ...], expected: list[str]) -> None:
    """Printed like grep prints the lines of many files, with grep's exit code."""
    done = ask("search", WORKFLOW, *arguments)

    assert (done.returncode, done.stdout.splitlines()) == (0 if expected else 1, expected)
    assert ("more than 1" in done.stderr) == ("-m" in arguments)


def test_a_job_that_cannot_be_searched_is_reported(ask: Cli, service: Service) -> None:
    """The others are searched. The exit code is grep's after an error."""
    for name, message in (("easy", "aaz"), ("hard", "ab" * 1_600_000)):
        job = Foreign(str(service.redis_url), "wf_hard", name).lines([message]).end()
        httpx.get(service.url + job.path, headers={"Authorization": f"Bearer {service.token()}"})
    done = ask("search", "wf_hard", "(?:a.{0,50}){4}z|aaz", "--regex")
    assert (done.stdout.splitlines(), done.returncode) == (["easy:1:aaz"], 2)
    assert "hard: line 1 has 3200000 characters" in done.stderr


def test_workflows_are_listed(ask: Cli, service: Service) -> None:
    """Newest job first, in text and JSON. With a status, only those whose newest job has it."""
    ask = partial(ask, TOKEN=service.token(WORKFLOW, "wf_streams"))
    listed = [json.loads(line) for line in ask("workflows", "-o", "json").stdout.splitlines()]
    by_id = {each["id"]: each for each in listed}
    assert (by_id[WORKFLOW]["jobs"], by_id[WORKFLOW]["running"]) == (3, 0)
    assert [each["last_job_at"] for each in listed] == sorted((each["last_job_at"] for each in listed), reverse=True)
    text = ask("workflows").stdout.splitlines()
    assert [line.split()[0] for line in text] == [each["id"] for each in listed]
    line = next(line for line in text if line.startswith(WORKFLOW))
    assert "3 jobs" in line
    assert line.split()[1] == by_id[WORKFLOW]["last_status"] == by_id[WORKFLOW]["recent"][0]
    failed = [line.split() for line in ask("workflows", "--status", "FAILED").stdout.splitlines()]
    assert [words[0] for words in failed] == [each["id"] for each in listed if each["last_status"] == "FAILED"]


def test_a_summary(ask: Cli) -> None:
    """The text has line numbers; the JSON is the service's."""
    text = ask("summary", WORKFLOW, "job_2").stdout.splitlines()
    assert text[0] == f"job_2 of {WORKFLOW}: FAILED, exit code 3, 20 lines"
    assert text[-1].split() == ["20", "step", "20"]
    summary = json.loads(ask("summary", WORKFLOW, "job_2", "-o", "json", "--bytes", "1100").stdout)
    assert summary["job"]["id"] == "job_2"
    assert 0 < len(summary["last"]) < 20


def test_where_the_time_went(ask: Cli) -> None:
    """The text names the lines around each pause; the JSON is the service's."""
    assert ask("profile", WORKFLOW, "job_2").stdout.splitlines()[:6] == [
        f"job_2 of {WORKFLOW}: FAILED",
        "Duration: 19m, usually 19m in job_1.",
        "Nothing was slower than usual.",
        "The longest pauses:",
        "1m, usually 1m, between these lines:",
        "        1  step 1",
    ]
    found = json.loads(ask("profile", WORKFLOW, "job_2", "-o", "json").stdout)
    assert (found["seconds"], found["slower"], found["complete"]) == (1_140, [], True)
    usual = {"least": 0.1, "median": 0.1, "most": 0.2}
    after, before = ({"sequence_num": number, "message": f"##[group]step {number}"} for number in (3, 4))
    found["slower"] = [{"after": after, "before": before, "seconds": 3.154, "usual": usual, "excess": 2.954}]
    found["pauses"] = []
    found["running"] = {"silent_seconds": 250, "usual": usual, "seconds_left": {"least": 61, "median": 80, "most": 130}}
    assert list(profile_text(found))[1:] == [
        "Time until the last line: 19m, usually 19m in job_1.",
        "Slower than in any of these runs:",
        "3.15 s, usually 0.1 s to 0.2 s, between these lines:",
        "        3  step 3",
        "        4  step 4",
        "No pauses.",
        "Silent for 4m10s, usually 0.1 s to 0.2 s.",
        "Estimated time left: 1m1s to 2m10s.",
    ]
    (slower,) = found["slower"]
    pauses = [slower, slower | {"seconds": 11.4, "usual": None}, slower | {"seconds": 11.3}]  # 1 % of 19 minutes
    shown = [each for each in profile_text(found | {"pauses": pauses}) if "pauses" in each or "between" in each]
    assert shown[1:] == ["Other long pauses:", "11.4 s, between these lines:"]
    none = {"count": 0, "first": []}
    summary = {**found, "new": none, "errors": none, "last": []}
    _, text, *more = summary_text(summary)
    assert text == "Slower than any good run: 3.15 s before line 4, usually 0.1 s to 0.2 s."
    assert "Last lines:" not in more


def test_where_a_line_was_seen(ask: Cli) -> None:
    """The text names the runs; the JSON is the service's."""
    text: list[str] = []

    def is_said(first: str, *asked: str) -> bool:
        text[:] = ask("seen", *asked).stdout.splitlines()
        return text[0] == first

    for first, *asked in (
        ("Line 20 of job_2 was seen in 2 of 2 runs: 1 COMPLETED, 1 FAILED.", WORKFLOW, "job_2", "20"),
        ("Line 1 of job_4 was seen in 1 of 1 run: 1 COMPLETED.", "wf_streams", "job_4", "1"),
    ):
        # A busy machine can be too slow to read all runs.
        wait_until(partial(is_said, first, *asked), 100, first)
        assert text[-1].startswith(f"  {'job_4' if asked[0] == 'wf_streams' else 'job_1'}:1  COMPLETED  20")
    found = json.loads(ask("seen", WORKFLOW, "job_2", "20", "-o", "json").stdout)
    assert (found["id"], found["sequence_num"]) == ("job_2", 20)
    done = ask("seen", WORKFLOW, "job_2", "21")
    assert (done.returncode, done.stdout) == (66, "")
    assert done.stderr == f"chronoverse: job_2 of {WORKFLOW} has no such line\n"


def test_a_summary_of_a_long_log(cli: Cli) -> None:
    """The command asks until all lines were scanned. Until then, the text has no count."""
    line = {"sequence_num": 7, "timestamp": "t", "message": "panic: nil map", "stream": "stdout"}
    job = {"id": "job_1", "workflow_id": "wf_1", "status": "FAILED", "exit_code": 2, "lines": 600_405}
    part: dict[str, Any] = {
        "job": {**job, "last_sequence_num": 600_405},
        "compared_with": ["good"],
        "new": {"count": None, "first": []},
        "errors": {"count": None, "first": [line | {"repeated": 5}]},
        "last": [line],
        "cause": None,
        "complete": False,
        "scanned_to": 402_406,
        "truncated": True,
    }
    text = list(summary_text(part))
    assert text[1] == "new lines: scanned 198,000 of 600,405 lines, none so far, compared with good."
    assert text[2] == "lines that look like errors: scanned 198,000 of 600,405 lines, 5 so far:"
    assert text[-1] == "Not all lines are scanned yet: repeat the command to continue."
    cause = {"from": 7, "to": 9, "line": line, "kind": "error"}
    none = {"count": 0, "first": []}
    whole = part | {"complete": True, "scanned_to": 1, "cause": cause, "new": none, "truncated": False}
    whole["errors"] = {"count": 5, "first": [line]}
    with ScriptedService(*(answer("200 OK", orjson.dumps(each)) for each in (part, part, whole))) as service:
        done = cli("summary", "wf_1", "job_1", URL=service.url, TOKEN="a.b.c")
    assert done.stdout.splitlines()[1:] == [
        "Cause (lines 7-9):",
        "        7  panic: nil map",
        "0 new lines, compared with good.",
        "5 lines that look like errors:",
        "        7  panic: nil map",
        "Last lines:",
        "        7  panic: nil map",
    ]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--search", "STEP 7"), [7]),
        (("--search", "step (7|9)$", "--regex"), [7, 9]),
        (("--search", "step 1", "--tail", "2"), [18, 19]),
        (("--search", "step 1", "--since", "2026-03-03T10:16:00Z"), [17, 18, 19]),
        (("--search", "nothing"), []),
    ],
    ids=str,
)
def test_following_what_matches(ask: Cli, arguments: tuple[str, ...], expected: list[int]) -> None:
    """To the end of the job, with its exit code."""
    done = ask("logs", "-f", WORKFLOW, "job_2", *arguments)
    assert (done.returncode, done.stdout.splitlines()) == (3, [f"step {number}" for number in expected])


def test_following_with_an_expression_never_hangs(ask: Cli, service: Service) -> None:
    """Neither on a long line, nor with an expression that the service rejects."""
    lines = ["error 1", "a" * 70_000 + "error 9", "error 2"]
    job = Foreign(str(service.redis_url), "wf_long", "job").lines(lines).end()
    follow = ("logs", "-f", job.workflow_id, job.job_id, "--regex", "--search")
    done = ask(*follow, "error [0-9]")
    assert (done.returncode, done.stdout.splitlines()) == (0, ["error 1", "error 2"])
    refused = ask(*follow, r"\p{L}+")
    assert (refused.returncode, refused.stdout) == (65, "")
    assert "too expensive for a stream" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "printed"),
    [
        (("job_2", "--for", "STEP 7"), 0, ["step 7"]),
        (("job_2", "--for", "step 1[0-9]", "--regex", "--offset", "15"), 0, ["step 16"]),
        (("job_2", "--for", "nothing"), 1, []),
        (("job_2",), 3, []),
        (("job_1",), 0, []),
        (("job_3", "--timeout", "1s"), 124, []),
        (("job_3", "--for", "x", "--timeout", "1s"), 124, []),
        (("nobody", "--timeout", "1s"), 124, []),
        (("deleted", "--timeout", "5m"), 66, []),
    ],
    ids=str,
)
def test_waiting(ask: Cli, arguments: tuple[str, ...], code: int, printed: list[str]) -> None:
    """For a line, or for the job's end. The exit code distinguishes both from a timeout, and from a deleted job."""
    done = ask("wait", WORKFLOW, *arguments)
    assert (done.returncode, done.stdout.splitlines()) == (code, printed)


def test_a_run_with_labels_is_found_by_them(cli: Cli, service: Service, tmp_path: Path) -> None:
    """The CI system's labels are added unless disabled. None of their escapes reach a terminal."""
    settings = {"URL": service.url, "TOKEN": service.token()}
    run = ("run", "--workflow", "wf_labels", "--label", "os=linux", "--label", "branch=topic")
    push = {"CIRCLECI": "true", "CIRCLE_SHA1": "4f0c1de", "CIRCLE_BRANCH": "main"}
    with pytest.MonkeyPatch.context() as environment:
        for name, value in push.items():
            environment.setenv(name, value)
        assert cli(*run, "--job", "one", "--server", service.url, "--", "echo", "line", **settings).returncode == 0
        store = {"REDIS_URL": str(service.redis_url)}
        assert cli(*run, "--job", "two", "--no-ci-labels", "--", "echo", "line", **store).returncode == 0
    foreign = Foreign(str(service.redis_url), "wf_labels", "hostile")
    labels = ("label:branch", "topic", "label:note", "\u202eevil")
    ask_all(foreign.url, [("HSET", foreign.key.replace(":log", ":job"), *labels)])
    for message in ("line", "only here"):
        foreign.line(message, timestamp=iso_timestamp(time.time()))
    foreign.end("FAILED", 1)
    httpx.get(service.url + foreign.path, headers={"Authorization": f"Bearer {service.token()}"})

    listed = cli("jobs", "wf_labels", **settings).stdout.splitlines()
    assert [line.split("  ")[-1] for line in listed] == ["note=<U+202E>evil", "os=linux", "os=linux"]
    json_lines = cli("jobs", "wf_labels", "--label", "os=linux", "-o", "json", **settings).stdout.splitlines()
    found = {job["id"]: job["labels"] for job in map(json.loads, json_lines)}
    assert found == {
        "one": {"branch": "topic", "commit": "4f0c1de", "os": "linux"},
        "two": {"branch": "topic", "os": "linux"},
    }
    both = ("--label", "branch=topic", "--label", "commit=4f0c1de")
    assert cli("jobs", "wf_labels", *both, "-o", "name", **settings).stdout.split() == ["one"]
    assert cli("search", "wf_labels", "line", *both, **settings).stdout.splitlines() == ["one:1:line"]
    for command in ("logs", "summary"):
        new = ("--new",) if command == "logs" else ()
        done = cli(command, "wf_labels", "hostile", *new, "--against-label", "commit=4f0c1de", **settings)
        assert "only here" in done.stdout
        assert "compared with one" in done.stdout + done.stderr
        assert "two" not in done.stdout + done.stderr
        all_runs = cli(command, "wf_labels", "hostile", *new, "--against-label", "*", **settings)
        assert "compared with two, one" in all_runs.stdout + all_runs.stderr
    assert "compared with one with commit=4f0c1de" in done.stdout
    assert "branch=topic, note=<U+202E>evil" in done.stdout
    for bad in ("branch", "Branch=x", "a=", "a=\x1b"):
        assert cli(*run, "--label", bad, "--", "true", **settings).returncode == 64
        assert cli("jobs", "wf_labels", "--label", bad, **settings).returncode == 64


@pytest.fixture(scope="module")
def new_lines(service: Service, backend: RedisServer) -> dict[str, str]:
    """The settings for the service with the two runs."""
    store = Store(backend.url, clock=ticking())
    for job_id, (messages, status) in RUNS.items():
        attempt = store.open(JobRef(NEW_WORKFLOW, job_id), "a" * 32)
        stamp = "2026-03-03T10:00:00.000Z"
        store.append(attempt, [Line(number, stamp, text, "stdout") for number, text in enumerate(messages, 1)])
        store.finish(attempt, status, 0, 0, len(messages) + 1)
    store.close()
    return {"URL": service.url, "TOKEN": service.token()}


def test_new_lines_are_printed(cli: Cli, new_lines: dict[str, str]) -> None:
    """The run compared with is named on stderr."""
    done = cli("logs", NEW_WORKFLOW, "failed", "--new", **new_lines)
    assert (done.returncode, done.stdout) == (0, "error: x\nstep c\ngave up\n")
    assert done.stderr.endswith("compared with good\n")
    with_context = cli("logs", NEW_WORKFLOW, "failed", "--new", "--context", "1", "--offset", "4", **new_lines)
    assert with_context.stdout == "step b\nstep c\ngave up\n"
    as_json = cli("logs", NEW_WORKFLOW, "failed", "--new", "-o", "json", **new_lines)
    assert [json.loads(line)["sequence_num"] for line in as_json.stdout.splitlines()] == [3, 5, 6]


@pytest.mark.parametrize(
    ("asked", "code", "out", "err"),
    [
        ("good --against failed", 0, "done\n", "compared with failed"),
        # Nothing is new: the exit code is grep's.
        ("good --against good", 1, "", ""),
        ("good", 66, "", "no job of this workflow has COMPLETED before good"),
        ("failed --against unknown", 66, "", "unknown"),
    ],
)
def test_a_run_to_compare_with_can_be_named(
    cli: Cli, new_lines: dict[str, str], asked: str, code: int, out: str, err: str
) -> None:
    """If it is missing, or none has completed before, this is reported as for a missing job."""
    done = cli("logs", NEW_WORKFLOW, "--new", *asked.split(), **new_lines)
    assert (done.returncode, done.stdout, err in done.stderr) == (code, out, True)
