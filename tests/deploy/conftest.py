"""What the files in ``deploy/`` have to agree with."""

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
    """gunicorn's settings as ``gunicorn.conf.py`` makes them of an environment without any of ours; as text."""

    @property
    def drain_seconds(self) -> int:
        """The longest that a node takes to go."""
        return int(self["graceful_timeout"])


@pytest.fixture(scope="session")
def gunicorn(tmp_path_factory: pytest.TempPathFactory) -> Gunicorn:
    """As gunicorn itself prints them."""
    environ = {"PATH": os.environ["PATH"], "CHRONOVERSE_DATA_DIR": str(tmp_path_factory.mktemp("data"))}
    command = [sys.executable, "-m", "gunicorn", "-c", str(ROOT / "gunicorn.conf.py"), "--print-config"]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=True, timeout=60)
    return Gunicorn(re.findall(r"^(\w+) += (.*)$", done.stdout, re.MULTILINE))


def interpolate(text: str, environ: dict[str, str]) -> str:
    """A compose file's ``${NAME:?}`` and ``${NAME:-default}`` replaced. Raises KeyError where one is missing."""

    def value(found: re.Match[str]) -> str:
        name, operator, default = found.groups()
        return environ.get(name) or default if operator == ":-" else environ[name]

    return re.sub(r"\$\{(\w+)(:-|:\?)([^}]*)\}", value, text)


def seconds(text: str) -> int:
    """A duration like ``40s``."""
    number, unit = text[:-1], text[-1]
    return int(number) * {"s": 1, "m": 60}[unit]


def uid() -> int:
    """The user that the image runs as."""
    (found,) = re.findall(r"^USER ([0-9]+):", Path(ROOT / "Dockerfile").read_text(), re.MULTILINE)
    return int(found)
