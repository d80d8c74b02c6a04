"""``GET /workflows/{w}/events``: the newest jobs, then every change, and how clients resume."""

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
import redis

from chronoverse.archive.retention import delete_job
from chronoverse.joblog.model import JobRef, Status
from chronoverse.live.replay_cache import ReplayCache
from chronoverse.store import Store
from chronoverse.web.routes import workflow_events
from chronoverse.web.routes.jobs import WantedJobs
from tests.support.bench import make_lines
from tests.support.changes import number_from_1
from tests.support.servers import RedisServer
from tests.support.service import Service
from tests.support.waiting import wait_until
from tests.web.routes.foreign import Foreign
from tests.web.routes.wire import PATIENCE_SECONDS, Stream

OpenWorkflow = Callable[..., Stream]


@pytest.fixture
def workflow(job: Foreign, redis_server: RedisServer) -> str:
    """A new workflow for each test. Its changes start at 1."""
    number_from_1(redis_server.ask, f"chronoverse:{{{job.workflow_id}}}:changes")
    return job.workflow_id


@pytest.fixture
def store(redis_server: RedisServer) -> Iterator[Store]:
    """The service's store, as opened by a runner."""
    with contextlib.closing(Store(redis_server.url)) as store:
        yield store


@pytest.fixture
def open_workflow(service: Service, auth: dict[str, str], workflow: str) -> Iterator[OpenWorkflow]:
    """Opens streams of the workflow and closes them after the test."""
    with contextlib.ExitStack() as stack:

        def open_workflow(query: str = "", after: str | None = None, **headers: str) -> Stream:
            own = {} if after is None else {"Last-Event-ID": after}
            stream = Stream(service, f"/workflows/{workflow}/events{query}", {**auth, **own, **headers})
            stack.callback(stream.close)
            return stream

        yield open_workflow


def told(stream: Stream) -> list[tuple[str | None, str, str]]:
    """Id, job and status of each ``job`` event."""
    found = []
    for block in stream.blocks():
        if block.get("event") == "job":
            job = block["data"]
            found.append((block.get("id"), job["id"], job["status"]))
    return found


def ids(stream: Stream) -> list[int]:
    return [int(each) for each in re.findall(rb"^id: (\d+)$", stream.body, re.MULTILINE)]


def has_time(stream: Stream) -> bool:
    """Whether the last id is a timestamp."""
    return ids(stream)[-1] > 10**12


def wait_told(stream: Stream, *expected: tuple[str | None, str, str]) -> None:
    wait_until(lambda: len(told(stream)) >= len(expected), PATIENCE_SECONDS, f"{expected}")
    assert told(stream) == list(expected)


def test_the_newest_jobs_come_first_and_then_each_change(
    open_workflow: OpenWorkflow, store: Store, workflow: str, client: httpx.Client
) -> None:
    """The newest jobs are sent without ids, oldest first, followed by an id alone."""
    for number in range(3):
        store.register(JobRef(workflow, f"job_{number}"))
        time.sleep(0.002)
    stream = open_workflow("?jobs=2").wait_for(b"\n\nid: 3\n\n")
    assert stream.headers["last-event-id"] == "3"
    assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert stream.headers["cache-control"] == "no-cache, no-transform"
    assert stream.body.startswith(b'event: connected\ndata: {"status":"connected"}\nretry: ')
    attempt = store.open(JobRef(workflow, "job_0"), "token", labels=(("branch", "main"),))
    store.append(attempt, make_lines(1, 2))
    store.finish(attempt, Status.FAILED, 3, 0, 3)
    delete_job(store, None, JobRef(workflow, "job_1"))

    wait_told(
        stream,
        (None, "job_1", "PENDING"),
        (None, "job_2", "PENDING"),
        ("4", "job_0", "RUNNING"),
        ("5", "job_0", "FAILED"),
        ("6", "job_1", "DELETED"),
    )
    blocks = [block for block in stream.blocks() if block.get("id") == "5"]
    assert blocks[0]["data"] == client.get(f"/workflows/{workflow}/jobs/job_0").json()
    assert stream.body.count(b"event: job\ndata: {") == 5
    assert list(blocks[0]["data"])[:3] == ["workflow_id", "id", "status"]


def test_a_workflow_without_jobs_can_be_watched(
    open_workflow: OpenWorkflow, store: Store, workflow: str, redis_server: RedisServer
) -> None:
    """Its listing is also an empty page. The first id is a timestamp."""
    redis_server.ask("DEL", f"chronoverse:{{{workflow}}}:changes")
    stream = open_workflow().wait_for(b"id: 0\n\n")
    store.register(JobRef(workflow, "job_1"))
    stream.wait_for(b'"PENDING"')
    store.open(JobRef(workflow, "job_1"), "token")
    stream.wait_for(b'"RUNNING"')
    (_, first), (_, second) = told = [(block["event"], int(str(block["id"]))) for block in stream.blocks()[2:]]
    assert [event for event, _ in told] == ["job", "job"]
    assert 0 <= time.time() * 1000 - first < 60_000
    assert second == first + 1


def test_a_client_resumes_after_any_change(open_workflow: OpenWorkflow, store: Store, workflow: str) -> None:
    for number in range(1, 6):
        store.register(JobRef(workflow, f"job_{number}"))
    first = open_workflow("?jobs=0").wait_for(b"id: 5\n\n")
    for after in range(6):
        stream = open_workflow("", str(after))
        assert stream.headers["last-event-id"] == str(after)
        wait_told(stream, *((str(number), f"job_{number}", "PENDING") for number in range(after + 1, 6)))
        assert b"event: reset" not in stream.body
    store.open(JobRef(workflow, "job_1"), "token")
    wait_told(first, ("6", "job_1", "RUNNING"))
    wait_told(stream, ("6", "job_1", "RUNNING"))


def test_changes_that_are_no_longer_kept(
    open_workflow: OpenWorkflow, store: Store, workflow: str, redis_server: RedisServer
) -> None:
    """``reset``, then the jobs; likewise for a client that is ahead of the store."""
    store.register(JobRef(workflow, "job_1"))
    store.open(JobRef(workflow, "job_1"), "token")
    store.register(JobRef(workflow, "job_2"))
    with redis.Redis.from_url(redis_server.url) as raw:
        raw.xtrim(f"chronoverse:{{{workflow}}}:changes", maxlen=1, approximate=False)
    for after in ("0", "1", "17", "999999999999999"):
        stream = open_workflow("", after).wait_for(b"\n\nid: 3\n\n")
        events = [block.get("event") for block in stream.blocks()]
        assert events[:4] == ["connected", "reset", "job", "job"]
        assert stream.headers["last-event-id"] == "3"
        assert b'event: reset\ndata: {"reason":"too-old"}\n\n' in stream.body
    assert b"event: reset" not in open_workflow("", "2").wait_for(b"id: 3\n\n").body
    assert b"event: reset" not in open_workflow("", "").wait_for(b"id: 3\n\n").body


def test_a_store_that_has_lost_its_changes(
    open_workflow: OpenWorkflow, store: Store, workflow: str, redis_server: RedisServer
) -> None:
    """The stream ends with an error. The client reconnects and gets a ``reset``."""
    store.register(JobRef(workflow, "job_1"))
    stream = open_workflow().wait_for(b"id: 1\n\n")
    with redis.Redis.from_url(redis_server.url) as raw:
        raw.delete(f"chronoverse:{{{workflow}}}:changes")
    stream.wait_end()
    assert b"event: error\ndata: the store has lost changes of this workflow\n\n" in stream.body
    # The number of a client that first connected before there were changes.
    open_workflow("", "0").wait_for(b"event: reset")
    again = open_workflow("", "1").wait_for(b"event: reset").wait_for(b"id: 0\n\n")
    store.open(JobRef(workflow, "job_1"), "token")
    again.wait_for(b'"status":"RUNNING"')
    assert again.body.count(b"event: reset") == 1
    # At least as many changes follow as the client has.
    store.register(JobRef(workflow, "job_2"))
    open_workflow("", "1").wait_for(b"event: reset").wait_for(b"job_2")


def test_a_store_that_might_have_lost_changes(
    open_workflow: OpenWorkflow, store: Store, workflow: str, redis_server: RedisServer
) -> None:
    """A ``reset`` for all if the last change is from another server, or from before a restart."""
    key = f"chronoverse:{{{workflow}}}:changes"
    store.register(JobRef(workflow, "job_1"))
    streams = [open_workflow("?jobs=0").wait_for(b"id: 1\n\n"), open_workflow("?status=RUNNING").wait_for(b"id: 1\n\n")]
    redis_server.ask("XADD", key, "2-0", "id", "job_0", "status", "DELETED", "state", "", "server", "another")
    for stream in (*streams, open_workflow("", "1"), open_workflow("", "2")):
        stream.wait_for(b"event: reset", PATIENCE_SECONDS)
        wait_until(partial(has_time, stream), PATIENCE_SECONDS, "the new numbers")
    store.open(JobRef(workflow, "job_3"), "token")
    for stream in streams:
        stream.wait_for(b"job_3" if stream is streams[0] else b'"status":"RUNNING"')
        assert stream.body.count(b"event: reset") == 1
        assert ids(stream) == sorted(set(ids(stream)))
        assert b"event: error" not in stream.body


def test_filters(open_workflow: OpenWorkflow, store: Store, workflow: str, redis_server: RedisServer) -> None:
    """Changes that do not match advance the cursor, in a block with only an id."""
    attempts = {}
    for number, branch in enumerate(("main", "next", "main"), 1):
        attempts[number] = store.open(JobRef(workflow, f"job_{number}"), "token", labels=(("branch", branch),))
    by_label = open_workflow("?label=branch%3Dmain").wait_for(b"\n\nid: 3\n\n")
    failed = open_workflow("?status=FAILED&label=branch%3Dmain").wait_for(b"\n\nid: 3\n\n")
    for number, status in ((1, Status.COMPLETED), (2, Status.FAILED), (3, Status.FAILED)):
        store.finish(attempts[number], status, 0, 0, 1)
    wait_told(
        by_label,
        (None, "job_1", "RUNNING"),
        (None, "job_3", "RUNNING"),
        ("4", "job_1", "COMPLETED"),
        ("6", "job_3", "FAILED"),
    )
    wait_told(failed, ("6", "job_3", "FAILED"))
    assert ids(failed) == sorted(set(ids(failed)))
    wait_told(open_workflow("?label=branch%3Dnext", "1"), ("2", "job_2", "RUNNING"), ("5", "job_2", "FAILED"))
    later = open_workflow("?status=FAILED").wait_for(b"\n\nid: 6\n\n")
    assert [job for _, job, _ in told(later)] == ["job_2", "job_3"]
    # The labels of an expired job are unknown.
    redis_server.ask("DEL", *(f"chronoverse:{{{workflow}}}:job_3:{kind}" for kind in ("log", "job")))
    store.listing.unlist(workflow, ["job_3"])
    by_label.wait_for(b'"id":"job_3","status":"DELETED"')


@pytest.mark.long
def test_a_lost_runner_and_a_foreign_end_are_detected(
    open_workflow: OpenWorkflow, redis_server: RedisServer, workflow: str, job: Foreign, client: httpx.Client
) -> None:
    """The watched workflow is enough: nobody needs to request the job."""
    job.line("one")
    client.get(job.path)
    with contextlib.closing(Store(redis_server.url, lease_seconds=30)) as store:
        store.open(JobRef(workflow, "lost"), "token")
    stream = open_workflow().wait_for(b"\n\nid: 2\n\n")
    with redis.Redis.from_url(redis_server.url) as raw:
        raw.delete(f"chronoverse:{{{workflow}}}:lost:lease")
    job.end()
    stream.wait_for(b"id: 4\n\n", 45)
    assert {(name, status) for _, name, status in told(stream)[2:]} == {("job_1", "COMPLETED"), ("lost", "LOST")}


def test_a_head_request_has_only_headers(client: httpx.Client, workflow: str) -> None:
    path = f"/workflows/{workflow}/events"
    assert client.get(path, headers={"Last-Event-ID": "x"}).status_code == 400
    head = client.head(path)
    assert (head.status_code, head.headers["last-event-id"], head.content) == (200, "0", b"")


def test_a_change_that_only_another_worker_knows_is_kept(
    in_process: Callable[..., httpx.Client], store: Store, workflow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client can reconnect to a worker whose tail is some milliseconds behind."""
    client: Any = in_process()
    tail = client._transport.app.extensions["chronoverse"].tail
    (before,) = store.get_jobs([JobRef(workflow, "")])
    for number in (1, 2):
        store.register(JobRef(workflow, f"job_{number}"))
    monkeypatch.setattr(tail, "known_job", lambda ref: before)
    for given, start in (("0", "0"), ("2", "2"), ("3", "2")):
        head = client.head(f"/workflows/{workflow}/events", headers={"Last-Event-ID": given})
        assert head.headers["last-event-id"] == start


def test_heartbeats_and_the_metrics_of_streams(
    open_workflow: OpenWorkflow, store: Store, workflow: str, service: Service
) -> None:
    """Changes are not counted as lines."""
    names = ("chronoverse_lines_delivered_total", "chronoverse_changes_delivered_total")
    streams = [open_workflow("?jobs=0").wait_for(b"id: 0\n\n") for _ in range(2)]
    lines, changed = [service.metric(name) for name in names]
    streams[0].wait_for(b"\n\n:\n")
    assert service.metric("chronoverse_streams_open") >= 2
    for number in range(3):
        store.register(JobRef(workflow, f"job_{number}"))
    for stream in (*streams, open_workflow("", "0")):
        stream.wait_for(b"\nid: 3\n\n")
    wait_until(lambda: service.metric(names[1]) == changed + 9, PATIENCE_SECONDS, "three viewers had three changes")
    assert service.metric(names[0]) == lines


def test_jobs_that_were_read_before_a_change_are_not_sent_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a second, one read serves all other clients with the same filter."""
    now, reads = 0.0, list[tuple[str, str | None]]()

    def newest_jobs(deps: object, wanted: WantedJobs, *_: object) -> tuple[list[Any], None]:
        reads.append((wanted.workflow_id, wanted.status))
        return [{"id": len(reads)}], None

    monkeypatch.setattr(workflow_events, "newest_jobs", newest_jobs)
    cache = ReplayCache(cast("Any", None), most_bytes=1_000, clock=lambda: now)
    deps = SimpleNamespace(monotonic=lambda: now, replay_cache=cache)
    read = partial(workflow_events.read_newest, cast("Any", deps))
    all_jobs, failed = (WantedJobs("w", 10, status, ()) for status in (None, "FAILED"))
    first = read(all_jobs, "me", 0, 5)
    assert read(all_jobs, "you", 5, 5) == read(all_jobs, "you", 2, 9) == first
    assert read(failed, "me", 0, 5) != first
    newer = read(all_jobs, "me", 6, 9)
    assert newer != first
    assert newer[1] == 9
    # The store has lost changes in between.
    lost = read(all_jobs, "me", 0, 8)
    assert (lost != newer, lost[1]) == (True, 8)
    now = 1.0
    assert read(all_jobs, "me", 0, 8) != lost
    assert reads == [("w", None), ("w", "FAILED"), ("w", None), ("w", None), ("w", None)]
    for number in range(200):
        read(all_jobs._replace(workflow_id=str(number)), "me", 1, 1)
    assert 0 < cache._cached_bytes <= 1_000
