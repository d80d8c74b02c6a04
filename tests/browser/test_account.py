"""The account button, links to missing lines, and a service that is down."""

from collections.abc import Callable

import pytest

from chronoverse.auth.rights import WRITE
from chronoverse.joblog.model import Status
from tests.browser.browsing import Tab
from tests.browser.conftest import Job
from tests.support.service import Service

pytestmark = pytest.mark.long

OpenTab = Callable[..., Tab]


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
        each.page.wait_for_selector(".trouble:has-text('The service is not responding.')")
    page_service.start()
    job.lines("another line")
    for each in (tab, jobs):
        # In one step: the button disappears after an automatic retry.
        each.page.evaluate("document.querySelector('.trouble:not([hidden]) button')?.click()")
        each.page.wait_for_selector(".trouble", state="hidden")
    tab.wait_number(2)
