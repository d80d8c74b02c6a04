"""Labels on the pages: chips that link to the jobs with that label, whatever untrusted text it contains."""

from collections.abc import Callable

import pytest

from chronoverse.joblog.labels import check_labels
from chronoverse.joblog.model import Status
from chronoverse.store import Store
from tests.browser.browsing import PATIENCE_SECONDS, Tab, wait_until
from tests.browser.conftest import Job
from tests.support.service import Service

pytestmark = pytest.mark.long


def test_chips_show_labels_and_filter_jobs_by_them(
    open_tab: Callable[..., Tab], page_service: Service, page_store: Store
) -> None:
    """A ``url`` is a link if browsers can safely open it. All other labels are text, linked to the jobs with them."""
    hostile = '<img src=x onerror=alert(1)> a=b&c "\u202e'
    good = {"branch": "main", "url": "https://ci.example.com/1?a=b", "note": hostile}
    Job(page_store, "good", "chips", check_labels(good)).lines("fine").end()
    Job(page_store, "script", "chips", check_labels({"branch": "main", "url": "javascript:alert(1)"})).lines(
        "fine"
    ).end()
    Job(page_store, "other", "chips", check_labels({"branch": "next"})).lines("fine").end()
    bare = Job(page_store, "bare", "chips").lines("fine").end()

    tab = open_tab(bare.ref)
    tab.wait_number(1)
    assert tab.text("#labels") == ""
    page = tab.page
    page.goto(f"{tab.url}/ui/workflows/chips/jobs/good")
    page.wait_for_selector("#labels .chip")
    assert page.locator("#labels > .chip").all_text_contents() == ["branch main"]
    page.click("#labels button")
    assert page.locator("#morelabels .chip").all_text_contents() == [f"note {hostile}"]
    assert page.locator("#labels img").count() == 0
    address = page.locator("#ci")
    assert [address.get_attribute(name) for name in ("href", "target")] == [good["url"], "_blank"]
    assert "noopener" in (address.get_attribute("rel") or "")

    page.keyboard.press("Escape")
    page.locator("#labels > .chip").press("Enter")
    page.wait_for_url(f"{tab.url}/ui/workflows/chips?label=branch%3Dmain")
    page.wait_for_selector("tbody tr")
    jobs = page.locator("tbody .who > a")
    assert jobs.all_inner_texts() == ["script", "good"]
    page.goto(f"{tab.url}/ui/workflows/chips/jobs/script")
    page.click("#labels button")
    script = page.locator("#morelabels .chip", has_text="javascript")
    assert script.get_attribute("href") == "/ui/workflows/chips?label=url%3Djavascript%3Aalert%281%29"
    assert not page.is_visible("#ci")
    page.goto(f"{tab.url}/ui/workflows/chips/jobs/good")
    page.click("#labels button")
    page.locator("#morelabels .chip", has_text="onerror").click()
    page.wait_for_selector("tbody tr")
    wait_until(lambda: jobs.count() == 1, PATIENCE_SECONDS, "only that job")
    assert jobs.all_inner_texts() == ["good"]
    # A search filters by the labels, too, and so does its address.
    page.goto(f"{tab.url}/ui/workflows/chips?label=branch%3Dmain")
    page.wait_for_selector("tbody tr")
    page.fill("#q", "fine")
    page.press("#q", "Enter")
    page.wait_for_selector("#progress:has-text('all jobs were searched')")
    assert page.locator("#found h2").all_inner_texts() == ["script", "good"]
    assert tab.address == f"{tab.url}/ui/workflows/chips?q=fine&label=branch%3Dmain"
    page.goto(f"{tab.url}/ui/workflows/chips?label=branch%3Dmain")
    page.click("#labels .chip")
    page.wait_for_url(f"{tab.url}/ui/workflows/chips?")
    wait_until(lambda: jobs.count() == 4, PATIENCE_SECONDS, "all jobs")

    # The reader can compare a job only with good runs that have one of its labels.
    failed = Job(page_store, "failed", "chips", check_labels({"branch": "next", "note": hostile})).lines("no")
    tab.open(failed.end(Status.FAILED, 1).ref)
    tab.wait_compared("bare", "other", "script", "good")
    page.wait_for_selector("#past:not([hidden])")
    page.click("#good")
    assert page.locator("#against option").all_inner_texts() == ["this branch", "main", "all"]
    assert page.input_value("#against") == "*"
    with page.expect_event("domcontentloaded"):
        page.select_option("#against", "branch=next")
    tab.wait_compared("other")
    assert "against_label=branch%3Dnext" in tab.address
    assert page.input_value("#against") == "branch=next"
    names = "performance.getEntriesByType('resource').map(({ name }) => name)"

    def asked(route: str) -> list[str]:
        return [name for name in page.evaluate(names) if route in name]

    # All lines are new, so the page does not request them by itself.
    page.click("#new")
    routes = ("/summary?", "/logs/new?", "/profile?")
    wait_until(lambda: all(asked(route) for route in routes), PATIENCE_SECONDS, "all that is compared")
    assert [name for route in routes for name in asked(route) if "against_label=branch%3Dnext" not in name] == []
