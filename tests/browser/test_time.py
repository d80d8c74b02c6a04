"""Where the time went, on the job page: the time strip, and what was slower."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, Position

from chronoverse.joblog.model import Status
from chronoverse.store import Store
from tests.browser.browsing import Tab
from tests.browser.conftest import Job
from tests.browser.test_accessible import COLOURS, FINDINGS, SHAPES
from tests.browser.test_new_lines import COVERED, wait_current

pytestmark = pytest.mark.long

OpenTab = Callable[..., Tab]


def moment(page: Page) -> str:
    """The strip's text about the place of the pointer or the focus."""
    return page.inner_text("#moment") if page.is_visible("#moment") else ""


def write(job: Job, *, waits: float = 0.0) -> Job:
    """Writes 60 lines, 0.1 s apart, with 4 s more after line 50, and ``waits`` seconds more after line 40."""
    for number in range(1, 61):
        job.lines("\x1b[36mwaiting\x1b[0m for <b>the cache</b>" if number == 40 else f"step {number}")
        job.wait({40: waits, 50: 4.0}.get(number, 0.0))
    return job


def test_a_time_strip_leads_to_what_was_slower(open_tab: OpenTab, page_store: Store, axe: str) -> None:
    """By click, key and link, and in words. Requested once, after the first lines are shown."""
    for number in range(3):
        write(Job(page_store, f"good-{number}", "slower")).end()
    job = write(Job(page_store, "slow", "slower"), waits=30.0).end(Status.FAILED, 1)
    tab = open_tab()
    page = tab.page
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    tab.open(job.ref).wait_number(60)
    page.wait_for_selector("#strip:not(.empty)")
    times = """() => Object.fromEntries(performance.getEntriesByType("resource")
        .map(({ name, startTime, responseEnd }) => [name.split("?")[0].split("/").pop(), [startTime, responseEnd]]))"""
    entries = page.evaluate(times)
    assert entries["profile"][0] > entries["logs"][1]

    said = "30.1 s here, usually 0.1 s · after line 40"
    track = page.locator("#strip .track")

    def at(seconds: float) -> Position:
        box = track.bounding_box()
        assert box is not None
        return {"x": seconds / 39.9 * box["width"], "y": 25}

    track.hover(position=at(20))
    assert moment(page) == said
    track.hover(position=at(37))
    assert moment(page) == "4.1 s here, usually 4.1 s · after line 50"
    track.click(position=at(20))
    wait_current(tab, 40)
    track.click(position=at(34.55))
    wait_current(tab, 46)
    page.keyboard.press("p")
    wait_current(tab, 40)
    tab.wait_said(said)

    slider = page.get_by_role("slider", name="Time in the log")
    slider.focus()
    page.keyboard.press("Home")
    wait_current(tab, 1)
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    wait_current(tab, 40)
    assert slider.evaluate("(each) => each.ariaValueText") == said
    assert moment(page) == said
    page.keyboard.press("Escape")
    assert moment(page) == ""
    page.keyboard.press("End")
    wait_current(tab, 60)
    page.keyboard.press("Enter")
    page.keyboard.press("g")
    tab.wait_number(1)

    assert page.text_content("#slower") == "30.0 s slower after line 40: waiting for <b>the cache</b> (usually 0.1 s)"
    page.click("#slower a")
    wait_current(tab, 40)
    assert tab.address.endswith("#L40")
    tab.wait_compared()
    page.evaluate(axe)
    for width, found in ((1280, FINDINGS), (390, SHAPES)):
        page.set_viewport_size({"width": width, "height": 760})
        page.emulate_media(color_scheme="light", reduced_motion="reduce")
        slider.focus()
        assert (width, page.evaluate(found), page.evaluate(COVERED)) == (width, [], [])
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.evaluate("document.getElementById('slower').scrollWidth <= innerWidth")
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(COLOURS) == []
    assert sum("/profile?" in url for url in asked) == 1
