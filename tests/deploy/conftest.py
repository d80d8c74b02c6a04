"""Fixtures and helpers for the tests of the files in ``deploy/``."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.support.service import ROOT

DEPLOY: Final = ROOT / "deploy"


class Gunicorn(dict[str, str]):
    """gunicorn's settings by ``gunicorn.conf.py`` in an environment without variables of ours. All values are text."""

    @property
    def drain_seconds(self) -> int:
        """The longest time that a node takes to shut down, in seconds."""
        return int(self["graceful_timeout"])


@pytest.fixture(scope="session")
def gunicorn(tmp_path_factory: pytest.TempPathFactory) -> Gunicorn:
    """The settings, as gunicorn itself prints them."""
    environ = {"PATH": os.environ["PATH"], "CHRONOVERSE_DATA_DIR": str(tmp_path_factory.mktemp("data"))}
    command = [sys.executable, "-m", "gunicorn", "-c", str(ROOT / "gunicorn.conf.py"), "--print-config"]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=True, timeout=60)
    return Gunicorn(re.findall(r"^(\w+) += (.*)$", done.stdout, re.MULTILINE))


def interpolate(text: str, environ: dict[str, str]) -> str:
    """``text`` with ``${NAME:?}`` and ``${NAME:-default}`` replaced as compose does it.

    Raises KeyError when a variable is missing.
    """

    def value(found: re.Match[str]) -> str:
        name, operator, default = found.groups()
        return environ.get(name) or default if operator == ":-" else environ[name]

    return re.sub(r"\$\{(\w+)(:-|:\?)([^}]*)\}", value, text)


def seconds(text: str) -> int:
    """The seconds of a duration such as ``40s``."""
    number, unit = text[:-1], text[-1]
    return int(number) * {"s": 1, "m": 60}[unit]


def uid() -> int:
    """The id of the user that the image runs as."""
    (found,) = re.findall(r"^USER ([0-9]+):", Path(ROOT / "Dockerfile").read_text(), re.MULTILINE)
    return int(found)
