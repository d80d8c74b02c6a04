"""What happens when a test of this suite fails and is tried again, as ``.ci/run`` does."""

import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[1]
#: A test that fails at its first try. The second fails too if anything of the first is left.
UNLUCKY: Final = """
import pytest
tries = []

@pytest.fixture(scope="session")
def shared():
    yield (written := [])
    tries.append(written)

@pytest.fixture(scope="module")
def of_module(shared):
    return shared

def test_before(of_module):
    of_module.append("before")

def test_unlucky(of_module):
    of_module.append("unlucky")
    assert tries == [["before", "unlucky"]]
    assert of_module == ["unlucky"]

def test_after(of_module):
    assert of_module == ["unlucky"]
"""


@pytest.mark.long
def test_the_second_try_has_new_fixtures(tmp_path: Path) -> None:
    """Of the module and of the session, too. The last lines name the test, and count it."""
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_unlucky.py").write_text(UNLUCKY)
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:valkey", "--rootdir", str(tmp_path)]
    done = subprocess.run(
        [*command, "--reruns", "1", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    *_, counted, named, closing = filter(None, done.stdout.splitlines())
    assert "tests that were tried again: 1" in counted, done.stdout
    assert named == "test_unlucky.py::test_unlucky"
    assert "3 passed, 1 rerun" in closing
