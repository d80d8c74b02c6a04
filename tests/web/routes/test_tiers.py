"""One log over all tiers: what ``test_model`` does not compare, and archives that are unavailable or damaged."""

import shutil
from pathlib import Path
from typing import Final

import httpx
import pytest

from tests.support.servers import RedisServer
from tests.web.routes.foreign import ask_all
from tests.web.routes.site import Site

#: Streams of the lines.
STREAMS: Final = ("stdout", "stderr", "stdout")
#: The number of archived lines of 240, whether these are trimmed from the store, and whether the rest is trimmed, too.
TIERS: Final = ((0, False, False), (240, False, False), (130, True, False), (240, True, False), (240, True, True))


def test_every_tier_has_the_same_new_lines_and_end(site: Site) -> None:
    """New lines both of the job and of one that is compared with it. ``test_model`` has the other routes."""
    seen = site.job().lines(["line 1"]).end()
    probe = site.job().lines(["line 2", "other 2", "\ufffd foreign", "nothing"]).end()
    queries, found = ("limit=1", "order=desc&before=1", "stream=stdout&after=2"), []
    for archived, trim, gone in TIERS:
        job = site.job().lines([f"{'line' if number % 50 else 'other'} {number}" for number in range(239)], STREAMS)
        job.lines([b"\xff foreign"]).end("FAILED", 3)
        if archived:
            site.archive_up_to(job, archived, trim=trim)
        if gone:
            ended = ("status", "FAILED", "exit_code", "3", "lines", "240", "dropped", "0")
            ask_all(job.url, [("HSET", job.key.removesuffix("log") + "job", *ended), ("DEL", job.key)])
        found.append([site.pages(f"{job.path}/logs/new?against={seen.job_id}&{query}") for query in queries])
        new = site.pages(f"{probe.path}/logs/new?against={job.job_id}")
        assert [line["message"] for line in new] == ["nothing"]
        head = site.client.head(f"{job.path}/events?tail=10")
        assert (head.status_code, head.headers["last-event-id"]) == (200, "230")
        assert site.client.get(f"{job.path}/events", headers={"Last-Event-ID": "241"}).status_code == 204
        assert site.client.get(f"{job.path}/events?wait=1&offset=240").text.count("event: end") == 1
    assert all(found[0])
    assert [each == found[0] for each in found] == [True] * len(TIERS)


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
