"""The README's commands and examples, run exactly as they are printed."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest
import redis

from tests.support.commands import PATIENCE_SECONDS, environ
from tests.support.service import ROOT, Service
from tests.support.tools import tool

README: Final = (ROOT / "README.md").read_text("utf-8")
#: What the README's job prints.
LINES: Final = "".join(f"line {number}\n" for number in range(1, 6)).encode()


def blocks(language: str) -> list[str]:
    """The README's code blocks of a language. All blocks are matched, so that no end of a block counts as a start."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return [text for marked, text in fenced if marked == language]


def block(language: str, containing: str) -> str:
    """The only block of a language that contains a text."""
    (found,) = [text for text in blocks(language) if containing in text]
    return found


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory like a new user's checkout. Its ``.venv`` is the virtual environment of these tests."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / ".venv").symlink_to(sys.prefix)
    for name in ("app.py", "chronoverse", "gunicorn.conf.py"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def paste(text: str, service: Service, checkout: Path, **settings: str) -> bytes:
    """Runs lines in a shell, with the URL of ``service`` instead of port 8000. Returns what they print."""
    text = text.replace("http://127.0.0.1:8000", service.url)
    environment = {name: value for name, value in environ(service, **settings).items() if name != "PYTHONPATH"}
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
    """What the README's job prints."""
    return paste(block("sh", "chronoverse run --"), embedded_service, checkout)


def test_the_job_runs_and_can_be_followed(job_output: bytes, embedded_service: Service, checkout: Path) -> None:
    """Following it prints what the job printed."""
    followed = paste(block("sh", "chronoverse logs -f"), embedded_service, checkout)

    assert job_output == followed == LINES


def test_curl_streams_the_job(job_output: bytes, embedded_service: Service, checkout: Path) -> None:
    """The README's curl command needs nothing of ours but a token."""
    tool("curl")
    streamed = paste(block("sh", "curl -N"), embedded_service, checkout)

    assert re.findall(rb'"message":"(line \d)"', streamed) == LINES.splitlines()
    assert streamed.endswith(b'event: end\ndata: {"status":"stream_ended"}\nid: 6\n\n')


def test_the_python_example_prints_the_job(job_output: bytes, embedded_service: Service, checkout: Path) -> None:
    """The README's example with httpx-sse prints all lines."""
    (checkout / "example.py").write_text(
        block("python", "httpx_sse").replace("http://127.0.0.1:8000", embedded_service.url)
    )

    assert paste(".venv/bin/python example.py", embedded_service, checkout, TOKEN=embedded_service.token()) == LINES


def test_a_foreign_runner_needs_nothing_but_xadd(embedded_service: Service, checkout: Path) -> None:
    """The README's two Redis commands write a complete job."""
    with redis.Redis(unix_socket_path=f"{embedded_service.data_dir}/server.sock") as client:
        for command in block("", "XADD").replace('"', "").splitlines():
            client.execute_command(*command.split(" "))
    followed = paste(".venv/bin/python -m chronoverse logs -f wf_1 job_1", embedded_service, checkout)

    assert followed == b"Loading\n"


def test_the_token_command_prints_only_a_token(embedded_service: Service, checkout: Path) -> None:
    """stdout has one line with the three parts of a JWT."""
    token = paste(".venv/bin/python -m chronoverse token", embedded_service, checkout)

    assert re.fullmatch(rb"[\w-]+\.[\w-]+\.[\w-]+\n", token)
