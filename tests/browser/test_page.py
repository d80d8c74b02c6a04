"""The job page on the screen: reading, following, searching and sharing."""

import json
from collections.abc import Callable

import httpx
import pytest

from chronoverse.joblog.model import JobRef, Status
from tests.browser.browsing import PATIENCE_SECONDS, Tab, wait_until
from tests.browser.conftest import Job
from tests.support.service import Service

OpenTab = Callable[..., Tab]

#: Checks each frame until stopped, and collects rows with another number's text or out of order.
WATCH = """() => {
    window.watch = { wrong: [], rows: 0, on: true };
    const check = () => {
        let before = 0;
        for (const row of document.querySelectorAll(".row")) {
            const number = Number(row.dataset.number);
            const text = row.querySelector(".m")?.textContent;
            watch.rows += 1;
            if (text !== undefined && text !== `line ${number}.`) watch.wrong.push([number, text]);
            if (before && number !== before + 1) watch.wrong.push([before, number]);
            before = number;
        }
        if (watch.on) requestAnimationFrame(check);
    };
    check();
}"""
#: Moves the scroll bar from end to end, a little between every two frames, like a browser for a reader.
DRAG = """async () => {
    const log = document.getElementById("log");
    for (let i = 0; i <= 50; i += 1) {
        log.scrollTop = ((log.scrollHeight - log.clientHeight) * i) / 50;
        await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
    }
}"""


def is_own(rows: list[tuple[int, str | None]]) -> bool:
    """Whether the numbers are consecutive and each row has the text of its own number."""
    first = rows[0][0]
    return rows == [(number, f"line {number}.") for number in range(first, first + len(rows))]


@pytest.mark.long
def test_a_log_is_read_from_anywhere(open_tab: OpenTab, big: Job) -> None:
    """The beginning, a line by number, the end, the next page.

    Even during fast scrolling no row shows another line's text.
    """
    tab = open_tab(big.ref).wait(is_own, "the first lines")
    assert tab.numbers()[0] == 1
    assert tab.text("#badge") == "Completed"
    assert tab.text("#facts").endswith("25,000 lines")
    tab.page.evaluate(WATCH)
    tab.go_to(12_345)
    tab.wait_number(12_345).wait(is_own, "lines around it")
    tab.page.keyboard.press("G")
    tab.wait_number(25_000)
    tab.page.keyboard.press("g")
    tab.wait_number(1)
    tab.page.keyboard.press("PageDown")
    tab.wait(lambda rows: 15 < rows[0][0] < 45 and is_own(rows), "the next page")
    tab.page.evaluate(DRAG)
    tab.wait_number(25_000).wait(is_own, "the last lines")
    tab.wheel(-3000)
    # These include the row below the last line, which shows how the job ended.
    tab.wait(lambda rows: rows[-1][0] == 25_001 - 150 and is_own(rows), "150 rows further up")
    watched = tab.page.evaluate("() => { watch.on = false; return watch; }")

    assert watched["wrong"] == []
    assert watched["rows"] > 1000


def test_a_running_job_is_followed(open_tab: OpenTab, job: Job) -> None:
    """The page stays at the end until the reader scrolls away.

    Then a button shows the number of new lines, and leads back. Below the last line is how the job is doing.
    """
    job.lines(*(f"line {number}." for number in range(1, 301)))
    tab = open_tab(job.ref).wait_number(300)
    assert (tab.text("#badge"), tab.text("#newer")) == ("Running", "")
    tab.page.wait_for_selector(".row[data-number='300'] + .foot:has-text('Running · last line ')")
    foot, log = tab.page.locator(".foot").bounding_box(), tab.page.locator("#log").bounding_box()
    assert foot
    assert log
    assert abs(foot["y"] + foot["height"] - log["y"] - log["height"]) <= 2
    tab.page.evaluate(WATCH)
    job.lines(*(f"line {number}." for number in range(301, 1001)))
    tab.wait_number(1000)
    tab.page.focus("#log")
    tab.page.keyboard.press("g")
    tab.wait_number(1)
    job.lines(*(f"line {number}." for number in range(1001, 1501)))
    tab.wait_text("#newer", "↓ 500 new lines")
    assert (tab.numbers()[0], tab.page.locator(".foot").count()) == (1, 0)
    tab.page.click("#newer")
    tab.wait_number(1500)
    job.lines("line 1501.").end(Status.FAILED, 3)
    tab.wait_number(1501)
    tab.wait_text("#badge", "Failed · exit 3")
    tab.page.wait_for_selector(".row[data-number='1501'] + .foot:has-text('Failed · exit 3 after ')")
    watched = tab.page.evaluate("() => { watch.on = false; return watch; }")

    assert watched["wrong"] == []
    assert tab.text("#facts").endswith("1,501 lines")
    assert tab.page.title().startswith("Failed · exit 3 · ")


@pytest.mark.long
def test_a_job_can_be_waited_for(open_tab: OpenTab, page_service: Service, job: Job) -> None:
    """The page is opened before the job exists."""
    later = JobRef("page", f"{job.ref.job_id}-later")
    tab = open_tab().open(later)
    tab.page.wait_for_selector(f"#notice:has-text('No job {later.job_id} in page. All jobs')")
    tab.page.wait_for_selector("#notice:has-text('Signed in as tests.')")
    tab.page.wait_for_selector(f"#notice a:text-is('{job.ref.job_id}')")
    headers = {"Authorization": f"Bearer {page_service.token()}"}
    httpx.put(f"{page_service.url}/workflows/page/jobs/{later.job_id}", headers=headers, verify=page_service.verify)
    tab.wait_text("#badge", "Pending")


@pytest.mark.long
def test_disconnects_and_restarts_lose_and_repeat_nothing(open_tab: OpenTab, page_service: Service, job: Job) -> None:
    """In the end the page shows the same as ``/logs``. In between, the header shows that it is reconnecting.

    Screen readers hear of that, and once that it is connected again. The page of the workflow counts down to a retry.
    """
    job.lines(*(f"line {number}." for number in range(1, 51)))
    tab = open_tab(job.ref).wait_number(50)
    tab.page.evaluate(WATCH)
    jobs = open_tab()
    jobs.page.goto(f"{jobs.url}/ui/workflows/page#token={page_service.token()}")
    jobs.page.wait_for_selector("tbody tr")
    tab.expected = jobs.expected = "net::ERR_"
    page_service.kill()
    job.lines(*(f"line {number}." for number in range(51, 101)))
    tab.wait_text("#link", "reconnecting…")
    for each in (tab, jobs):
        each.page.wait_for_selector(".trouble:has-text('The service is not responding. Next attempt in')")
    page_service.start()
    # In one step: the button disappears after an automatic retry.
    jobs.page.evaluate("document.querySelector('.trouble:not([hidden]) button')?.click()")
    jobs.page.wait_for_selector(".trouble", state="hidden")
    job.lines(*(f"line {number}." for number in range(101, 151)))
    tab.wait_number(150)
    said = "() => window.announced.filter((each) => each.endsWith('connected again')).length"
    wait_until(lambda: tab.page.evaluate(said), PATIENCE_SECONDS, "it is read out")
    job.end()
    tab.wait_text("#badge", "Completed")
    assert tab.page.evaluate(said) == 1
    tab.page.keyboard.press("g")
    tab.wait_number(1)
    seen: dict[int, str | None] = {}
    top = 0
    while 150 not in seen:
        if seen:
            # Half a screen, so that every row is in view once.
            tab.wheel(200)
        rows = tab.wait(lambda rows, above=top: is_own(rows) and rows[0][0] > above, "further lines").rows()
        seen |= dict(rows)
        top = rows[0][0]
    headers = {"Authorization": f"Bearer {page_service.token()}"}
    url = f"{page_service.url}/workflows/page/jobs/{job.ref.job_id}/logs?limit=1000"
    stored = {line["sequence_num"]: line["message"] for line in httpx.get(url, headers=headers).json()["logs"]}
    watched = tab.page.evaluate("() => { watch.on = false; return watch; }")

    assert seen == stored
    assert watched["wrong"] == []
    assert (tab.text("#link"), tab.text("#notice"), tab.page.locator("dialog[open]").count()) == ("", "", 0)


@pytest.mark.long
def test_a_search_can_be_shared_by_its_address(open_tab: OpenTab, job: Job) -> None:
    """Opening the address repeats the search, and goes to the line in it, otherwise to the first match."""
    job.lines(*["fine", "an error"] * 200).end(Status.FAILED, 1)
    # It opens at its cause, wherever that is.
    tab = open_tab(job.ref).wait(bool, "lines of the log")
    tab.page.click("#regex")
    tab.find("^an? e")
    wait_until(lambda: "?" in tab.address, PATIENCE_SECONDS, "the search is in the address")
    address = f"{tab.url}/ui/workflows/page/jobs/{job.ref.job_id}"
    assert tab.address == f"{address}?q=%5Ean%3F+e&regex=true"
    tab.page.reload()
    tab.wait_text("#count", "1 of 200")
    tab.wait_number(2)
    tab.page.goto(f"{address}?q=error#L301")
    tab.wait_number(302)
    wait_until(lambda: tab.text("#count") == "200", PATIENCE_SECONDS, "the matches are counted")
    assert tab.page.locator(".current, .picked").get_attribute("data-number") == "301"
    tab.page.press("#q", "Escape")
    assert tab.address == f"{address}#L301"


@pytest.mark.long
def test_a_jump_moves_the_selection(open_tab: OpenTab, job: Job) -> None:
    """So that a copied link leads to the line in view. The button confirms that something was copied.

    A line whose rest is lost does not swallow the next line.
    """
    job.write(iter([("one", "stdout", True)])).lose().lines("a `b` ```c```", *["x"] * 400, "needle (1)").end()
    tab = open_tab(job.ref, "L1-L3").wait_number(3)
    read = "navigator.clipboard.readText()"
    tab.page.click("#copymarkdown")
    tab.wait_text("#copymarkdown", "Copied ✓")
    link = f"[{job.ref.job_id}, lines 1 to 3]({tab.address})"
    assert tab.page.evaluate(read) == f"````\none\na `b` ```c```\n````\n{link}\n"
    tab.wait_text("#copymarkdown", "Copy as Markdown")
    tab.find("needle (1)")
    tab.page.wait_for_selector(".row.picked.current[data-number='404']")
    tab.page.click("#copylink")
    tab.wait_text("#copylink", "Copied ✓")
    assert tab.page.evaluate(read) == f"{tab.url}/ui/workflows/page/jobs/{job.ref.job_id}?q=needle+%281%29#L404"
    assert tab.text("#range") == "Line 404"
    tab.go_to(200)
    tab.wait_number(200)
    assert tab.address.endswith("#L200")
    tab.page.click("#unpick")
    # A hidden button receives keys until the next frame, so the focus must move immediately.
    assert tab.page.evaluate("document.activeElement.id") == "log"
    tab.page.keyboard.press("n")
    tab.wait_number(404)
    assert tab.text("#picked") == ""


@pytest.mark.long
def test_a_log_can_be_downloaded(open_tab: OpenTab, job: Job) -> None:
    """In three formats. With a filter, only what is shown."""
    job.lines("one", "two").lines("three", stream="stderr").end()
    tab = open_tab(job.ref).wait_number(3)
    saved = {}
    for form in ("txt", "json", "jsonl", "stderr"):
        if form == "stderr":
            tab.view("#stderr")
            tab.wait(lambda rows: len(rows) == 1, "stderr alone")
        with tab.page.expect_download() as download:
            tab.view(f"[data-format={form if form != 'stderr' else 'txt'}]")
        assert download.value.suggested_filename.startswith(f"page-{job.ref.job_id}.")
        saved[form] = download.value.path().read_text("utf-8")

    assert (saved["txt"], saved["stderr"]) == ("one\ntwo\nthree\n", "three\n")
    assert [line["message"] for line in json.loads(saved["json"])] == ["one", "two", "three"]
    assert [json.loads(line)["sequence_num"] for line in saved["jsonl"].splitlines()] == [1, 2, 3]


@pytest.mark.long
def test_long_lines_wrap_and_times_are_shown(open_tab: OpenTab, job: Job) -> None:
    """Wrapped rows are as high as necessary, and End still leads to the end."""
    job.lines(*(f"{number} " + "word " * (number % 9 * 40) for number in range(1, 201))).end()
    tab = open_tab(job.ref).wait_number(1)
    tab.view("#wrap")
    tall = "document.querySelector(`.row[data-number='8']`).offsetHeight"
    tab.wait(lambda rows: tab.page.evaluate(tall) > 100, "a tall row")
    tab.page.focus("#log")
    tab.page.keyboard.press("G")
    tab.wait_number(200)
    tab.page.wait_for_selector(".row[data-number='200'] + .foot")
    tab.page.mouse.move(600, 400)
    for _ in range(20):
        tab.page.mouse.wheel(0, -2000)
    tab.wait_number(1)
    tab.view("#time")
    tab.wait(lambda rows: tab.page.locator(".t").first.inner_text().count(":") == 2, "times of day")
    tab.view("#time")
    tab.wait(lambda rows: tab.page.locator(".t").first.inner_text()[0] in "+-", "times since the start")
