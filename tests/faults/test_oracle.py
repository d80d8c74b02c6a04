"""The oracle, tested by breaking things on purpose: each break is found, under its own name."""

import json
from collections.abc import Callable

import pytest

from chronoverse.joblog import sse
from chronoverse.joblog.values import JobRef, Line
from tests.faults.emitter import line
from tests.faults.oracle import GAP, JOB, LINE, Printed, Seen, Verdict, judge
from tests.faults.watching import Watcher
from tests.support.scripted import scripted, stream

JOB_OF = JobRef("faults", "oracle")
LINES = 20
STAMP = "2026-03-03T10:00:05.123Z"
PRINTED = {"a": Printed(LINES, LINES)}

Frames = list[Line]


def clean_lines() -> Frames:
    """The log of a job that printed LINES lines."""
    return [Line(number, STAMP, line("a", number), "stdout") for number in range(1, LINES + 1)]


def marker(number: int, dropped: int) -> Line:
    """What the runner writes where lines were dropped."""
    text = f"[chronoverse] {dropped} lines (99 bytes) dropped between line {number - 1} and line {number + 1}: no room"
    return Line(number, STAMP, text, "stderr")


def ending(lines: int, dropped: int = 0) -> Seen:
    """A job frame's last state."""
    return Seen(1, 0, JOB, state={"status": "COMPLETED", "lines": lines, "dropped": dropped})


def seen_of(lines: Frames) -> list[Seen]:
    """The same as a viewer's record."""
    return [Seen(1, 0, LINE, each.sequence_num, message=each.message, timestamp=each.timestamp) for each in lines]


def watched(lines: Frames) -> list[Seen]:
    """What a real viewer writes down when a service sends it these lines, cut in the middle of one."""
    hello = sse.frame("connected", b'{"status":"connected"}', retry_ms=1)
    frames = [each.to_frame() for each in lines]
    state = json.dumps({"status": "COMPLETED", "lines": LINES, "dropped": 0}, separators=(",", ":")).encode()
    end = sse.frame("job", state) + sse.frame("end", b"{}", id=LINES + 1)
    first = stream(hello, *frames[:5], frames[5][:30], whole=False)
    with scripted(first, stream(hello, *frames[5:], end, after=5)) as service:
        watcher = Watcher(service.url, JOB_OF, "t").start()
        assert watcher.join(20)
    return watcher.seen


def skip(lines: Frames) -> Frames:
    return lines[:11] + lines[12:]


def swap(lines: Frames) -> Frames:
    return [*lines[:7], lines[8], lines[7], *lines[9:]]


def double(lines: Frames) -> Frames:
    return [*lines[:9], lines[8], *lines[9:]]


def change(lines: Frames) -> Frames:
    broken = lines[12].message.replace("h=", "h=0")[:-1]
    return [*lines[:12], lines[12]._replace(message=broken), *lines[13:]]


def invent(lines: Frames) -> Frames:
    return [*lines, Line(LINES + 1, STAMP, line("a", LINES + 1), "stdout")]


BREAKS: dict[str, tuple[Callable[[Frames], Frames], str]] = {
    "skip one": (skip, "lost"),
    "swap two": (swap, "reordered"),
    "double one": (double, "doubled"),
    "change a byte": (change, "changed"),
    "invent one": (invent, "phantom"),
}


def test_a_faithful_viewer_is_clean_over_two_connections() -> None:
    """Nothing is found where nothing is wrong, a torn frame included."""
    seen = watched(clean_lines())
    verdict = judge(PRINTED, {"viewer": seen}, seen_of(clean_lines()))
    assert verdict.clean, verdict
    assert verdict.checked == 2 * LINES
    assert {each.connection for each in seen} == {1, 2}


@pytest.mark.parametrize("broken", BREAKS)
def test_a_break_in_one_stream_is_found(broken: str) -> None:
    """What a service does to one viewer, as a real viewer records it."""
    breaking, name = BREAKS[broken]
    verdict = judge(PRINTED, {"viewer": watched(breaking(clean_lines()))}, seen_of(clean_lines()))
    assert name in verdict.faults, verdict


@pytest.mark.parametrize("broken", BREAKS)
def test_a_break_in_the_log_itself_is_found(broken: str) -> None:
    """What a runner does to the log, its numbering as good as ever: all viewers agree, and all are wrong."""
    breaking, name = BREAKS[broken]
    lines = [each._replace(sequence_num=number) for number, each in enumerate(breaking(clean_lines()), start=1)]
    verdict = judge(PRINTED, {"viewer": seen_of(lines)}, seen_of(lines))
    assert name in verdict.faults, verdict


@pytest.mark.parametrize("missing", [0, LINES - 1])
def test_the_first_and_the_last_line_are_missed(missing: int) -> None:
    """The oracle finds a missing first line and a missing last line."""
    lines = clean_lines()
    del lines[missing]
    assert judge(PRINTED, {"viewer": seen_of(lines)}, seen_of(clean_lines())).lost
    renumbered = seen_of([each._replace(sequence_num=number) for number, each in enumerate(lines, start=1)])
    assert judge(PRINTED, {}, renumbered).lost


def test_a_viewer_that_saw_nothing_has_lost_all() -> None:
    """A view with no line is no clean view."""
    assert len(judge(PRINTED, {"viewer": []}, seen_of(clean_lines())).lost) >= LINES


def test_other_times_for_other_viewers_are_a_change() -> None:
    """A number has one spelling."""
    lines = clean_lines()
    lines[3] = lines[3]._replace(timestamp=STAMP.replace("123", "124"))
    assert judge(PRINTED, {"viewer": seen_of(lines)}, seen_of(clean_lines())).changed


def with_marker(dropped: int, said: int) -> Verdict:
    """``dropped`` lines behind line 5 are not there, and the log says that ``said`` are not."""
    lines = clean_lines()
    rest = [each._replace(sequence_num=each.sequence_num - dropped + 1) for each in lines[5 + dropped :]]
    shown = seen_of([*lines[:5], marker(6, said), *rest])
    return judge(PRINTED, {"viewer": [*shown, ending(LINES - dropped + 1, said)]}, shown)


def test_lines_announced_as_dropped_are_not_lost() -> None:
    """Where the log says how many are missing, and so many are."""
    verdict = with_marker(4, 4)
    assert verdict.clean, verdict
    assert verdict.dropped == 4


def test_announcing_too_few_or_too_many_is_found() -> None:
    """The numbers must be exact."""
    assert with_marker(4, 3).lost
    assert with_marker(4, 5).misstated


def test_the_end_must_have_counted_as_we_do() -> None:
    """``lines`` and ``dropped`` of the terminal entry."""
    shown = seen_of(clean_lines())
    for state in (ending(LINES - 1), ending(LINES, 1)):
        assert judge(PRINTED, {"viewer": [*shown, state]}, shown).misstated


def test_a_named_gap_is_not_lost_and_an_unnamed_one_is() -> None:
    """A gap speaks for the numbers in it, and for no others."""
    shown = seen_of(clean_lines())
    for last, lost in ((5, 0), (4, 2)):  # the number and the line that was printed under it
        view = [*shown[:2], Seen(1, 0, GAP, 3, last, "trimmed"), *shown[5:]]
        assert len(judge(PRINTED, {"viewer": view}, shown).lost) == lost


def test_a_line_of_a_writer_that_was_replaced_is_found() -> None:
    """After another runner's first line none of the first one's may follow."""
    printed = {"a": Printed(9, 2), "b": Printed(9, 2)}
    texts = [line("a", 1), line("a", 2), line("b", 1), line("a", 3), line("b", 2)]
    view = seen_of([Line(number, STAMP, text, "stdout") for number, text in enumerate(texts, start=1)])
    assert judge(printed, {}, view).reordered
