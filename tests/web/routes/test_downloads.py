"""A download ends with the lines that the log had at its beginning, or with an error. An end is confirmed as safe."""

import contextlib
import math
from types import SimpleNamespace
from typing import Any, Final, cast
from unittest.mock import Mock

import pytest

from chronoverse.errors import JobNotFound, NotDurable, StoreUnavailable, Unauthorized
from chronoverse.history.pages import Page
from chronoverse.history.tiered_log import LogReader
from chronoverse.joblog.model import Attempt, Job, JobRef, Line, Status
from chronoverse.store import Store
from chronoverse.web.http.dependencies import Dependencies
from chronoverse.web.routes.publish import _require_safe_end
from chronoverse.web.routes.raw import _check_pages

NOW: Final = "2026-03-03T10:00:05.123Z"
JOB: Final = Job(JobRef("wf_1", "job_1"), Status.RUNNING, created_at=NOW, first=1, last=3)


def lines(first: int, last: int) -> list[bytes]:
    return [Line(number, NOW, "text", "stdout").encode() for number in range(first, last + 1)]


def download(current: Job | None, *pages: Page, expires_at: float = math.inf) -> list[bytes]:
    """The lines of a download of ``JOB``, whose log is ``current`` when the pages have been read."""
    deps = SimpleNamespace(store=SimpleNamespace(get_job=lambda ref: current), monotonic=lambda: 5.0)
    found = _check_pages(cast(Dependencies, deps), JOB, iter(pages), expires_at)
    return [line for some in found for line in [*some]]


@pytest.mark.parametrize("whole", [Page(lines(1, 5), 5, True), Page(lines(1, 3), 3, False)])
def test_a_download_has_the_lines_of_its_beginning(whole: Page) -> None:
    assert download(JOB, whole) == lines(1, 3)
    assert download(None, Page(lines(1, 2), 2, True), Page(lines(3, 4), 4, True)) == lines(1, 3)


@pytest.mark.parametrize("descending", [False, True])
def test_a_log_that_is_deleted_during_a_read_is_not_complete(descending: bool) -> None:
    """Without a new job of its id, it looks like a log that ends early."""
    reads = [[(b"%d-0" % number, [b"message", b"x"]) for number in ((3, 2) if descending else (1, 2))]]
    store = SimpleNamespace(get_job=lambda ref: None, page=lambda *_, **__: reads.pop() if reads else [])
    read = LogReader(cast(Any, store), cast(Any, None), 65_536)
    with pytest.raises(JobNotFound):
        list(read(JOB, 4 if descending else 0, descending=descending))


@pytest.mark.parametrize("changes", [{"last": 2}, {"created_at": "2026-03-03T10:00:06.000Z"}])
def test_a_log_that_was_replaced_is_not_complete(changes: dict[str, Any]) -> None:
    """A new job with the same id can have as many lines."""
    replaced = Job(**{"ref": JOB.ref, "status": JOB.status, "created_at": NOW, "first": 1, "last": 3, **changes})
    for last in (3, 2):
        with pytest.raises(StoreUnavailable, match="replaced"):
            download(replaced, Page(lines(1, last), last, False))


def test_nothing_is_sent_after_the_token_has_expired() -> None:
    with pytest.raises(Unauthorized):
        download(JOB, Page(lines(1, 3), 3, False), expires_at=5.0)


@pytest.mark.parametrize(
    ("confirmed", "is_safe"), [(None, False), (3, False), (4, False), (5, True), (NotDurable("cannot tell"), True)]
)
def test_an_end_is_safe_only_with_its_entry(confirmed: Any, is_safe: bool) -> None:
    """The log has three lines, so the terminal entry is the fourth. A store that cannot tell is trusted."""
    is_error = isinstance(confirmed, Exception)
    confirm = Mock(side_effect=confirmed) if is_error else Mock(return_value=confirmed)
    with contextlib.nullcontext() if is_safe else pytest.raises(StoreUnavailable):
        _require_safe_end(cast(Store, SimpleNamespace(confirm=confirm)), Attempt(JOB.ref, "token", 1, 4))
