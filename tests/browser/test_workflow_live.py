"""A workflow's page follows the stream of its changes: it requests its jobs only once."""

from collections.abc import Callable
from typing import Any

from chronoverse.archive.retention import delete_job
from chronoverse.joblog.model import Status
from chronoverse.store import Store
from tests.browser.browsing import Tab
from tests.browser.conftest import Job
from tests.support.service import Service
from tests.support.waiting import wait_until

ROWS = "[...document.querySelectorAll('tbody tr')].map((row) => row.querySelector('.name a').textContent).join()"


def shows(tab: Tab, names: str) -> None:
    """Waits until the list has exactly these jobs."""
    wait_until(lambda: tab.page.evaluate(ROWS) == names, 10, f"the jobs {names}")


def test_jobs_start_end_and_disappear_without_another_request(
    open_tab: Callable[..., Tab], page_service: Service, page_store: Store
) -> None:
    """Even with a filter. Changes missed while the service is down arrive with the new connection."""
    old = Job(page_store, "old", "live").end()
    tab = open_tab()
    listings: list[str] = []

    def note(request: Any) -> None:
        # A page of a list may end early, and is then continued with a cursor.
        if "/workflows/live/jobs?" in request.url and "cursor=" not in request.url:
            listings.append(request.url)

    tab.page.on("request", note)
    tab.page.goto(f"{tab.url}/ui/workflows/live#token={page_service.token()}")
    shows(tab, "old")
    one, two = Job(page_store, "one", "live"), Job(page_store, "two", "live")
    shows(tab, "two,one,old")
    assert len(listings) == 1
    two.end(Status.FAILED, 3)
    # Running jobs come first.
    shows(tab, "one,two,old")
    delete_job(page_store, None, old.ref)
    shows(tab, "one,two")
    tab.page.click("#kinds a[data-kind=RUNNING]")
    shows(tab, "one")
    one.end()
    shows(tab, "")
    three = Job(page_store, "three", "live")
    shows(tab, "three")
    three.end()
    assert len(listings) <= 3, "the first, one with another filter, and the count of all jobs"
