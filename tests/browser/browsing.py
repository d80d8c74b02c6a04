"""A reader's browser: headless Chromium on the page, and what is on its screen."""

import contextlib
from collections.abc import Iterator
from typing import Any, Final

import pytest
from gevent import monkey
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from chronoverse.joblog.values import JobRef
from tests.support.service import Service
from tests.support.tools import tool
from tests.support.waiting import wait_until

#: Seconds in which anything that a test waits for must be on the screen of a busy machine.
PATIENCE_SECONDS: Final = 10.0

#: Every row that is wholly in view: its number, and its text (None while that is on its way).
_ROWS: Final = """() => {
    const screen = document.getElementById("log").getBoundingClientRect();
    const found = [];
    for (const row of document.querySelectorAll(".row")) {
        const box = row.getBoundingClientRect();
        if (box.top < screen.top - 1 || box.bottom > screen.bottom + 1) continue;
        found.push([Number(row.dataset.number), row.querySelector(".m")?.textContent ?? null]);
    }
    return found;
}"""


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's. Skips the test where there is none, and fails it where there has to be (``CI``)."""
    if monkey.is_module_patched("socket"):
        pytest.skip("the browser's driver has an event loop of its own; the service runs under gevent in any case")
    binary = tool("chromium")
    with sync_playwright() as driver:
        # Without the sandbox, which root cannot have; what it loads comes from this machine.
        browser = driver.chromium.launch(executable_path=binary, args=["--no-sandbox"])
        yield browser
        browser.close()


class Tab:
    """One tab, and everything that went wrong in it."""

    def __init__(self, context: BrowserContext, service: Service) -> None:
        self.page: Page = context.new_page()
        self.faults: list[str] = []
        #: What a test brings about itself: a fault that says this is none.
        self.expected: str | None = None
        self._service = service
        self.page.on("pageerror", lambda error: self._fault(str(error)))
        self.page.on("console", lambda said: self._fault(said.text) if said.type == "error" else None)

    def _fault(self, text: str) -> None:
        if self.expected is None or self.expected not in text:
            self.faults.append(text)

    @property
    def url(self) -> str:
        """Where the service is."""
        return self._service.url

    def open(self, job: JobRef, fragment: str = "", *, token: str | None = None) -> "Tab":
        """The page of ``job``, signed in through the fragment."""
        path = f"/ui/workflows/{job.workflow_id}/jobs/{job.job_id}"
        parts = [f"token={token or self._service.token()}", *filter(None, [fragment])]
        self.page.goto(f"{self._service.url}{path}#{'&'.join(parts)}")
        return self

    def rows(self) -> list[tuple[int, str | None]]:
        """The rows wholly in view: number and text."""
        found: list[list[Any]] = self.page.evaluate(_ROWS)
        return [(number, text) for number, text in found]

    def numbers(self) -> list[int]:
        """The rows' numbers."""
        return [number for number, _ in self.rows()]

    def wait(self, predicate: Any, what: str) -> "Tab":
        """Returns once ``predicate(rows)`` is true of the rows in view, all of which have come."""

        def true() -> bool:
            rows = self.rows()
            return bool(rows) and all(text is not None for _, text in rows) and bool(predicate(rows))

        try:
            wait_until(true, PATIENCE_SECONDS, what)
        except AssertionError as error:
            raise AssertionError(f"{error}, but {self.rows()[:3]} … {self.rows()[-3:]}; {self.faults}") from None
        return self

    def wait_number(self, number: int) -> "Tab":
        """Returns once that line is in view."""
        return self.wait(lambda rows: any(each == number for each, _ in rows), f"line {number} is in view")

    def go_to(self, number: int) -> None:
        """As a reader does: ``l``, the number, Enter."""
        self.page.focus("#log")
        self.page.keyboard.press("l")
        self.page.keyboard.type(str(number))
        self.page.keyboard.press("Enter")

    def find(self, text: str) -> None:
        """Looks for ``text``."""
        self.page.fill("#q", text)
        self.page.press("#q", "Enter")

    def text(self, selector: str) -> str:
        """What an element says; empty where it is hidden."""
        return self.page.inner_text(selector) if self.page.is_visible(selector) else ""

    def wait_text(self, selector: str, expected: str) -> None:
        """Returns once an element says just that."""
        try:
            wait_until(lambda: self.text(selector) == expected, PATIENCE_SECONDS, f"{selector} says {expected!r}")
        except AssertionError as error:
            raise AssertionError(f"{error}, but {self.text(selector)!r}; {self.faults}") from None
