"""``chronoverse conformance``: runners conform, and each planted defect of a runner is found."""

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import psutil
import pytest

from chronoverse.cli.conformance import _json, results_of
from chronoverse.cli.conformance.cases import CASES
from chronoverse.cli.conformance.service import Target, running_service
from chronoverse.cli.conformance.trial import Result, Trial, filled_in, try_case
from chronoverse.joblog.model import JobRef, Line
from tests.cli.conftest import Cli, environ
from tests.support.service import ROOT, is_alive
from tests.support.tools import tool
from tests.support.waiting import wait_until

NODE_RUNNER: Final = Path(__file__).with_name("runner.mjs")
#: The arguments of runners with the same interface as that of docs/any-language.md.
ARGUMENTS: Final = ("{workflow}", "{job}", "{label}", "--")
#: A text of the JavaScript runner, its replacement, and the case that finds it.
DEFECTS: Final = (
    ("opened.next + sent, lines", "opened.next + sent - 1, lines", "one-line"),
    ("// There was no answer.", "return { status: 0 };", "lines-unanswered"),
    ("// There was no answer.", "if (body.lines) body.first += body.lines.length;", "lines-unanswered"),
    ("{ token, ...body }", '{ token: randomBytes(16).toString("hex"), ...body }', "open-unanswered"),
    (
        "if (answer.status === 409 &&",
        """if (answer.reason === "FENCED") {
            opened = await open();
            opened.next -= sent;
            answer = { status: 200 };
        }
        if (answer.status === 409 &&""",
        "taken-over",
    ),
    ("if (last) add(stream, last);", "", "no-newline"),
    ('code === 0 ? "COMPLETED"', 'code < 4 ? "COMPLETED"', "exit-code"),
    ("process.exitCode = await ended;", "await ended;", "killed-command"),
    ("{ stream: true }", "{ stream: false }", "split-character"),
    ("message.length > 16_000", "message.length > 1e9", "long-line"),
    ("lines.push({", "lines.unshift({", "many-lines"),
    ('reason !== "label-set"', 'reason !== "LABEL"', "label-refused"),
    ('const answer = await post("attempts", { labels })', 'const answer = await post("attempts", {})', "labels"),
    ("[408, 429, 500, 502, 503, 504]", "[408, 429, 500, 502, 504]", "unavailable"),
    ('["GAP", "quota"]', '["quota"]', "gap"),
    ("retry-after", "later", "too-fast"),
    (
        "const some = batch(sent);",
        "const some = batch(sent); if (!some.length && code === null) { await sleep(100); continue; }",
        "silent",
    ),
)


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    """A service of the kit."""
    with running_service() as target:
        yield target


def problems(tests: Sequence[tuple[str, Sequence[str]]], target: Target) -> list[list[str]]:
    """The problems found by each case, which has its own command. Eight run concurrently."""
    cases, never = {case.name: case for case in CASES}, threading.Event()
    with ThreadPoolExecutor(8) as threads:
        return list(threads.map(lambda test: try_case(cases[test[0]], test[1], target, never).problems, tests))


def curl_runner(directory: Path) -> list[str]:
    """The runner of docs/any-language.md."""
    (script,) = re.findall(
        r"```sh\n(#!/bin/sh\n# runner\.sh .*?)```", (ROOT / "docs/any-language.md").read_text(), re.S
    )
    path = directory / "runner.sh"
    path.write_text(script)
    for program in ("curl", "jq", "openssl", "stdbuf"):
        tool(program)
    return ["sh", str(path), *ARGUMENTS]


def test_the_documented_runner_refuses_a_malformed_url(tmp_path: Path) -> None:
    """Retries cannot help."""
    command = [*curl_runner(tmp_path)[:2], "wf_1", "two words", "--", "echo", "started"]
    environ = {**os.environ, "CHRONOVERSE_URL": "http://127.0.0.1:1", "CHRONOVERSE_TOKEN": "t"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120)
    told = "malformed URL: http://127.0.0.1:1/workflows/wf_1/jobs/two words\n"
    assert (done.returncode, done.stdout, done.stderr) == (64, "", told)


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("runner", ["ours", "curl"])
def test_a_runner_conforms(runner: str, target: Target, tmp_path: Path) -> None:
    """``chronoverse run`` and the script in docs/any-language.md pass all cases."""
    ours = (sys.executable, "-m", "chronoverse", "run", "--workflow", "{workflow}", "--job", "{job}", "--label={label}")
    command: Sequence[str] = curl_runner(tmp_path) if runner == "curl" else (*ours, "--")

    with results_of(CASES, command, target) as results:
        assert [result for result in results if result.problems] == []


@pytest.mark.long
@pytest.mark.timeout(300)
def test_each_planted_defect_is_found(target: Target, tmp_path: Path) -> None:
    """By its own case, which the unchanged JavaScript runner passes."""
    source, tests = NODE_RUNNER.read_text(), list[tuple[str, Sequence[str]]]()
    for number, (text, instead, case) in enumerate(DEFECTS):
        assert source.count(text) == 1, text
        path = tmp_path / f"{number}.mjs"
        path.write_text(source.replace(text, instead))
        tests.append((case, (tool("node"), str(path), *ARGUMENTS)))

    sound = [(case, (tool("node"), str(NODE_RUNNER), *ARGUMENTS)) for case in sorted({case for *_, case in DEFECTS})]
    found = problems([*tests, *sound], target)
    assert [defect for defect, sentences in zip(DEFECTS, found, strict=False) if not sentences] == []
    assert [sentences for sentences in found[len(DEFECTS) :] if sentences] == []


@pytest.mark.long
def test_the_command_prints_passed_and_failed_cases(
    cli: Cli, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command of docs/conformance.md, with a runner that ignores a 429's delay.

    It uses the other tests' service; in the next test, the kit starts its own.
    """
    command = next(line for line in (ROOT / "docs/conformance.md").read_text().splitlines() if "--only" in line)
    (tmp_path / "runner.mjs").write_text(NODE_RUNNER.read_text().replace("retry-after", "later"))
    runner = tmp_path / "my-runner"
    runner.write_text(
        f'#!/bin/sh\nworkflow=$1 job=$2\nshift 2\nexec {tool("node")} runner.mjs "$workflow" "$job" -- "$@"\n'
    )
    runner.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("chronoverse.cli.conformance.service.running_service", lambda: contextlib.nullcontext(target))
    before = signal.getsignal(signal.SIGTERM)
    try:
        program, *arguments = shlex.split(command)
        done = cli(*arguments)
    finally:
        signal.signal(signal.SIGTERM, before)

    assert program == "chronoverse"
    too_fast, problem, *stderr, gap, summary = done.stdout.splitlines()
    assert re.fullmatch("FAILS +too-fast .*", too_fast)
    assert re.fullmatch(" +lines were sent again [0-9.]+ s after a 429, .*", problem)
    assert re.fullmatch("holds +gap .*", gap)
    assert (stderr, summary) == ([], "1 case holds, 1 does not, 0 skipped")
    assert (done.stderr, done.returncode) == ("", 1)


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel has no such signal")
def test_a_killed_kit_leaves_no_service(tmp_path: Path) -> None:
    """Though it cannot stop the service itself then."""
    options = ("--only", "one-line", "--", "sh", "-c", "sleep 20", "{job}")
    service = list[int]()
    # pytest's paths are too long for the service's sockets.
    with tempfile.TemporaryDirectory(prefix="cv-", ignore_cleanup_errors=True) as short:
        kit = subprocess.Popen(
            [sys.executable, "-m", "chronoverse", "conformance", *options],
            env={**environ(tmp_path), "TMPDIR": short},
            stdout=subprocess.DEVNULL,
        )

        def is_case_running() -> bool:
            found = dict[int, list[str]]()
            for each in psutil.Process(kit.pid).children(recursive=True):
                # A process that has exited meanwhile has no command line.
                with contextlib.suppress(psutil.Error):
                    found[each.pid] = each.cmdline()
            service[:] = [pid for pid, argv in found.items() if "gunicorn" in argv]
            return ["sh", "-c", "sleep 20"] in [argv[:3] for argv in found.values()]

        try:
            wait_until(is_case_running, 60, "the case runs")
        finally:
            kit.kill()
            kit.wait()
        # A master and a worker; and the store's server, whose socket exists as long as it runs.
        assert len(service) >= 2
        (store,) = Path(short).glob("*/server.sock")
        wait_until(lambda: not any(map(is_alive, service)) and not store.exists(), 30, "the service has ended")


def test_the_page_names_only_cases_that_exist() -> None:
    names = re.findall(r"`([a-z0-9-]+)`", (ROOT / "docs/conformance.md").read_text().split("## The cases")[1])
    assert len(names) > 20
    assert set(names) <= {case.name for case in CASES}


def test_the_pieces_of_a_line_are_joined_across_lines_of_the_other_stream() -> None:
    written = [("a", "stdout", True), ("x", "stderr", False), ("b", "stdout", False), ("c", "stdout", False)]
    trial = Trial.__new__(Trial)
    trial.events = [Line(n, "", text, stream, partial) for n, (text, stream, partial) in enumerate(written, 1)]
    assert (trial.messages("stdout"), trial.messages("stderr")) == (["ab", "c"], ["x"])


def test_a_result_has_the_runners_stderr_only_if_the_case_fails() -> None:
    for problems in ([], ["late"]):
        said = json.loads(_json("gap", Result(CASES[0], problems, 1.25, "an error")))
        assert (said["outcome"], said.get("stderr")) == (("fails", "an error") if problems else ("holds", None))
    assert json.loads(_json("gap", None)) == {"case": "gap", "outcome": "skipped"}


def test_an_argument_with_a_label_is_repeated_for_each_label() -> None:
    """Without labels, it is omitted."""
    command = ("run", "--job={job}", "{workflow}", "--label={label}")
    job = JobRef("w", "j")
    assert list(filled_in(command, job, {"a": "1", "b": "2"})) == ["run", "--job=j", "w", "--label=a=1", "--label=b=2"]
    assert list(filled_in(command, job, {})) == ["run", "--job=j", "w"]
