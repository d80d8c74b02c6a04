"""A redaction is answered when no worker shows the old text: tested with two nodes of two workers each."""

import contextlib
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import httpx
import pytest

from tests.support.servers import RedisServer
from tests.support.service import Service, serving
from tests.support.waiting import wait_until
from tests.web.routes.site import open_site
from tests.web.routes.wire import Stream

pytestmark = pytest.mark.long

#: Redactions per test, and lines per redaction.
ROUNDS: Final = 2
LINES: Final = 10
#: Pause between two requests of each of the eight pollers, in seconds: without it they would use up the CPU.
PAUSE_SECONDS: Final = 0.05


class Poller(threading.Thread):
    """Requests one path of one node repeatedly, on new connections, so that any worker can answer."""

    def __init__(self, service: Service, path: str, headers: dict[str, str]) -> None:
        super().__init__(daemon=True)
        self._url, self._headers = service.url + path, headers
        self._stopped = threading.Event()
        #: When each request started, and the secrets in its answer.
        self.answers: list[tuple[float, set[int]]] = []

    def run(self) -> None:
        while not self._stopped.wait(PAUSE_SECONDS):
            began, text = time.monotonic(), b""
            with httpx.stream("GET", self._url, headers=self._headers, timeout=20, verify=False) as response:
                assert response.status_code == 200
                for part in response.iter_raw():
                    text += part
                    # A running job's stream does not end.
                    if b"the last" in text:
                        break
            self.answers.append((began, set(map(int, re.findall(rb"secret (\d+);", text)))))

    def stop(self) -> None:
        self._stopped.set()
        self.join(20)


def wait_for_answers(pollers: list[Poller], counts: list[int]) -> None:
    """Waits until each poller has more answers than its count."""
    wait_until(
        lambda: all(len(each.answers) > count for each, count in zip(pollers, counts, strict=True)), 30, "answers"
    )


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[Service]]]:
    """An archive and two nodes of two workers, on a store that loses nothing."""
    directory = tmp_path_factory.mktemp("nodes")
    archive = directory / "archive"
    with contextlib.ExitStack() as stack:
        server = RedisServer(directory / "store", None, "--appendonly", "yes", "--appendfsync", "always")
        url = stack.enter_context(server).url
        yield (
            archive,
            [
                stack.enter_context(serving(directory / name, url, workers=2, archive_url=archive.as_uri()))
                for name in ("one", "two")
            ],
        )


@pytest.mark.parametrize("ended", [False, True], ids=["running", "ended"])
def test_no_worker_shows_the_old_text_after_the_answer(nodes: tuple[Path, list[Service]], ended: bool) -> None:
    """Pages and events of both nodes contain it before, and none of them after the answer.

    The running job's viewers keep its lines in each worker's ring. The ended job is archived.
    """
    archive, services = nodes
    with contextlib.ExitStack() as stack:
        site = stack.enter_context(open_site(services[0], archive, "ended" if ended else "running"))
        job = site.job().lines(f"secret {number // LINES};" for number in range(ROUNDS * LINES)).lines(["the last"])
        if ended:
            job.end()
            site.archive_up_to(job, ROUNDS * LINES, trim=True)
        paths = (f"{job.path}/logs?limit=1000", f"{job.path}/events")
        pollers = [Poller(service, path, site.headers) for service in services for path in paths for _ in range(2)]
        viewers = [Stream(service, f"{job.path}/events", site.headers) for service in services for _ in range(6)]
        answered: list[float] = []
        try:
            for viewer in viewers:
                viewer.wait_for(b"the last")
            for poller in pollers:
                poller.start()
            for number in range(ROUNDS):
                wait_for_answers(pollers, [len(each.answers) for each in pollers])
                body = {"from": number * LINES + 1, "to": (number + 1) * LINES}
                done = site.client.post(f"{job.path}/logs/redact", json=body)
                answered.append(time.monotonic())
                assert (done.status_code, done.json()["redacted"]) == (200, LINES), done.text
            wait_for_answers(pollers, [len(each.answers) + 2 for each in pollers])
        finally:
            for poller in pollers:
                poller.stop()
            for viewer in viewers:
                viewer.close()

    answers = [each for poller in pollers for each in poller.answers]
    assert set().union(*(secrets for _, secrets in answers)) == set(range(ROUNDS))
    late = [(began - answered[each], each) for began, secrets in answers for each in secrets if began >= answered[each]]
    assert late == []
