"""axe findings and keyboard navigation in windows of several sizes, light and dark."""

from collections.abc import Callable
from typing import Any, Final

import pytest

from chronoverse.joblog.labels import check_labels
from chronoverse.joblog.model import Status
from chronoverse.store import Store
from tests.browser.browsing import Tab
from tests.browser.conftest import Job
from tests.browser.test_accessible import COLOURS, FINDINGS
from tests.browser.test_layout import SHIFTS, SIZES
from tests.support.service import Service

pytestmark = pytest.mark.long

#: Each view's address, and a selector that shows it is complete.
VIEWS: Final = {
    "failed": ("/ui/workflows/sizes/jobs/failed", "#runs a >> nth=0"),
    "running": ("/ui/workflows/sizes/jobs/running", "#firsterror >> nth=0"),
    "lost": ("/ui/workflows/sizes/jobs/lost", "#runs a >> nth=0"),
    "workflow": ("/ui/workflows/sizes", ".why:has-text('GatewayError: 409')"),
    "home": ("/", ".why:has-text('No sign of the runner')"),
    "search": ("/?q=Gateway", "#progress:has-text('all jobs were searched')"),
}

#: The truncated names and counts.
CUT: Final = """() => [...document.querySelectorAll("h1, .job .tools button:has(b)")]
    .filter((each) => each.scrollWidth > each.clientWidth).map((each) => `${each.id || each.textContent}: truncated`)"""
#: Records the elements that the keyboard must reach.
EXPECTED: Final = """() => {
    const isShown = (each) => each.checkVisibility({ visibilityProperty: true }) && each.getClientRects().length > 0;
    window.missed = new Set([...document.querySelectorAll("a[href], button:enabled, input, select, [tabindex]")]
        .filter((each) => each.tabIndex >= 0 && isShown(each)));
    document.activeElement.blur();
    return window.missed.size;
}"""
#: Checks the focused element: what is wrong with it.
FOCUSED: Final = """() => {
    const each = document.activeElement;
    if (each === document.body) return [];
    window.missed.delete(each);
    const { left, right, top, bottom } = each.getBoundingClientRect();
    const isInView = left < innerWidth && right > 0 && top < innerHeight && bottom > 0;
    // The mark of the log is a frame over it.
    const isMarked = each.id === "log"
        ? getComputedStyle(document.querySelector("main"), "::after").borderTopWidth !== "0px"
        : getComputedStyle(each).outlineStyle !== "none";
    const name = each.ariaLabel || each.getAttribute("aria-label") || each.textContent.trim() || each.title;
    return [!isInView && "out of view", !isMarked && "not marked", !name && "no name"].filter(Boolean)
        .map((why) => `${each.id || each.outerHTML.slice(0, 80)}: ${why}`);
}"""


@pytest.fixture(scope="module")
def jobs(page_store: Store) -> None:
    """Three good runs, a failed one, a running one and a lost one, with steps and labels."""
    labels = check_labels({"branch": "main", "commit": "4f0c1de" * 5, "os": "linux", "url": "https://ci.example.com/1"})
    good = ["::group::Build", *(f"compiling {n}.c" for n in range(30)), "::endgroup::", "::group::Test", "ok"]
    for number in range(3):
        Job(page_store, f"good-{number}", "sizes", labels).lines(*good, "::endgroup::").end()
    Job(page_store, "failed", "sizes", labels).lines(*good, "GatewayError: 409").end(Status.FAILED, 1)
    Job(page_store, "lost", "sizes", labels).lines(*good).end(Status.LOST)
    Job(page_store, "running", "sizes", labels).lines(*good, "Error: again")


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
def test_every_view_is_accessible_at_each_size(
    open_tab: Callable[..., Tab], page_service: Service, jobs: None, axe: str, size: tuple[int, int]
) -> None:
    """axe finds nothing, nothing is cut or wider than the window, and Tab reaches each control, visibly and in view."""
    tab = open_tab()
    tab.page.set_viewport_size({"width": size[0], "height": size[1]})
    tab.page.add_init_script(SHIFTS)
    tab.page.goto(f"{tab.url}/#token={page_service.token('sizes')}")
    tab.page.wait_for_selector("tbody tr")
    found: list[tuple[str, Any]] = []
    for view, (path, complete) in VIEWS.items():
        tab.page.goto(tab.url + path)
        tab.page.wait_for_selector(complete, state="attached")
        if "/jobs/" in path:
            tab.page.wait_for_selector("#steps a", state="attached")
        # Late content in a list, such as causes, must not move anything.
        if "/jobs/" not in path and tab.page.evaluate("shifted") >= 0.05:
            found.append((view, str(tab.page.evaluate("shifts"))))
        tab.page.evaluate(axe)
        for is_dark, expression in ((False, FINDINGS), (True, COLOURS)):
            tab.page.emulate_media(color_scheme="dark" if is_dark else "light", reduced_motion="reduce")
            found += [(f"{view}{', dark' * is_dark}", each) for each in tab.page.evaluate(expression)]
        if tab.page.evaluate("document.documentElement.scrollWidth > innerWidth"):
            found.append((view, "wider than the window"))
        found += [(view, each) for each in tab.page.evaluate(CUT)]
        stops = tab.page.evaluate(EXPECTED)
        # The walk starts at the previous focus, and leaves the page between its last and its first control.
        for _ in range(stops + 2):
            tab.page.keyboard.press("Tab")
            found += [(view, each) for each in tab.page.evaluate(FOCUSED)]
        # A list's row is recreated when its job changes.
        missed = tab.page.evaluate(
            "() => [...missed].filter((each) => each.isConnected).map((each) => each.id || each.outerHTML.slice(0, 80))"
        )
        found += [(view, f"{each}: not reached") for each in missed]
    assert sorted(set(found)) == []
