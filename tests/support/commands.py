"""Runs the command line, in a separate process or in this one."""

import contextlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Final
from unittest import mock

import click

from chronoverse.cli.main import commands, main
from tests.support.service import ROOT, Service

#: Time limit of a command on a busy machine, in seconds.
PATIENCE_SECONDS: Final = 100


def environ(service: Service, **settings: str) -> dict[str, str]:
    """The environment of a user of ``service`` on the same machine, with only these ``settings``."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("CHRONOVERSE_", "PROMETHEUS_"))}
    ours = {"CHRONOVERSE_DATA_DIR": str(service.data_dir), "CHRONOVERSE_URL": service.url, "PYTHONPATH": str(ROOT)}
    return clean | ours | settings


def visible_commands() -> dict[str, click.Command]:
    """The commands of ``chronoverse --help``."""
    context = click.Context(commands)
    found = {name: commands.get_command(context, name) for name in commands.list_commands(context)}
    return {name: command for name, command in found.items() if command and not command.hidden}


def after_link(stderr: str) -> str:
    """What ``chronoverse run`` printed to stderr after its first line, the link to the job's page.

    Omits the delivery progress, which is only printed on a slow machine.
    """
    link, _, rest = stderr.partition("\n")
    assert re.fullmatch(r"chronoverse: job \S+ of workflow \S+ is at https?://\S+/ui/workflows/\S+/jobs/\S+", link), (
        stderr
    )
    return re.sub("chronoverse: delivering .*\n", "", rest)


def chronoverse_argv(*arguments: str) -> list[str]:
    """The argument vector of ``chronoverse …``."""
    return [sys.executable, "-m", "chronoverse", *arguments]


def run_chronoverse(
    service: Service, *arguments: str, cwd: Path | None = None, **settings: str
) -> subprocess.CompletedProcess[bytes]:
    """Runs ``chronoverse …`` until it exits."""
    return subprocess.run(
        chronoverse_argv(*arguments),
        env=environ(service, **settings),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )


def start_chronoverse(service: Service, *arguments: str, **settings: Any) -> "subprocess.Popen[bytes]":
    """Starts ``chronoverse …`` with pipes for its output."""
    return subprocess.Popen(
        chronoverse_argv(*arguments),
        env=environ(service, **settings),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def call_main(*arguments: str, environ: Mapping[str, str]) -> "subprocess.CompletedProcess[str]":
    """Runs ``chronoverse …`` in this process, which is faster than starting one."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        with (
            mock.patch.dict(os.environ, environ, clear=True),
            _written_to(out, 1, "stdout"),
            _written_to(err, 2, "stderr"),
        ):
            code = main(arguments)
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(arguments, code, out.read().decode(), err.read().decode())


@contextlib.contextmanager
def _written_to(file: IO[bytes], descriptor: int, name: str) -> Iterator[None]:
    """Redirects ``sys.<name>`` and its ``descriptor``, to which child processes write, to ``file``."""
    stream, saved = getattr(sys, name), os.dup(descriptor)
    os.dup2(file.fileno(), descriptor)
    try:
        with open(descriptor, "w", encoding="utf-8", closefd=False) as ours:
            setattr(sys, name, ours)
            yield
    finally:
        setattr(sys, name, stream)
        os.dup2(saved, descriptor)
        os.close(saved)
