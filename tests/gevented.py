"""Runs tests in a process that gevent has patched before anything else is imported. Takes pytest's arguments.

Tests that start the service or a command as another process are left out: the service always runs under gevent, and
commands and the scan server never do. Tests of the tests' own tools are left out, too.
"""

from gevent import monkey

monkey.patch_all()

import sys
from typing import Final

import pytest

LEFT_OUT: Final = (
    "browser",
    "cli",
    "deploy",
    "faults",
    "history/scans/test_app.py",
    "system",
    "test_architecture.py",
    "test_bench.py",
    "test_faultproxy.py",
    "web/routes",
)

if __name__ == "__main__":
    left_out = [f"--ignore=tests/{name}" for name in LEFT_OUT]
    # pytest-xdist would start processes that are not patched.
    sys.exit(pytest.main(["-n", "0", *left_out, *sys.argv[1:]]))
