"""The job page's accessibility: axe findings, border contrast, target sizes, and phones."""

import re
import time
from collections.abc import Callable
from typing import Any, Final

import pytest
from playwright.sync_api import Browser

from chronoverse.joblog.labels import check_labels
from chronoverse.joblog.model import Status
from chronoverse.store import Store
from tests.browser.browsing import Tab
from tests.browser.conftest import Job
from tests.browser.test_new_lines import GOOD, write_runs
from tests.support.service import Service

pytestmark = pytest.mark.long

OpenTab = Callable[..., Tab]


def findings(options: str) -> str:
    """A JavaScript expression for axe-core's findings with these options, regardless of impact."""
    violations = "violations.flatMap(({ id, nodes }) => nodes.map(({ html }) => `${id}: ${html}`))"
    # Omits the passed checks, for speed.
    few = 'resultTypes: ["violations"], selectors: false'
    return f"axe.run(document, {{ {few}, {options} }}).then(({{ violations }}) => {violations})"


#: All rules, including the one for target sizes.
FINDINGS: Final = findings('rules: { "target-size": { enabled: true } }')
#: Rules that depend on the page's colours. The other rules have the same result in both themes.
COLOURS: Final = findings('runOnly: ["color-contrast", "link-in-text-block"]')
#: Rules that depend on the page's width. Only the button for a job's tools depends on it otherwise, which the
#: tests below check.
SHAPES: Final = findings('runOnly: ["target-size", "scrollable-region-focusable"]')
#: Visible buttons and fields, with their sizes, and the contrast of their borders (otherwise of their text or icon)
#: with the surroundings.
CONTROLS: Final = """async () => {
    const { contrast } = await import("/ui/static/js/colour.js");
    const rgb = (text) => text.match(/[0-9.]+/g).map(Number);
    const edge = ({ borderTopColor, color }) => (rgb(borderTopColor)[3] === 0 ? color : borderTopColor);
    const around = (each) => {
        for (let at = each.parentElement; at; at = at.parentElement) {
            const found = rgb(getComputedStyle(at).backgroundColor);
            if (found[3] !== 0) return found;
        }
    };
    return Array.from(document.querySelectorAll(":is(button, input):not(.fold)")).filter((each) => each.offsetWidth)
        .map((each) => ({ id: each.id, width: each.offsetWidth, height: each.offsetHeight,
            contrast: contrast(rgb(edge(getComputedStyle(each))), around(each)) }));
}"""


@pytest.fixture
def failed(page_store: Store) -> Job:
    """A failed run with groups, annotations and links, after three good ones."""
    lines = [
        "::group::Test",
        *GOOD[:100],
        "::error file=a.js,line=3::GatewayError: 409",
        "::warning::old",
        "::endgroup::",
    ]
    return write_runs(
        page_store, f"accessible-{time.monotonic_ns()}", *lines, "\x1b]8;;https://x.org/\x07a link\x1b]8;;\x07"
    )


#: The views of lists and of a job. The key is the page that is viewed without a token or without a service.
#: Each view has its address, what the reader then clicks, and a selector that shows it is complete. Without an
#: address, it continues the previous view.
VIEWS: Final = {
    "": {
        "home": ("/", "", "tbody tr"),
        "home, running": ("", "#kinds [data-kind=running]", "#kinds [data-kind=running][aria-current=true]"),
        "account": ("", "#account", "#accountbox dl"),
        "another token": ("", "#account, #accountbox button", "dialog.sign-in"),
        "workflow": ("{w}", "", "tbody tr"),
        "workflow, labels": ("{w}?label=branch%3Dmain&label=commit%3D" + "4f0c1de" * 6, "", "#labels .chip"),
        "workflow, none": ("/ui/workflows/nothing", "", "#empty button"),
        "workflow, search": ("{w}?q=fine", "", "#progress:has-text('all jobs were searched')"),
        "workflow, bad expression": ("{w}?q=(&regex=true", "", "#progress.bad"),
        "no such page": ("/ui/nope", "", "#ways a"),
    },
    "/jobs/running": {
        "running job": ("{w}/jobs/running", "", "#firsterror"),
        "failed job": ("{w}/jobs/failed", "", "#good"),
        "selection": ("", ".row[data-number='2'] .n", "#picked"),
        "view": ("", "#view", "#views button"),
        "compared runs": ("", "#good", "#runs a"),
        "labels": ("", "#labels button", "#morelabels .chip"),
        "keys": ("", "#view, #help", "#keys[open]"),
        "comparison": ("{w}/jobs/failed?against=good-1", "#compare", "#new[aria-pressed=true]"),
        "search": ("{w}/jobs/failed?q=fine", "", ".row mark"),
        "bad expression": ("{w}/jobs/failed?q=(&regex=true", "", "#count.bad"),
        "no such job": ("{w}/jobs/fialed", "", "#notice a"),
    },
}


#: The service's routes, without the page's own files.
ROUTES: Final = re.compile(r"//[^/]+/workflows/")


@pytest.mark.parametrize("page", VIEWS, ids=["lists", "job"])
def test_axe_finds_nothing_in_the_list_of_views(
    open_tab: OpenTab, page_service: Service, page_store: Store, axe: str, page: str
) -> None:
    """Light and dark, and phone-sized. The sign-in and the bar for a service that is down are views, too."""
    workflow = "views-of-a-job" if page else "views"
    for name in ("good-1", "good-2"):
        Job(page_store, name, workflow).lines("fine", "::group::Test", "ok", "::endgroup::").end()
    labels = check_labels({"branch": "main", "commit": "4f0c1de" * 6, "url": f"https://ci.example.com/{'x' * 200}"})
    Job(page_store, "failed", workflow, labels).lines("fine", "ok", "GatewayError: 409").end(Status.FAILED, 1)
    Job(page_store, "running", workflow).lines("fine", "\x1b[31mError\x1b[0m")
    tab = open_tab()
    # The document of an unknown address has status 404, and the service goes "down" at the end.
    tab.expected = "Failed to load resource"

    def look(view: str) -> list[tuple[str, str]]:
        found = []
        if not tab.page.evaluate("'axe' in window"):
            tab.page.evaluate(axe)
        # Colours do not depend on the width.
        for width, is_dark, expression in ((1280, False, FINDINGS), (1280, True, COLOURS), (390, False, SHAPES)):
            tab.page.set_viewport_size({"width": width, "height": 760})
            tab.page.emulate_media(color_scheme="dark" if is_dark else "light", reduced_motion="reduce")
            at = f"{view}, {width}, {'dark' if is_dark else 'light'}"
            found += [(at, each) for each in tab.page.evaluate(expression)]
            if tab.page.evaluate("document.documentElement.scrollWidth > innerWidth"):
                found.append((at, "it is wider than the screen"))
        tab.page.set_viewport_size({"width": 1280, "height": 760})
        return found

    tab.page.goto(f"{tab.url}/ui/workflows/{workflow}{page}" if page else tab.url)
    tab.page.wait_for_selector("dialog.sign-in")
    found = look("sign-in")
    # With this token, the list has no workflows of other tests.
    token = page_service.token(workflow, "nothing")
    tab.page.evaluate("(token) => sessionStorage.setItem('chronoverse.token', token)", token)
    for view, (path, clicked, complete) in VIEWS[page].items():
        if path:
            tab.page.goto(tab.url + path.format(w=f"/ui/workflows/{workflow}"))
        else:
            tab.page.keyboard.press("Escape")
        for selector in filter(None, clicked.split(", ")):
            tab.page.locator(selector).first.click()
        tab.page.wait_for_selector(complete)
        found += look(view)
    tab.page.route(ROUTES, lambda route: route.abort())
    tab.page.goto(f"{tab.url}/ui/workflows/{workflow}{page}")
    tab.page.wait_for_selector(".trouble")
    found += look("down")
    assert found == []


def test_a_phone_has_large_controls_and_lines_wrap(browser: Browser, page_service: Service, failed: Job) -> None:
    """Buttons and fields measure at least 40 pixels, whatever the counts. Nothing is wider than the screen."""
    context = browser.new_context(viewport={"width": 360, "height": 760}, has_touch=True, is_mobile=True)
    tab = Tab(context, page_service).open(failed.ref)
    tab.wait_compared()
    assert tab.page.get_attribute("#wrap", "aria-pressed") == "true"
    for text in ("", "1 of 12,345+ · 40%"):
        tab.page.evaluate("(text) => document.querySelectorAll('.split b').forEach((b) => b.append(text))", text)
        controls: list[dict[str, Any]] = tab.page.evaluate(CONTROLS)
        assert {"nexterror", "nextnew"} <= {each["id"] for each in controls}
        assert [each for each in controls if min(each["width"], each["height"]) < 40] == []
    assert tab.page.evaluate(
        "[...document.querySelectorAll('body *')].every((e) => e.getBoundingClientRect().right <= 361)"
    )
    # A group's duration leaves the room to its name.
    tab.go_to(1)
    assert tab.page.locator(".row .took").first.evaluate("(took) => took.offsetWidth") < 100
    tab.page.tap("#view")
    controls = tab.page.evaluate(CONTROLS)
    assert [each for each in controls if min(each["width"], each["height"]) < 32] == []
    tab.page.tap("#stderr")
    tab.wait_text("#notice", "No matching lines.")
    assert tab.faults == []
    context.close()
