"""The tests of what runs in the tests' own process, patched by gevent before anything else is imported.

Takes pytest's arguments. Tests that start the service as a process of its own are left out: gevent patches that process
anyway, and the test's own side would only be slower.
"""

from gevent import monkey

monkey.patch_all()

import sys

import pytest

if __name__ == "__main__":
    left_out = [f"--ignore=tests/{name}" for name in ("deploy", "system", "faults", "web/routes", "browser")]
    # Processes of xdist would not be patched.
    sys.exit(pytest.main(["-n", "0", *left_out, *sys.argv[1:]]))
