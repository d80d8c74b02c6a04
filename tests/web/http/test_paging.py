"""Listings: where a page ends."""

from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import cast

import pytest
from flask import Flask, g

from chronoverse.auth.tokens import Principal
from chronoverse.history.pages import PAGE_BYTES
from chronoverse.joblog.model import JobRef
from chronoverse.web.http.dependencies import Dependencies
from chronoverse.web.http.paging import labels_in_cursor, read_listing
from tests.support.reading import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def deps(clock: Clock) -> Iterator[Dependencies]:
    """What a listing needs, inside a request context."""
    turns = SimpleNamespace(read=lambda ref, subject: nullcontext())
    with Flask("test").test_request_context():
        g.principal = Principal("ada", 0.0, {})
        yield cast(Dependencies, SimpleNamespace(turns=turns, monotonic=clock))


def test_a_cursor_belongs_to_a_set_of_labels() -> None:
    sets = [(), (("a", "1"),), (("a", "2"),), (("b", "1"),), (("a", "1"), ("b", "1"))]
    assert len({tuple(labels_in_cursor(each)) for each in sets}) == len(sets)
    assert labels_in_cursor(sets[-1][::-1]) == labels_in_cursor(sets[-1])


def test_a_page_of_large_items_ends_early(deps: Dependencies) -> None:
    """A thousand jobs with many long labels would take 17 MB."""
    item = "x" * (PAGE_BYTES // 3)
    items = [(number, item) for number in range(10)]
    found, position = read_listing(deps, JobRef("wf", ""), None, 1000, lambda _: items, "ada")

    assert (len(found), position) == (3, 2)


def test_a_page_that_scans_too_long_ends_early(deps: Dependencies, clock: Clock) -> None:
    """It can be empty; the next page continues."""

    def read_slowly(position: int | None) -> list[tuple[int, str | None]]:
        clock.now += 0.2
        return [(number, None) for number in range(10)]

    assert read_listing(deps, JobRef("wf", ""), None, 20, read_slowly, "ada") == ([], 9)
