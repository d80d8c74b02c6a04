"""Page states: an unknown address, a quiet job, an ended one, a paused search, a notification."""

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Browser, Route

from chronoverse.joblog.model import Status
from tests.browser.browsing import PATIENCE_SECONDS, Tab, wait_until
from tests.browser.conftest import Job
from tests.support.service import Service

pytestmark = pytest.mark.long

OpenTab = Callable[..., Tab]

#: Records the page's notifications, because a test cannot see the browser's.
RECORD = """() => {
    window.shown = [];
    window.Notification = class extends Notification {
        constructor(title, options) {
            super(title, options);
            window.shown.push([title, options.body]);
        }
    };
}"""


def test_an_unknown_address_shows_links(open_tab: OpenTab, page_service: Service) -> None:
    """To its workflow, and to all workflows, without a sign-in."""
    tab = open_tab()
    # The document itself has status 404.
    tab.expected = "404"
    tab.page.goto(f"{tab.url}/ui/workflows/page/jobs#token={page_service.token()}")
    tab.page.wait_for_selector("#ways a:text-is('page')")
    assert "Page not found" in tab.text("main")
    links = "(links) => links.map((each) => each.getAttribute('href'))"
    assert tab.page.locator("#ways a").evaluate_all(links) == ["/", "/ui/workflows/page"]


def test_the_last_row_shows_the_jobs_state(open_tab: OpenTab, job: Job) -> None:
    """How long a running job has been quiet, and how it ended. In view only at the end."""
    job.lines(*(f"line {number}" for number in range(1, 101)))
    tab = open_tab(job.ref).wait_number(100)
    tab.page.wait_for_selector(".row[data-number='100'] + .foot:has-text('Running · last line ')")
    foot, log = tab.page.locator(".foot").bounding_box(), tab.page.locator("#log").bounding_box()
    assert foot is not None
    assert log is not None
    assert abs(foot["y"] + foot["height"] - log["y"] - log["height"]) <= 2
    job.lines("line 101").end(Status.FAILED, 3)
    tab.page.wait_for_selector(".row[data-number='101'] + .foot:has-text('Failed · exit 3 after ')")
    tab.wait_number(101)
    tab.page.keyboard.press("g")
    tab.wait_number(1)
    assert tab.page.locator(".foot").count() == 0
    tab.page.keyboard.press("w")
    tab.page.keyboard.press("G")
    tab.wait_number(101)
    tab.page.wait_for_selector(".row[data-number='101'] + .foot")


def test_a_reader_is_notified_of_the_end_on_request(open_tab: OpenTab, job: Job) -> None:
    """By the browser, which asks for permission only on a click. An ended job has no button for it."""
    job.lines("a line")
    tab = open_tab()
    tab.page.context.grant_permissions(["notifications"])
    tab.page.add_init_script(f"({RECORD})()")
    tab.open(job.ref).wait_number(1)
    tab.view("#notify")
    tab.page.wait_for_selector("#notify[aria-pressed=true]", state="attached")
    job.end(Status.FAILED, 3)
    wait_until(lambda: tab.page.evaluate("window.shown.length") == 1, PATIENCE_SECONDS, "the notification")
    assert tab.page.evaluate("window.shown") == [[f"{job.ref.job_id}: Failed · exit 3", tab.url.partition("://")[2]]]
    tab.page.wait_for_selector("#notify[hidden]", state="attached")


def test_a_phone_has_no_button_for_notifications(browser: Browser, page_service: Service, job: Job) -> None:
    """Phones have the class but refuse to construct it, which must not break the page at the job's end."""
    job.lines("a line")
    context = browser.new_context(viewport={"width": 390, "height": 760}, has_touch=True, is_mobile=True)
    tab = Tab(context, page_service).open(job.ref).wait_number(1)
    assert tab.page.evaluate("'Notification' in window")
    assert tab.page.get_attribute("#notify", "hidden") is not None
    job.end()
    tab.page.wait_for_selector(".row[data-number='1'] + .foot")
    assert tab.faults == []
    context.close()


#: The routes of lines, but not that of a search.
LINES = re.compile(r"/logs\?offset=")


def test_a_jump_shows_that_its_lines_are_late(open_tab: OpenTab, big: Job) -> None:
    """Within a second: the service's response, or that there is none. Disappears when the lines arrive."""
    tab = open_tab(big.ref).wait_number(1)
    tab.expected = "status of 503"
    problem = {"status": 503, "title": "Service Unavailable", "detail": "the store does not answer"}
    tab.page.route(LINES, lambda route: route.fulfill(status=503, json=problem))
    took = """(number) => new Promise((done) => {
        const began = performance.now();
        const look = () => document.querySelector(".trouble:not([hidden])") ? done(performance.now() - began)
            : setTimeout(look, 20);
        location.hash = `L${number}`;
        look();
    })"""
    assert tab.page.evaluate(took, 20_000) < 1000
    assert "The service returned 503: the store does not answer. Next attempt in" in tab.text(".trouble")
    tab.page.unroute(LINES)
    tab.wait_number(20_000)
    tab.page.wait_for_selector(".trouble", state="hidden")
    held: list[Route] = []
    tab.page.route(LINES, lambda route: held.append(route))
    assert tab.page.evaluate(took, 10_000) < 1000 + 400
    assert "Still waiting for the service." in tab.text(".trouble")
    for route in held:
        route.continue_()
    tab.page.unroute(LINES)
    tab.wait_number(10_000)
    tab.page.wait_for_selector(".trouble", state="hidden")
