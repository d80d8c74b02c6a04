"""Matches with context: each line once per page, up to the maximum number of lines."""

import random
from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from chronoverse.history.pages import PageBudget
from chronoverse.history.scans.matches import MatchEncoder
from chronoverse.joblog.entries import Batch
from chronoverse.joblog.matcher import Matcher
from chronoverse.joblog.model import Job, JobRef, Line, Status
from tests.support.bench import NOW

JOB = Job(JobRef("wf_1", "job_1"), Status.RUNNING)


def log_of(size: int, matches: set[int]) -> dict[int, Line]:
    """A log with these lines by number, every third on stderr. Matches contain an x."""
    streams = ("stderr", "stdout", "stdout")
    return {n: Line(n, NOW, "an x" if n in matches else "-", streams[n % 3]) for n in range(1, size + 1)}


def encoder(log: dict[int, Line], stream: str | None, descending: bool, before: int, after: int) -> MatchEncoder:
    def read(job: Job, start: int, *, descending: bool, limit: int, **_: Any) -> Iterator[Batch]:
        step = -1 if descending else 1
        # In batches of three lines, beyond the request.
        for at in range(start + step, start + step * (limit + 4), 3 * step):
            numbers = [n for n in range(at, at + 3 * step, step) if n in log]
            yield Batch([log[n] for n in numbers], at + 2 * step, is_last=not numbers)

    leading, following = (after, before) if descending else (before, after)
    return MatchEncoder(read, JOB, Matcher("x"), stream, descending, leading, following)


@pytest.mark.parametrize("seed", range(30))
def test_a_page_has_each_line_around_its_matches_once(seed: int) -> None:
    """In both orders, with lines of one or both streams. A match stays a match near another one."""
    choice = random.Random(seed)
    matches = set(choice.sample(range(1, 121), choice.choice([1, 5, 40])))
    stream = choice.choice([None, "stdout"])
    before, after, descending = choice.randrange(4), choice.randrange(4), choice.choice([True, False])
    log = log_of(120, matches)
    wanted = sorted((n for n in matches if stream in (None, log[n].stream)), reverse=descending)
    encode, budget, page = (
        encoder(log, stream, descending, before, after),
        PageBudget(clock=lambda: 0.0),
        dict[int, bytes](),
    )
    for number in wanted:
        found = encode(log[number], budget)
        assert found is not None
        assert not found.keys() & page.keys() or found.keys() & page.keys() == {number}
        page |= found
    near = {n for match in wanted for n in range(match - before, match + after + 1)}
    shown = {n: line for n, line in log.items() if n in near and stream in (None, line.stream)}
    assert {n: orjson.loads(page[n]) for n in sorted(page)} == {
        n: {**line.to_json(), "highlights": [[3, 4]]}
        if n in wanted
        else {**line.to_json(), "highlights": [], "context": True}
        for n, line in shown.items()
    }


@pytest.mark.parametrize("descending", [False, True])
def test_too_much_context_is_reduced_to_the_nearest_lines(descending: bool) -> None:
    """Those before the first match get at most half of the room. The next match, whose context does not fit, waits."""
    log = log_of(120, {60, 64})
    first, second = (64, 60) if descending else (60, 64)
    for page_bytes in range(100, 8_000, 70):
        encode = encoder(log, None, descending, 20, 20)
        budget = PageBudget(page_bytes=page_bytes, clock=lambda: 0.0)
        found = encode(log[first], budget)
        assert found
        assert sorted(found) == [*range(min(found), max(found) + 1)]
        sizes = {number: len(json) + 1 for number, json in found.items()}
        left = page_bytes - sum(sizes.values())
        leading = sum(size for number, size in sizes.items() if (number > first) == descending and number != first)
        if len(found) < 41:
            assert leading <= max(page_bytes - sizes[first] + 1, 0) / 2
            assert left <= max(sizes.values())
        assert left >= 0 or len(found) == 1
        more = encode(log[second], budget)
        assert more is None or (len(found), len(more)) == (41, 5)


@pytest.mark.parametrize(("text", "size"), [pytest.param("b", 2**18 - 1, marks=pytest.mark.long), ("é", 2**17 - 1)])
def test_all_of_a_long_line_is_searched(text: str, size: int) -> None:
    """Even by an expression that matches the empty text at each character."""
    encode = MatchEncoder(lambda *_, **__: iter(()), JOB, Matcher("a*", regex=True), None, False, 0, 0)
    found = encode(Line(1, NOW, text * size + "a", "stdout"), PageBudget(clock=lambda: 0.0))
    assert found
    assert orjson.loads(found[1])["highlights"] == [[size, size + 1]]


@pytest.mark.parametrize(
    ("step", "before", "after"), [(1, 0, 0), (10, 0, 0), (10, 1, 1), (1, 1, 1), (1, 0, 2), (2, 1, 0), (100, 50, 49)]
)
def test_a_page_has_two_thousand_lines(step: int, before: int, after: int) -> None:
    """And no match whose context does not fit."""
    log = log_of(30_000, set(range(1_000, 30_000, step)))
    encode, budget, page = (
        encoder(log, None, False, before, after),
        PageBudget(page_bytes=10**8, clock=lambda: 0.0),
        set[int](),
    )
    for number in range(1_000, 30_000, step):
        whole = page | set(range(number - before, number + after + 1))
        if len(whole) > 2_000:
            assert encode(log[number], budget) is None
            return
        assert encode(log[number], budget) is not None
        page = whole
    raise AssertionError("all matches had room")
