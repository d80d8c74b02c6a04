"""A run's results: a table on the terminal, a JSON file per scenario, and one page for all."""

import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.scenario import FLOOR, Metric, Outcome, Round, verdict


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def ratios(outcome: Outcome) -> dict[str, dict[str, dict[str, float]]]:
    """Our values as multiples of each other side's: median, minimum and maximum of the rounds."""
    ours = outcome.scenario.sides[0].name
    found: dict[str, dict[str, dict[str, float]]] = {}
    for other in outcome.sides():
        if other == ours:
            continue
        for metric in outcome.scenario.metrics:
            values = outcome.ratios(metric.key, ours, other)
            if values and metric.compared:
                spread = {"median": statistics.median(values), "min": min(values), "max": max(values)}
                found.setdefault(other, {})[metric.key] = spread
    return found


def record(outcome: Outcome, machine: dict[str, Any], date: str) -> dict[str, Any]:
    """Everything, as JSON."""
    scenario = outcome.scenario
    keys = [metric.key for metric in scenario.metrics]
    medians = {side: {key: outcome.median(side, key) for key in keys} for side in outcome.sides()}
    return {
        "scenario": scenario.name,
        "title": scenario.title,
        "about": scenario.about,
        "notes": list(scenario.notes),
        "date": date,
        "machine": machine,
        "sides": {side.name: side.peer.about for side in scenario.sides},
        "versions": outcome.versions,
        "skipped": outcome.skipped,
        "rounds": outcome.rounds,
        "medians": medians,
        "compared": {
            metric.key: (f"{metric.label}{', ' + metric.unit if metric.unit else ''}", metric.more)
            for metric in scenario.metrics
            if metric.compared
        },
        "ratios": ratios(outcome),
        "verdict": verdict(outcome),
        "more": outcome.more,
    }


def table(outcome: Outcome) -> list[str]:
    """Markdown: a row per side, medians with their spread, and ours as a multiple of it."""
    metrics, compared = outcome.scenario.metrics, ratios(outcome)
    head = ["", *(f"{metric.label}{', ' + metric.unit if metric.unit else ''}" for metric in metrics)]
    rows = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for side in outcome.sides():
        cells = [_cell(outcome, side, metric, compared.get(side, {})) for metric in metrics]
        rows.append(f"| {side} | {' | '.join(cells)} |")
    return rows


def _cell(outcome: Outcome, side: str, metric: Metric, compared: dict[str, dict[str, float]]) -> str:
    values, middle = outcome.values(side, metric.key), outcome.median(side, metric.key)
    if middle is None:
        return "not measured"
    text = number(middle)
    if len(values) > 1:
        text += f" ({number(min(values))} to {number(max(values))})"
    if ratio := compared.get(metric.key):
        text += f"; ours {ratio['median']:.3g}x"
    return text


def overview(records: Iterable[dict[str, Any]]) -> list[str]:
    """Markdown: one table of all scenarios, a row per result with the peer that is best at it."""
    rows = ["| | ours | best peer | its value | ratio | load generator |", "|---|---|---|---|---|---|"]
    runs: list[str] = []
    for each in records:
        medians = each["medians"]
        ours, *others = medians
        run = f"{each['date']}, {each['machine']['commit']}{', quick' if each['machine']['quick'] else ''}"
        runs.append(run)
        for key, (label, more) in each["compared"].items():
            values = {side: medians[side][key] for side in others if side != FLOOR and medians[side][key] is not None}
            best = (max if more else min)(values, key=values.__getitem__, default=None)
            if best is None or medians[ours][key] is None:
                continue
            shares = [found[side].get("share", 0) for found in each["rounds"] for side in (ours, best) if side in found]
            cells = [
                number(medians[ours][key]),
                best,
                number(values[best]),
                _ratio(each, best, key),
                f"{max(shares):.0%}",
            ]
            scenario = each["scenario"] + ("" if run == runs[0] else f" ({run})")
            rows.append(f"| {scenario}: {label} | {' | '.join(cells)} |")
    return [f"All scenarios ({runs[0]}):", "", *rows, ""] if runs else []


def _ratio(record: dict[str, Any], side: str, key: str) -> str:
    found = record["ratios"].get(side, {}).get(key)
    return f"{found['median']:.3g}" if found else ""


def write(outcome: Outcome, machine: dict[str, Any], date: str, directory: Path) -> None:
    """Writes the scenario's file."""
    directory.mkdir(parents=True, exist_ok=True)
    found = record(outcome, machine, date)
    page = "\n".join(section(outcome, machine["quick"]))
    name = outcome.scenario.name
    (directory / f"{name}.json").write_text(_json(found | {"page": page}) + "\n")


def section(outcome: Outcome, quick: bool) -> list[str]:
    """The scenario's section of the page."""
    scenario = outcome.scenario
    sentences = [f"- {sentence}" for sentence in verdict(outcome)]
    return [
        f"## {scenario.title}",
        "",
        f"{scenario.about}. {len(outcome.rounds)} rounds." + (" A quick run: a tenth of all that." if quick else ""),
        *scenario.notes,
        "",
        *table(outcome),
        "",
        *sentences,
        *(["", "```", *outcome.more, "```"] if outcome.more else []),
        "",
        f"[all numbers]({scenario.name}.json)",
        "",
    ]


def index(directory: Path, names: Iterable[str]) -> list[str]:
    """Writes README.md with all recorded scenarios, in the given order. Returns their table."""
    found = [json.loads(path.read_text()) for path in (directory / f"{name}.json" for name in names) if path.exists()]
    lines = [
        "# Benchmarks",
        "",
        "*For anyone who compares the service with its peers.*",
        "",
        "`make bench` writes this page. Each scenario runs the service and its peers alternately, on one machine, with",
        "the same lines at the same pace; every byte that a viewer received was compared with what was sent. Values",
        "are medians of the rounds, with minimum and maximum in brackets. In a row, *ours 2x* means that our value",
        "is twice that row's (the median of the rounds' ratios). Absolute numbers are this machine's: compare ratios.",
        "The *floor* is a server that does nothing but send.",
        "",
    ]
    lines += sorted({_where(each["date"], each["machine"]) for each in found})
    all_of_them = overview(each for each in found if "compared" in each)
    lines += ["", *all_of_them]
    for each in found:
        lines += [each["page"], ""]
    (directory / "README.md").write_text("\n".join(lines).rstrip() + "\n")
    return all_of_them


def _json(value: Any) -> str:
    return json.dumps(_finite(value), indent=1, ensure_ascii=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    if isinstance(value, float):
        return None if value != value else float(f"{value:.6g}")
    return value


def shown(side: str, found: Round, metrics: Iterable[Metric]) -> str:
    """One side's round, as a line of text."""
    if error := found.get("error"):
        return f"  {side}: failed: {error}"
    numbers = [(metric, found.get(metric.key)) for metric in metrics]
    text = ", ".join(
        f"{metric.label} {number(value)} {metric.unit}".strip() for metric, value in numbers if value is not None
    )
    wrong = f", {found['wrong']} WRONG" if found.get("wrong") else ""
    share = f", generator {found['share']:.0%}" if "share" in found else ""
    return f"  {side}: {text}{share}{wrong}"


def _where(date: str, machine: dict[str, Any]) -> str:
    return (
        f"{date}: {machine['cores']} cores ({machine['cpu']}), {machine['memory_mb']:,} MB, "
        f"Linux {machine['kernel']}, Python {machine['python']}."
    )
