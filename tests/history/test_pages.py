"""A page without filters has the archive's bytes, if the archive has every number."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from chronoverse.archive.object_store import FileObjectStore
from chronoverse.archive.reader import ArchiveReader
from chronoverse.history.pages import MAX_LINE_CHARACTERS, Page, PageBudget, first_page, read_all_lines
from chronoverse.history.tiered_log import LogReader
from chronoverse.joblog.model import Job, JobRef, Line, Status
from chronoverse.store import Store
from tests.support.archives import archive_up_to
from tests.support.bench import make_lines

JOB = JobRef("wf_1", "job_1")


def pages(store: Store, archive: ArchiveReader, limit: int, descending: bool, page_bytes: int) -> Iterator[Page]:
    job = store.require_job(JOB)
    read = LogReader(store, archive, 65_536)
    position, has_more = job.last + 1 if descending else 0, True
    while has_more:
        lines = read_all_lines(read, archive, job, position, descending=descending)
        budget = PageBudget(page_bytes=page_bytes)
        page = first_page(lines, job, position, limit, budget, descending=descending)
        yield page
        position, has_more = page.position, page.has_more


@pytest.mark.parametrize("archived", [0, 60, 99])
@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize(("limit", "page_bytes"), [(10, 10**6), (1_000, 10**6), (1_000, 700)])
def test_pages_have_every_line_once(
    store: Store, tmp_path: Path, archived: int, descending: bool, limit: int, page_bytes: int
) -> None:
    """Wherever the lines are, pages are the same and stop at the limit of lines and bytes."""
    objects, lines = FileObjectStore(tmp_path), make_lines(1, 100)
    store.append(store.open(JOB, "token"), lines)
    if archived:
        archive_up_to(store, objects, JOB, archived, trim=True)
    found = list(pages(store, ArchiveReader(objects, store.chunks.chunk), limit, descending, page_bytes))
    expected = [line.encode() for line in lines]
    assert [json for page in found for json in page.lines] == (expected[::-1] if descending else expected)
    assert all(0 < len(page.lines) <= limit for page in found)
    assert all(sum(map(len, page.lines)) < page_bytes for page in found)


def test_a_long_line_is_truncated() -> None:
    """And marked, as on every page."""
    line = Line(1, "2026-03-03T10:00:05.123Z", "x" * (MAX_LINE_CHARACTERS + 1), "stdout")
    job = Job(JOB, Status.RUNNING, last=1)
    whole = iter([Page([line.encode()], 1, True)])
    page = first_page(whole, job, 0, 10, PageBudget(), descending=False)
    assert b'"truncated":true' in page.lines[0]
    assert len(page.lines[0]) < MAX_LINE_CHARACTERS + 200


def test_a_page_is_filled_to_the_byte() -> None:
    """Including the comma. The first line always fits."""
    budget = PageBudget(page_bytes=20)
    assert [budget.take(b"x" * size) for size in (9, 10, 9, 0)] == [True, False, True, False]
    assert budget.is_used_up()
    alone = PageBudget(page_bytes=20)
    assert [alone.take(b"x" * 30), alone.take(b"")] == [True, False]
