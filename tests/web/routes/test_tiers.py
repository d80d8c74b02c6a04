"""One log over all tiers: every route returns the same lines, wherever they are stored."""

import shutil
from pathlib import Path
from typing import Final

import httpx
import pytest

from tests.support.servers import RedisServer
from tests.web.routes.foreign import TIMESTAMP, Foreign, ask_all
from tests.web.routes.site import Site

LINES: Final = 240
#: The number of archived lines, whether these are trimmed from the store, and whether the rest is trimmed, too.
TIERS: Final = {
    "hot": (LINES, False, False),
    "half": (130, True, False),
    "all but the end": (LINES, True, False),
    "archived": (LINES, True, True),
}


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
    found = site.client.get(f"{tiered.path}/logs/raw?{query}")

    assert found.status_code == 200
    assert found.headers["content-encoding"] == "gzip"
    assert site.client.get(f"{tiered.path}/logs/raw?{query}", headers={"Accept-Encoding": ""}).content == found.content
    assert found.content == site.client.get(f"{plain.path}/logs/raw?{query}").content


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
