"""A scenario as an SVG: a panel per number, a bar per side, the spread over the rounds as a whisker."""

from collections.abc import Iterator
from html import escape
from typing import Final

from bench.scenario import Metric, Outcome

WIDTH: Final = 720
LABELS: Final = 170
VALUES: Final = 150
BAR: Final = 18
STEP: Final = 26
TOP: Final = 52
PANEL: Final = 34

_STYLE: Final = """
text { font: 13px system-ui, sans-serif; fill: #24292f }
.title { font-size: 16px; font-weight: 600 } .small { font-size: 12px; fill: #57606a }
.bar { fill: #8c959f } .ours { fill: #0969da } .spread { stroke: #24292f; stroke-width: 1.5 }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .small { fill: #9198a1 } .bar { fill: #6e7681 } .ours { fill: #4493f8 }
.spread { stroke: #e6edf3 }
}
"""


def number(value: float) -> str:
    """Three figures, thousands with commas."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def chart(outcome: Outcome) -> str:
    """The whole file."""
    body, y = [], TOP
    for metric in outcome.scenario.metrics:
        panel = list(_panel(outcome, metric, y))
        body += panel
        y += PANEL + STEP * len(outcome.sides())
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 10}" role="img">'
    title = f"{outcome.scenario.title}: {outcome.scenario.about}"
    return "\n".join(
        [
            head,
            f"<title>{escape(title)}</title>",
            f"<style>{_STYLE}</style>",
            f'<text class="title" x="10" y="22">{escape(outcome.scenario.title)}</text>',
            f'<text class="small" x="10" y="42">{escape(outcome.scenario.about)}</text>',
            *body,
            "</svg>\n",
        ]
    )


def _panel(outcome: Outcome, metric: Metric, y: int) -> Iterator[str]:
    better = "more is better" if metric.more else "less is better"
    unit = f", {metric.unit}" if metric.unit else ""
    yield f'<text x="10" y="{y + 22}">{escape(metric.label)}{escape(unit)} ({better})</text>'
    y += PANEL
    sides = outcome.sides()
    most = max((max(outcome.values(side, metric.key), default=0.0) for side in sides), default=0.0) or 1.0
    scale = (WIDTH - LABELS - VALUES) / most
    for side in sides:
        yield f'<text x="{LABELS - 8}" y="{y + 14}" text-anchor="end">{escape(side)}</text>'
        values = outcome.values(side, metric.key)
        middle = outcome.median(side, metric.key)
        if middle is None:
            yield f'<text class="small" x="{LABELS}" y="{y + 14}">not measured</text>'
        else:
            kind = "ours" if side.startswith("chronoverse") else "bar"
            width = max(1.0, max(middle, 0.0) * scale)
            yield f'<rect class="{kind}" x="{LABELS}" y="{y}" width="{width:.1f}" height="{BAR}" rx="2"/>'
            low, high = (LABELS + max(value, 0.0) * scale for value in (min(values), max(values)))
            yield f'<path class="spread" d="M{low:.1f} {y + BAR / 2}H{high:.1f}"/>'
            yield f'<text x="{max(LABELS + width, high) + 8:.1f}" y="{y + 14}">{number(middle)}</text>'
        y += STEP
