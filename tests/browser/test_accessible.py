"""The page of a job for all readers: what axe finds, the contrast of borders, the size of targets, and a phone."""

import time
from collections.abc import Callable
from typing import Any, Final

import pytest
from playwright.sync_api import Browser

from chronoverse.store import Store
from tests.browser.browsing import PATIENCE_SECONDS, Tab
from tests.browser.conftest import Job
from tests.browser.test_new_lines import GOOD, write_runs
from tests.support.service import Service
from tests.support.waiting import wait_until

pytestmark = pytest.mark.long

OpenTab = Callable[..., Tab]

#: Everything that axe-core finds, of whatever impact, and with the rule for the size of targets.
FINDINGS: Final = """axe.run(document, { rules: { "target-size": { enabled: true } } })
    .then(({ violations }) => violations.flatMap(({ id, nodes }) => nodes.map(({ html }) => `${id}: ${html}`)))"""
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
    assert tab.page.evaluate(FINDINGS) == []
    if width <= 700:
        tab.page.click("#menu")
    tab.find("Gateway")
    tab.page.wait_for_selector(".row mark")
    tab.page.click(".row.current .n")
    for scheme in ("light", "dark"):
        tab.page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        assert (scheme, tab.page.evaluate(FINDINGS)) == (scheme, [])
        controls: list[dict[str, Any]] = tab.page.evaluate(CONTROLS)
        assert {"q", "new", "copylink", "nexterror", "next"} <= {each["id"] for each in controls}
        assert [each for each in controls if each["contrast"] < 3 or min(each["width"], each["height"]) < 24] == []
    tab.page.click("#help")
    assert tab.page.evaluate(FINDINGS) == []
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
