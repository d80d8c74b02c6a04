"""Several commands whose output is one job's log: ``run --continue``."""

import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from chronoverse.joblog.model import JobRef, Status
from chronoverse.runner.run import run
from chronoverse.runner.spool.spool_file import SpoolRoom
from chronoverse.store import Store
from tests.support.bench import JOB
from tests.support.commands import call_main
from tests.support.servers import RedisServer, running
from tests.support.service import ROOT


def step(store: Store, code: str, *, last: bool = False, job: JobRef = JOB, **limits: Any) -> int:
    """Runs one of several commands."""
    return run(["sh", "-c", code], store, job, more_follow=not last, **limits)


def ended(store: Store, job: JobRef = JOB) -> tuple[Status, int | None, int | None, int]:
    """The job's state: status, exit code, lines and attempt."""
    found = store.get_job(job)
    assert found is not None
    return found.status, found.exit_code, found.lines, found.attempt


@pytest.mark.parametrize(
    ("codes", "end"),
    [
        ([0, 0, 0], (Status.COMPLETED, 0)),
        ([0, 3, 0], (Status.FAILED, 3)),
        ([3, 1, 0], (Status.FAILED, 3)),
        ([1, 0, 3], (Status.FAILED, 3)),
    ],
)
def test_the_worst_exit_code_is_the_jobs(store: Store, codes: list[int], end: tuple[Status, int]) -> None:
    """Each command exits with its own code and is one attempt of the job, all in one log."""
    for number, code in enumerate(codes, 1):
        assert step(store, f"echo step {number}; exit {code}", last=number == len(codes)) == code
        if number < len(codes):
            assert ended(store)[0] is Status.RUNNING
    assert ended(store) == (*end, 3, 3)
    assert [entry[1][3] for entry in store.read(JOB, 0, 3)] == [b"step 1", b"step 2", b"step 3"]


def test_a_repeated_end_is_idempotent(store: Store) -> None:
    """The answer to the runner's end request can be lost, and the store's outcome can differ from the request's."""
    attempt = store.open(JOB, "a")
    store.finish(attempt, Status.PENDING, 3, 0, 1, counts=True)
    attempt = store.open(JOB, "b")
    for _ in range(2):
        store.finish(attempt, Status.COMPLETED, 0, 0, 1)
    assert ended(store)[:2] == (Status.FAILED, 3)
    # A retried attempt has failed, but not the job.
    attempt = store.open(JobRef("wf_1", "retried"), "a")
    store.finish(attempt, Status.PENDING, 3, 0, 1)
    attempt = store.open(JobRef("wf_1", "retried"), "b")
    store.finish(attempt, Status.COMPLETED, 0, 0, 1)
    assert ended(store, JobRef("wf_1", "retried"))[:2] == (Status.COMPLETED, 0)


def test_an_undelivered_exit_code_is_included(tmp_path: Path) -> None:
    """The next command delivers the previous one's lines and exit code along with its own."""
    room = SpoolRoom(tmp_path / "spool")
    with running(tmp_path / "store") as server:
        store = Store(server.url)
        server.stop()
        assert step(store, "echo one; exit 5", room=room, deliver_seconds=0.1) == 5
        server.start()
        assert step(store, "echo two", room=room, last=True) == 0
        assert ended(store) == (Status.FAILED, 5, 2, 1)
        store.close()


def test_a_command_after_a_signal_leaves_a_file_only_for_its_lines(store: Store, tmp_path: Path) -> None:
    """By then the job is CANCELED. A scheduler's last command, which prints nothing, has nothing to deliver later."""
    room = SpoolRoom(tmp_path / "spool")
    store.finish(store.open(JOB, "a"), Status.CANCELED, 143, 0, 1)
    assert step(store, "true", last=True, room=room) == 0
    assert list((tmp_path / "spool").glob("*.sqlite")) == []
    assert step(store, "echo cleaned up", last=True, room=room) == 0
    assert len(list((tmp_path / "spool").glob("*.sqlite"))) == 1


def test_incomplete_options_are_rejected(server: RedisServer, tmp_path: Path) -> None:
    """Exits with 64 and runs nothing."""
    environ = {"CHRONOVERSE_REDIS_URL": server.url, "CHRONOVERSE_DATA_DIR": str(tmp_path)}
    file = tmp_path / "ran"
    for options in (["--last", "--job", "a"], ["--continue"], ["--continue", "--retry", "--job", "a"]):
        done = call_main("run", "--workflow", "wf_1", *options, "--", "touch", str(file), environ=environ)
        assert done.returncode == 64, done.stderr
    assert not file.exists()


@pytest.mark.long
def test_the_recipes_work_with_their_shells(server: RedisServer, tmp_path: Path) -> None:
    """GitHub splits the shell's command line at its first space, and substitutes the script's path for ``{0}``."""
    program = tmp_path / "chronoverse"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m chronoverse "$@"\n')
    program.chmod(0o755)
    prefix = f"recipes-{time.monotonic_ns()}"
    environ = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "CHRONOVERSE_REDIS_URL": server.url,
        "CHRONOVERSE_KEY_PREFIX": prefix,
        "CHRONOVERSE_DATA_DIR": str(tmp_path / "data"),
        "GITHUB_JOB": "build",
        "GITHUB_REPOSITORY": "octo-org/shop.js",
        "GITHUB_RUN_ID": "17",
        "GITHUB_RUN_ATTEMPT": "1",
        "CUSTOM_ENV_CI_PROJECT_PATH_SLUG": "group-app",
        "CUSTOM_ENV_CI_JOB_ID": "99",
        "BUILD_FAILURE_EXIT_CODE": "1",
        "CUSTOM_ENV_CI_COMMIT_SHA": "4f0c1de",
        "CUSTOM_ENV_CI_COMMIT_REF_NAME": "main",
        "CUSTOM_ENV_CI_JOB_URL": "https://gitlab.example.com/1",
    }
    github, gitlab_page = ((ROOT / "docs" / f"{name}.md").read_text("utf-8") for name in ("github-actions", "gitlab"))
    script = tmp_path / "step.sh"

    def execute(command: list[str], text: str) -> int:
        script.write_text(text)
        return subprocess.run(command, env=environ, capture_output=True, timeout=60).returncode

    each, last = (line for line in re.findall(r"shell: (bash -c .*)", github))
    codes = [
        execute(shlex.split(line.replace("{0}", str(script))), text)
        for line, text in ((each, "echo one"), (each, "false | true\necho not reached"), (last, "echo over"))
    ]
    assert codes == [0, 1, 0]
    run_exec, cleanup_exec = re.findall(r"```sh\n(#!/bin/sh\n# (?:run|cleanup)_exec.*?)```", gitlab_page, re.DOTALL)
    gitlab = [execute(["sh", "-c", run_exec, "run_exec", str(script)], text) for text in ("echo one", "exit 3")]
    assert [*gitlab, execute(["sh", "-c", cleanup_exec], "")] == [0, 1, 0]

    store = Store(server.url, prefix=prefix)
    actions, job = JobRef("octo-org.shop.js", "build-17-1"), JobRef("group-app", "99")
    assert ended(store, actions) == (Status.FAILED, 1, 2, 3)
    assert [entry[1][3] for entry in store.read(actions, 0, 2)] == [b"one", b"over"]
    assert ended(store, job) == (Status.FAILED, 3, 1, 3)
    found = store.get_job(job)
    assert found is not None
    assert dict(found.labels) == {"branch": "main", "commit": "4f0c1de", "url": "https://gitlab.example.com/1"}
    store.close()
