"""New lines on the screen: marked, stepped through, counted in the toolbar; and where a failed job opens."""

import re
import time
from collections.abc import Callable
from typing import Any, Final

import pytest
from playwright.sync_api import Route

from chronoverse.joblog.model import Status
from chronoverse.store import Store
from tests.browser.browsing import PATIENCE_SECONDS, Tab, wait_until
from tests.browser.conftest import Job
from tests.browser.test_hostile import ALLOWED, HOSTILE, violations
from tests.support.service import Service

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


def test_a_failed_job_opens_at_its_cause(open_tab: OpenTab, page_store: Store) -> None:
    """With the new lines marked and the failure in words. A line in the address takes precedence."""
    error = ["starting the deploy", "GatewayError: 409 <b>conflict</b>", "  at deploy (gateway.js:14)"]
    lines = [*GOOD[:100], "a warning", *GOOD[100:149], *error, *GOOD[150:], "tidying up"]
    job = write_runs(page_store, f"cause-{time.monotonic_ns()}", *lines)
    tab = open_tab(job.ref)
    wait_current(tab, 152)
    assert tab.numbers()[0] == 146
    said = "GatewayError: 409 <b>conflict</b>"
    tab.wait_text("#summary code", said)
    tab.wait_text("#summary .at", "152")
    tab.page.wait_for_selector("#gocause:has-text('Go to line 152')")
    tab.wait_text("#newcount", "5")
    tab.wait_text("#errorcount", "1")
    assert tab.page.locator(".cause-row").get_attribute("data-number") == "152"
    wait_until(lambda: marked(tab) == [151, 152, 153], PATIENCE_SECONDS, "the new lines are marked")
    assert tab.address.endswith("/failed")
    tab.page.keyboard.press("j")
    wait_current(tab, 304)
    tab.page.keyboard.press("k")
    wait_current(tab, 151)
    tab.page.keyboard.press("k")
    wait_current(tab, 101)
    tab.page.click("#gocause")
    wait_current(tab, 152)
    assert tab.address.endswith("/failed#L152")
    tab.page.keyboard.press("j")
    wait_current(tab, 304)
    tab.page.click("#copycause")
    tab.wait_text("#copycause", "Copied ✓")
    address = f"{tab.url}/ui/workflows/{job.ref.workflow_id}/jobs/failed#L152"
    past = f"\n{tab.text('#past')}\n"
    copied = f"[failed]({address}): Failed · exit 1\n\n```\n{said}\n```\n{past}"
    assert tab.page.evaluate("navigator.clipboard.readText()") == copied
    tab = open_tab(job.ref, "L10")
    tab.wait_text("#summary code", said)
    assert tab.page.locator(".row.current").get_attribute("data-number") == "10"
    assert (tab.numbers()[0], marked(tab)) == (1, [])


def test_a_failed_job_shows_where_its_line_was_seen_before(open_tab: OpenTab, page_store: Store) -> None:
    """On the card, and next to a picked line's buttons. Both link to the first run, by keyboard, too."""
    workflow_id = f"seen-{time.monotonic_ns()}"
    flaky = [*GOOD[:20], "TimeoutError: no answer in 7 s", *GOOD[20:]]
    for number, is_good in enumerate((True, False, True, True)):
        run = Job(page_store, f"run-{number}", workflow_id).lines(*(GOOD if is_good else flaky))
        run.end(Status.COMPLETED if is_good else Status.FAILED, int(not is_good))
    job = Job(page_store, "failed", workflow_id).lines(*flaky, "a word that is only here").end(Status.FAILED, 1)
    tab = open_tab(job.ref)
    seen = r"Seen in 2 of the last 5 runs, all of them failed; first .*(ago|now) in run-1"
    said = re.compile(r"Flaky: 2 of the last 5 runs; first .*(ago|now) in run-1")
    wait_until(lambda: said.fullmatch(tab.text("#past")), PATIENCE_SECONDS, "all runs were looked at")
    # Screen readers read it after the cause.
    tab.wait_said(r"21TimeoutError: .*\. Flaky: 2 of the last 5 runs; .*")
    assert str(tab.page.get_attribute("#past a", "href")).endswith("/jobs/run-1#L21")
    tab.go_to(302)
    tab.wait_text("#seen", "Not seen in the last 4 runs")
    tab.wait_text("#said", "Not seen in the last 4 runs")
    tab.page.set_viewport_size({"width": 390, "height": 800})
    tab.go_to(21)
    tab.page.wait_for_selector("#seen a")
    wait_until(lambda: re.fullmatch(seen, tab.text("#seen")), PATIENCE_SECONDS, "all runs were looked at")
    assert tab.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    tab.page.focus("#seen a")
    tab.page.keyboard.press("Enter")
    tab.page.wait_for_url("**/jobs/run-1#L21")
    wait_current(tab, 21)


def test_unread_runs_are_requested_again(open_tab: OpenTab, page_store: Store) -> None:
    """A few times, because the service continues where it stopped. Partial results are shown in between."""
    job = write_runs(page_store, f"unknown-{time.monotonic_ns()}", *GOOD[:20], "TimeoutError: no answer", good=2)
    asked: list[str] = []
    known = {"summary": 3, "history": 2}

    def answer(route: Route) -> None:
        """Omits one of the runs until the last of the expected requests."""
        kind = "summary" if "/summary" in route.request.url else "history"
        asked.append(kind)
        body = route.fetch().json()
        if asked.count(kind) < known[kind]:
            if kind == "summary":
                body["verdict"] = None
                body["cause"]["line"]["seen"] |= {"looked_at": 2, "without_shapes": 1}
            else:
                body["looked_at"] |= {"COMPLETED": 1, "without_shapes": 1}
        route.fulfill(json=body)

    tab = open_tab()
    tab.page.route(re.compile(r"/summary\?|/logs/[0-9]+/history"), answer)
    tab.open(job.ref)
    tab.wait_said(r"21TimeoutError: .*\. New: no earlier run has this line")
    assert tab.text("#past") == "New: no earlier run has this line"
    assert asked == ["summary"] * 3
    tab.go_to(21)
    tab.wait_text("#seen", "Not seen in the last 2 runs")
    assert asked == ["summary"] * 3 + ["history"] * 2
    known["summary"] = 100
    tab.page.reload()
    tab.wait_said(".* Not seen in the last run; 1 run could not be read")
    assert asked.count("summary") == 7


def test_a_lost_job_opens_at_its_end(open_tab: OpenTab, page_store: Store) -> None:
    """The card shows since when there was no sign of the runner."""
    job = Job(page_store, "lost", f"lost-{time.monotonic_ns()}").lines(*GOOD).end(Status.LOST)
    tab = open_tab(job.ref).wait_number(300)
    tab.page.wait_for_selector("#past a")
    assert re.fullmatch(r"No sign of the runner since 3/3/2026, .* \(.*\)", tab.text("#summary"))
    assert tab.text("#past") == "Last line: 300 step 300 took 300 ms"


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


def test_a_summary_shows_its_progress(open_tab: OpenTab, failed: Job) -> None:
    """It is requested until all lines are scanned, and makes no claims about the others."""
    tab = open_tab()
    line = {"timestamp": "", "message": "<b>x</b>", "sequence_num": 21, "stream": "stdout"}
    job = {"last_sequence_num": 600_405, "status": "FAILED"}
    zero: dict[str, Any] = {"count": 0, "first": []}
    some, none = {"count": None, "first": [line]}, {**zero, "count": None}
    cause = {"from": 21, "to": 21, "line": line, "kind": "new"}
    held: list[Route] = []
    tab.page.route("**/summary?*", lambda route: held.append(route))

    def answer(number: int, **values: Any) -> None:
        tab.wait(lambda rows: len(held) > number, "the summary is asked for")
        body = {"job": job, "compared_with": None, "new": none, "errors": none, "cause": None, "complete": False}
        held[number].fulfill(json={**body, **values})

    tab.open(failed.ref)
    answer(0, scanned_to=402_406)
    tab.wait_text("#scanned", "Scanned 198,000 of 600,405 lines")
    answer(1, scanned_to=20, new=some, cause=cause)
    tab.wait_text("#scanned", "Scanned 600,386 of 600,405 lines")
    tab.wait_text("#summary code", "<b>x</b>")
    wait_current(tab, 21)
    answer(2, scanned_to=1, new={"count": 3, "first": [line]}, errors=zero, cause=cause, complete=True)
    tab.wait_text("#scanned", "")
    assert (tab.text("#newcount"), tab.text("#errorcount"), tab.text("#summary code")) == ("", "0", "<b>x</b>")
    assert len(held) == 3


def test_a_job_without_runs_to_compare_with_opens_at_its_error(open_tab: OpenTab, page_store: Store) -> None:
    """The toggle shows that there is nothing to compare with, and only errors are counted."""
    job = write_runs(page_store, "nothing-to-compare", *GOOD, "error: disk full", *GOOD[:20], good=0)
    tab = open_tab(job.ref)
    wait_current(tab, 301)
    tab.wait_text("#summary code", "error: disk full")
    tab.wait_text("#errorcount", "1")
    assert (tab.page.is_visible("#compare"), tab.page.is_visible("#good")) == (False, False)
    tab.page.click("#new")
    tab.wait_text("#newcount", "not compared")
    assert tab.page.get_attribute("#new", "title") == "No earlier run to compare with"
    assert tab.page.get_attribute("#new", "aria-pressed") == "false"
    assert (tab.compared_with, marked(tab)) == ([], [])
    wait_until(lambda: "No earlier run" in tab.page.inner_text("#said"), PATIENCE_SECONDS, "it is read out")


def test_a_reader_who_has_acted_is_not_moved(open_tab: OpenTab, failed: Job) -> None:
    """The response arrives after the reader has gone to the beginning."""
    tab = open_tab()
    held: list[Route] = []
    tab.page.route("**/summary?*", lambda route: held.append(route))
    tab.open(failed.ref).wait_number(303)
    tab.wait(lambda rows: held, "the summary is asked for")
    tab.page.keyboard.press("g")
    tab.wait_number(1)
    held[0].continue_()
    tab.page.wait_for_selector("#summary a")
    assert (tab.numbers()[0], marked(tab)) == (1, [])


def test_a_late_summary_does_not_move_the_log(open_tab: OpenTab, failed: Job) -> None:
    """It still marks the new lines."""
    tab = open_tab()
    tab.page.clock.install()
    held: list[Route] = []
    tab.page.route("**/summary?*", lambda route: held.append(route))
    tab.open(failed.ref).wait_number(303)
    tab.wait(lambda rows: held, "the summary is asked for")
    tab.page.clock.fast_forward(6000)
    held[0].continue_()
    tab.wait_compared()
    wait_until(lambda: marked(tab) == [281], PATIENCE_SECONDS, "the new line in view is marked")
    tab.wait_number(303)


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


def test_hostile_new_lines_are_text(open_tab: OpenTab, page_store: Store, axe: str) -> None:
    """They create no script and no element, and axe finds nothing serious."""
    job = write_runs(page_store, "hostile-new", *HOSTILE, "<b onclick=alert(1)>error: </b>", *HOSTILE)
    tab = open_tab(job.ref)
    tab.page.wait_for_selector("#summary a")
    tab.wait_compared()
    # All lines are new, so none is marked automatically.
    assert marked(tab) == []
    tab.page.keyboard.press("d")
    tab.page.wait_for_selector(".row.new")
    elements = tab.page.evaluate(
        "() => Array.from(document.querySelectorAll('.m *'), (each) => [each.tagName, each.getAttributeNames()])"
    )
    assert all(set(attributes) <= ALLOWED[name] for name, attributes in elements)
    assert tab.page.evaluate("'hacked' in window") is False
    assert tab.page.locator("#card code b, #past b, .row b").count() == 0
    tab.page.emulate_media(color_scheme="dark")
    tab.page.set_viewport_size({"width": 390, "height": 700})
    assert violations(tab, axe) == []


def test_new_lines_in_view_of_a_long_log_are_marked_early(
    open_tab: OpenTab, page_service: Service, page_store: Store
) -> None:
    """Near the end of 20,000 lines. The window there is requested separately, with a retry if the service is busy."""
    lines = [GOOD[number % 300] for number in range(20_000)]
    lines[19_990] = "error: disk full"
    workflow = f"long-new-{time.monotonic_ns()}"
    write_runs(page_store, workflow, *lines)
    tab = open_tab()

    def scan(route: Route) -> None:
        """Pretends in the first response that there was no time for more lines, and never sends the others."""
        if "offset=0&" in route.request.url:
            body = {"logs": [], "cursor": "1000", "compared_with": ["good-1"]}
            route.fulfill(json=body, headers={"Last-Event-ID": "1000"})

    tab.page.route(re.compile(r"/logs/new\?.*limit=1000"), scan)
    tab.page.route(re.compile(r"/logs/new\?.*limit=200"), lambda route: route.fulfill(status=429), times=1)
    tab.page.goto(f"{tab.url}/ui/workflows/{workflow}/jobs/failed#token={page_service.token()}&L19991")
    tab.wait_number(19_991)
    tab.page.keyboard.press("k")
    wait_until(lambda: marked(tab) == [19_991], PATIENCE_SECONDS, "the line is marked")
    assert tab.text("#newcount") != "1"
