"""Programs that a test needs and a machine may lack."""

import os
import shutil
import sysconfig
from typing import NoReturn

import pytest


def unavailable(what: str) -> NoReturn:
    """Skips the test because the machine lacks something. If ``CI`` is set, the test fails instead."""
    if os.environ.get("CI"):
        pytest.fail(what)
    pytest.skip(what)


def tool(name: str) -> str:
    """The path of a program. See :func:`unavailable` for a machine without it."""
    directories = (sysconfig.get_path("scripts"), os.environ.get("PATH", ""), "/usr/sbin", "/sbin")
    path = shutil.which(name, path=os.pathsep.join(directories))
    return path if path is not None else unavailable(f"{name} is not installed")
