"""The limits of one page, whatever the log contains: bytes of JSON, time, and the delay of other requests."""

import concurrent.futures
import itertools
from collections.abc import Iterator
from typing import Any, Final

import httpx
import pytest

from tests.support.memory import peak_bytes, reset_peak, resident_bytes
from tests.support.service import Service
from tests.support.waiting import deadline
from tests.web.routes.foreign import Foreign

pytestmark = pytest.mark.long

#: The documented limit of a page, in bytes of JSON.
PAGE_BYTES: Final = 4 * 2**20
#: Time limit of a page on a busy machine, in seconds: one second of work, and the time for one more line.
PAGE_SECONDS: Final = 8.0
#: Each character takes 6 bytes in JSON.
CONTROL: Final = "\x01" * 65_536


def walk(client: httpx.Client, job: Foreign, path: str, **query: Any) -> Iterator[httpx.Response]:
    """All pages, by ``Link``, each within its time limit, and within its byte limit unless it has only one line."""
    response = client.get(f"{job.path}{path}", params=query)
    in_time = deadline(60, "the last page")
    while in_time():
        assert response.status_code == 200, response.text
        assert response.elapsed.total_seconds() < PAGE_SECONDS
        body = response.json()
        assert len(response.content) <= PAGE_BYTES or len(body["logs"]) == 1
        yield response
        if body["cursor"] is None:
            return
        response = client.get(response.links["next"]["url"])


def numbers(responses: Iterator[httpx.Response]) -> list[list[int]]:
    """The line numbers of each page, without context."""
    return [[log["sequence_num"] for log in each.json()["logs"] if "context" not in log] for each in responses]


@pytest.fixture
def control(job: Foreign) -> Foreign:
    """A job of 30 lines, which are 12 MB of JSON."""
    return job.lines([CONTROL] * 30)


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("path", ["/logs", "/logs/search?q=%01"])
def test_a_page_is_limited_in_bytes_of_json(client: httpx.Client, control: Foreign, path: str, order: str) -> None:
    """A control character takes 6 bytes. No line is lost between pages."""
    path, _, query = path.partition("?")
    asked = dict(httpx.QueryParams(query)) | {"limit": 1000, "order": order}
    found = numbers(walk(client, control, path, **asked))

    expected = [*range(1, 31)] if order == "asc" else [*range(30, 0, -1)]
    assert [*itertools.chain(*found)] == expected
    # On a busy machine a search can reach its time limit first: it has a low priority.
    assert all(len(page) == 10 or (query and len(page) < 10) for page in found)


@pytest.mark.parametrize("path", ["/logs", "/logs/search"])
def test_a_line_that_is_too_long_for_an_answer_is_truncated(client: httpx.Client, job: Foreign, path: str) -> None:
    """Its start is shown and marked, and the next page continues after it. A download contains all of it."""
    job.lines(["x short", "x" + "y" * 40 * 2**20 + "x", "x short"])
    query = {"q": "x"} if path.endswith("search") else {}
    lines = [line for page in walk(client, job, path, **query) for line in page.json()["logs"]]

    assert [line["sequence_num"] for line in lines] == [1, 2, 3]
    assert [line.get("truncated", False) for line in lines] == [False, True, False]
    assert lines[1]["message"] == "x" + "y" * (2**20 - 1)
    assert lines[1].get("highlights") == ([[0, 1]] if query else None)
    assert len(client.get(f"{job.path}/logs/raw").content) > 40 * 2**20


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_too_much_context_is_reduced_to_the_nearest_lines(client: httpx.Client, job: Foreign, order: str) -> None:
    """With 50 lines of 400 kB on either side.

    The next match is on the next page.
    """
    job.lines([CONTROL] * 60 + ["needle"] + [CONTROL] * 2 + ["needle"])
    asked = {"q": "needle", "before": 50, "after": 50, "limit": 1000, "order": order}
    pages = list(walk(client, job, "/logs/search", **asked))

    found = numbers(iter(pages))
    assert found[:2] == ([[61], [64]] if order == "asc" else [[64], [61]])
    assert found[2:] in ([], [[]])
    for page in pages[:2]:
        shown = sorted(log["sequence_num"] for log in page.json()["logs"])
        assert shown == [*range(shown[0], shown[-1] + 1)]
        assert 7 <= len(shown) <= 12


def test_concurrent_pages_share_limited_memory(service: Service, auth: dict[str, str], control: Foreign) -> None:
    """Pages become shorter, and each has a cursor."""
    (pid,) = service.worker_pids()
    reset_peak(pid)
    before = resident_bytes(pid)

    def ask(_: int) -> list[int]:
        path = f"{service.url}{control.path}/logs/search?q=%01&limit=1000&before=3"
        response = httpx.get(path, headers=auth, timeout=60, verify=False)
        assert response.status_code in (200, 429), response.text
        return [log["sequence_num"] for log in response.json().get("logs", [])]

    with concurrent.futures.ThreadPoolExecutor(100) as pool:
        found = [each for each in pool.map(ask, range(100)) if each]

    assert found
    assert all(each == [*range(1, len(each) + 1)] for each in found)
    assert peak_bytes(pid) - before < 150 * 2**20
