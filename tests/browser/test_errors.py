"""Errors on the screen: marked, counted, stepped through, and shown in the log's ruler."""

from collections.abc import Callable

import pytest

from tests.browser.browsing import PATIENCE_SECONDS, Tab, wait_until
from tests.browser.conftest import Job
from tests.browser.test_new_lines import wait_current

pytestmark = pytest.mark.long

OpenTab = Callable[..., Tab]

#: The positions of marks in the ruler, in thousandths of its height.
MARKS = """() => Array.from(document.querySelectorAll("#ruler path"), (each) => each.getAttribute("d") ?? "")
    .flatMap((d) => Array.from(d.matchAll(/M0 ([0-9]+)/g), ([, y]) => Number(y)))"""


def test_errors_are_stepped_through(open_tab: OpenTab, job: Job) -> None:
    """With keys and buttons, wrapping around. Errors on stdout count, too, and "0 errors" does not."""
    job.lines(*["fine"] * 99, "TypeError: x is not a function", *["fine, 0 errors"] * 150)
    job.lines("panic: runtime error", stream="stderr").lines(*["fine"] * 148, "\x1b[31mfailed\x1b[0m").end()
    tab = open_tab(job.ref).wait_number(1)
    assert tab.page.evaluate(MARKS) == []
    tab.page.keyboard.press("e")
    wait_current(tab, 100)
    tab.wait_text("#errorcount", "1 of 3")
    assert tab.page.locator(".row.error").get_attribute("data-number") == "100"
    assert tab.page.locator(".row.error .sr").all_text_contents() == ["error "]
    tab.page.keyboard.press("e")
    wait_current(tab, 251)
    tab.page.click("#nexterror")
    wait_current(tab, 400)
    tab.wait_text("#errorcount", "3 of 3")
    tab.page.keyboard.press("e")
    wait_current(tab, 100)
    tab.page.keyboard.press("Shift+E")
    wait_current(tab, 400)
    tab.page.click("#previouserror")
    wait_current(tab, 251)
    marks = [int((number - 1) / 400 * 1000) for number in (100, 251, 400)]
    wait_until(lambda: tab.page.evaluate(MARKS) == marks, PATIENCE_SECONDS, f"there are marks at {marks}")
    height = tab.page.evaluate("document.getElementById('log').clientHeight")
    tab.page.click("#ruler", position={"x": 3, "y": marks[0] * height / 1000 + 2})
    wait_current(tab, 100)
    tab.page.click("#errors")
    tab.wait(lambda rows: [number for number, _ in rows] == [100, 251, 400], "the errors alone")
    tab.page.click("#errors")
    tab.wait(lambda rows: rows[1][0] - rows[0][0] == 1, "every line")
    wait_until(lambda: tab.page.evaluate(MARKS) == [], PATIENCE_SECONDS, "there is no mark")
    assert tab.text("#errorcount") == "3"


def test_dragging_the_scroll_bar_shows_the_line_number(open_tab: OpenTab, big: Job) -> None:
    """The label disappears by itself. The wheel and the keys do not show it."""
    tab = open_tab(big.ref).wait_number(1)
    tab.wheel(400)
    tab.wait(lambda rows: rows[0][0] == 21, "the wheel has scrolled")
    assert tab.text("#place") == ""
    # It disappears too soon for polling on a busy machine.
    drag = """() => new Promise((shown) => {
        const place = document.getElementById("place");
        new MutationObserver(() => place.hidden || shown(place.innerText)).observe(place, { attributes: true });
        document.getElementById("log").scrollTop = 20 * 12_499;
    })"""
    assert tab.page.evaluate(drag) == "line 12,500 of 25,000"
    tab.wait_text("#place", "")
    tab.wait_number(12_500)
