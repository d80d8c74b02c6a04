"""Tests of the oracle: it must report each deliberate corruption of streams and logs under its name."""

import json
from collections.abc import Callable

import pytest

from chronoverse.joblog import sse
from chronoverse.joblog.model import JobRef, Line
from tests.faults.emitter import line
from tests.faults.oracle import GAP, JOB, LINE, Printed, Seen, Verdict, judge
from tests.faults.watching import Watcher
from tests.support.scripted import ScriptedService, stream

JOB_REF = JobRef("faults", "oracle")
LINES = 20
STAMP = "2026-03-03T10:00:05.123Z"
PRINTED = {"a": Printed(LINES, LINES)}

Frames = list[Line]


def clean_lines() -> Frames:
    """The log of a job that printed LINES lines."""
    return [Line(number, STAMP, line("a", number), "stdout") for number in range(1, LINES + 1)]


def ending(lines: int, dropped: int = 0) -> Seen:
    """The last ``job`` event."""
    return Seen(1, 0, JOB, state={"status": "COMPLETED", "lines": lines, "dropped": dropped})


def seen_of(lines: Frames) -> list[Seen]:
    """What a viewer records on receiving these lines."""
    return [Seen(1, 0, LINE, each.sequence_num, message=each.message, timestamp=each.timestamp) for each in lines]


def watched(lines: Frames) -> list[Seen]:
    """What a real watcher records when a service sends these lines, with a disconnect in the middle of a line."""
    hello = sse.frame("connected", b'{"status":"connected"}', retry_ms=1)
    frames = [each.to_frame() for each in lines]
    state = json.dumps({"status": "COMPLETED", "lines": LINES, "dropped": 0}, separators=(",", ":")).encode()
    end = sse.frame("job", state) + sse.frame("end", b"{}", id=LINES + 1)
    first = stream(hello, *frames[:5], frames[5][:30], whole=False)
    with ScriptedService(first, stream(hello, *frames[5:], end, after=5)) as service:
        watcher = Watcher(service.url, JOB_REF, "t").start()
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


def test_a_correct_stream_is_clean_over_two_connections() -> None:
    """No false positives, although the connection is cut in the middle of a frame."""
    seen = watched(clean_lines())
    verdict = judge(PRINTED, {"viewer": seen}, seen_of(clean_lines()))
    assert verdict.clean, verdict
    assert verdict.checked == 2 * LINES
    assert {each.connection for each in seen} == {1, 2}


@pytest.mark.parametrize("broken", BREAKS)
def test_a_corruption_of_one_stream_is_found(broken: str) -> None:
    """A service sends one viewer a wrong stream, which a real watcher records."""
    breaking, name = BREAKS[broken]
    verdict = judge(PRINTED, {"viewer": watched(breaking(clean_lines()))}, seen_of(clean_lines()))
    assert name in verdict.faults, verdict


@pytest.mark.parametrize("broken", BREAKS)
def test_a_corruption_of_the_log_itself_is_found(broken: str) -> None:
    """A runner writes a wrong log with correct sequence numbers. All viewers agree, and all are wrong."""
    breaking, name = BREAKS[broken]
    lines = [each._replace(sequence_num=number) for number, each in enumerate(breaking(clean_lines()), start=1)]
    verdict = judge(PRINTED, {"viewer": seen_of(lines)}, seen_of(lines))
    assert name in verdict.faults, verdict


@pytest.mark.parametrize("missing", [0, LINES - 1])
def test_a_missing_first_or_last_line_is_found(missing: int) -> None:
    """In a viewer's stream, and in the log itself. A viewer that got nothing has lost all."""
    assert len(judge(PRINTED, {"viewer": []}, seen_of(clean_lines())).lost) >= LINES
    lines = clean_lines()
    del lines[missing]
    assert judge(PRINTED, {"viewer": seen_of(lines)}, seen_of(clean_lines())).lost
    renumbered = seen_of([each._replace(sequence_num=number) for number, each in enumerate(lines, start=1)])
    assert judge(PRINTED, {}, renumbered).lost


def test_a_line_with_two_different_times_is_changed() -> None:
    """All viewers must receive the same time and message for a number."""
    lines = clean_lines()
    lines[3] = lines[3]._replace(timestamp=STAMP.replace("123", "124"))
    assert judge(PRINTED, {"viewer": seen_of(lines)}, seen_of(clean_lines())).changed


def with_gap(dropped: int, named: int, counted: int) -> Verdict:
    """The verdict on a log that lacks ``dropped`` lines after line 5.

    The gap has ``named`` numbers, and the end says ``counted``.
    """
    seen = seen_of(clean_lines())
    gap, rest = Seen(1, 0, GAP, 6, 5 + named, "lost"), seen[5 + dropped :]
    return judge(PRINTED, {"viewer": [*seen[:5], gap, *rest, ending(LINES, counted)]}, [*seen[:5], *rest])


def test_lines_reported_as_lost_are_explained() -> None:
    """The log reports exactly the missing lines."""
    verdict = with_gap(4, 4, 4)
    assert verdict.clean, verdict
    assert verdict.named == 4


def test_reporting_too_few_or_too_many_is_found() -> None:
    """The numbers in a gap must be exact. At the end, at most those in gaps may count as dropped."""
    assert with_gap(4, 3, 3).lost
    assert with_gap(4, 5, 5).reordered
    assert with_gap(4, 4, 5).misstated


def test_a_wrong_total_at_the_end_is_found() -> None:
    """``lines`` and ``dropped`` of the last ``job`` event must be correct."""
    seen = seen_of(clean_lines())
    for state in (ending(LINES - 1), ending(LINES, 1)):
        assert judge(PRINTED, {"viewer": [*seen, state]}, seen).misstated


def test_a_viewer_may_return_after_the_end() -> None:
    """It gets the state of the ended job first, and again after the lines that it missed."""
    seen, end = seen_of(clean_lines()), ending(LINES)
    late = [each._replace(connection=2) for each in (end, *seen[5:])]
    assert judge(PRINTED, {"viewer": [*seen[:5], *late, end._replace(connection=2)]}, seen).clean
    assert judge(PRINTED, {"viewer": [*seen[:5], *late, ending(5)._replace(connection=2)]}, seen).misstated


def test_only_missing_numbers_outside_of_gaps_are_lost() -> None:
    """The view lacks lines 3 to 5. A gap names all three, or only the first two."""
    seen = seen_of(clean_lines())
    for last, lost in ((5, 0), (4, 2)):  # Line 5 is reported twice: by its sequence number, and by the writer's number.
        view = [*seen[:2], Seen(1, 0, GAP, 3, last, "trimmed"), *seen[5:]]
        assert len(judge(PRINTED, {"viewer": view}, seen).lost) == lost


def test_a_line_of_a_replaced_writer_is_found() -> None:
    """No line of the first runner may follow the second runner's first line."""
    printed = {"a": Printed(9, 2), "b": Printed(9, 2)}
    texts = [line("a", 1), line("a", 2), line("b", 1), line("a", 3), line("b", 2)]
    view = seen_of([Line(number, STAMP, text, "stdout") for number, text in enumerate(texts, start=1)])
    assert judge(printed, {}, view).reordered
