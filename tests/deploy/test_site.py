"""The site from ``docs/``."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.service import ROOT


@pytest.mark.long
def test_the_site_builds_without_warnings(tmp_path: Path) -> None:
    """So each link leads to an existing page and heading. The site has the guides, all routes and the ADRs.

    Each page names its audience, except the first one and the changelog. The list of ADRs names theirs.
    """
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    pages = {path.parent.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("index.html")}
    assert {path.stem for path in (ROOT / "docs").glob("*.md")} | {".", "openapi", "adr", "benchmarks"} <= pages
    said = {name for name in pages if "<p><em>For " in (tmp_path / name / "index.html").read_text("utf-8")}
    assert {name for name in pages - said if not name.startswith("adr/0")} == {".", "changelog"}
    routes = (tmp_path / "openapi" / "index.html").read_text("utf-8")
    assert "GET /workflows/{workflow_id}/jobs/{job_id}/events" in routes
    assert (tmp_path / "deploy" / "redis-users.acl").read_bytes() == (ROOT / "deploy" / "redis-users.acl").read_bytes()


def test_every_page_is_in_the_navigation() -> None:
    """Otherwise nobody finds it."""
    navigation = (ROOT / "mkdocs.yml").read_text("utf-8").partition("\nnav:")[2]

    assert [path.name for path in (ROOT / "docs").glob("*.md") if path.name not in navigation] == []


def test_each_decision_has_a_unique_number() -> None:
    """In its file name and title, so that ``ADR 43`` means one decision. Removed ones leave holes."""
    numbers = []
    for path in (ROOT / "docs" / "adr").glob("[0-9]*.md"):
        numbers.append(int(path.name[:4]))
        assert path.read_text("utf-8").startswith(f"# {numbers[-1]}. "), path

    assert numbers
    assert len(set(numbers)) == len(numbers)
