"""Where the time went, on the job page: the time strip, what was slower, and when the job usually ends."""

import re
import time
from collections.abc import Callable
from typing import Any, Final

import httpx
import pytest
from playwright.sync_api import Page, Position, Route

from chronoverse.auth.tokens import ADMIN
from chronoverse.joblog.model import Status
from chronoverse.store import Store
from tests.browser.browsing import PATIENCE_SECONDS, Tab, wait_until
from tests.browser.conftest import Job
from tests.browser.test_accessible import COLOURS, FINDINGS, SHAPES
from tests.browser.test_new_lines import COVERED, wait_current
from tests.support.service import Service

pytestmark = pytest.mark.long

OpenTab = Callable[..., Tab]

#: The route, but not the page's module of the same name.
ROUTE: Final = re.compile(r"/jobs/[^/]+/profile\?")


def line(number: int, message: str = "") -> dict[str, Any]:
    """A line of a response."""
    return {
        "timestamp": "2026-03-03T10:00:00.000Z",
        "message": message or f"step {number}",
        "sequence_num": number,
        "stream": "stdout",
    }


def pause(after: int, seconds: float, usual: float | None, excess: float = 0.0, message: str = "") -> dict[str, Any]:
    """A pause of a response."""
    spread = None if usual is None else {"least": usual / 2, "median": usual, "most": usual * 2}
    entry = {"after": line(after, message), "before": line(after + 1), "seconds": seconds, "usual": spread}
    return {**entry, "excess": excess}


def profile(job: Job, status: str, *, running: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """A profile of 100 s and 301 lines: 40 s of silence after line 101 (usually 0.1 s), later 5 s as usual."""
    slow = pause(101, 40.0, 0.1, 39.8, "\x1b[36mwaiting\x1b[0m for <b>the cache</b>")
    return {
        "job": {"id": job.ref.job_id, "status": status, "last_sequence_num": job.last},
        "compared_with": ["good-1"],
        "seconds": 100.0,
        "usual": {"least": 55.0, "median": 60.0, "most": 65.0},
        "slower": [slow],
        "pauses": [slow, pause(201, 5.0, 5.1), pause(250, 0.9, None)],
        "running": running,
        "complete": True,
        "strip": [[0.0, 1], [10.0, 101], [50.0, 102], [70.0, 201], [75.0, 202], [100.0, 301]],
        **more,
    }


def answer(tab: Tab, body: Callable[[], dict[str, Any]]) -> list[float]:
    """Responds to the tab's requests for the profile with ``body()``. Returns a growing list of their times."""
    asked: list[float] = []

    def fulfill(route: Route) -> None:
        asked.append(time.monotonic())
        route.fulfill(json=body())

    tab.page.route(ROUTE, fulfill)
    return asked


def moment(page: Page) -> str:
    """The strip's text about the place of the pointer or the focus."""
    return page.inner_text("#moment") if page.is_visible("#moment") else ""


def write(job: Job, *, waits: float = 0.0) -> Job:
    """Writes 60 lines, 0.1 s apart, with 4 s more after line 50, and ``waits`` seconds more after line 40."""
    for number in range(1, 61):
        job.lines("\x1b[36mwaiting\x1b[0m for <b>the cache</b>" if number == 40 else f"step {number}")
        job.wait({40: waits, 50: 4.0}.get(number, 0.0))
    return job


@pytest.fixture(scope="module")
def good_runs(page_store: Store) -> None:
    """Three good runs of the workflow ``slower``."""
    for number in range(3):
        write(Job(page_store, f"good-{number}", "slower")).end()


@pytest.mark.usefixtures("good_runs")
def test_a_time_strip_leads_to_what_was_slower(open_tab: OpenTab, page_store: Store, axe: str) -> None:
    """By click, key and link, and in words. Requested once, after the first lines are shown."""
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


@pytest.mark.usefixtures("good_runs")
def test_a_line_that_was_slower_and_is_redacted_is_blanked(
    open_tab: OpenTab, page_service: Service, page_store: Store
) -> None:
    """Immediately. The page requests the profile again later."""
    job = write(Job(page_store, "running", "slower"), waits=30.0)
    tab = open_tab(job.ref)
    tab.page.wait_for_selector("#slower:has-text('waiting for')")
    headers = {"Authorization": f"Bearer {page_service.token(scopes=[ADMIN])}"}
    path = f"{page_service.url}/workflows/slower/jobs/running/logs/redact"
    assert httpx.post(path, json={"from": 40, "to": 40}, headers=headers).status_code == 200
    tab.page.wait_for_selector("#slower", state="hidden")
    assert tab.page.is_visible("#strip")


def test_a_running_job_shows_when_it_usually_ends(open_tab: OpenTab, job: Job) -> None:
    """And an unusually long silence. The page requests it rarely, and never in a hidden tab."""
    job.lines(*(f"step {number}" for number in range(1, 302)))
    spread = {"least": 8.0, "median": 10.0, "most": 12.0}
    left = {"least": 650.0, "median": 652.0, "most": 655.0}
    running = {"silent_seconds": 2.0, "usual": spread, "seconds_left": left}
    tab = open_tab()
    tab.page.clock.install()
    answers: list[dict[str, Any]] = []
    usual = {"least": 5500.0, "median": 6000.0, "most": 6500.0}
    answers.append(profile(job, "RUNNING", running=running, slower=[], usual=usual))
    asked = answer(tab, lambda: answers[-1])
    tab.open(job.ref).wait_number(301)

    def forward(seconds: int, text: str) -> None:
        tab.page.clock.fast_forward(1000 * seconds)
        wait_until(lambda: text in tab.text("#usual"), PATIENCE_SECONDS, f"the card says {text!r}")

    forward(2, " · usually ends in 10 to 11 min")
    assert tab.text("#silent") == ""
    forward(60, " · usually ends in 9 to 10 min")
    assert tab.text("#silent") == "Silent for 1 min, usually 10 s"
    tab.wait_said("Silent for 1 min, usually 10 s")
    forward(240, " · usually ends in 5 to 6 min")
    assert len(asked) == 1
    tab.page.evaluate("Object.defineProperty(document, 'hidden', { configurable: true, get: () => true })")
    job.lines("step 302")
    tab.page.clock.fast_forward(2000)
    tab.wait_number(302)
    forward(60, " · usually ends in 4 to 5 min")
    assert (len(asked), tab.text("#silent")) == (1, "")
    tab.page.evaluate("delete document.hidden")
    forward(2, " · usually ends in 10 to 11 min")
    job.lines("step 303")
    tab.wait_number(303)
    assert len(asked) == 2
    answers.append(profile(job, "COMPLETED", seconds=60.0))
    job.end()
    tab.wait(lambda rows: len(asked) == 3, "the profile is asked for at the end")
    tab.page.clock.fast_forward(100_000)
    assert (len(asked), tab.text("#card")) == (3, "")
    # What was slower is marked, but the card mentions it only if the whole job was slower.
    assert (tab.page.get_attribute("#strip .slow", "d"), tab.text("#slower")) == ("M100.0 0V16M100.0 8H500.0", "")
