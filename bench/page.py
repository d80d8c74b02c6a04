"""The page at its limits: five million lines, 2,000 lines/s for a minute, many jobs, and a store limited to 1 GB."""

import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from playwright.sync_api import Browser

from chronoverse.joblog.model import Attempt, JobRef, Line, Status, iso_timestamp
from chronoverse.store import Store
from tests.browser.browsing import Tab, chromium
from tests.support.servers import running
from tests.support.service import Service, serving
from tests.support.waiting import wait_until

LINES: Final = 5_000_000
TARGET: Final = 3_141_592
JUMPS: Final = 200
RATE: Final = 2000
SECONDS: Final = 60
#: Workflows, jobs of the first of them, and lines of each of these jobs.
WORKFLOWS: Final = 200
JOBS: Final = 2000
JOB_LINES: Final = 500
BATCH: Final = 500

#: Checks all rows of the page in every frame and collects wrong ones, until stopped.
_WATCH: Final = """(expected) => {
    window.watch = { wrong: [], frames: 0, rows: 0, blank: 0, longest: 0, on: true };
    new PerformanceObserver((list) => {
        for (const task of list.getEntries()) watch.longest = Math.max(watch.longest, task.duration);
    }).observe({ type: "longtask", buffered: true });
    const check = () => {
        let before = 0;
        for (const row of document.querySelectorAll(".row")) {
            const number = Number(row.dataset.number);
            const text = row.querySelector(".m")?.textContent;
            watch.rows += 1;
            if (text === undefined) watch.blank += 1;
            else if (text !== expected.replace("#", number)) watch.wrong.push([number, text]);
            if (row.querySelector(".n").textContent !== String(number)) watch.wrong.push(["number", number]);
            if (before && number !== before + 1) watch.wrong.push(["after", before, number]);
            before = number;
        }
        watch.frames += 1;
        if (watch.on) requestAnimationFrame(check);
    };
    check();
}"""

#: Moves the scroll bar gradually from one end to the other and back.
_DRAG: Final = """async (steps) => {
    const log = document.getElementById("log");
    const frame = () => new Promise(requestAnimationFrame);
    const end = log.scrollHeight - log.clientHeight;
    for (let i = 0; i <= steps; i += 1) { log.scrollTop = (end * i) / steps; await frame(); }
    for (let i = steps; i >= 0; i -= 1) { log.scrollTop = (end * i) / steps; await frame(); }
}"""


def message(number: int) -> str:
    return f"line {number} of the log, and its own number in it"


def report(what: str, value: object, within: bool | None = None) -> None:
    """Prints a measurement, and whether it is within its limit."""
    verdict = "" if within is None else "  ok" if within else "  NOT AS IT SHOULD BE"
    print(f"{what:<58} {value}{verdict}", flush=True)


def batches(count: int) -> Iterator[list[Line]]:
    """``count`` lines in batches."""
    for start in range(1, count + 1, BATCH):
        stamp = iso_timestamp(1_772_532_000 + start / 1000)
        yield [Line(n, stamp, message(n), "stdout") for n in range(start, min(start + BATCH, count + 1))]


def heap(tab: Tab, *, collect: bool) -> float:
    """Size of the page's JavaScript heap, in megabytes."""
    session = tab.page.context.new_cdp_session(tab.page)
    if collect:
        session.send("HeapProfiler.collectGarbage")
    used: float = session.send("Runtime.getHeapUsage")["usedSize"]
    session.detach()
    return used / 2**20


def wait_shown(tab: Tab, number: int) -> None:
    tab.page.wait_for_function(
        "([n, text]) => document.querySelector(`.row[data-number='${n}'] .m`)?.textContent === text",
        arg=[number, message(number)],
        polling="raf",
    )


def big(browser: Browser, service: Service, store: Store) -> None:
    """Measures a job of five million lines."""
    job = JobRef("acceptance", "big")
    attempt, started = store.open(job, "token"), time.monotonic()
    for lines in batches(LINES):
        store.append(attempt, lines)
    store.finish(attempt, Status.COMPLETED, 0, 0, LINES + 1)
    report("lines written", f"{LINES:,} in {time.monotonic() - started:.0f} s")

    context = browser.new_context(viewport={"width": 1280, "height": 800})
    tab, started = Tab(context, service), time.monotonic()
    tab.open(job)
    wait_shown(tab, 1)
    first = time.monotonic() - started
    report("first lines on the screen", f"{first * 1000:.0f} ms", first < 1)

    tab.page.focus("#log")
    tab.page.keyboard.press("l")
    tab.page.keyboard.type(str(TARGET))
    started = time.monotonic()
    tab.page.keyboard.press("Enter")
    wait_shown(tab, TARGET)
    jump = time.monotonic() - started
    report(f"jump to line {TARGET:,}", f"{jump * 1000:.0f} ms", jump < 0.5)

    random.seed(7)
    took, highest = [], 0.0
    for index in range(JUMPS):
        number = random.randint(1, LINES)
        started = time.monotonic()
        tab.page.evaluate("(n) => { location.hash = `L${n}`; }", number)
        wait_shown(tab, number)
        took.append(time.monotonic() - started)
        if index % 20 == 19:
            highest = max(highest, heap(tab, collect=False))
    took.sort()
    report(f"{JUMPS} random jumps, median and slowest", f"{took[JUMPS // 2] * 1000:.0f} ms, {took[-1] * 1000:.0f} ms")
    report(
        "JS heap, highest seen and after collection",
        f"{highest:.0f} MB, {heap(tab, collect=True):.0f} MB",
        highest < 150,
    )

    tab.page.evaluate(_WATCH, message(0).replace("0", "#"))
    tab.page.evaluate(_DRAG, 400)
    for direction in (1, -1):
        for _ in range(60):
            tab.page.mouse.move(600, 400)
            tab.page.mouse.wheel(0, direction * 2500)
    watched = tab.page.evaluate("() => { watch.on = false; return watch; }")
    report("rows checked while scrolling end to end and back", f"{watched['rows']:,} in {watched['frames']} frames")
    report("of them with a wrong number or text", len(watched["wrong"]), not watched["wrong"])
    report("longest task meanwhile", f"{watched['longest']:.0f} ms")
    search(tab)
    report("faults in the console", tab.faults, not tab.faults)
    context.close()


def search(tab: Tab) -> None:
    """Measures the time to the first match, which is far away, and to the count of all matches."""
    tab.page.evaluate("location.hash = 'L1'")
    wait_shown(tab, 1)
    started = time.monotonic()
    tab.find("line 4999999 ")
    tab.page.wait_for_function("() => document.getElementById('count').textContent === '1 of 1'", timeout=120_000)
    report("a search through all of it, with count", f"{time.monotonic() - started:.1f} s")
    tab.page.keyboard.press("Escape")


def write_live(store: Store, attempt: Attempt, stop: threading.Event) -> None:
    """Writes RATE lines per second for SECONDS seconds, and then the end."""
    started, number = time.monotonic(), 1
    while number <= RATE * SECONDS and not stop.is_set():
        due = int((time.monotonic() - started) * RATE) + 1
        stamp = iso_timestamp(time.time())
        lines = [Line(n, stamp, message(n), "stdout") for n in range(number, min(due, RATE * SECONDS) + 1)]
        if lines:
            store.append(attempt, lines[:BATCH])
            number += len(lines[:BATCH])
        time.sleep(0.01)
    store.finish(attempt, Status.COMPLETED, 0, 0, number)


def live(browser: Browser, service: Service, store: Store) -> None:
    """Measures a job that writes 2,000 lines per second."""
    job = JobRef("acceptance", "live")
    attempt, stop = store.open(job, "token"), threading.Event()
    writer = threading.Thread(target=write_live, args=(store, attempt, stop))
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    tab = Tab(context, service).open(job)
    writer.start()
    tab.page.wait_for_selector(".row .m")
    tab.page.evaluate(_WATCH, message(0).replace("0", "#"))
    lags = []
    for second in range(SECONDS):
        time.sleep(1)
        if second == SECONDS // 3:
            scroll_away(tab)
        numbers = tab.numbers()
        lags.append(store_last(store, job) - numbers[-1])
    writer.join()
    tab.page.wait_for_function("() => document.getElementById('badge').textContent === 'Completed'")
    wait_shown(tab, RATE * SECONDS)
    watched: dict[str, Any] = tab.page.evaluate("() => { watch.on = false; return watch; }")
    lags.sort()
    report("lines that the page lags, median and most (of 2,000 a second)", f"{lags[SECONDS // 2]}, {lags[-1]}")
    report("rows checked in every frame", f"{watched['rows']:,} in {watched['frames']:,} frames")
    report("of them out of order, doubled or with a wrong text", len(watched["wrong"]), not watched["wrong"])
    report("longest task", f"{watched['longest']:.0f} ms", watched["longest"] < 200)
    report("the page says", tab.text("#facts"), f"{RATE * SECONDS:,} lines" in tab.text("#facts"))
    report("JS heap after collection", f"{heap(tab, collect=True):.0f} MB")
    report("faults in the console", tab.faults, not tab.faults)
    context.close()


def scroll_away(tab: Tab) -> None:
    """Goes to line 1 and back to the end while lines arrive."""
    tab.page.focus("#log")
    tab.page.keyboard.press("g")
    wait_shown(tab, 1)
    time.sleep(1)
    stayed = tab.numbers()[0] == 1
    button = tab.text("#newer")
    tab.page.click("#newer")
    wait_until(lambda: tab.numbers()[0] > RATE * SECONDS // 4, 5, "back at the end")
    report("left the end for line 1, and came back", f"stayed: {stayed}, the button said {button!r}", stayed)


def across(browser: Browser, service: Service, store: Store) -> None:
    """Measures the list of workflows, a workflow with many jobs, and a search in all of them."""
    for number in range(WORKFLOWS + JOBS):
        name = "many" if number >= WORKFLOWS else f"workflow-{number}"
        attempt = store.open(JobRef(name, f"job-{number}"), "token")
        last = 0
        for lines in batches(JOB_LINES if name == "many" else 1):
            store.append(attempt, lines)
            last += len(lines)
        if number == WORKFLOWS:
            store.append(attempt, [Line(last + 1, iso_timestamp(time.time()), "a needle", "stderr")])
            last += 1
        store.finish(attempt, Status.COMPLETED, 0, 0, last + 1)
    report("jobs and lines written", f"{WORKFLOWS + JOBS:,}, {JOBS * JOB_LINES:,}")
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    tab = Tab(context, service)

    def timed(what: str, step: Callable[[], Any], selector: str, within: float) -> None:
        started = time.monotonic()
        step()
        tab.page.wait_for_selector(selector, timeout=120_000)
        took = time.monotonic() - started
        report(what, f"{took * 1000:.0f} ms", took < within)

    address = f"{service.url}/#token={service.token()}"
    timed(f"the first of {WORKFLOWS + 1} workflows", lambda: tab.page.goto(address), "tbody tr:nth-child(50)", 1)
    timed(f"the first of {JOBS:,} jobs", lambda: tab.page.click("tbody a"), "#jobs tbody tr:nth-child(50)", 1)
    tab.page.fill("#q", "line 500 of")
    timed("a search that finds a line in each job", lambda: tab.page.press("#q", "Enter"), "#found a.match", 1)
    timed("matches of 20 jobs", lambda: None, "#further:visible", 3)
    tab.page.fill("#q", "a needle")
    tab.page.evaluate(_WATCH, "")
    tab.page.press("#q", "Enter")
    timed("the one match, in the oldest job", lambda: None, "#found mark", 60)
    watched: dict[str, Any] = tab.page.evaluate("() => { watch.on = false; return watch; }")
    report("longest task meanwhile", f"{watched['longest']:.0f} ms", watched["longest"] < 200)
    report("the page says", tab.text("#progress"))
    report("faults in the console", tab.faults, not tab.faults)
    context.close()


def store_last(store: Store, job: JobRef) -> int:
    known = store.get_job(job)
    return known.last if known else 0


def main(chosen: set[str]) -> None:
    """Runs the named parts, or all."""
    with (
        tempfile.TemporaryDirectory(prefix="cv-") as scratch,
        running(Path(scratch) / "store") as server,
        serving(Path(scratch), server.url, workers=1) as service,
        chromium() as browser,
    ):
        store = Store(server.url)
        for part in (big, live, across):
            if not chosen or part.__name__ in chosen:
                part(browser, service, store)
        store.close()


if __name__ == "__main__":
    main(set(sys.argv[1:]))
