"""New lines on the screen: marked, stepped through, counted in the toolbar; and where a failed job opens."""

from collections.abc import Callable
from typing import Final

import pytest

from chronoverse.joblog.model import Status
from chronoverse.store import Store
from tests.browser.browsing import PATIENCE_SECONDS, Tab, wait_until
from tests.browser.conftest import Job

pytestmark = pytest.mark.long

OpenTab = Callable[..., Tab]


GOOD: Final = [f"step {number} took {number} ms" for number in range(1, 301)]

#: Buttons, fields and links above the log that are covered at their centre.
COVERED: Final = """() => Array.from(document.querySelectorAll(":is(header, #card, #tools) :is(button, input, a)"))
    .filter((each) => {
        const { left, top, width, height } = each.getBoundingClientRect();
        return width && !each.contains(document.elementFromPoint(left + width / 2, top + height / 2));
    }).map((each) => each.id || each.textContent)"""


def write_runs(store: Store, workflow_id: str, *failed: str, good: int = 3) -> Job:
    """Some good runs, then a run that fails with these lines, in order of creation."""
    for number in range(1, good + 1):
        Job(store, f"good-{number}", workflow_id).lines(*GOOD).end()
    return Job(store, "failed", workflow_id).lines(*failed).end(Status.FAILED, 1)


@pytest.fixture
def failed(page_store: Store, request: pytest.FixtureRequest) -> Job:
    """A failed run after three good ones, in a workflow named after the test. Its lines 21, 250 and 281 are new."""
    lines = [*GOOD[:20], "a warning", *GOOD[20:248], "error: disk full", *GOOD[248:278], "Traceback", *GOOD[278:]]
    return write_runs(page_store, request.node.name, *lines)


def marked(tab: Tab) -> list[int]:
    """The numbers of the rows marked as new, in view or just beyond it."""
    return [int(each.get_attribute("data-number") or 0) for each in tab.page.query_selector_all(".row.new")]


def wait_current(tab: Tab, number: int) -> None:
    """Waits until that line is the current one and in view."""
    tab.wait_number(number)
    tab.page.wait_for_selector(f".row.current[data-number='{number}']", timeout=PATIENCE_SECONDS * 1000)


def test_new_lines_are_marked_and_stepped_through(open_tab: OpenTab, failed: Job) -> None:
    """With keys and buttons, alongside a search's highlights. The address contains the filter, for sharing."""
    tab = open_tab(failed.ref, "L1").wait_number(1)
    tab.page.keyboard.press("j")
    wait_current(tab, 21)
    tab.wait_text("#newcount", "1 of 3")
    assert tab.address.endswith("/failed#L21")
    assert marked(tab) == [21]
    assert tab.page.locator(".row.new .sr").all_text_contents() == ["new "]
    plus = "getComputedStyle(document.querySelector('.row.new .n'), '::before').content"
    assert "+" in tab.page.evaluate(plus)
    tab.wait_compared("good-3", "good-2", "good-1")
    tab.wait_text("#good", "3 good runs ▾")
    runs = tab.page.locator("#runs a")
    assert runs.first.get_attribute("href") == f"/ui/workflows/{failed.ref.workflow_id}/jobs/good-3"
    tab.page.keyboard.press("j")
    wait_current(tab, 250)
    tab.page.click("#nextnew")
    wait_current(tab, 281)
    tab.wait_text("#newcount", "3 of 3")
    tab.page.keyboard.press("j")
    wait_current(tab, 21)
    tab.page.keyboard.press("k")
    wait_current(tab, 281)
    tab.page.click("#previousnew")
    wait_current(tab, 250)
    tab.wait_text("#seen", "Not seen in the previous 3 runs")
    tab.find("disk")
    tab.page.wait_for_selector(".row.new mark:text-is('disk')")
    tab.page.press("#q", "Escape")
    tab.page.keyboard.press("d")
    alone = "the new lines alone"
    tab.wait(lambda rows: [number for number, _ in rows] == [21, 250, 281], alone)
    assert "/failed?new=true#L" in tab.address
    tab.page.reload()
    tab.wait(lambda rows: [number for number, _ in rows] == [21, 250, 281], alone)
    tab.wait_text("#newcount", "2 of 3")
    tab.page.click("#errors")
    tab.wait(lambda rows: [number for number, _ in rows] == [250, 281], "the errors alone")
    assert ([tab.page.get_attribute(each, "aria-pressed") for each in ("#new", "#errors")]) == ["false", "true"]
    tab.page.click("#compare")
    tab.wait(lambda rows: [number for number, _ in rows] == [21, 250, 281], alone)
    tab.page.click("#new")
    tab.wait(lambda rows: rows[1][0] - rows[0][0] == 1, "every line")
    assert (tab.text("#newcount"), "new=" in tab.address) == ("3", False)


def test_nothing_in_the_header_covers_a_button(open_tab: OpenTab, failed: Job) -> None:
    """Even with a search, a summary and a comparison, and in a narrow window."""
    tab = open_tab(failed.ref)
    tab.page.wait_for_selector("#summary a")
    tab.page.keyboard.press("e")
    tab.wait_compared()
    tab.find("step")
    tab.wait(lambda rows: tab.text("#count").endswith("of 300"), "the matches are counted")
    for width in (390, 720, 1010, 1040, 1280):
        tab.page.set_viewport_size({"width": width, "height": 700})
        assert (width, tab.page.evaluate(COVERED)) == (width, [])


def test_a_running_job_marks_new_lines_live(open_tab: OpenTab, page_store: Store) -> None:
    """When it fails, its summary is shown. A later part of a long line marks the whole row."""
    write_runs(page_store, "running-new")
    job = Job(page_store, "running", "running-new").lines(*GOOD)
    tab = open_tab(job.ref).wait_number(300)
    tab.page.keyboard.press("j")
    tab.wait_text("#newcount", "0")
    job.write(iter([("a long line that ", "stdout", True), ("goes on", "stdout", False)])).lines("fatal error")
    wait_until(lambda: marked(tab) == [301, 303], PATIENCE_SECONDS, "both rows are marked")
    job.end(Status.FAILED, 1)
    tab.page.wait_for_selector("#summary a")
    tab.wait_text("#errorcount", "1")
    tab.wait_text("#summary code", "fatal error")
