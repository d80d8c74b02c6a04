"""Each optional part can be deleted with its folder: the rest can be imported, serves, and passes its own tests."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[1]
#: A part and its command, if any.
PARTS: Final = (
    ("chronoverse/integrations", None),
    ("chronoverse/cli/mcp", "mcp"),
    ("chronoverse/collect", "collect"),
    ("chronoverse/cli/conformance", "conformance"),
    ("chronoverse/cli/notify", "notify"),
    ("chronoverse/web/otlp", None),
)
#: Tests that use the service, the store and the commands, but none of the parts.
TESTS: Final = ("tests/web/routes/test_answers.py", "tests/cli/test_tables.py", "tests/runner/test_runner.py")
IMPORT_ALL: Final = """
import importlib, pkgutil, chronoverse
for module in pkgutil.walk_packages(chronoverse.__path__, "chronoverse."):
    if not module.name.endswith(("__main__", "integrations.airflow.plugin")):
        importlib.import_module(module.name)
"""


@pytest.mark.long
@pytest.mark.parametrize(("part", "command"), PARTS)
def test_a_part_can_be_deleted(tmp_path: Path, part: str, command: str | None) -> None:
    for name in ("chronoverse", "tests", "gunicorn.conf.py", "pyproject.toml"):
        source, target = ROOT / name, tmp_path / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "node_modules"))
        else:
            shutil.copy(source, target)
    shutil.rmtree(tmp_path / part)

    def execute(*arguments: str) -> str:
        done = subprocess.run([sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=110)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    execute("-W", "ignore", "-c", IMPORT_ALL)
    assert f"\n  {command} " not in execute("-m", "chronoverse", "--help")
    assert " passed" in execute("-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *TESTS)
