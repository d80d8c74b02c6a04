"""Streams that the server rejects, ends, or loses when it is stopped or killed. No viewer misses a line."""

import itertools
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from chronoverse.embedded import server as embedded
from tests.support.servers import RedisServer
from tests.support.service import Service, is_alive, serving
from tests.support.waiting import wait_until
from tests.web.routes.foreign import Foreign
from tests.web.routes.wire import PATIENCE_SECONDS, Stream

pytestmark = pytest.mark.long

OPEN_STREAMS: Final = "chronoverse_streams_open"

_numbers = itertools.count(1)


@pytest.fixture
def job(redis_server: RedisServer) -> Foreign:
    return Foreign(redis_server.url, "lifecycle", f"job_{next(_numbers)}").lines(["x"] * 3)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Iterator[Service]:
    """A service with two workers whose processes tests kill."""
    with serving(tmp_path_factory.mktemp("pair"), redis_server.url, workers=2) as service:
        # The service is ready as soon as the first worker is.
        wait_until(lambda: len(service.worker_pids()) == 2, PATIENCE_SECONDS, "the second worker is there too")
        yield service


def opener(service: Service, stack: ExitStack) -> Callable[..., Stream]:
    """Returns a function that opens event streams of ``service``, closed by ``stack``."""
    authorization = {"Authorization": f"Bearer {service.token()}"}

    def open_stream(job: Foreign, query: str = "", **headers: str) -> Stream:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return stack.enter_context(Stream(service, f"{job.path}/events{query}", authorization | named))

    return open_stream


def last_event_id_of(stream: Stream) -> str:
    """The Last-Event-ID with which the client of ``stream`` reconnects."""
    ids: list[str] = [block["id"] for block in stream.blocks() if "id" in block]
    return ids[-1]


def test_metrics_of_two_workers_are_summed_without_killed_ones(pair: Service, job: Foreign) -> None:
    """Every worker reports the sum. The viewers of the killed one resume at the other one without missing a line."""
    first, second = pair.worker_pids()
    with ExitStack() as stack:
        open_stream = opener(pair, stack)
        streams = {}
        for serving_pid, stopped, count in ((first, second, 2), (second, first, 3)):
            # The other worker is paused, so only this one can accept the connection.
            os.kill(stopped, signal.SIGSTOP)
            stack.callback(resume_process, stopped)
            streams[serving_pid] = [open_stream(job).wait_for(b"id: 3\n\n") for _ in range(count)]
            os.kill(stopped, signal.SIGCONT)
        assert {pair.metric(OPEN_STREAMS) for _ in range(8)} == {5}

        os.kill(second, signal.SIGKILL)
        for stream in streams[second]:
            stream.wait_end()
            assert stream.cut
        wait_until(lambda: pair.metric(OPEN_STREAMS) == 2, PATIENCE_SECONDS, "the dead worker's streams are gone")
        job.line("while it was stopped")
        for stream in streams[second]:
            again = open_stream(job, Last_Event_ID=last_event_id_of(stream)).wait_for(b"id: 4\n\n")
            assert [*stream.numbers(), *again.numbers()] == [1, 2, 3, 4]
        for stream in streams[first]:
            assert stream.wait_for(b"id: 4\n\n").numbers() == [1, 2, 3, 4]
    wait_until(lambda: len(pair.worker_pids()) == 2, PATIENCE_SECONDS, "a new worker has come")


def resume_process(pid: int) -> None:
    """Sends SIGCONT if the process still exists."""
    if is_alive(pid):
        os.kill(pid, signal.SIGCONT)


def test_a_stop_with_open_streams_is_fast_and_loses_nothing(pair: Service, job: Foreign) -> None:
    """On SIGTERM streams end without ``end``, and the processes exit. Viewers resume after the next start."""
    workers = pair.worker_pids()
    with ExitStack() as stack:
        open_stream = opener(pair, stack)
        streams = [open_stream(job).wait_for(b"id: 3\n\n") for _ in range(4)]
        waiting = open_stream(job.sibling("never"), "?wait=60").wait_for(b"\n\n")
        pair.signal(signal.SIGTERM)
        assert pair.wait(5) == 0
        assert not any(map(is_alive, workers))
        for stream in (*streams, waiting):
            stream.wait_end(1)
            assert not stream.cut
            assert list(stream.blocks()[-1]) == ["retry"]

        job.line("while it was down")
        pair.start()
        again = [open_stream(job, Last_Event_ID=last_event_id_of(stream)) for stream in streams]
        job.line("and up again")
        job.end()
        for before, after in zip(streams, again, strict=True):
            assert [*before.numbers(), *after.wait_end().numbers()] == [1, 2, 3, 4, 5]
            assert after.blocks()[-1]["event"] == "end"


def test_the_log_in_the_embedded_store_survives_the_service(tmp_path: Path) -> None:
    """After SIGKILL of all processes and a restart, the job's log is complete and its token still valid."""
    written = [f"line {number}" for number in range(1, 501)]
    with Service(tmp_path) as service:
        with embedded.ServerLease(service.data_dir) as lease:
            job = Foreign(lease.url, "wf_1", "job_1").lines(written).end()
        headers = {"Authorization": f"Bearer {service.token()}"}
        service.kill()
        service.start()
        with Stream(service, f"{job.path}/events", headers) as stream:
            stream.wait_end()
            messages = [block["data"]["message"] for block in stream.blocks() if block.get("event") == "log"]

    assert messages == written
    assert stream.blocks()[-1]["event"] == "end"
