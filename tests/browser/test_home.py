"""The home page: signing in, and storing the token."""

import shlex
from collections.abc import Callable

import pytest
from playwright.sync_api import Browser

from chronoverse.auth.rights import WRITE
from tests.browser.browsing import Tab
from tests.browser.conftest import Job
from tests.support.commands import run_chronoverse
from tests.support.service import Service

pytestmark = pytest.mark.long

OpenTab = Callable[..., Tab]


def test_a_token_is_asked_for_and_stays_in_the_tab(
    browser: Browser, open_tab: OpenTab, page_service: Service, job: Job
) -> None:
    """The token is in no address that a server sees, no history, and no storage that outlives the tab."""
    job.lines("secret").end()
    token = page_service.token()
    requested: list[str] = []
    tab = open_tab()
    tab.expected = "401"
    tab.page.on("request", lambda request: requested.append(request.url))
    tab.page.goto(f"{tab.url}/ui/workflows/page/jobs/{job.ref.job_id}")
    tab.page.fill(".sign-in input", "not a token")
    tab.page.click(".sign-in button")
    tab.page.wait_for_selector(".sign-in p:has-text('Token rejected: the Authorization header is not a bearer token')")
    assert not tab.page.evaluate("() => sessionStorage.length")
    tab.page.fill(".sign-in input", "not ☂ a token")
    tab.page.click(".sign-in button")
    tab.page.wait_for_selector(".sign-in p:has-text('Not a token.')")
    tab.page.fill(".sign-in input", f"  Bearer {token} ")
    tab.page.click(".sign-in button")
    tab.wait_number(1)
    stored = tab.page.evaluate("() => [{ ...localStorage }, { ...sessionStorage }, document.cookie]")

    assert token not in "".join(requested)
    assert stored[1] == {"chronoverse.token": token}
    assert token not in str([stored[0], stored[2]])
    assert token not in page_service.logs()
    second = Tab(tab.page.context, page_service)
    second.page.goto(tab.address)
    second.wait_number(1)
    second.page.goto(f"{tab.url}/?workflow=page#token={token}")
    second.page.wait_for_selector("tbody tr")
    assert second.page.url == f"{tab.url}/ui/workflows/page"
    assert second.faults == []


def test_a_link_signs_in_an_open_page(open_tab: OpenTab, page_service: Service, job: Job) -> None:
    """Whether it asks for a token or has another. Afterwards the link's token is in no address and no history."""
    job.lines("one", "two").end()
    page = open_tab().page
    address = f"{page_service.url}/ui/workflows/page/jobs/{job.ref.job_id}"
    page.goto(address)
    page.wait_for_selector(".sign-in")
    for token in (page_service.token(), page_service.token("page")):
        page.evaluate("(token) => { location.hash = `L2&token=${token}`; }", token)
        page.wait_for_selector(".row.picked[data-number='2']")
        page.wait_for_function("(token) => sessionStorage.getItem('chronoverse.token') === token", arg=token)
        assert page.locator(".sign-in").count() == 0
        assert page.evaluate("location.href") == f"{address}#L2"
    page.go_back()
    assert page.evaluate("location.href") == f"{address}#L2"
    page.go_back()
    assert page.evaluate("location.href") == address


def test_a_token_is_checked_when_it_is_entered(open_tab: OpenTab, page_service: Service, job: Job) -> None:
    """Before any choice. A token for another workflow is valid, one without a scope is not; an empty list helps."""
    tab = open_tab()
    tab.expected = "Failed to load resource"
    tab.page.goto(tab.url)

    def enter(token: str) -> None:
        tab.page.fill(".sign-in input", token)
        tab.page.click(".sign-in button")

    enter(page_service.token(secret=b"x" * 32))
    tab.page.wait_for_selector(".sign-in p:has-text('Token rejected: ')")
    enter(page_service.token(ttl=-60))
    tab.page.wait_for_selector(".sign-in p:has-text('Token rejected: the token has expired.')")
    enter(page_service.token(scopes=[WRITE]))
    tab.page.wait_for_selector(".sign-in p:has-text('The service returned 403: the token lacks the scope logs:read.')")
    enter(page_service.token("elsewhere"))
    tab.page.wait_for_selector(".sign-in", state="detached")
    tab.page.click("#empty a:text-is('elsewhere')")
    # The page of an empty workflow shows a command that works when pasted.
    command = shlex.split(tab.page.locator("#notice code").inner_text())
    assert command[0] == "chronoverse"
    run_chronoverse(page_service, *command[1:], CHRONOVERSE_TOKEN=page_service.token(scopes=[WRITE]))
    tab.page.wait_for_selector("tbody a:text-is('job-1')")
