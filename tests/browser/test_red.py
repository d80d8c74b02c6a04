"""Failing jobs on the home page and on a workflow's page, the account button, and the texts of a waiting page."""

from collections.abc import Callable

import pytest

from chronoverse.auth.tokens import WRITE
from chronoverse.joblog.model import Status
from chronoverse.store import Store
from tests.browser.browsing import PATIENCE_SECONDS, Tab, wait_until
from tests.browser.conftest import Job
from tests.support.service import Service

pytestmark = pytest.mark.long

OpenTab = Callable[..., Tab]

NAMES = "() => [...document.querySelectorAll('tbody .who a')].map((each) => each.textContent)"


@pytest.fixture(scope="module")
def red(page_store: Store) -> None:
    """A good workflow, a running one, a red one, a lost one and another good one, in this order."""
    for name, statuses in {
        "red-good": [Status.COMPLETED],
        "red-failed": [Status.COMPLETED, Status.FAILED, Status.FAILED],
        "red-runs": [Status.FAILED, Status.COMPLETED],
        "red-lost": [Status.COMPLETED, Status.LOST],
        "red-good-too": [Status.COMPLETED],
    }.items():
        for number, status in enumerate(statuses):
            Job(page_store, f"{name}-{number}", name).lines("a line").end(status, int(status is Status.FAILED))
    Job(page_store, "red-runs-now", "red-runs").lines("a line")


def test_the_home_page_shows_what_is_red(open_tab: OpenTab, page_service: Service, red: None) -> None:
    """Red workflows come first, then running ones. A click leads to the last run. The field filters as you type."""
    tab = open_tab()
    tab.page.goto(f"{tab.url}/#token={page_service.token()}")
    tab.page.wait_for_selector("tbody tr")
    tab.page.fill("#workflow", "RED-")
    order = ["red-lost", "red-failed", "red-runs", "red-good-too", "red-good"]
    wait_until(lambda: tab.page.evaluate(NAMES) == order, PATIENCE_SECONDS, "red ones first")
    row = tab.page.locator("tbody tr:has(a:text-is('red-failed'))")
    assert row.locator(".who").get_attribute("data-status") == "FAILED"
    dots = "(dots) => dots.map((each) => [each.dataset.status, each.getAttribute('href').split('/').pop()])"
    row.locator(".dots a").nth(2).wait_for()
    assert row.locator(".dots > *").evaluate_all(dots) == [
        ["COMPLETED", "red-failed-0"],
        ["FAILED", "red-failed-1"],
        ["FAILED", "red-failed-2"],
    ]
    wait_until(lambda: row.locator(".since").inner_text() == "failing for 1 min", PATIENCE_SECONDS, "since when")
    wait_until(lambda: row.locator(".why").inner_text() == "a line", PATIENCE_SECONDS, "why")
    tab.page.click("#kinds [data-kind=red]")
    assert tab.page.evaluate(NAMES) == order[:2]
    tab.page.reload()
    tab.page.wait_for_selector("tbody tr")
    tab.page.click("#kinds [data-kind=running]")
    tab.page.fill("#workflow", "red-")
    assert tab.page.evaluate(NAMES) == ["red-runs"]
    tab.page.press("#workflow", "Enter")
    tab.page.wait_for_url("**/ui/workflows/red-runs")
    tab.page.goto(f"{tab.url}/?show=red")
    tab.page.click("tbody tr:has(a:text-is('red-failed')) .when a")
    tab.page.wait_for_url("**/ui/workflows/red-failed/jobs/red-failed-2*")
    tab.wait_number(1)


def test_a_token_can_be_replaced_or_removed(open_tab: OpenTab, page_service: Service, job: Job) -> None:
    """A refusal and the account button name its owner. Signing out applies to tabs opened later, too."""
    job.lines("a line").end()
    tab = open_tab()
    tab.expected = "Failed to load resource"
    tab.page.goto(f"{tab.url}/ui/workflows/page/jobs/{job.ref.job_id}#token={page_service.token(scopes=[WRITE])}")
    tab.page.wait_for_selector("#notice:text-is('the token lacks the scope logs:read. Signed in as tests.')")
    tab.page.goto(f"{tab.url}/ui/workflows/page#token={page_service.token('shop-web')}")
    said = "Signed in as tests. This token is for shop-web. Ask for access to page."
    tab.page.wait_for_selector(f"#empty:has-text('{said}')")
    tab.page.click("#account")
    assert "shop-web" in tab.text("#accountbox")
    tab.page.click("#accountbox button:text-is('Use another token')")
    tab.page.click(".sign-in button:text-is('Cancel')")
    tab.page.click("#empty button:text-is('Use another token')")
    tab.page.fill(".sign-in input", page_service.token())
    tab.page.click(".sign-in button:text-is('Sign in')")
    tab.page.wait_for_selector("tbody tr")
    second = Tab(tab.page.context, page_service)
    second.page.goto(tab.address)
    second.page.wait_for_selector("tbody tr")
    tab.page.click("#account")
    tab.page.click("#accountbox button:text-is('Sign out')")
    for each in (tab, second):
        each.page.wait_for_selector(".sign-in")
        assert each.page.evaluate("() => sessionStorage.length") == 0
    third = Tab(tab.page.context, page_service)
    third.page.goto(f"{tab.url}/ui/workflows/page/jobs/{job.ref.job_id}")
    third.page.wait_for_selector(".sign-in")


def test_a_page_shows_its_jobs_state(open_tab: OpenTab, page_service: Service, job: Job) -> None:
    """When it started and how long it took, in the browser's tab, too; and that the address's line does not exist."""
    job.lines("a line")
    tab = open_tab(job.ref).wait_number(1)
    icon = "() => document.querySelector('link[rel=icon]').getAttribute('href')"
    assert tab.page.evaluate(icon) == "/ui/static/icon-running.svg"
    assert "just now" in tab.text("#facts")
    job.end(Status.FAILED, 1)
    tab.wait_text("#badge", "Failed · exit 1")
    tab.page.wait_for_selector(".foot:has-text('Failed · exit 1 after ')")
    assert tab.page.evaluate(icon) == "/ui/static/icon-failed.svg"
    tab.page.evaluate("location.hash = 'L99999'")
    tab.wait_text("#link", "no line 99,999: the log ends at line 1")


def test_a_link_to_a_line_of_an_empty_log_selects_nothing(open_tab: OpenTab, job: Job) -> None:
    job.end(Status.COMPLETED, 0)
    tab = open_tab(job.ref)
    tab.wait_text("#badge", "Completed")
    tab.page.evaluate("location.hash = 'L9'")
    tab.wait_text("#link", "no line 9: no output")
    assert tab.page.evaluate("[location.hash, document.querySelector('#picked').hidden]") == ["#L9", True]


def test_requests_to_a_service_that_is_down_are_retried(open_tab: OpenTab, page_service: Service, job: Job) -> None:
    """The job's page and its workflow's page count down, and continue automatically or on a click."""
    job.lines("a line")
    tab, jobs = open_tab(job.ref).wait_number(1), open_tab()
    jobs.page.goto(f"{jobs.url}/ui/workflows/page#token={page_service.token()}")
    jobs.page.wait_for_selector("tbody tr")
    tab.expected = jobs.expected = "net::ERR_"
    page_service.kill()
    for each in (tab, jobs):
        each.page.wait_for_selector(".trouble:has-text('The service does not answer.')")
    page_service.start()
    job.lines("another line")
    for each in (tab, jobs):
        # In one step: the button disappears after an automatic retry.
        each.page.evaluate("document.querySelector('.trouble:not([hidden]) button')?.click()")
        each.page.wait_for_selector(".trouble", state="hidden")
    tab.wait_number(2)
