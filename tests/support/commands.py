"""Our command line, as a user starts it or called in this process."""

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Final
from unittest import mock

from chronoverse.cli.main import main
from tests.support.service import ROOT, Service

#: Seconds a command may take on a busy machine.
PATIENCE_SECONDS: Final = 100


def environ(service: Service, **settings: str) -> dict[str, str]:
    """The environment of somebody who uses ``service`` on the same machine, and has set nothing else."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("CHRONOVERSE_", "PROMETHEUS_"))}
    ours = {"CHRONOVERSE_DATA_DIR": str(service.data_dir), "CHRONOVERSE_URL": service.url, "PYTHONPATH": str(ROOT)}
    return clean | ours | settings


def command(*arguments: str) -> list[str]:
    """``chronoverse …``."""
    return [sys.executable, "-m", "chronoverse", *arguments]


def chronoverse(
    service: Service, *arguments: str, cwd: Path | None = None, **settings: str
) -> subprocess.CompletedProcess[bytes]:
    """Runs ``chronoverse …`` to its end."""
    return subprocess.run(
        command(*arguments),
        env=environ(service, **settings),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )


def starting(service: Service, *arguments: str, **settings: Any) -> "subprocess.Popen[bytes]":
    """Starts ``chronoverse …`` with pipes for its output."""
    return subprocess.Popen(
        command(*arguments),
        env=environ(service, **settings),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def called(*arguments: str, environ: Mapping[str, str]) -> "subprocess.CompletedProcess[str]":
    """Runs ``chronoverse …`` to its end in this process. That saves the start of an interpreter."""
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
    """What is written to ``sys.<name>``, and by child processes to ``descriptor``, goes to ``file``."""
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
