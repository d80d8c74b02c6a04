"""The dashboard, the alerts and the documents for operators: everything they mention exists."""

import json
import re
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from prometheus_client import REGISTRY

from chronoverse import metrics
from chronoverse.settings import all_settings

ROOT: Final = Path(__file__).resolve().parents[2]
DASHBOARD: Final = ROOT / "deploy" / "grafana-dashboard.json"
ALERTS: Final = ROOT / "deploy" / "prometheus-alerts.yaml"
PAGE: Final = ROOT / "docs" / "operations.md"


def families() -> dict[str, str]:
    """The names of our metrics, and their types."""
    assert metrics.WORKERS
    return {each.name: each.type for each in REGISTRY.collect() if each.name.startswith("chronoverse_")}


def samples() -> dict[str, set[str]]:
    """The names that a query can use, and their labels."""
    suffixes = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}
    found = {name + suffix: set[str]() for name, kind in families().items() for suffix in suffixes[kind]}
    for metric in vars(metrics).values():
        if hasattr(metric, "_labelnames"):
            found |= {name: set(metric._labelnames) for name in found if name.startswith(f"{metric._name}_total")}
    return found


def expressions() -> list[str]:
    """Every query of the dashboard and the alerts."""
    panels = json.loads(DASHBOARD.read_text("utf-8"))["panels"]
    rules = yaml.safe_load(ALERTS.read_text("utf-8"))["groups"][0]["rules"]
    return [target["expr"] for panel in panels for target in panel["targets"]] + [rule["expr"] for rule in rules]


def test_every_metric_that_is_queried_exists() -> None:
    """With the labels that the query uses, under the name in ``/metrics``."""
    known = samples()
    assert len(expressions()) > 25
    for expression in expressions():
        names = re.findall(r"\bchronoverse_\w+", expression)
        assert names or expression.startswith("up{"), expression
        assert set(names) <= known.keys(), expression
        for name, selected in re.findall(r"\b(chronoverse_\w+)\{([^}]*)\}", expression):
            labels = set(re.findall(r"(\w+)=", selected)) - {"instance"}
            assert labels <= known[name], expression
        for grouped in re.findall(r"by \(([^)]*)\)", expression):
            allowed = set[str]().union({"job", "namespace", "pod", "instance", "le"}, *(known[name] for name in names))
            assert set(re.split(r",\s*", grouped)) <= allowed, expression


def test_every_query_has_balanced_brackets() -> None:
    """An incomplete query would have an open bracket."""
    for expression in expressions():
        bare = re.sub(r'"[^"]*"', "", expression)
        assert all(bare.count(one) == bare.count(two) for one, two in ("()", "{}", "[]")), expression


@pytest.mark.parametrize("where", ["dashboard", "page"])
def test_every_metric_is_in_the_dashboard_and_the_document(where: str) -> None:
    """Operators know each exported metric."""
    text = (
        (DASHBOARD if where == "dashboard" else PAGE)
        .read_text("utf-8")
        .replace("`_limit`", "chronoverse_streams_limit")
    )

    assert [name for name in families() if name not in text] == []


def test_every_alert_is_documented_and_every_documented_alert_exists() -> None:
    """Each alert also has a severity, a duration and the instance."""
    rules: list[dict[str, Any]] = yaml.safe_load(ALERTS.read_text("utf-8"))["groups"][0]["rules"]

    assert [rule["alert"] for rule in rules] == re.findall(r"^### (Chronoverse\w+)$", PAGE.read_text("utf-8"), re.M)
    for rule in rules:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert re.fullmatch(r"\d+[ms]", rule["for"])
        assert "$labels.instance" in rule["annotations"]["summary"]


def test_documented_settings_exist() -> None:
    """In each document and each file for deployment."""
    known = {name for _, name, _ in all_settings()}
    paths = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("deploy/**/*")]
    texts = [path.read_text("utf-8") for path in paths if path.is_file()]
    named = set(re.findall(r"\bCHRONOVERSE_[A-Z_]+\b", "".join(texts)))

    assert len(texts) > 15
    assert named <= known
