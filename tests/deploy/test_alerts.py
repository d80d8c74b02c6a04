"""The alert rules by Prometheus's own tool: it takes them, and each fires on what it is for and on nothing else."""

import re
import subprocess
from pathlib import Path
from typing import Final

from tests.deploy.conftest import DEPLOY
from tests.support.tools import tool

RULES: Final = DEPLOY / "prometheus-alerts.yaml"
EXAMPLES: Final = Path(__file__).with_name("prometheus-alerts.test.yaml")


def promtool(*arguments: str) -> str:
    """What it says; fails when it finds anything wrong."""
    command = [tool("promtool"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_prometheus_takes_the_rules() -> None:
    """Every expression and every template, with lint's warnings as errors."""
    assert "SUCCESS: 15 rules found" in promtool("check", "rules", "--lint=all", "--lint-fatal", str(RULES))


def test_prometheus_takes_the_configuration_that_the_page_shows(tmp_path: Path) -> None:
    """With the rules beside it, whose job it names."""
    (shown,) = re.findall(
        r"```yaml\n(rule_files.*?)```", (DEPLOY.parent / "docs" / "operations.md").read_text(), re.DOTALL
    )
    (tmp_path / "prometheus.yml").write_text(shown)
    (tmp_path / RULES.name).write_text(RULES.read_text("utf-8"))

    assert "15 rules found" in promtool("check", "config", str(tmp_path / "prometheus.yml"))
    assert re.findall(r'job="(\w+)"', RULES.read_text("utf-8")) == re.findall(r"job_name: (\w+) #", shown)


def test_each_alert_fires_on_what_it_is_for(tmp_path: Path) -> None:
    """Series of what went wrong, and the alert with its words; and a node that is well."""
    for each in (RULES, EXAMPLES):
        (tmp_path / each.name).write_text(each.read_text("utf-8"), "utf-8")

    assert "SUCCESS" in promtool("test", "rules", str(tmp_path / EXAMPLES.name))


def test_every_alert_has_an_example() -> None:
    """One of its firing, not only one of its silence."""
    fired = re.findall(r"^ +alertname: (\w+)\n +exp_alerts:$", EXAMPLES.read_text("utf-8"), re.MULTILINE)

    assert set(fired) == set(re.findall(r"- alert: (\w+)", RULES.read_text("utf-8")))
