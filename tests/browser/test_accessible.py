"""The page of a job for all readers: what axe finds, the contrast of borders, the size of targets, and a phone."""

import re
import time
from collections.abc import Callable
from typing import Any, Final

import pytest
from playwright.sync_api import Browser

from chronoverse.joblog.labels import check_labels
from chronoverse.joblog.model import Status
from chronoverse.store import Store
from tests.browser.browsing import PATIENCE_SECONDS, Tab
from tests.browser.conftest import Job
from tests.browser.test_new_lines import GOOD, write_runs
from tests.support.service import Service
from tests.support.waiting import wait_until

pytestmark = pytest.mark.long

OpenTab = Callable[..., Tab]


def findings(options: str) -> str:
    """An expression for what axe-core finds with these options, of whatever impact."""
    violations = "violations.flatMap(({ id, nodes }) => nodes.map(({ html }) => `${id}: ${html}`))"
    return f"axe.run(document, {options}).then(({{ violations }}) => {violations})"


#: Everything, and with the rule for the size of targets.
FINDINGS: Final = findings('{ rules: { "target-size": { enabled: true } } }')
#: What may change with the colours of the page. The other rules find the same on a light and on a dark one.
COLOURS: Final = findings('{ runOnly: ["color-contrast", "link-in-text-block"] }')
#: What may change with the width of the page.
SHAPES: Final = findings('{ rules: { "target-size": { enabled: true }, "color-contrast": { enabled: false } } }')
#: Buttons and fields in view, with their sizes, and the contrast of their borders with what is around them.
CONTROLS: Final = """async () => {
    const { contrast } = await import("/ui/static/js/colour.js");
    const rgb = (text) => text.match(/[0-9.]+/g).map(Number);
    const around = (each) => {
        for (let at = each.parentElement; at; at = at.parentElement) {
            const found = rgb(getComputedStyle(at).backgroundColor);
            if (found[3] !== 0) return found;
        }
    };
    return Array.from(document.querySelectorAll(":is(button, input):not(.fold)")).filter((each) => each.offsetWidth)
        .map((each) => ({ id: each.id, width: each.offsetWidth, height: each.offsetHeight,
            contrast: contrast(rgb(getComputedStyle(each).borderTopColor), around(each)) }));
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


#: The views of the page: their addresses, what a reader clicks then, and what the view has when it is complete.
VIEWS: Final = {
    "home": ("/", "", "tbody tr"),
    "home, running": ("/?show=running", "", "tbody tr"),
    "account": ("/", "#account", "#accountbox dl"),
    "another token": ("/", "#account, #accountbox button", "dialog.sign-in"),
    "workflow": ("{w}", "", "tbody tr"),
    "workflow, labels": ("{w}?label=branch%3Dmain&label=commit%3D" + "4f0c1de" * 6, "", "#labels .chip"),
    "workflow, none": ("/ui/workflows/nothing", "", "#empty button"),
    "workflow, search": ("{w}?q=fine", "", "#progress:has-text('all jobs were searched')"),
    "workflow, bad expression": ("{w}?q=(&regex=true", "", "#progress.bad"),
    "running job": ("{w}/jobs/running", "", "#notify"),
    "failed job": ("{w}/jobs/failed", "", "#runs a"),
    "comparison": ("{w}/jobs/failed?new=true&against=good-1", "", "#runs a"),
    "search": ("{w}/jobs/failed?q=fine", "", ".row mark"),
    "bad expression": ("{w}/jobs/failed?q=(&regex=true", "", "#count.bad"),
    "selection": ("{w}/jobs/failed#L2-L3", "", "#picked"),
    "keys": ("{w}/jobs/failed", "#help", "#keys[open]"),
    "save": ("{w}/jobs/failed", "#download", "#downloads button"),
    "no such job": ("{w}/jobs/fialed", "", "#notice a"),
    "no such page": ("/ui/nope", "", "#ways a"),
}


#: The routes of the service, without the page's own files.
ROUTES: Final = re.compile(r"//[^/]+/workflows/")


@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing_in_the_list_of_views(
    open_tab: OpenTab, page_service: Service, page_store: Store, axe: str, width: int
) -> None:
    """Light and dark. The sign-in dialog and the bar of a service that is down are views, too."""
    workflow = f"views-{width}"
    for name in ("good-1", "good-2"):
        Job(page_store, name, workflow).lines("fine", "::group::Test", "ok", "::endgroup::").end()
    labels = check_labels({"branch": "main", "commit": "4f0c1de" * 6, "url": f"https://ci.example.com/{'x' * 200}"})
    Job(page_store, "failed", workflow, labels).lines("fine", "ok", "GatewayError: 409").end(Status.FAILED, 1)
    Job(page_store, "running", workflow).lines("fine", "\x1b[31mError\x1b[0m")
    tab = open_tab()
    tab.page.set_viewport_size({"width": width, "height": 760})
    # The document of an unknown address has the status 404, and the service is "down" at the end.
    tab.expected = "Failed to load resource"

    def look(view: str) -> list[tuple[str, str, str]]:
        found = []
        tab.page.evaluate(axe)
        # The colours do not depend on the width.
        tab.page.emulate_media(color_scheme="light", reduced_motion="reduce")
        found += [(view, "light", each) for each in tab.page.evaluate(FINDINGS if width > 700 else SHAPES)]
        if width > 700:
            tab.page.emulate_media(color_scheme="dark", reduced_motion="reduce")
            found += [(view, "dark", each) for each in tab.page.evaluate(COLOURS)]
        if tab.page.evaluate("document.documentElement.scrollWidth > innerWidth"):
            found.append((view, "", "it is wider than the screen"))
        return found

    tab.page.goto(tab.url)
    tab.page.wait_for_selector("dialog.sign-in")
    found = look("sign-in")
    tab.page.evaluate("(token) => sessionStorage.setItem('chronoverse.token', token)", page_service.token())
    for view, (path, clicked, complete) in VIEWS.items():
        tab.page.goto(tab.url + path.format(w=f"/ui/workflows/{workflow}"))
        for selector in filter(None, clicked.split(", ")):
            if width <= 700 and tab.page.locator(f"#tools {selector}").count():
                tab.page.click("#menu")
            tab.page.locator(selector).first.click()
        tab.page.wait_for_selector(complete, state="attached" if complete.startswith("#notify") else "visible")
        found += look(view)
    for path in (f"/ui/workflows/{workflow}", f"/ui/workflows/{workflow}/jobs/running"):
        tab.page.goto(tab.url + path)
        tab.page.wait_for_selector("tbody tr, .row")
        tab.page.route(ROUTES, lambda route: route.abort())
        tab.page.reload()
        tab.page.wait_for_selector(".trouble")
        found += look(f"{path}, down")
        tab.page.unroute(ROUTES)
    assert found == []


@pytest.mark.parametrize("width", [1280, 640, 390])
def test_axe_finds_nothing_in_any_view(open_tab: OpenTab, failed: Job, axe: str, width: int) -> None:
    """With all bars, a search, a selection, a dialog and the tools, light and dark. 640 pixels are 1280 at 200 %."""
    tab = open_tab()
    tab.page.set_viewport_size({"width": width, "height": 760})
    tab.open(failed.ref)
    tab.page.wait_for_selector("#runs a")
    tab.page.keyboard.press("e")
    tab.page.wait_for_selector("#nexterror")
    tab.page.evaluate(axe)
    if width <= 700:
        tab.page.click("#menu")
    tab.find("Gateway")
    tab.page.wait_for_selector(".row mark")
    tab.page.click(".row.current .n")
    for scheme in ("light", "dark"):
        tab.page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        found = FINDINGS if scheme == "light" else COLOURS
        assert (scheme, tab.page.evaluate(found)) == (scheme, [])
        controls: list[dict[str, Any]] = tab.page.evaluate(CONTROLS)
        assert {"q", "new", "copylink", "nexterror", "next"} <= {each["id"] for each in controls}
        assert [each for each in controls if each["contrast"] < 3 or min(each["width"], each["height"]) < 24] == []
    tab.page.click("#help")
    assert tab.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_phone_has_one_button_for_the_tools_and_lines_wrap(
    browser: Browser, page_service: Service, failed: Job
) -> None:
    """Buttons and fields have 40 pixels for a finger. Nothing is wider than the screen."""
    context = browser.new_context(viewport={"width": 390, "height": 760}, has_touch=True, is_mobile=True)
    tab = Tab(context, page_service).open(failed.ref)
    tab.page.wait_for_selector("#runs a")
    assert tab.page.get_attribute("#wrap", "aria-pressed") == "true"
    assert (tab.text("#tools"), tab.page.get_attribute("#menu", "aria-expanded")) == ("", "false")
    tab.page.tap("#menu")
    wait_until(lambda: "wrap" in tab.text("#tools"), PATIENCE_SECONDS, "the tools are shown")
    controls: list[dict[str, Any]] = tab.page.evaluate(CONTROLS)
    assert [each for each in controls if min(each["width"], each["height"]) < 40] == []
    assert tab.page.evaluate(
        "[...document.querySelectorAll('body *')].every((e) => e.getBoundingClientRect().right <= 391)"
    )
    tab.page.tap("#stderr")
    tab.wait_text("#notice", "No such lines.")
    assert tab.faults == []
    context.close()
