"""Programs that a test needs and a machine can lack."""

import os
import shutil
import sysconfig
from typing import NoReturn

import pytest


def unavailable(what: str) -> NoReturn:
    """Skips the test because something is missing on this machine; fails it if ``CI`` is set."""
    if os.environ.get("CI"):
        pytest.fail(what)
    pytest.skip(what)


def tool(name: str) -> str:
    """The path of a program. Calls :func:`unavailable` if it is missing."""
    directories = (sysconfig.get_path("scripts"), os.environ.get("PATH", ""), "/usr/sbin", "/sbin")
    path = shutil.which(name, path=os.pathsep.join(directories))
    return path if path is not None else unavailable(f"{name} is not installed")
