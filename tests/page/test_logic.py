"""The logic of the page's modules, tested in Node.js without a browser."""

import subprocess
from pathlib import Path

from tests.support.tools import tool

HERE = Path(__file__).parent


def test_the_logic_of_the_page() -> None:
    """Runs each ``*.test.mjs`` in this folder."""
    files = sorted(map(str, HERE.glob("*.test.mjs")))
    done = subprocess.run(
        [tool("node"), "--test", "--test-force-exit", "--test-concurrency=3", *files],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert files
    assert done.returncode == 0, done.stdout + done.stderr
