"""The log's height at every window size, and keys after a click."""

from collections.abc import Callable
from typing import Final

import pytest
from playwright.sync_api import Route

from chronoverse.joblog.labels import check_labels
from chronoverse.joblog.model import Status
from chronoverse.store import Store
from tests.browser.browsing import Tab
from tests.browser.conftest import Job
from tests.browser.test_new_lines import wait_current

pytestmark = pytest.mark.long

OpenTab = Callable[..., Tab]

#: Window sizes. 720x450 and 683x384 are 1440x900 and 1366x768 at 200 % zoom.
SIZES: Final = ((320, 568), (360, 640), (844, 390), (720, 450), (683, 384), (1024, 768), (2560, 1440))

#: The visible fraction of the window that the log takes up; and the sum of the layout shifts.
SHARE: Final = """() => {
    const { top, bottom } = document.getElementById("log").getBoundingClientRect();
    return (Math.min(bottom, innerHeight) - Math.max(0, top)) / innerHeight;
}"""
SHIFTS: Final = """window.shifted = 0;
    window.shifts = [];
    new PerformanceObserver((list) => list.getEntries().forEach(({ value, sources }) => {
        window.shifted += value;
        window.shifts.push([value, ...sources.map(({ node }) => node?.id || node?.className)]);
    }))
        .observe({ type: "layout-shift", buffered: true });"""
#: Whether the status is next to the job's name, and whether the name is truncated.
HEAD: Final = """() => {
    const [name, badge] = ["name", "badge"].map((id) => document.getElementById(id));
    const isBeside = badge.getBoundingClientRect().top < name.getBoundingClientRect().bottom;
    return [isBeside, name.scrollWidth > name.clientWidth];
}"""


@pytest.fixture(scope="module")
def failed(page_store: Store) -> Job:
    """A failed job with a long cause, groups, labels, and earlier good runs."""
    lines = [
        "##[group]Install",
        "a line",
        "##[endgroup]",
        "##[group]Test",
        *(f"test {number} passed" for number in range(200)),
    ]
    labels = check_labels({"branch": "main", "commit": "4f0c1de" * 5, "os": "linux", "url": "https://ci.example.com/1"})
    for number in range(3):
        Job(page_store, f"good-{number}", "layout", labels).lines(*lines, "##[endgroup]").end()
    cause = f"AssertionError: expected {'a very long value ' * 12} but got another one"
    job = (
        Job(page_store, f"failed-{'in-a-job-with-a-long-name-' * 4}1", "layout", labels)
        .lines(*lines)
        .wait(60)
        .lines(cause, "##[endgroup]")
    )
    return job.end(Status.FAILED, 1)


def test_the_log_gets_half_of_every_window(open_tab: OpenTab, failed: Job) -> None:
    """With the card, the tools and the strip, and the cause in view. Nothing moves while the page opens."""
    for width, height in SIZES:
        tab = open_tab()
        tab.page.add_init_script(SHIFTS)
        tab.page.set_viewport_size({"width": width, "height": height})
        tab.open(failed.ref)
        tab.wait_compared()
        wait_current(tab, 205)
        size = (width, height)
        assert (size, tab.page.evaluate(SHARE) >= 0.5) == (size, True)
        assert tab.page.evaluate("shifted") < 0.05, (size, tab.page.evaluate("shifts"))
        assert (size, tab.page.evaluate("document.documentElement.scrollWidth > innerWidth")) == (size, False)
        assert tab.text("#summary code").startswith("AssertionError: expected a very long value")
        assert tab.page.is_visible("#gocause")
        assert tab.page.is_visible("#copycause")
        # A long name takes one line until it is tapped.
        assert (size, tab.page.evaluate(HEAD)) == (size, [True, width < 2560])
        tab.page.click("#name")
        assert (size, tab.page.evaluate(HEAD)[1]) == (size, False)


@pytest.mark.parametrize("size", [(320, 568), (360, 640), (390, 844), (1440, 900)], ids=str)
def test_a_late_cause_moves_nothing(open_tab: OpenTab, failed: Job, size: tuple[int, int]) -> None:
    """The log is shown before its cause and what was slower, which then take no more room than was reserved."""
    tab = open_tab()
    tab.page.set_viewport_size({"width": size[0], "height": size[1]})
    held: list[Route] = []
    tab.page.route("**/summary?*", lambda route: held.append(route))
    tab.open(failed.ref).wait(lambda rows: held, "the log is shown")
    top = "document.getElementById('log').getBoundingClientRect().top"
    before = tab.page.evaluate(top)
    held[0].continue_()
    tab.wait_compared()
    tab.page.wait_for_selector("#slower a", state="attached")
    assert abs(tab.page.evaluate(top) - before) <= 1


def test_a_printed_page_has_the_cause_and_whole_lines(open_tab: OpenTab, failed: Job) -> None:
    """Without controls. Nothing is cut at the edge of the window or of the paper."""
    tab = open_tab(failed.ref)
    tab.wait_compared()
    wait_current(tab, 205)
    tab.page.emulate_media(media="print")
    tab.page.set_viewport_size({"width": 700, "height": 300})
    shown = [each for each in ("#summary", "#badge", ".row.current", "#tools", "#strip") if tab.page.is_visible(each)]
    assert shown == ["#summary", "#badge", ".row.current"]
    assert tab.page.evaluate(
        """() => [document.documentElement.scrollWidth > innerWidth, document.body.scrollHeight > innerHeight,
            getComputedStyle(document.getElementById("log")).overflowY]"""
    ) == [False, True, "visible"]


def test_keys_work_after_a_click_in_the_search_box(open_tab: OpenTab, big: Job) -> None:
    """On one of its buttons. In its field, keys are text."""
    tab = open_tab(big.ref).wait_number(1)
    for button in ("#regex", "#regex"):
        tab.page.click(button)
        assert tab.page.evaluate("document.activeElement.id") == "log"
    tab.find("line 2000")
    tab.wait_text("#count", "1 of 11")
    tab.page.click("#next")
    tab.page.keyboard.press("g")
    tab.wait_number(1)
    tab.page.click("#q")
    tab.page.keyboard.type("g")
    assert tab.page.input_value("#q") == "line 2000g"
    assert tab.numbers()[0] == 1
    # On phones, the field changes between press and release.
    tab.page.keyboard.press("Escape")
    tab.page.set_viewport_size({"width": 390, "height": 844})
    tab.page.click("#q")
    tab.page.keyboard.type("line")
    assert tab.page.input_value("#q") == "line"


def test_forced_colours_keep_statuses_and_toggles(open_tab: OpenTab, failed: Job) -> None:
    """Icons have their text's colour, and pressed buttons the colour of selected text."""
    tab = open_tab(failed.ref)
    tab.wait_compared()
    tab.page.wait_for_selector("#steps .area")
    tab.page.click("#new")
    tab.page.emulate_media(forced_colors="active")
    colours = """() => ["#badge .area", "#steps .area", "#new", "#view"].map((selector) => {
        const { fill, backgroundColor } = getComputedStyle(document.querySelector(selector));
        return selector.includes(".area") ? fill : backgroundColor;
    })"""
    badge, step, pressed, other = tab.page.evaluate(colours)
    ground = tab.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert badge != ground
    assert step != ground
    assert pressed != other
