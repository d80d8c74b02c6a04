"""A headless Chromium with the log page, and helpers that read its screen."""

import contextlib
import re
import shutil
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

import pytest
from gevent import monkey

from chronoverse.joblog.model import JobRef
from tests.support import waiting
from tests.support.service import Service
from tests.support.tools import tool

# Importing it takes 0.2 s, in each process that collects tests.
if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, BrowserType, Page

#: Time limit for anything to appear on the screen, even on a busy machine, in seconds.
PATIENCE_SECONDS: Final = 90.0

#: Maximum polling interval of a page. Each poll takes 7 ms of CPU time in the browser, its driver and the test.
_POLL_SECONDS: Final = 0.2

#: All rows that are completely in view: number and text (None while loading).
_ROWS: Final = """() => {
    const log = document.getElementById("log");
    // Until the steps are there, the page does not show its rows.
    if (!log || getComputedStyle(log).visibility === "hidden") return [];
    const screen = log.getBoundingClientRect();
    const found = [];
    for (const row of document.querySelectorAll(".row")) {
        const box = row.getBoundingClientRect();
        if (box.top < screen.top - 1 || box.bottom > screen.bottom + 1) continue;
        found.push([Number(row.dataset.number), row.querySelector(".m")?.textContent ?? null]);
    }
    return found;
}"""


#: Records the texts announced to screen readers. Each is on the page for only a second.
_KEEP_SAID: Final = """new MutationObserver(() => {
    const said = document.getElementById("said")?.textContent;
    if (said && said !== window.announced?.at(-1)) (window.announced ??= []).push(said);
}).observe(document, { childList: true, characterData: true, subtree: true })"""


def wait_until(predicate: Callable[[], object], timeout: float, what: str) -> None:
    """:func:`waiting.wait_until` for a page, with a longer maximum polling interval."""
    waiting.wait_until(predicate, timeout, what, slowest=_POLL_SECONDS)


@contextlib.contextmanager
def chromium() -> Iterator["Browser"]:
    """A Debian build of Chromium. Without it, skips the test, or fails where it is required (``CI``)."""
    if monkey.is_module_patched("socket"):
        pytest.skip("the browser's driver has an event loop of its own; the service runs under gevent in any case")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = launch(driver.chromium)
        yield browser
        browser.close()


def launch(kind: "BrowserType", **options: Any) -> "Browser":
    """A browser, to be closed by the caller."""
    # The headless shell is the same engine at a third of the CPU time per tab: 0.5 s instead of 1.4 s.
    binary = shutil.which("chromium-headless-shell") or tool("chromium")
    # Chromium's sandbox does not work for root. This browser only loads pages of this machine.
    return kind.launch(executable_path=binary, args=["--no-sandbox"], **options)


class Tab:
    """A tab that records its errors."""

    def __init__(self, context: "BrowserContext", service: Service) -> None:
        self.page: Page = context.new_page()
        self.page.set_default_timeout(1000 * PATIENCE_SECONDS)
        self.faults: list[str] = []
        #: The text of errors that the test causes on purpose, which are ignored.
        self.expected: str | None = None
        self._service = service
        self.page.add_init_script(_KEEP_SAID)
        self.page.on("pageerror", lambda error: self._fault(str(error)))
        self.page.on("console", lambda said: self._fault(said.text) if said.type == "error" else None)

    def _fault(self, text: str) -> None:
        # A busy machine may refuse a search. The page retries, and the test waits for the result.
        is_busy = "status of 503" in text or "status of 429" in text
        if not is_busy and (self.expected is None or self.expected not in text):
            self.faults.append(text)

    @property
    def url(self) -> str:
        """The service's URL."""
        return self._service.url

    @property
    def address(self) -> str:
        """The page's current address. ``page.url`` lags behind changes by scripts."""
        address: str = self.page.evaluate("location.href")
        return address

    def open(self, job: JobRef, fragment: str = "", *, token: str | None = None) -> "Tab":
        """Opens the page of ``job`` with a token in the fragment."""
        path = f"/ui/workflows/{job.workflow_id}/jobs/{job.job_id}"
        parts = [f"token={token or self._service.token()}", *filter(None, [fragment])]
        self.page.goto(f"{self._service.url}{path}#{'&'.join(parts)}")
        return self

    def rows(self) -> list[tuple[int, str | None]]:
        """The rows that are completely in view, as number and text."""
        found: list[list[Any]] = self.page.evaluate(_ROWS)
        return [(number, text) for number, text in found]

    def numbers(self) -> list[int]:
        """The numbers of those rows."""
        return [number for number, _ in self.rows()]

    def wait(self, predicate: Any, what: str) -> "Tab":
        """Waits until all rows in view are loaded and ``predicate(rows)`` is true."""

        def true() -> bool:
            rows = self.rows()
            return bool(rows) and all(text is not None for _, text in rows) and bool(predicate(rows))

        try:
            wait_until(true, PATIENCE_SECONDS, what)
        except AssertionError as error:
            raise AssertionError(f"{error}, but {self.rows()[:3]} … {self.rows()[-3:]}; {self.faults}") from None
        return self

    def wait_number(self, number: int) -> "Tab":
        """Waits until that line is in view."""
        return self.wait(lambda rows: any(each == number for each, _ in rows), f"line {number} is in view")

    def go_to(self, number: int) -> None:
        """Goes to a line by keyboard: ``l``, the number, Enter."""
        self.page.focus("#log")
        self.page.keyboard.press("l")
        self.page.keyboard.type(str(number))
        self.page.keyboard.press("Enter")

    def wheel(self, pixels: int) -> None:
        """Turns the wheel over the log, down or (negative) up, until the log moves."""
        self.page.mouse.move(600, 400)
        position = "document.getElementById('log').scrollTop"
        before, turned_at = self.page.evaluate(position), 0.0

        def has_moved() -> bool:
            nonlocal turned_at
            if self.page.evaluate(position) != before:
                return True
            # Chromium drops some events, in 1 of 4 runs of a test on a busy machine.
            if time.monotonic() - turned_at > 5:
                self.page.mouse.wheel(0, pixels)
                turned_at = time.monotonic()
            return False

        wait_until(has_moved, PATIENCE_SECONDS, "the wheel moves the log")

    def view(self, selector: str) -> None:
        """Clicks an entry of the menu *View*, which closes it."""
        self.page.click("#view")
        self.page.click(f"#views {selector}")

    @property
    def compared_with(self) -> list[str]:
        """The runs that the job is compared with, from their menu."""
        return self.page.locator("#runs .run > a:first-child").all_text_contents()

    def wait_compared(self, *runs: str) -> None:
        """Waits until the page knows which runs the job is compared with, and, if given, that they are ``runs``."""
        wait_until(
            lambda: self.compared_with == [*runs] if runs else self.compared_with,
            PATIENCE_SECONDS,
            f"{runs} are compared with",
        )

    def find(self, text: str) -> None:
        """Searches for ``text``."""
        self.page.fill("#q", text)
        self.page.press("#q", "Enter")

    def text(self, selector: str) -> str:
        """An element's text; empty if hidden."""
        return self.page.inner_text(selector) if self.page.is_visible(selector) else ""

    def wait_said(self, expected: str) -> None:
        """Waits until a text that matches ``expected`` has been announced to screen readers."""

        def said() -> list[str]:
            texts: list[str] = self.page.evaluate("window.announced ?? []")
            return texts

        try:
            wait_until(lambda: any(re.fullmatch(expected, text) for text in said()), PATIENCE_SECONDS, expected)
        except AssertionError as error:
            raise AssertionError(f"{error}, but {said()}") from None

    def wait_text(self, selector: str, expected: str) -> None:
        """Waits until an element has exactly that text."""
        try:
            wait_until(lambda: self.text(selector) == expected, PATIENCE_SECONDS, f"{selector} says {expected!r}")
        except AssertionError as error:
            raise AssertionError(f"{error}, but {self.text(selector)!r}; {self.faults}") from None
