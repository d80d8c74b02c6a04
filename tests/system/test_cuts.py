"""Every line once, in order, for a viewer whose connection is cut again and again."""

import http.client
import random
import threading
from collections.abc import Iterator
from typing import Final

import pytest

from chronoverse.joblog.model import Attempt, JobRef, Line, Status
from chronoverse.joblog.sse import Decoder
from chronoverse.store import Store
from tests.support.service import Service, serving
from tests.support.waiting import deadline

LINES: Final = 8_000
CUTS: Final = 50
BATCH: Final = 200
READ_BYTES: Final = 16_384


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with an embedded server, without an archive, and two workers. A viewer may reconnect to either."""
    with serving(tmp_path_factory.mktemp("cuts"), workers=2, archive_url="none") as service:
        yield service


@pytest.fixture(scope="module")
def store(service: Service) -> Iterator[Store]:
    """The service's own store, as a runner on the same machine reaches it."""
    store = Store(f"unix://{service.data_dir}/server.sock")
    yield store
    store.close()


class Viewer:
    """A client that reconnects with the last event id, and records the numbers that it receives."""

    def __init__(self, service: Service, job: JobRef, query: str = "") -> None:
        self.service = service
        self.path = f"/workflows/{job.workflow_id}/jobs/{job.job_id}/events{query}"
        self.numbers: list[int] = []
        self.others: list[str] = []
        self.last_event_id = ""
        self.ended = False

    def watch(self, limit: float = float("inf")) -> int:
        """Opens a connection, and closes it after about ``limit`` bytes, anywhere in an event. Returns the status."""
        connection = http.client.HTTPConnection(self.service.host, self.service.port, timeout=30)
        headers = {"Authorization": f"Bearer {self.service.token()}"}
        if self.last_event_id:
            headers["Last-Event-ID"] = self.last_event_id
        connection.request("GET", self.path, headers=headers)
        response = connection.getresponse()
        decoder, received = Decoder(self.last_event_id), 0
        while response.status == 200 and received < limit and not self.ended:
            chunk = response.read1(int(min(READ_BYTES, limit - received)))
            if not chunk:
                break
            received += len(chunk)
            for event in decoder.feed(chunk):
                if event.event == "log":
                    self.numbers.append(int(event.id))
                else:
                    self.others.append(event.event)
                self.ended = self.ended or event.event == "end"
        self.last_event_id = decoder.last_event_id
        response.close()
        connection.close()
        return response.status


def publish(store: Store, attempt: Attempt) -> None:
    """Publishes all lines and the end."""
    for first in range(1, LINES + 1, BATCH):
        store.append(attempt, [line(number) for number in range(first, first + BATCH)])
    store.finish(attempt, Status.COMPLETED, 0, 0, LINES + 1)


def line(number: int) -> Line:
    """A line whose message is its number."""
    return Line(number, "2026-03-03T10:00:05.123Z", f"line {number}", "stderr" if number % 7 == 0 else "stdout")


@pytest.mark.long
def test_a_viewer_cut_fifty_times_while_the_job_runs_has_every_line_once(service: Service, store: Store) -> None:
    """A cut may be inside of a frame. Only complete frames move the viewer's cursor."""
    job = JobRef("cuts", "live")
    attempt = store.open(job, "token")
    runner = threading.Thread(target=publish, args=(store, attempt))
    viewer, rng = Viewer(service, job), random.Random(20261124)
    average = LINES * 130 // CUTS
    runner.start()
    for _ in range(CUTS):
        viewer.watch(rng.uniform(0.2, 1.4) * average)
    in_time = deadline(60, "the viewer has the end")
    while not viewer.ended and in_time():
        viewer.watch()
    runner.join()

    assert viewer.numbers == list(range(1, LINES + 1))
    assert viewer.others.count("end") == 1
    assert "gap" not in viewer.others
    assert viewer.watch() == 204


@pytest.mark.long
def test_viewers_that_connect_before_during_and_after_a_job_agree(service: Service, store: Store) -> None:
    """One connects before the job exists, one in the middle while it runs, and one after its end."""
    job = JobRef("cuts", "three")
    early = Viewer(service, job, "?wait=60")
    waiting = threading.Thread(target=early.watch)
    waiting.start()
    attempt = store.open(job, "token")
    middle = Viewer(service, job, f"?offset={LINES // 2}")
    watching = threading.Thread(target=middle.watch)
    watching.start()
    publish(store, attempt)
    waiting.join()
    watching.join()
    late = Viewer(service, job)
    late.watch()

    assert early.numbers == late.numbers == list(range(1, LINES + 1))
    assert middle.numbers == list(range(LINES // 2 + 1, LINES + 1))
    assert early.ended
    assert middle.ended
    assert late.ended
    assert [viewer.watch() for viewer in (early, middle, late)] == [204, 204, 204]
