"""CI systems' markup on the screen: groups with durations, annotations, commands and links."""

from collections.abc import Callable

import pytest

from chronoverse.joblog.model import Status
from chronoverse.store import Store
from tests.browser.browsing import PATIENCE_SECONDS, Tab, wait_until
from tests.browser.conftest import Job
from tests.browser.test_hostile import ALLOWED

pytestmark = pytest.mark.long

OpenTab = Callable[..., Tab]

CLEAR = "\r\x1b[0K"


def shown(tab: Tab) -> list[tuple[int, str]]:
    """The rows in view: their numbers, and their contents without the number and text for screen readers."""
    found: list[list[object]] = tab.page.evaluate(
        """() => Array.from(document.querySelectorAll(".row"), (row) => [Number(row.dataset.number),
            Array.from(row.querySelectorAll(".kind, .where-at, .m, .took"), (each) => each.textContent).join("|")])"""
    )
    return [(int(str(number)), str(text)) for number, text in found]


def wait_shown(tab: Tab, expected: list[tuple[int, str]]) -> None:
    """Waits until exactly these rows are shown."""
    try:
        wait_until(lambda: shown(tab) == expected, PATIENCE_SECONDS, "the rows are shown")
    except AssertionError as error:
        raise AssertionError(f"{error}, but {shown(tab)}") from None


def test_groups_of_a_good_job_are_folded(open_tab: OpenTab, job: Job) -> None:
    """With their durations, except one with an error. A click, a key and a jump open them. Ends have no row."""
    lines = ["::group::Install", *["x"] * 18, "::endgroup::", "##[group]Build", *["##[error]no compiler"] * 20]
    lines += ["##[endgroup]", f"section_start:1772532000:prep[collapsed=true]{CLEAR}Preparing", "y"]
    lines += [f"section_end:1772532065:prep{CLEAR}section_start:1772532065:run{CLEAR}Running", "z"]
    lines += [f"section_end:1772532067:run{CLEAR}", "--- Deploy", *["a"] * 10, "+++ Clean up", "b"]
    for line in [*lines, "--- a/file", "+++ b/file"]:
        job.lines(line)
    job.end()
    tab = open_tab(job.ref)
    build = [(21, "Build|2.1 s"), *((number, "error|no compiler") for number in range(22, 42))]
    sections = [(43, "Preparing|1 min 05 s"), (45, "Running|2.0 s")]
    after = [(48, "--- Deploy|1.1 s"), (59, "+++ Clean up"), (60, "b"), (61, "--- a/file"), (62, "+++ b/file")]
    wait_shown(tab, [(1, "Install|1.9 s"), *build, *sections, *after])
    tab.page.click(".row[data-number='43'] .fold")
    wait_shown(tab, [(1, "Install|1.9 s"), *build, sections[0], (44, "y"), sections[1], *after])
    tab.page.keyboard.press("z")
    wait_until(lambda: shown(tab)[1] == (2, "x"), PATIENCE_SECONDS, "all groups are open")
    assert [number for number in range(1, 35) if number not in dict(shown(tab))] == [20]
    tab.view("#foldall")
    wait_shown(tab, [(1, "Install|1.9 s"), build[0], *sections, *after])
    tab.go_to(10)
    wait_until(lambda: (10, "x") in shown(tab), PATIENCE_SECONDS, "the group is open")


def test_annotations_and_commands_are_coloured_rows(open_tab: OpenTab, page_store: Store) -> None:
    """The markup is hidden, and a search's highlights are in the right place. Groups of a failed job stay open."""
    job = Job(page_store, "job", "annotations").lines(
        "::group::Test", "::error file=src/a%2Cb.js,line=10,col=2::<b>no</b> semicolon", "::warning::old call"
    )
    job.lines(*["##[section]Starting"] * 10, "[command]/usr/bin/git fetch", "::debug::state", "::notice file=x::look")
    job.lines("::endgroup::").end(Status.FAILED, 1)
    tab = open_tab(job.ref)
    texts = ["Test|1.6 s", "error|src/a,b.js:10|<b>no</b> semicolon", "warning|old call", *["Starting"] * 10]
    wait_shown(tab, [*enumerate([*texts, "/usr/bin/git fetch", "state", "notice|x|look"], 1)])
    for kind, number in (("error", 1), ("warning", 1), ("section", 10), ("command", 1), ("debug", 1), ("notice", 1)):
        assert (kind, tab.page.locator(f".ci-{kind}").count()) == (kind, number)
    tab.find("semicolon")
    tab.page.wait_for_selector(".ci-error mark:text-is('semicolon')")
    tab.wait_text("#summary code", "<b>no</b> semicolon")


def test_hyperlinks_keep_their_target(open_tab: OpenTab, job: Job) -> None:
    """Only http and https targets without special characters. Others are text."""
    good = ["https://example.org/a?b=1#c", "HTTP://example.org/"]
    bad = ["javascript:alert(1)", "data:text/html,x", "file:///etc/passwd", "http://x/'onclick=1", "https://", "//x"]
    job.lines(*(f"\x1b]8;id=1;{each}\x1b\\see \x1b[31mthis\x1b[0m\x1b]8;;\x07 not" for each in [*good, *bad])).end()
    tab = open_tab(job.ref).wait_number(len(good + bad))
    assert [text for _, text in tab.rows()] == ["see this not"] * len(good + bad)
    links = tab.page.evaluate(
        """() => Array.from(document.querySelectorAll(".m a"),
            (a) => [a.getAttribute("href"), a.textContent, a.getAttributeNames()])"""
    )
    assert [link[:2] for link in links] == [[each, text] for each in good for text in ("see ", "this")]
    # The text can show a different host.
    shown = "() => Array.from(document.querySelectorAll('.m a'), (a) => getComputedStyle(a, '::after').content)"
    assert tab.page.evaluate(shown) == ["none", '" (example.org)"'] * 2
    assert tab.page.locator(".m a[data-host='example.org']").count() == 2
    assert all(set(names) <= ALLOWED["A"] for _, _, names in links)
