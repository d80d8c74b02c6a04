"""Errors on the screen: marked, counted, stepped through, and shown in the log's ruler."""

from collections.abc import Callable

import pytest

from chronoverse.joblog.model import Status
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


def test_the_ruler_shows_a_running_jobs_matches_and_errors_live(open_tab: OpenTab, job: Job) -> None:
    """Counted without a click or a request, and only on stderr if only that is shown."""
    job.lines(*["fine"] * 500)
    tab = open_tab(job.ref).wait_number(500)
    tab.wait_text("#errorcount", "0")
    assert tab.text("#firsterror") == ""
    asked: list[str] = []
    tab.page.on("request", lambda request: asked.append(request.url))
    job.lines("error: disk full", "fine").lines("error: disk full", stream="stderr")
    tab.wait_text("#errorcount", "2")
    tab.wait_text("#firsterror", "2 errors so far, first in line 501")
    assert [url for url in asked if "/logs/search" in url] == []
    assert tab.page.evaluate(MARKS) == []
    tab.page.click("#errors")
    tab.wait(lambda rows: [number for number, _ in rows] == [501, 503], "the errors alone")
    job.lines("error: disk full").end(Status.FAILED, 1)
    tab.wait(lambda rows: [number for number, _ in rows] == [501, 503, 504], "one error more")
    tab.page.click("#errors")
    tab.page.keyboard.press("e")
    wait_until(lambda: len(tab.page.evaluate(MARKS)) == 3, PATIENCE_SECONDS, "there are marks at the end")
    tab.find("fine")
    wait_until(lambda: len(tab.page.evaluate(MARKS)) == 504, PATIENCE_SECONDS, "each match and error has a mark")
    tab.page.press("#q", "Escape")
    tab.view("#stderr")
    tab.wait_text("#errorcount", "1")


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
