"""Real commands that print secrets: none reach the store, but the local terminal shows them."""

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from chronoverse.joblog.secret_forms import SecretForms
from chronoverse.runner.capture.masking import Masks
from chronoverse.runner.run import run
from chronoverse.runner.spool.spool_file import SpoolRoom
from chronoverse.store import Store
from tests.support.commands import after_link, call_main
from tests.support.jobs import JOB, read_lines
from tests.support.secret_keys import GITHUB, MASKED_PEM, PEM
from tests.support.servers import RedisServer

SECRET = "Tr0ub4dor&3-correct-horse"
LINES = "-----BEGIN KEY-----\nMIIEowIBAAKCAQEA\nx\n-----END KEY-----"
#: Prints a secret byte by byte, in two writes, within a long line, across several lines, and on both streams.
LEAKY = f"""
import os, time
secret, lines = {SECRET.encode()!r}, {LINES.encode()!r}
for byte in secret: os.write(1, bytes([byte])); time.sleep(0.002)
os.write(1, b"\\n" + secret[:9]); time.sleep(1.3); os.write(1, secret[9:] + b"\\n")
os.write(1, b"x" * 65_530 + secret + b"y" * 140_000 + b"\\n")
os.write(1, lines + b"\\n"); os.write(2, b"at the end: " + secret)
"""


@pytest.mark.parametrize("is_away", [False, True], ids=["store", "spool"])
def test_a_secret_is_in_no_file(server: RedisServer, tmp_path: Path, is_away: bool) -> None:
    """Neither of the store nor, during an outage, of the spool. The terminal's output is unchanged."""
    out, err, room = io.BytesIO(), io.BytesIO(), SpoolRoom(tmp_path / "spool", JOB.job_id)
    limits: dict[str, Any] = {"masks": Masks([SECRET.encode(), LINES.encode()]), "room": room}
    limits |= {"open_seconds": 0.1, "deliver_seconds": 0.1} if is_away else {}
    with contextlib.closing(Store(f"unix://{tmp_path}/nobody" if is_away else server.url)) as store:
        assert run([sys.executable, "-c", LEAKY], store, JOB, out=out, err=err, **limits) == 0
    directory = tmp_path if is_away else server.directory
    written = b"".join(path.read_bytes() for path in directory.rglob("*") if path.is_file())
    hidden = [SECRET, *(line for line in LINES.split("\n") if len(line) >= 4)]
    assert not [part for part in hidden if part.encode() in written]
    assert written.count(b"***") == 8
    if not is_away:
        assert not [part for part in hidden if part in "".join(read_lines(server))]
    assert (out.getvalue().count(SECRET.encode()), b"deliver later:" in err.getvalue()) == (3, is_away)
    assert b"at the end: " + SECRET.encode() in err.getvalue()


def test_the_command_line_masks_variables_and_files(server: RedisServer, tmp_path: Path) -> None:
    """And its own values, also on a pseudo-terminal."""
    (tmp_path / "key").write_text("from-a-file \n")
    options = ["--pty", "--mask-env", "TOKEN", "--mask-file", str(tmp_path / "key"), "--mask", "from-the-line"]
    script = "echo $TOKEN from-a-file from-the-line; test -t 1 && echo terminal >&2"
    command = [sys.executable, "-m", "chronoverse", "run", "--workflow", "wf_1", "--job", "job_1", *options]
    settings = {"REDIS_URL": server.url, "DATA_DIR": str(tmp_path / "data"), "DURABILITY": "acked"}
    ours = {f"CHRONOVERSE_{name}": value for name, value in settings.items()}
    environ = {**os.environ, **ours, "TOKEN": "from-a-variable"}
    done = subprocess.run([*command, "--", "sh", "-c", script], env=environ, capture_output=True, timeout=60)
    assert (done.returncode, after_link(done.stderr.decode())) == (0, "")
    assert done.stdout == b"from-a-variable from-a-file from-the-line\nterminal\n"
    assert read_lines(server) == ["*** *** ***", "terminal"]


@pytest.mark.parametrize("option", [("--mask", "abc"), ("--mask-env", "NOT_SET"), ("--mask-file", "/no/such/file")])
def test_an_invalid_mask_prevents_the_start(option: tuple[str, str], tmp_path: Path) -> None:
    """Nothing runs, the exit code is that of an invalid command line, and the secret is not shown."""
    arguments = ("run", "--workflow", "wf_1", *option, "--", "touch", str(tmp_path / "started"))
    done = call_main(*arguments, environ={"CHRONOVERSE_DATA_DIR": str(tmp_path)})
    assert done.returncode == 64
    assert done.stderr.startswith("chronoverse: " + option[0])
    assert "abc" not in done.stderr
    assert not (tmp_path / "started").exists()


#: Prints keys with a known form: delayed in two writes, in a long line, across several lines; and as the job's name.
KEYED = f"""
import os, time
key, lines = {GITHUB.encode()!r}, {chr(10).join(PEM).encode()!r}
os.write(1, b"a token: " + key[:9]); time.sleep(1.3); os.write(1, key[9:] + b" and more\\n")
os.write(1, b"x" * 65_530 + b" " + key + b" " + b"y" * 140_000 + b"\\n")
os.write(1, lines + b"\\n"); os.write(2, b"at the end: " + key)
"""


@pytest.mark.parametrize("forms", ["on", "off"])
def test_secrets_known_by_their_form_are_nowhere_in_the_store(server: RedisServer, tmp_path: Path, forms: str) -> None:
    """By default, without any option. The terminal's output is unchanged."""
    environ = {**os.environ, "CHRONOVERSE_REDIS_URL": server.url, "CHRONOVERSE_DATA_DIR": str(tmp_path / "data")}
    if forms == "off":
        environ["CHRONOVERSE_MASK_FORMS"] = "off"
    command = [sys.executable, "-m", "chronoverse", "run", "--workflow", "wf_1", "--job", "job_1", "--", sys.executable]
    done = subprocess.run([*command, "-c", KEYED], env=environ, capture_output=True, timeout=60, check=True)
    assert done.stdout.count(GITHUB.encode()) == 2
    lines = read_lines(server)
    whole = "".join(lines)
    if forms == "off":
        assert whole.count(GITHUB) == 3
        return
    assert "".join(lines[:2]) == "a token: [masked] and more"
    assert f"{'x' * 65_530} [masked] {'y' * 140_000}" in whole
    assert [*MASKED_PEM] == lines[-len(PEM) - 1 : -1]
    assert lines[-1] == "at the end: [masked]"
    files = [path for each in (tmp_path, server.directory) for path in each.rglob("*") if path.is_file()]
    written = b"".join(path.read_bytes() for path in files)
    assert GITHUB[3:].encode() not in written
    assert PEM[3].encode() not in written


def test_a_missing_command_is_masked_by_its_form(server: RedisServer) -> None:
    store = Store(server.url)
    assert run([f"./{GITHUB}"], store, JOB, out=io.BytesIO(), err=io.BytesIO(), masks=Masks((), SecretForms())) == 127
    store.close()
    assert read_lines(server) == ["chronoverse: ./[masked]: command not found"]
