"""A log is compared with a copy by digests, up to the first difference."""

import pytest

from chronoverse.joblog.comparing import Comparison, compare_lines, line_digest
from chronoverse.joblog.model import Line
from tests.support.bench import make_lines

LINES = make_lines(5, 20)


@pytest.mark.parametrize("place", range(21))
@pytest.mark.parametrize("text", ["another", "one more", "a third"])
def test_lines_are_equal_up_to_the_first_difference(place: int, text: str) -> None:
    """A line differs, is missing, or is beyond the compared part."""
    digests = [line_digest(line) for line in LINES]
    other = [*LINES[:place], *(line._replace(message=text) for line in LINES[place : place + 1]), *LINES[place + 1 :]]
    assert compare_lines(other, 5, digests) == Comparison(5 + place, differs=place < 20)
    assert compare_lines(LINES[:place] + LINES[place + 1 :], 5, digests) == Comparison(5 + place, differs=False)
    assert compare_lines(LINES, 5, digests[:place]) == Comparison(5 + place, differs=False)


def test_two_mebicharacters_are_compared_at_once() -> None:
    lines = [Line(number, "", "x" * 2**20, "stdout") for number in range(1, 5)]
    assert compare_lines(lines, 1, [line_digest(line) for line in lines]) == Comparison(3, differs=False)
