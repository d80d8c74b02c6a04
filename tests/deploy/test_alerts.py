"""The alert rules, tested with promtool: each alert fires for its fault and for nothing else."""

import re
import subprocess
from pathlib import Path
from typing import Final

import pytest

from tests.deploy.conftest import DEPLOY
from tests.support.tools import tool

RULES: Final = DEPLOY / "prometheus-alerts.yaml"
EXAMPLES: Final = Path(__file__).with_name("prometheus-alerts.test.yaml")


def promtool(*arguments: str) -> str:
    """promtool's output. Fails if promtool finds an error."""
    command = [tool("promtool"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def count_rules() -> int:
    """The number of alerts in the file."""
    return len(re.findall(r"- alert: ", RULES.read_text("utf-8")))


def test_prometheus_accepts_the_rules() -> None:
    """All expressions and templates are valid, without warnings from the linter."""
    done = promtool("check", "rules", "--lint=all", "--lint-fatal", str(RULES))

    assert f"SUCCESS: {count_rules()} rules found" in done


def test_prometheus_accepts_the_documented_configuration(tmp_path: Path) -> None:
    """The rules are in the same directory, and the configuration has the job that they name."""
    (shown,) = re.findall(
        r"```yaml\n(rule_files.*?)```", (DEPLOY.parent / "docs" / "operations.md").read_text(), re.DOTALL
    )
    (tmp_path / "prometheus.yml").write_text(shown)
    (tmp_path / RULES.name).write_text(RULES.read_text("utf-8"))

    assert f"{count_rules()} rules found" in promtool("check", "config", str(tmp_path / "prometheus.yml"))
    (named,) = re.findall(r'job=~"([^"]*)"', RULES.read_text("utf-8"))
    assert all(re.fullmatch(named, job) for job in re.findall(r"job_name: (\S+)", shown))


@pytest.mark.long
def test_each_alert_fires_for_its_fault(tmp_path: Path) -> None:
    """And not for a healthy node. ``test_operations.py`` compares the names and labels with the exported ones."""
    for each in (RULES, EXAMPLES):
        (tmp_path / each.name).write_text(each.read_text("utf-8"), "utf-8")

    assert "SUCCESS" in promtool("test", "rules", str(tmp_path / EXAMPLES.name))


def test_every_alert_is_tested() -> None:
    """In an example in which it fires."""
    fired = re.findall(r"^ +alertname: (\w+)\n +exp_alerts:$", EXAMPLES.read_text("utf-8"), re.MULTILINE)
    assert set(fired) == set(re.findall(r"- alert: (\w+)", RULES.read_text("utf-8")))
