"""Programs that a test needs and a machine may lack."""

import os
import shutil
import sysconfig

import pytest


def tool(name: str) -> str:
    """The path of a program. Skips the test where there is none, and fails it where there has to be (``CI``)."""
    places = (sysconfig.get_path("scripts"), os.environ.get("PATH", ""), "/usr/sbin", "/sbin")
    path = shutil.which(name, path=os.pathsep.join(places))
    if path is None:
        missing = f"{name} is not installed"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    return path
