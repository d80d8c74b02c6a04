"""The list of workflows, and the search in all jobs of one: from the home page to a matching line."""

from collections.abc import Callable
from typing import Final

import pytest
from playwright.sync_api import Page

from chronoverse.joblog.model import Status
from chronoverse.store import Store
from tests.browser.browsing import Tab
from tests.browser.conftest import Job
from tests.browser.test_hostile import HOSTILE
from tests.support.service import Service

#: The default test run starts a browser for one file only.
pytestmark = pytest.mark.long

OpenTab = Callable[..., Tab]

#: The address of such a search's requests.
SEARCHES: Final = "**/logs/search?*"
#: The groups of a search: the job, its line numbers, and whether there is a link to more matches.
GROUPS: Final = """() => Array.from(document.querySelectorAll("#found section"), (group) => [
    group.querySelector("h2").textContent,
    Array.from(group.querySelectorAll("a.match .number"), (each) => each.textContent),
    !group.querySelector(".rest").hidden,
])"""


def open_workflow(tab: Tab, service: Service, workflow_id: str, query: str = "") -> Page:
    """Opens a workflow's page, optionally with a search."""
    tab.page.goto(f"{tab.url}/ui/workflows/{workflow_id}{query}#token={service.token()}")
    return tab.page


def test_three_clicks_lead_from_the_home_page_to_a_line(
    open_tab: OpenTab, page_service: Service, page_store: Store
) -> None:
    """The workflow, the search, the line. Back and forward go through the same pages."""
    for number in range(3):
        lines = [f"step {n}" for n in range(200)]
        lines[150:150] = ["", "Error: \x1b[31mdisk full\x1b[0m"] if number == 1 else [""]
        Job(page_store, f"build-{number}", "three-clicks").lines(*lines).end(Status.COMPLETED)
    tab = open_tab()
    tab.page.goto(f"{tab.url}/#token={page_service.token()}")
    tab.page.click("a:text-is('three-clicks')")
    tab.page.wait_for_selector("tbody tr:nth-child(3)")
    tab.page.keyboard.press("/")
    tab.page.keyboard.type("DISK full")
    tab.page.click("button:text-is('Search')")
    tab.wait_text("#progress", "1 match in 1 job · all jobs were searched")
    searched = tab.address
    assert tab.page.evaluate(GROUPS) == [["build-1", ["152"], False]]
    assert tab.page.locator("#found mark").all_inner_texts() == ["disk full"]
    tab.page.click("#found a.match")
    tab.wait_number(152)
    assert tab.address == f"{tab.url}/ui/workflows/three-clicks/jobs/build-1?q=DISK+full#L152"
    assert tab.page.locator(".picked").get_attribute("data-number") == "152"
    tab.page.go_back()
    tab.page.wait_for_selector("#found a.match")
    assert tab.address == searched == f"{tab.url}/ui/workflows/three-clicks?q=DISK+full"
    tab.page.reload()
    tab.page.wait_for_selector("#found a.match")
    tab.page.go_back()
    tab.page.wait_for_selector("tbody tr:nth-child(3)")
    assert (tab.page.input_value("#q"), tab.page.is_visible("#results")) == ("", False)
    tab.page.go_forward()
    tab.page.wait_for_selector("#found a.match")
    assert tab.page.input_value("#q") == "DISK full"


def test_results_are_text(open_tab: OpenTab, page_service: Service) -> None:
    """Whatever jobs, lines and errors contain. A job that could not be searched shows why."""
    evil = "\"><img src=x onerror='window.hacked=1'>/../../javascript:hacked"
    texts = [text for text in HOSTILE if len(text) < 400]
    lines = [
        {"timestamp": evil, "message": text, "sequence_num": n, "stream": "stderr", "highlights": [[0, 2], [3, 10**6]]}
        for n, text in enumerate(texts, 1)
    ]
    job = {"id": evil, "status": evil, "created_at": evil, "logs": lines, "more": True, "error": evil}
    tab = open_tab()
    tab.page.route(SEARCHES, lambda route: route.fulfill(json={"jobs": [job], "cursor": None}))
    page = open_workflow(tab, page_service, "hostile", "?q=x")
    page.wait_for_selector("#found .problem")
    shown: list[str] = page.evaluate("Array.from(document.querySelectorAll('#found .text'), (a) => a.textContent)")
    names: list[str] = page.evaluate("Array.from(document.querySelectorAll('#found *'), (each) => each.tagName)")
    links: list[str] = page.evaluate("Array.from(document.querySelectorAll('#found a'), (each) => each.href)")

    assert shown == [HOSTILE[text] for text in texts]
    assert set(names) == {"SECTION", "H2", "A", "SPAN", "OL", "LI", "MARK", "P", "TIME", "svg", "path"}
    assert all(link.startswith(f"{tab.url}/ui/workflows/hostile/jobs/%22%3E%3Cimg") for link in links)
    assert page.inner_text("#found h2") == evil
    assert page.inner_text("#found .problem") == f"Search stopped: {evil}"
    assert page.evaluate("'hacked' in window") is False
