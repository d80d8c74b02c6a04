"""Each optional part can be deleted with its folder: the rest can be imported, serves, and runs jobs."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support.commands import environ
from tests.support.service import ROOT, Service

#: A part and its command, if any.
PARTS: Final = (
    ("chronoverse/integrations", None),
    ("chronoverse/cli/mcp", "mcp"),
    ("chronoverse/collect", "collect"),
    ("chronoverse/cli/conformance", "conformance"),
    ("chronoverse/cli/notify", "notify"),
    ("chronoverse/web/otlp", None),
)
#: Imports all modules, and lists the commands.
IMPORT_ALL: Final = """
import importlib, pkgutil, chronoverse
for module in pkgutil.walk_packages(chronoverse.__path__, "chronoverse."):
    if not module.name.endswith(("__main__", "integrations.airflow.plugin")):
        importlib.import_module(module.name)
from chronoverse.cli.main import main
main(["--help"])
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout, with compiled modules."""
    tree = tmp_path_factory.mktemp("tree")
    shutil.copytree(ROOT / "chronoverse", tree / "chronoverse")
    shutil.copy(ROOT / "gunicorn.conf.py", tree)
    return tree


@pytest.fixture
def without(tree: Path, part: str) -> Iterator[Path]:
    """The copy without ``part``."""
    aside = tree / "aside"
    (tree / part).rename(aside)
    yield tree
    aside.rename(tree / part)


@pytest.mark.long
@pytest.mark.parametrize(("part", "command"), PARTS)
def test_a_part_can_be_deleted(without: Path, tmp_path: Path, command: str | None) -> None:
    with Service(tmp_path, tree=without, environ={"PYTHONPATH": str(without)}) as service:

        def execute(*arguments: str) -> str:
            # Relative to the copy, not to this checkout.
            variables = environ(service, PYTHONPATH=str(without))
            argv = [sys.executable, "-W", "ignore", *arguments]
            done = subprocess.run(argv, cwd=without, env=variables, capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout

        names = [line.split()[0] for line in execute("-c", IMPORT_ALL).splitlines() if line.startswith("  ")]
        assert "run" in names
        assert command not in names
        job = ("--workflow", "wf_1", "--job", "job_1")
        execute("-m", "chronoverse", "run", *job, "--", "echo", "one")
        assert execute("-m", "chronoverse", "logs", "wf_1", "job_1") == "one\n"
