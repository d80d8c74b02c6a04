"""Our command line as a user starts it."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

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
