"""Starts a service with example jobs, and takes the screenshots in docs/screenshots/.

python -m tests.browser.screenshots
"""

import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from playwright.sync_api import Browser

from chronoverse.joblog.model import JobRef, Line, Status, iso_timestamp
from chronoverse.store import Store
from tests.browser.browsing import Tab, chromium
from tests.support.servers import RedisServer, running
from tests.support.service import ROOT, Service, serving

FOLDER: Final = ROOT / "docs" / "screenshots"
#: Sizes of the screenshots in pixels: for documentation, and of a phone.
WIDE: Final = (1280, 640)
NARROW: Final = (390, 700)
WORKFLOW: Final = "nightly"

ESC: Final = "\x1b"


def build(targets: int, *, fails: bool) -> Iterator[tuple[str, str]]:
    """A build's output: messages and their streams."""
    yield "::group::Set up the toolchain", "stdout"
    for tool in ("python 3.13.1", "node 22.12.0", "cmake 3.31.2", "valkey 9.1.2"):
        yield f"{ESC}[32m✓{ESC}[0m {tool}", "stdout"
    yield "::endgroup::", "stdout"
    yield f"{ESC}[1m==> Building {targets} targets{ESC}[0m", "stdout"
    for number in range(1, targets + 1):
        unit = f"src/{('net', 'store', 'ui', 'core')[number % 4]}/unit_{number}.c"
        yield f"{ESC}[90m[{number:>3}/{targets}]{ESC}[0m cc {ESC}[36m{unit}{ESC}[0m -O2 -g -Wall", "stdout"
        if number % 23 == 0:
            warning = f"{ESC}[1;35mwarning:{ESC}[0m unused variable {ESC}[1m'tmp'{ESC}[0m [-Wunused-variable]"
            yield f"{unit}:{number * 3}:9: {warning}", "stderr"
    yield f"{ESC}[1m==> Running tests{ESC}[0m", "stdout"
    for number in range(1, 61):
        yield f"tests/test_{number % 9}.py::test_case_{number} {ESC}[32mPASSED{ESC}[0m {ESC}[2m({number} ms)", "stdout"
    if fails:
        yield f"tests/test_4.py::test_resume_after_a_cut {ESC}[31mFAILED{ESC}[0m", "stdout"
        yield f"{ESC}[31mE   AssertionError: expected line 900, got a gap{ESC}[0m", "stderr"
        yield f"{ESC}[31mE   see https://example.org/docs/gaps#what-is-missing{ESC}[0m", "stderr"
        summary = f"{ESC}[41;97m FAIL {ESC}[0m {ESC}[31m1 failed{ESC}[0m, {ESC}[32m60 passed{ESC}[0m in 12.4 s"
        yield summary, "stdout"


class Calendar:
    """The clock of the written jobs. It starts in the past, and changes only when set."""

    def __init__(self) -> None:
        self.now = time.time() - 3000

    def __call__(self) -> float:
        return self.now


def write(
    store: Store,
    clock: Calendar,
    job_id: str,
    lines: list[tuple[str, str]],
    end: tuple[Status, int] | None,
    workflow_id: str = WORKFLOW,
    *,
    stalls: float = math.inf,
) -> JobRef:
    """Writes a job with these lines, seven per second, and 15 s of silence after line ``stalls``."""
    clock.now += 240
    job = JobRef(workflow_id, job_id)
    attempt = store.open(job, "token")
    for start in range(0, len(lines), 500):
        numbered = enumerate(lines[start : start + 500], start + 1)
        times = {n: iso_timestamp(clock.now + n / 7 + 15 * (n > stalls)) for n in range(start + 1, start + 501)}
        store.append(attempt, [Line(n, times[n], text, stream) for n, (text, stream) in numbered])
    clock.now += len(lines) / 7 + 15 * (len(lines) > stalls)
    if end:
        store.finish(attempt, *end, 0, len(lines) + 1)
    return job


def take(browser: Browser, service: Service, store: Store, clock: Calendar, server: RedisServer) -> None:
    """Takes all screenshots."""

    def tab(size: tuple[int, int] = WIDE, *, dark: bool = False) -> Tab:
        width, height = size
        context = browser.new_context(viewport={"width": width, "height": height})
        tab = Tab(context, service)
        tab.page.emulate_media(color_scheme="dark" if dark else "light")
        return tab

    def save(tab: Tab, name: str) -> None:
        tab.page.wait_for_timeout(400)  # for the badge's pulse and the last frame
        tab.page.screenshot(path=FOLDER / f"{name}.png", animations="disabled")
        tab.page.context.close()

    for workflow_id, status in (("docs", Status.COMPLETED), ("backup", Status.FAILED), ("release", None)):
        write(store, clock, f"{workflow_id}-1", [("ok", "stdout")], (status, 1) if status else None, workflow_id)
    write(store, clock, "docs-88", [("ok", "stdout")], (Status.COMPLETED, 0))
    for number in range(412, 417):
        fails = number in (412, 415)
        end = (Status.FAILED, 3) if fails else (Status.COMPLETED, 0)
        write(store, clock, f"build-{number}", [*build(number - 200, fails=fails)], end)
    lines = [*build(230, fails=True)]
    stalls = 1 + [text for text, _ in lines].index(f"{ESC}[1m==> Running tests{ESC}[0m")
    failed = write(store, clock, "build-417", lines, (Status.FAILED, 3), stalls=stalls)
    gone = write(
        store, clock, "import-7", [(f"imported batch {n} of 2,400", "stdout") for n in range(1, 2401)], (Status.LOST, 0)
    )
    # The running job's last line has the current time.
    clock.now = time.time() - 240 - 140 / 7
    running = write(store, clock, "build-418", [*build(180, fails=False)][:140], None)
    key = f"chronoverse:{{{WORKFLOW}}}:{gone.job_id}:log"
    server.ask("XTRIM", key, "MINID", "900")
    server.ask("XDEL", key, *(f"{number}-0" for number in range(912, 1240)))

    live = tab().open(running).wait_number(140)
    live.page.wait_for_selector("#usual:has-text('usually')")
    live.page.wait_for_selector("#steps a")
    save(live, "running")
    for name, opened in (("failed", tab()), ("dark", tab(dark=True)), ("narrow", tab(NARROW))):
        opened.open(failed).wait_compared()
        save(opened.wait_number(310), name)
    compared = tab().open(failed).wait_number(309)
    compared.wait_compared()
    compared.page.keyboard.press("d")
    compared.wait(lambda rows: len(rows) == 4, "the new lines alone")
    save(compared, "new")
    save(tab().open(gone, "L907-L909").wait_number(1241), "gap")
    search = tab().open(failed).wait_number(309)
    search.page.keyboard.press("g")
    search.wait_number(1)
    search.find("store/unit_4")
    search.wait_text("#count", "1 of 3")
    search.page.keyboard.press("Enter")
    save(search, "search")
    home = tab()
    home.page.goto(f"{service.url}/#token={service.token()}")
    home.page.wait_for_selector("tbody tr")
    save(home, "home")
    across = tab()
    across.page.goto(f"{service.url}/ui/workflows/{WORKFLOW}?q=failed#token={service.token()}")
    across.page.wait_for_selector("#progress:has-text('all jobs were searched')")
    save(across, "across")


def main() -> None:
    """Starts the required programs, and takes the screenshots."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="cv-") as scratch,
        running(Path(scratch) / "store") as server,
        serving(Path(scratch), server.url, lease_seconds=3600) as service,
        chromium() as browser,
    ):
        clock = Calendar()
        store = Store(server.url, lease_seconds=3600, clock=clock)
        take(browser, service, store, clock, server)
        store.close()


if __name__ == "__main__":
    main()
