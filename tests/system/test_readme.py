"""The commands of all documents and the examples of clients, run exactly as printed."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import click
import pytest
import redis

from chronoverse.cli.main import commands
from chronoverse.joblog.model import JobRef, Line, Status
from chronoverse.settings import Settings
from chronoverse.store import Store
from chronoverse.web.app import create_app
from tests.support.commands import PATIENCE_SECONDS, environ
from tests.support.parameters import long_after
from tests.support.service import ROOT, SECRET, Service
from tests.support.tools import tool, unavailable
from tests.system import documents
from tests.system.readme import CLIENTS, block, client_command, what_a_client_lacks

#: The output of the README's job.
LINES: Final = "".join(f"line {number}\n" for number in range(1, 6)).encode()


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory like a new user's checkout. Its ``.venv`` is these tests' virtual environment."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / ".venv").symlink_to(sys.prefix)
    for name in ("app.py", "chronoverse", "gunicorn.conf.py"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def paste(text: str, service: Service, checkout: Path) -> bytes:
    """Runs lines in a shell, with ``service``'s URL instead of port 8000, and returns their output."""
    text = text.replace("http://127.0.0.1:8000", service.url)
    environment = {name: value for name, value in environ(service).items() if name != "PYTHONPATH"}
    done = subprocess.run(
        ["sh", "-ec", text],
        cwd=checkout,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        timeout=PATIENCE_SECONDS,
        check=True,
    )
    return done.stdout


@pytest.fixture(scope="module")
def job_output(embedded_service: Service, checkout: Path) -> bytes:
    """The output of the README's job."""
    return paste(block("sh", "chronoverse run --"), embedded_service, checkout)


def test_the_job_runs_and_can_be_followed(job_output: bytes, embedded_service: Service, checkout: Path) -> None:
    """Following it prints the job's output."""
    followed = paste(block("sh", "chronoverse logs -f"), embedded_service, checkout)

    assert job_output == followed == LINES


def test_curl_streams_the_job(job_output: bytes, embedded_service: Service, checkout: Path) -> None:
    """The README's curl command needs only a token."""
    tool("curl")
    streamed = paste(block("sh", "curl -N"), embedded_service, checkout)

    assert re.findall(rb'"message":"(line \d)"', streamed) == LINES.splitlines()
    assert streamed.endswith(b'event: end\ndata: {"status":"stream_ended"}\nid: 6\n\n')


def run_client(
    language: str, service: Service, directory: Path, token: str, job: str = "job-1"
) -> subprocess.CompletedProcess[bytes]:
    """Runs one of the clients to completion. ``job`` replaces the example's job."""
    if lack := what_a_client_lacks(language):
        unavailable(lack)
    command = client_command(language, directory, service.url)
    path = Path(command[-1])
    path.write_text(path.read_text().replace("job-1", job))
    environment = environ(service, TOKEN=token)
    return subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE_SECONDS, check=False
    )


@pytest.mark.parametrize("language", CLIENTS)
def test_a_client_prints_the_job(job_output: bytes, embedded_service: Service, tmp_path: Path, language: str) -> None:
    """It prints all lines, ends with the job, and reports no problem."""
    done = run_client(language, embedded_service, tmp_path, embedded_service.token())

    assert (done.stdout, done.stderr, done.returncode) == (LINES, b"", 0)


@pytest.mark.parametrize(
    "rejected", long_after(1, [("python", 401), ("js", 404), ("python", 404), ("js", 403)]), ids=str
)
def test_a_client_fails_when_it_is_rejected(
    job_output: bytes, embedded_service: Service, tmp_path: Path, rejected: tuple[str, int]
) -> None:
    """Without a retry, and with a matching exit code and last message."""
    language, status = rejected
    job = "none" if status == 404 else "job-1"
    token = {401: "no token", 403: embedded_service.token(scopes=["logs:write"])}.get(status, embedded_service.token())
    done = run_client(language, embedded_service, tmp_path, token, job)

    assert done.returncode == 1
    assert str(status) in done.stderr.decode()


@pytest.mark.long
@pytest.mark.parametrize("language", CLIENTS)
def test_a_client_fails_when_the_log_ends_with_an_error(
    embedded_service: Service, embedded_store: Store, tmp_path: Path, language: str
) -> None:
    """The runner is lost. The client has printed the lines so far, retries once, and learns that this was all."""
    ref = JobRef("demo", f"lost-{language}")
    attempt = embedded_store.open(ref, "token")
    embedded_store.append(attempt, [Line(1, "2026-03-03T10:00:05.123Z", "the last words", "stdout")])
    done = run_client(language, embedded_service, tmp_path, embedded_service.token(), ref.job_id)

    assert (done.stdout, done.returncode) == (b"the last words\n", 1)
    assert b"runner lost" in done.stderr


def test_a_foreign_runner_needs_nothing_but_xadd(embedded_service: Service, checkout: Path) -> None:
    """The README's two Redis commands write a complete job."""
    with redis.Redis(unix_socket_path=f"{embedded_service.data_dir}/server.sock") as client:
        for command in block("", "XADD").replace('"', "").splitlines():
            client.execute_command(*command.split(" "))
    followed = paste(".venv/bin/python -m chronoverse logs -f wf_1 job_1", embedded_service, checkout)

    assert followed == b"Loading\n"


def test_the_token_command_prints_only_a_token(embedded_service: Service, checkout: Path) -> None:
    """stdout has a single line with the three parts of a JWT."""
    token = paste(".venv/bin/python -m chronoverse token", embedded_service, checkout)

    assert re.fullmatch(rb"[\w-]+\.[\w-]+\.[\w-]+\n", token)


@pytest.mark.long
def test_the_tutorial_shows_the_output_of_its_commands(
    embedded_service: Service, checkout: Path, tmp_path: Path
) -> None:
    """All of its commands run in order, except those that install and serve."""
    (tmp_path / "chronoverse").write_text(f'#!/bin/sh\nexec {sys.executable} -m chronoverse "$@"\n')
    (tmp_path / "chronoverse").chmod(0o755)
    page = (ROOT / "docs" / "tutorial.md").read_text("utf-8")
    shown = re.findall(r"^```(\w*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    install, activate, *blocks = [text for language, text in shown if language == "sh"]
    expected = [text for language, text in shown if language != "sh"]
    printed = paste(f"PATH={tmp_path}:$PATH\n" + "\n".join(blocks), embedded_service, checkout).decode()

    assert "chronoverse serve" in install
    assert "activate" in activate
    assert "the exit code is the command's own: 1\n" in printed
    for text in expected:
        for line in text.splitlines():
            assert line in printed


def test_each_block_of_commands_runs_or_is_excluded_with_a_reason() -> None:
    """Each row matches existing blocks, no block has two rows, and the test's file mentions the page.

    A block without a row is run by the last test here.
    """
    blocks = documents.shell_blocks()
    assert [block for block in blocks if len(documents.rows_of(block)) > 1] == []
    for page, text, _ in (*documents.TESTED, *documents.NOT_RUN):
        assert any(block.page == page and text in block.text for block in blocks), (page, text)
    for page, _, test in documents.TESTED:
        assert Path(page).stem in (ROOT / test).read_text("utf-8"), (page, test)
    assert documents.unmarked_commands() == []


def test_each_command_and_each_option_exists() -> None:
    """Also within sentences, in other languages, and in blocks that are not run."""
    found = documents.commands()
    assert len(found) > 100
    for page, name, options in found:
        command = commands.get_command(click.Context(commands), name)
        assert command is not None, (page, name)
        known = {"--help"}.union(*([*each.opts, *each.secondary_opts] for each in command.params))
        assert set(options) <= known, (page, name, options)


def test_each_request_is_one_of_the_openapi_document(tmp_path: Path) -> None:
    """Its route exists and accepts the parameters."""
    settings = Settings(data_dir=tmp_path, redis_url=f"unix://{tmp_path}/none.sock", jwt_secret=SECRET)
    document = create_app(settings).test_client().get("/openapi.json").get_json()
    found = documents.requests()
    assert len(found) > 40
    for page, method, path, names in found:
        routes = [each for each in document["paths"] if re.fullmatch(re.sub(r"{\w+}", "[^/]+", each), path)]
        operations = [document["paths"][each].get(method.lower()) for each in routes]
        assert any(operations), (page, method, path)
        taken = {each.get("name") for operation in operations if operation for each in operation.get("parameters", ())}
        assert set(names) <= taken, (page, path, names)


def test_each_block_of_settings_is_valid(tmp_path: Path) -> None:
    """The service accepts every value."""
    blocks = [each.settings for each in documents.shell_blocks() if each.settings]
    assert len(blocks) > 10
    # This machine has no such file.
    own = {"CHRONOVERSE_DATA_DIR": str(tmp_path), "CHRONOVERSE_JWT_PUBLIC_KEY": ""}
    for settings in blocks:
        Settings.from_env({**settings, **own})


@pytest.mark.long
@pytest.mark.timeout(300)
def test_all_other_commands_of_the_documents_run(
    embedded_service: Service, embedded_store: Store, tmp_path: Path
) -> None:
    """Each block in its own shell, with the jobs that it names. Deletions are confirmed."""
    (tmp_path / "chronoverse").write_text(
        f'#!/bin/sh\ncase $1 in redact | delete) set -- "$@" --yes ;; esac\nexec {sys.executable} -m chronoverse "$@"\n'
    )
    (tmp_path / "chronoverse").chmod(0o755)
    (tmp_path / "Makefile").write_text("all test:\n\t@echo made\n")
    (tmp_path / "token").write_text(embedded_service.token())
    replaced = {
        "https://logs.example.com": embedded_service.url,
        "http://127.0.0.1:8000": embedded_service.url,
        # Stands in for the job that listens.
        "http://127.0.0.1:8080/": f"{embedded_service.url}/healthz",
        "/etc/chronoverse/token": str(tmp_path / "token"),
        "/usr/local/bin/chronoverse": str(tmp_path / "chronoverse"),
    }
    blocks = documents.blocks_to_run()
    assert len(blocks) > 10
    for number, each in enumerate(blocks):
        # The README's test writes this job, too.
        text = each.text.replace("wf_1", f"documents_{number}")
        for printed, used in replaced.items():
            text = text.replace(printed, used)
        for workflow, job in re.findall(r"\b(\w+)(?: (?=(?:J|JOB|job_1)\b)|/jobs/(?=\w+/logs))(\w+)", text):
            for ref in (JobRef(workflow, "K"), JobRef(workflow, job)):
                write_job(embedded_store, ref)
        script = f"export PATH=.:$PATH\n{text}"
        done = subprocess.run(
            ["sh", "-euc", script],
            stdin=subprocess.DEVNULL,
            cwd=tmp_path,
            env=environ(
                embedded_service, TOKEN=embedded_service.token(), URL=embedded_service.url, SLURM_JOB_ID=str(number)
            ),
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{each.page}\n{script}\n{done.stdout}\n{done.stderr}"


def write_job(store: Store, job: JobRef) -> None:
    """A completed job with lines that the documents look for. It may exist already."""
    if store.get_job(job) is not None:
        return
    attempt = store.open(job, "token", labels=(("branch", "main"),))
    texts = ("listening on 8080", "an error: timeout", "the password is hunter2", f"only in {job.job_id}")
    store.append(
        attempt, [Line(number, "2026-03-03T10:00:05.123Z", text, "stdout") for number, text in enumerate(texts, 1)]
    )
    store.finish(attempt, Status.COMPLETED, 0, 0, len(texts) + 1)
