"""The account button."""

from collections.abc import Callable

import pytest

from chronoverse.auth.rights import WRITE
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
    said = "the token lacks the scope logs:read. All jobs · Signed in as tests. This token is for all workflows."
    tab.page.wait_for_selector(f"#notice:has-text('{said}')")
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
