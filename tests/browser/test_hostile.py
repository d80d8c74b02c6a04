"""Whatever a log contains is displayed as text.

It creates no script, element or title, and does not reach the clipboard. The page remains accessible.
"""

from collections.abc import Callable
from typing import Any, Final

import pytest

from chronoverse.joblog.model import Status
from tests.browser.browsing import Tab
from tests.browser.conftest import Job
from tests.browser.test_new_lines import wait_current

pytestmark = pytest.mark.long

OpenTab = Callable[..., Tab]

#: The output of a hostile job, and what the screen shows of it.
HOSTILE: Final[dict[str, str]] = {
    "a\n\nevent: end\ndata: x": "a^J^Jevent: end^Jdata: x",
    "\r": "^M",
    "over\rwritten\r": "over^Mwritten^M",
    "id: 999\nretry: 1\n:": "id: 999^Jretry: 1^J:",
    "\ufeffmark first": "BOMmark first",
    "".join(map(chr, range(9))): "^@^A^B^C^D^E^F^G^H",
    "\x7f\x80\x85\x9b31m\x9f": "^?x80NELx9b31mx9f",
    "lines\u2028apart\u2029and\x0b\x0c": "linesLSapartPSand^K^L",
    "<img src=x onerror=alert(1)>": "<img src=x onerror=alert(1)>",
    "</span></div><script>window.hacked = 1</script>": "</span></div><script>window.hacked = 1</script>",
    "<a href='javascript:window.hacked=1'>x</a>": "<a href='javascript:window.hacked=1'>x</a>",
    "javascript:alert(1) data:text/html,x": "javascript:alert(1) data:text/html,x",
    "\x1b]8;;javascript:window.hacked=1\x07click\x1b]8;;\x07": "click",
    "\x1b]8;;http://x/\"onclick='window.hacked=1'\x1b\\click\x1b]8;;\x1b\\": "click",
    "\x1b]52;c;aGFja2Vk\x07clipboard": "clipboard",
    "\x1b]0;hacked\x07\x1b]2;hacked\x1b\\title": "title",
    "\x1b[21t\x1b[6n\x1bP$qm\x1b\\questions": "questions",
    "\x1b]0;without an end": "^[]0;without an end",
    "\x1b[31": "^[[31",
    "\x1b[": "^[[",
    "\x1b": "^[",
    "the next line": "the next line",
    "\x1b[2J\x1b[H\x1b[1A\x1b[8mforged\x1b[0m": "forged",
    "user\u202e\u2066nimda\u200e\u200f\u061c": "userRLOLRInimdaLRMRLMALM",
    "zero\u200bwidth\u2060": "zeroZWSPwidthWJ",
    "\x1b[38;5;1;4;999;48;2;1;2m\x1b[38;2;300;0;0m\x1b[38mstill\x1b[m": "still",
    "[chronoverse] job succeeded": "[chronoverse] job succeeded",
    "__proto__ constructor %s %n {{7*7}} ${7*7}": "__proto__ constructor %s %n {{7*7}} ${7*7}",
    "tab\tstays 🙂 👨‍👩‍👧 \ud7ff": "tab\tstays 🙂 👨‍👩‍👧 \ud7ff",
    "e" + "\u0301" * 1000: "e" + "\u0301" * 1000,
    "": "",
}

#: Elements allowed in a row's text, with their allowed attributes.
ALLOWED: Final = {
    "SPAN": {"class", "style", "title"},
    "MARK": {"class"},
    "A": {"class", "href", "style", "target", "rel", "tabindex", "data-host"},
}


def test_log_contents_are_text(open_tab: OpenTab, job: Job) -> None:
    """Even when a search marks parts of it. The result is only text, colours, and links to http and https."""
    job.lines(*HOSTILE, "https://example.org/?a=1&b=\"'<b> (http://example.org/x).").end()
    tab = open_tab(job.ref).wait_number(len(HOSTILE) + 1)
    tab.page.evaluate("navigator.clipboard.writeText('as before')")
    title = tab.page.title()
    assert [text for _, text in tab.rows()][:-1] == [*HOSTILE.values()]
    tab.find("h")
    tab.wait(lambda rows: tab.page.locator("mark").count() > 5, "marks")
    elements: list[Any] = tab.page.evaluate(
        """() => Array.from(document.querySelectorAll(".m *"),
            (each) => [each.tagName, each.getAttributeNames(), each.href])"""
    )

    for name, attributes, href in elements:
        assert set(attributes) <= ALLOWED[name], (name, attributes)
        assert name != "A" or href.startswith(("http://example.org/x", "https://example.org/?a=1&b="))
    assert sorted({href for name, _, href in elements if name == "A"})[0] == "http://example.org/x"
    assert tab.page.evaluate("'hacked' in window") is False
    assert tab.page.title() == title
    assert tab.page.evaluate("navigator.clipboard.readText()") == "as before"


def test_a_giant_line_is_truncated(open_tab: OpenTab, job: Job) -> None:
    """Ten megabytes in parts, and a million accents in one line. The page stays fast, and shows that there is more."""
    part = "0123456789abcdef" * 4096
    job.lines("first", "e" + "\u0301" * 60_000).write(iter([*[(part, "stdout", True)] * 160, ("end", "stdout", False)]))
    job.lines("last").end()
    tab = open_tab(job.ref).wait_number(job.last)

    assert [number for number, _ in tab.rows()] == [1, 2, 3, job.last]
    assert len(tab.rows()[2][1] or "") < 21_000
    assert tab.page.locator(".more").count() == 2


def test_links_and_colours_are_safe(open_tab: OpenTab, job: Job) -> None:
    """A link opens in another tab without sending our address. A colour is a property of the element."""
    job.lines(
        "\x1b[1;31mred\x1b[0m \x1b[38;5;208morange\x1b[0m \x1b[48;2;0;0;0mdark\x1b[0m see https://example.org/a.",
        "\x1b]8;;https://example.com/\x1b\\https://example.org\x1b]8;;\x07 not",
        *("::group::Test", "ok", "::endgroup::"),
        *(f"see https://example.org/{number}" for number in range(6, 300)),
    ).end(Status.FAILED, 1)
    tab = open_tab(job.ref, "L1").wait_number(2)
    link, other, *_ = tab.page.locator(".m a").all()

    assert link.get_attribute("href") == "https://example.org/a"
    assert set((link.get_attribute("rel") or "").split()) >= {"noopener", "noreferrer"}
    # The text can show a different host.
    assert other.evaluate("(a) => getComputedStyle(a, '::after').content") == '" (example.com)"'
    assert tab.page.locator(".m .bold").get_attribute("style") == "color: var(--ink1);"
    assert tab.page.locator(".m [style]").all_inner_texts() == ["red", "orange", "dark"]
    # By keyboard, from the log and from a link in it.
    tab.page.focus("#log")
    for number, reached in ((1, "https://example.org/a"), (3, "▾")):
        tab.page.keyboard.press("l")
        tab.page.keyboard.type(f"{number}\n")
        wait_current(tab, number)
        tab.wait_said(f"Line {number}: .+")
        for _ in range(2):
            tab.page.keyboard.press("Tab")
        assert tab.page.evaluate("document.activeElement.textContent") == reached
    tab.page.keyboard.press("Enter")
    tab.wait(lambda rows: [number for number, _ in rows][:4] == [1, 2, 3, 6], "the group is folded")
    assert tab.page.evaluate("[document.activeElement.ariaLabel, document.activeElement.ariaExpanded]") == [
        "Unfold the group",
        "false",
    ]
    # A link keeps the focus while its row is scrolled.
    tab.page.keyboard.press("l")
    tab.page.keyboard.type("150\n")
    wait_current(tab, 150)
    for _ in range(2):
        tab.page.keyboard.press("Tab")
    before = tab.numbers()[0]
    tab.page.keyboard.press("ArrowDown")
    tab.wait(lambda rows: rows[0][0] > before + 1, "the log has scrolled")
    assert tab.page.evaluate("document.activeElement.href") == "https://example.org/150"
