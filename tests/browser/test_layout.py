"""The log's height at every window size, the list of steps, progress bars, and keys after a click."""

from collections.abc import Callable
from typing import Final

import pytest

from chronoverse.joblog.labels import check_labels
from chronoverse.joblog.model import Status
from chronoverse.store import Store
from tests.browser.browsing import PATIENCE_SECONDS, Tab, wait_until
from tests.browser.conftest import Job
from tests.browser.test_new_lines import wait_current

pytestmark = pytest.mark.long

OpenTab = Callable[..., Tab]

#: Window sizes. 720x450 is 1440x900 at 200 % zoom.
SIZES: Final = ((360, 640), (844, 390), (390, 844), (720, 450), (1024, 768), (1440, 900), (2560, 1440))

#: The visible fraction of the window that the log takes up; and the sum of the layout shifts.
SHARE: Final = """() => {
    const { top, bottom } = document.getElementById("log").getBoundingClientRect();
    return (Math.min(bottom, innerHeight) - Math.max(0, top)) / innerHeight;
}"""
SHIFTS: Final = """window.shifted = 0;
    window.shifts = [];
    new PerformanceObserver((list) => list.getEntries().forEach(({ value, sources }) => {
        window.shifted += value;
        window.shifts.push([value, ...sources.map(({ node }) => node?.id || node?.className)]);
    }))
        .observe({ type: "layout-shift", buffered: true });"""
#: Whether the status is next to the job's name, and whether the name is truncated.
HEAD: Final = """() => {
    const [name, badge] = ["name", "badge"].map((id) => document.getElementById(id));
    const isBeside = badge.getBoundingClientRect().top < name.getBoundingClientRect().bottom;
    return [isBeside, name.scrollWidth > name.clientWidth];
}"""
STEPS: Final = """() => Array.from(document.querySelectorAll("#steps li"), (each) => [each.className,
    each.querySelector(".cut").textContent, each.querySelector("a").dataset.status])"""


def groups(style: str, *names: str) -> list[str]:
    """Lines of these groups, with one line in each."""
    around = {
        "github": ("::group::{0}", "::endgroup::"),
        "azure": ("##[group]{0}", "##[endgroup]"),
        "gitlab": ("section_start:1772532000:{1}\r\x1b[0K{0}", "section_end:1772532001:{1}\r\x1b[0K"),
        "travis": ("travis_fold:start:{1}\r\x1b[0K{0}", "travis_fold:end:{1}\r\x1b[0K"),
        "buildkite": ("--- {0}", ""),
    }
    begin, end = around[style]
    found = []
    for name in names:
        found += [text.format(name, name.lower()) for text in (begin, "a line of {0}", end) if text]
    return found


@pytest.fixture(scope="module")
def failed(page_store: Store) -> Job:
    """A failed job with a long cause, groups, labels, and earlier good runs."""
    lines = [*groups("azure", "Install"), "##[group]Test", *(f"test {number} passed" for number in range(200))]
    labels = check_labels({"branch": "main", "commit": "4f0c1de" * 5, "os": "linux", "url": "https://ci.example.com/1"})
    for number in range(3):
        Job(page_store, f"good-{number}", "layout", labels).lines(*lines, "##[endgroup]").end()
    cause = f"AssertionError: expected {'a very long value ' * 12} but got another one"
    job = (
        Job(page_store, f"failed-{'in-a-job-with-a-long-name-' * 4}1", "layout", labels)
        .lines(*lines)
        .wait(60)
        .lines(cause, "##[endgroup]")
    )
    return job.end(Status.FAILED, 1)


def test_the_log_gets_half_of_every_window(open_tab: OpenTab, failed: Job) -> None:
    """With the card, the tools and the strip, and the cause in view. Nothing moves while the page opens."""
    for width, height in SIZES:
        tab = open_tab()
        tab.page.add_init_script(SHIFTS)
        tab.page.set_viewport_size({"width": width, "height": height})
        tab.open(failed.ref)
        tab.wait_compared()
        wait_current(tab, 205)
        size = (width, height)
        assert (size, tab.page.evaluate(SHARE) >= 0.5) == (size, True)
        assert tab.page.evaluate("shifted") < 0.05, (size, tab.page.evaluate("shifts"))
        assert (size, tab.page.evaluate("document.documentElement.scrollWidth > innerWidth")) == (size, False)
        assert tab.text("#summary code").startswith("AssertionError: expected a very long value")
        assert tab.page.is_visible("#gocause")
        # A long name takes one line until it is tapped.
        assert (size, tab.page.evaluate(HEAD)) == (size, [True, width < 2560])
        tab.page.click("#name")
        assert (size, tab.page.evaluate(HEAD)[1]) == (size, False)


@pytest.mark.parametrize("style", ["github", "azure", "gitlab", "travis", "buildkite"])
def test_groups_of_every_system_are_steps(open_tab: OpenTab, page_store: Store, style: str) -> None:
    """Nested ones, too, except for Buildkite, whose groups are never nested. The step with the cause is marked."""
    outer, inner = groups(style, "Build"), groups(style, "Compile", "Link")
    lines = [*groups(style, "Install"), *outer[:2], *inner, *outer[2:], *groups(style, "Test")]
    at = lines.index("a line of Link")
    lines[at] = "error: undefined reference to main"
    job = Job(page_store, style, "steps").lines(*lines).end(Status.FAILED, 1)
    tab = open_tab(job.ref)
    depth = "" if style == "buildkite" else "inner"
    build = "COMPLETED" if style == "buildkite" else "FAILED"
    steps = [["", "Install", "COMPLETED"], ["", "Build", build], [depth, "Compile", "COMPLETED"]]
    steps += [[depth, "Link", "FAILED"], ["", "Test", "COMPLETED"]]
    try:
        wait_until(lambda: tab.page.evaluate(STEPS) == steps, PATIENCE_SECONDS, "the steps are there")
    except AssertionError as error:
        raise AssertionError(f"{error}, but {tab.page.evaluate(STEPS)}") from None
    assert tab.page.locator("#steps [aria-current] .cut").all_inner_texts() == ["Link"]
    tab.page.click("#steps a:has-text('Install')")
    wait_current(tab, 1)
    wait_until(
        lambda: tab.page.locator("#steps [aria-current] .cut").all_inner_texts() == ["Install"],
        PATIENCE_SECONDS,
        "the list follows the log",
    )
    tab.page.set_viewport_size({"width": 800, "height": 700})
    assert tab.text("#steps") == ""
    tab.page.click("#opensteps")
    tab.page.click("#steps a:has-text('Test')")
    wait_current(tab, len(lines) - (1 if style == "buildkite" else 2))
    assert tab.text("#steps") == ""


def test_a_running_step_is_marked_while_it_lasts(open_tab: OpenTab, job: Job) -> None:
    """The output of a GitHub step follows the group with its header."""
    head = ["::group::Run make", "env: CI=1", "::endgroup::", "compiling"]
    for line in [*head, "::group::Run make test", "::endgroup::"]:
        job.lines(line)
    tab = open_tab(job.ref).wait_number(5)
    shown = [["", "Run make", "COMPLETED"], ["", "Run make test", "RUNNING"]]
    wait_until(lambda: tab.page.evaluate(STEPS) == shown, PATIENCE_SECONDS, "the running step")
    job.lines("::group::Clean up", "::endgroup::").end()
    shown = [*([each[0], each[1], "COMPLETED"] for each in shown), ["", "Clean up", "COMPLETED"]]
    wait_until(lambda: tab.page.evaluate(STEPS) == shown, PATIENCE_SECONDS, "all have ended")
    assert tab.page.locator("#steps .num").first.inner_text() == "0.4 s"


def test_a_progress_bars_rows_are_merged(open_tab: OpenTab, job: Job) -> None:
    """The last row shows how many there were, and expands on a click or a jump. Mere counters are not merged."""
    job.lines("begin", *(f"Downloading {share:3}% [{'#' * (share // 10):10}]" for share in range(0, 101, 10)))
    job.lines("tests/a.py::test_1 PASSED [ 50%]", "tests/a.py::test_2 PASSED [100%]")
    tab = open_tab(job.ref).wait_number(14)
    assert tab.numbers() == [1, 12, 13, 14]
    assert tab.text(".row[data-number='12'] .updates") == "▸ 10 earlier updates"
    job.lines(*(f"{done}/3 packages 100 kB" for done in range(1, 3)))
    job.lines(*(f"pulling {share}% 1.{share} MB/s" for share in (1, 50, 99)))
    tab.wait(lambda rows: [number for number, _ in rows] == [1, 12, 13, 14, 15, 16, 19], "one row for the second bar")
    tab.page.click(".row[data-number='12'] .updates")
    tab.wait(lambda rows: [number for number, _ in rows] == [*range(1, 17), 19], "all rows of the first bar")
    tab.go_to(17)
    tab.wait(lambda rows: [number for number, _ in rows] == [*range(1, 20)], "all rows of the second bar")


def test_keys_work_after_a_click_in_the_search_box(open_tab: OpenTab, big: Job) -> None:
    """On one of its buttons. In its field, keys are text."""
    tab = open_tab(big.ref).wait_number(1)
    for button in ("#regex", "#regex"):
        tab.page.click(button)
        assert tab.page.evaluate("document.activeElement.id") == "log"
    tab.find("line 2000")
    tab.wait_text("#count", "1 of 11")
    tab.page.click("#next")
    tab.page.keyboard.press("g")
    tab.wait_number(1)
    tab.page.click("#q")
    tab.page.keyboard.type("g")
    assert tab.page.input_value("#q") == "line 2000g"
    assert tab.numbers()[0] == 1
    # On phones, the field changes between press and release.
    tab.page.keyboard.press("Escape")
    tab.page.set_viewport_size({"width": 390, "height": 844})
    tab.page.click("#q")
    tab.page.keyboard.type("line")
    assert tab.page.input_value("#q") == "line"


def test_forced_colours_keep_statuses_and_toggles(open_tab: OpenTab, failed: Job) -> None:
    """Icons have their text's colour, and pressed buttons the colour of selected text."""
    tab = open_tab(failed.ref)
    tab.wait_compared()
    tab.page.wait_for_selector("#steps .area")
    tab.page.click("#new")
    tab.page.emulate_media(forced_colors="active")
    colours = """() => ["#badge .area", "#steps .area", "#new", "#view"].map((selector) => {
        const { fill, backgroundColor } = getComputedStyle(document.querySelector(selector));
        return selector.includes(".area") ? fill : backgroundColor;
    })"""
    badge, step, pressed, other = tab.page.evaluate(colours)
    ground = tab.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert badge != ground
    assert step != ground
    assert pressed != other
