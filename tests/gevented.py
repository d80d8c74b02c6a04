"""The tests of what runs in the tests' own process, patched by gevent before anything else is imported.

Takes pytest's arguments. Tests that start the service or a command as a process of its own are left out: gevent patches
the service's process anyway, and no command is patched. So are the tests of the tests' own tools.
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
    "system",
    "test_architecture.py",
    "test_bench.py",
    "test_faultproxy.py",
    "web/routes",
)

if __name__ == "__main__":
    left_out = [f"--ignore=tests/{name}" for name in LEFT_OUT]
    # Processes of xdist would not be patched.
    sys.exit(pytest.main(["-n", "0", *left_out, *sys.argv[1:]]))
