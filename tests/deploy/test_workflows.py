"""The workflows of GitHub Actions: valid, pinned, and with minimal permissions."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.support.service import ROOT
from tests.support.tools import tool

pytestmark = pytest.mark.long

WORKFLOWS: Final = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.fixture(params=WORKFLOWS, ids=lambda path: path.stem)
def workflow(request: pytest.FixtureRequest) -> Path:
    """Each of the workflows."""
    path: Path = request.param
    return path


def test_the_workflow_follows_the_schema(workflow: Path) -> None:
    """Unknown names are errors."""
    subprocess.run(
        [tool("check-jsonschema"), "--builtin-schema", "vendor.github-workflows", str(workflow)],
        check=True,
        capture_output=True,
    )


def test_the_workflow_trusts_little(workflow: Path) -> None:
    """Each action is pinned to a commit, and by default jobs can only read.

    Nothing that others can choose, such as a branch name, is interpolated into a script.
    """
    document: dict[str, Any] = yaml.safe_load(workflow.read_text("utf-8"))
    steps = [step for job in document["jobs"].values() for step in job["steps"]]

    assert document["permissions"] == {"contents": "read"}
    for step in steps:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", step.get("uses", f"a/b@{'0' * 40}"))
        assert set(re.findall(r"\$\{\{ (\w+)", step.get("run", ""))) <= {"matrix"}


def test_a_release_lists_what_it_publishes() -> None:
    """The workflow uploads the files that the rehearsal makes."""
    text = (ROOT / ".github" / "workflows" / "release.yml").read_text("utf-8")
    rehearsal = (ROOT / "tests" / "deploy" / "release.py").read_text("utf-8")
    published = (ROOT / ".github" / "published" / "installing.md").read_text("utf-8")

    assert "chronoverse-chart-${GITHUB_REF_NAME#v}.tgz" in text
    assert "chronoverse-chart-{number}.tgz" in rehearsal
    for name in set(re.findall("@[A-Z]+@", published)):
        assert f"s|{name}|" in text


def test_a_release_updates_the_document_on_installing(tmp_path: Path) -> None:
    """It names its audience, and has the version and all extras, also when updated repeatedly."""
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text("utf-8"))
    script = workflow["jobs"]["announce"]["steps"][-1]["run"]
    commands = "\n".join(line for line in script.splitlines() if "installing.md" in line or line.startswith("version="))
    for name in ("docs", ".github/published"):
        (tmp_path / name).mkdir(parents=True)
        shutil.copy(ROOT / name / "installing.md", tmp_path / name)
    before = (tmp_path / "docs" / "installing.md").read_text("utf-8")
    environ = {**os.environ, "GITHUB_REF_NAME": "v1.2.3", "GITHUB_REPOSITORY_OWNER": "Somebody"}
    for _ in range(2):
        subprocess.run(["bash", "-euc", commands], cwd=tmp_path, env=environ, check=True)
    page = (tmp_path / "docs" / "installing.md").read_text("utf-8")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]

    assert page.split("\n\n")[:2] == before.split("\n\n")[:2]
    assert "ghcr.io/somebody/chronoverse:1.2.3`" in page
    assert "@" not in page
    headings = re.findall(r"^## (.+)", (ROOT / "docs" / "deploying.md").read_text("utf-8"), re.MULTILINE)
    linked = set(re.findall(r"deploying\.md#([\w-]+)", page))
    assert set() < linked <= {heading.lower().replace(" ", "-") for heading in headings}
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == set(extras) - {"dev"}
