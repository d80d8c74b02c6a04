"""Signing out reaches a tab that had navigated away, and whose page therefore ran no script that could notice."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext

from tests.browser.browsing import PATIENCE_SECONDS, launch, wait_until
from tests.browser.conftest import Job
from tests.support.service import Service

pytestmark = pytest.mark.long

STORED = "() => ({ ...sessionStorage })"


@pytest.fixture(params=["loaded again", "kept in memory"])
def context(request: pytest.FixtureRequest, browser: Browser) -> Iterator[BrowserContext]:
    """Another browser, in which going back reloads the page or restores it from memory (bfcache)."""
    ignored = ["--disable-back-forward-cache"] if request.param == "kept in memory" else []
    other = launch(browser.browser_type, ignore_default_args=ignored)
    yield other.new_context()
    other.close()


def test_a_tab_that_was_elsewhere_is_signed_out(context: BrowserContext, page_service: Service, job: Job) -> None:
    """It asks for a token, has discarded its own, and does not show the log on a reload."""
    job.lines("a line").end()
    address = f"{page_service.url}/ui/workflows/{job.ref.workflow_id}/jobs/{job.ref.job_id}"
    away, here = context.new_page(), context.new_page()
    for page in (away, here):
        page.goto(f"{address}#token={page_service.token()}")
        page.wait_for_selector(".row")
    away.goto(page_service.url.replace("127.0.0.1", "localhost") + "/healthz")
    here.click("#account")
    here.click("text=Sign out")
    here.wait_for_selector("dialog.sign-in")

    away.go_back()

    wait_until(lambda: away.query_selector("dialog.sign-in"), PATIENCE_SECONDS, "the tab asks for a token")
    assert away.evaluate(STORED) == here.evaluate(STORED) == {}
    assert away.query_selector(".row") is None
    away.goto(f"{address}#token={page_service.token()}")
    away.wait_for_selector(".row")
