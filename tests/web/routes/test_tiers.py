"""One log over all tiers: every route returns the same lines, wherever they are stored."""

import contextlib
import itertools
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import httpx
import orjson
import pytest

from chronoverse.archive.object_store import FileObjectStore
from chronoverse.auth.tokens import READ, WRITE
from chronoverse.joblog.model import JobRef
from chronoverse.store import Store
from tests.support.archives import archive_up_to
from tests.support.servers import RedisServer
from tests.support.service import Service
from tests.support.waiting import deadline
from tests.web.routes.foreign import TIMESTAMP, Foreign, ask_all
from tests.web.routes.wire import Stream, blocks

LINES: Final = 240
#: The number of archived lines, whether these are trimmed from the store, and whether the rest is trimmed, too.
TIERS: Final = {
    "hot": (LINES, False, False),
    "half": (130, True, False),
    "all but the end": (LINES, True, False),
    "archived": (LINES, True, True),
}


class Site:
    """A service with an archive in files, and new jobs for tests."""

    def __init__(
        self,
        service: Service,
        directory: Path,
        store: Store,
        workflow_id: str = "tiers",
        scopes: Sequence[str] = (READ, WRITE),
    ) -> None:
        self.service = service
        self.directory = directory
        self.store = store
        self.objects = FileObjectStore(directory)
        self.headers = {"Authorization": f"Bearer {service.token(scopes=scopes)}"}
        self.workflow_id = workflow_id
        self.client = httpx.Client(base_url=service.url, headers=self.headers, timeout=20, verify=service.verify)
        self._numbers = itertools.count(1)

    def job(self) -> Foreign:
        """A new job without lines."""
        return Foreign(str(self.service.redis_url), self.workflow_id, f"job_{next(self._numbers)}")

    def archive_up_to(self, job: Foreign, to: int, *, trim: bool) -> None:
        """Archives the job's lines up to ``to`` and, with ``trim``, removes them from the store."""
        archive_up_to(self.store, self.objects, JobRef(job.workflow_id, job.job_id), to, trim=trim)

    def stream(self, job: Foreign, query: str = "", **headers: str) -> Stream:
        """An event stream, to be closed by the caller."""
        return Stream(self.service, f"{job.path}/events{query}", {**self.headers, **headers})

    def events(self, job: Foreign, query: str = "") -> list[dict[str, Any]]:
        """The stream of an ended job, without blocks that depend on the sizes of reads."""
        with self.stream(job, query) as stream:
            assert stream.wait_end().status == 200, stream.body
            return [block for block in blocks(stream.body) if block.get("event") not in ("connected", "job", None)]

    def pages(self, path: str) -> list[Any]:
        """The lines of all pages from ``path`` on."""
        found: list[Any] = []
        next_path: str | None = path
        in_time = deadline(60, "the last page")
        while next_path and in_time():
            response = self.client.get(next_path)
            assert response.status_code == 200, response.text
            found += response.json()["logs"]
            next_path = response.links["next"]["url"] if "next" in response.links else None
        return found


@pytest.fixture(scope="module")
def site(service: Service, archive_directory: Path, redis_server: RedisServer) -> Iterator[Site]:
    with contextlib.closing(Store(redis_server.url)) as store:
        site = Site(service, archive_directory, store)
        yield site
        site.client.close()


def write(job: Foreign) -> Foreign:
    """Writes everything that a log can contain: gaps, entries out of sequence, partial lines, foreign entries."""
    for number in range(1, LINES + 1):
        if number in (20, 21, 150):
            continue
        fields: tuple[str | bytes, ...] = ("timestamp", TIMESTAMP, "message", f"line {number} ü \x1b[1m", "stream")
        if number % 50 == 7:
            job.add(f"{number}-0", "message", b"\xff foreign")
        elif number % 50 == 9:
            job.add(f"{number}-0", "note", "nothing to show")
        elif number % 50 == 11:
            job.add(f"{number}-0", *fields, "stderr", "partial", "1")
        else:
            job.add(f"{number}-0", *fields, "stderr" if number % 3 == 0 else "stdout")
        if number in (5, 140):
            job.add(f"{number}-1", "message", "out of sequence")
    job.last = LINES
    return job


@pytest.fixture(scope="module")
def plain(site: Site) -> Foreign:
    """The log without an archive, for comparison."""
    return write(site.job()).end("FAILED", 3)


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[pytest.mark.long] * (name == "all but the end")) for name in TIERS],
    ids=str,
)
def tiered(request: pytest.FixtureRequest, site: Site) -> Foreign:
    """The same log in other tiers."""
    archived, trim, gone = TIERS[request.param]
    job = write(site.job()).end("FAILED", 3)
    site.archive_up_to(job, archived, trim=trim)
    if gone:
        hash_key = job.key.removesuffix("log") + "job"
        ended = ("status", "FAILED", "exit_code", "3", "lines", str(LINES), "dropped", "0")
        ask_all(str(site.service.redis_url), [("HSET", hash_key, *ended), ("DEL", job.key)])
    return job


@pytest.mark.parametrize("query", ["limit=1", "order=desc&before=1", "stream=stdout&after=2"])
def test_new_lines_are_the_same(site: Site, plain: Foreign, tiered: Foreign, query: str) -> None:
    """Both for the compared job, and for the job that another one is compared with."""
    other = site.job().lines(["line 1 \u00fc"]).end()
    query = f"logs/new?against={other.job_id}&{query}"
    assert site.pages(f"{plain.path}/{query}") == site.pages(f"{tiered.path}/{query}") != []
    probe = site.job().lines(["line 2 \u00fc", "\ufffd foreign", "nothing"]).end()
    for against in (plain, tiered):
        new = site.pages(f"{probe.path}/logs/new?against={against.job_id}")
        assert [line["message"] for line in new] == ["nothing"]


@pytest.mark.parametrize("query", ["format=txt", "format=json", "format=jsonl&stream=stderr", "format=txt&q=line+2"])
def test_downloads_are_the_same(site: Site, plain: Foreign, tiered: Foreign, query: str) -> None:
    """Byte for byte."""
    found = site.client.get(f"{tiered.path}/logs/raw?{query}")

    assert found.status_code == 200
    assert found.headers["content-encoding"] == "gzip"
    assert site.client.get(f"{tiered.path}/logs/raw?{query}", headers={"Accept-Encoding": ""}).content == found.content
    assert found.content == site.client.get(f"{plain.path}/logs/raw?{query}").content


#: Unusual messages: empty, several lines, characters that JSON escapes, every plane of Unicode, very long.
ODD: Final = ("", "a\nb\n", "\r\n", "ü\u2028\U0001f642\x00", '"\\u001b"', "\x1b[1mbold\x1b[0m", "long " * 13_000, " ")
#: The number of lines in a log that is archived line by line.
MOVING: Final = 160


def downloaded(site: Site, job: Foreign) -> list[list[dict[str, Any]]]:
    """The lines of the JSON and JSONL downloads, after comparing the text with them."""
    formats = {"json": "json", "jsonl": "jsonl", "txt": "txt&control_sequences=true"}
    answers = {kind: site.client.get(f"{job.path}/logs/raw?format={query}") for kind, query in formats.items()}
    lines = [orjson.loads(line) for line in answers["jsonl"].content.split(b"\n")[:-1]]
    assert answers["txt"].content.decode() == "".join(f"{line['message']}\n" for line in lines)
    assert all(answer.headers["content-encoding"] == "gzip" for answer in answers.values())
    return [answers["json"].json(), lines]


@pytest.mark.long
def test_the_routes_agree_while_lines_move(site: Site) -> None:
    """Whatever the lines contain, and wherever the archiver is during a read."""
    job = site.job().lines((f"{ODD[number % len(ODD)]}{number}" for number in range(1, MOVING)), ("stdout", "stderr"))
    job.lines([""])
    expected = site.pages(f"{job.path}/logs?limit=1000")
    assert [line["sequence_num"] for line in expected] == [*range(1, MOVING + 1)]

    def move() -> None:
        for to in range(1, MOVING):
            site.archive_up_to(job, to, trim=True)

    moving = threading.Thread(target=move)
    moving.start()
    while moving.is_alive():
        assert site.pages(f"{job.path}/logs?limit=37") == expected
        assert site.pages(f"{job.path}/logs?limit=41&order=desc") == expected[::-1]
        found = site.pages(f"{job.path}/logs/search?q=(?s).*&regex=true&limit=43")
        assert [{key: line[key] for key in line if key != "highlights"} for line in found] == expected
        assert downloaded(site, job) == [expected, expected]
        with site.stream(job) as stream:
            stream.wait_for(b"id: %d\n\n" % MOVING)
            assert [block["data"] for block in stream.blocks() if block.get("event") == "log"] == expected
    moved = site.store.get_job(JobRef(job.workflow_id, job.job_id))
    assert moved
    assert moved.archived == MOVING - 1


def test_an_archived_job_has_its_headers_and_its_end(site: Site, tiered: Foreign) -> None:
    """HEAD is answered, and a client that has received the end gets 204."""
    head = site.client.head(f"{tiered.path}/events?tail=10")
    assert (head.status_code, head.headers["last-event-id"]) == (200, str(LINES - 10))
    seen = site.client.get(f"{tiered.path}/events", headers={"Last-Event-ID": str(LINES + 1)})
    assert seen.status_code == 204
    assert site.client.get(f"{tiered.path}/events?wait=1&offset={LINES}").text.count("event: end") == 1


def test_a_stream_continues_from_the_archive_to_the_live_end(site: Site) -> None:
    """Even while more of the log is archived."""
    job = site.job().lines(f"line {number}" for number in range(1, 301))
    site.archive_up_to(job, 100, trim=True)
    with site.stream(job) as stream:
        stream.wait_for(b"id: 300\n")
        site.archive_up_to(job, 200, trim=True)
        job.lines(["more"])
        stream.wait_for(b"id: 301\n")
        with site.stream(job, "?offset=90") as late:
            late.wait_for(b"id: 301\n")
            assert late.numbers() == [*range(91, 302)]
        job.end()
        stream.wait_end()
        assert stream.numbers() == [*range(1, 302)]
        assert not any(block.get("event") == "gap" for block in stream.blocks())


def test_stored_lines_are_served_without_the_archive(site: Site, tmp_path: Path, redis_server: RedisServer) -> None:
    """503 for archived lines. A stream waits for the archive instead of omitting lines."""
    job = site.job().lines(f"line {number}" for number in range(1, 301))
    site.archive_up_to(job, 200, trim=True)
    job.end()
    folder = site.directory / job.workflow_id / job.job_id
    moved, link, no_directory = tmp_path / "moved", tmp_path / "link", tmp_path / "no_directory"
    shutil.move(folder, moved)
    no_directory.write_text("no directory")
    folder.symlink_to(no_directory)
    link.symlink_to(moved)
    assert len(site.pages(f"{job.path}/logs?offset=200")) == 100
    assert [block["data"]["sequence_num"] for block in site.events(job, "?tail=100")[:-1]] == [*range(201, 301)]
    refused = site.client.get(f"{job.path}/logs?offset=10")
    assert (refused.status_code, refused.headers["content-type"]) == (503, "application/problem+json")
    assert "archive" in refused.json()["detail"]
    assert refused.headers["retry-after"]
    assert site.client.get(f"{job.path}/logs/raw").status_code == 503
    with site.stream(job) as stream:
        stream.wait_for(b"event: job")
        # Atomically: without the folder its objects would be missing, and a damaged archive ends the stream.
        link.rename(folder)
        assert stream.wait_end(20).numbers() == [*range(1, 301)]


def test_a_damaged_archive_never_shortens_a_download(site: Site) -> None:
    """It is cut off instead, and a stream ends with an error after the last readable line."""
    job = site.job().lines(f"line {number}" for number in range(1, 2001))
    site.archive_up_to(job, 1500, trim=True)
    site.archive_up_to(job, 1900, trim=True)
    job.end()
    *_, second = sorted((site.directory / job.workflow_id / job.job_id).iterdir())
    second.unlink()

    with pytest.raises(httpx.RemoteProtocolError):
        site.client.get(f"{job.path}/logs/raw")
    with site.stream(job) as stream:
        assert stream.wait_end(20).numbers() == [*range(1, 1501)]
        assert stream.blocks()[-1]["event"] == "error"
    refused = site.client.get(f"{job.path}/logs?offset=1600")
    assert (refused.status_code, "archive" in refused.json()["detail"]) == (502, True)
