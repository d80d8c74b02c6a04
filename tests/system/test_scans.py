"""The scan server of a service: it starts and ends with the service. Its death delays or rejects only searches."""

import contextlib
import os
import signal
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import httpx
import psutil
import pytest

from chronoverse.history.scans.client import ANSWER_SECONDS
from chronoverse.history.scans.server import HANG_SECONDS, NICENESS
from chronoverse.joblog.model import JobRef, Status
from chronoverse.store import Store
from chronoverse.web.guards.turns import WAIT_SECONDS
from tests.support.bench import make_lines
from tests.support.servers import RedisServer
from tests.support.service import Service, is_alive, serving
from tests.support.waiting import deadline, wait_until
from tests.web.routes.foreign import Foreign
from tests.web.routes.wire import Stream

pytestmark = pytest.mark.long

#: Time limit of a process's start and work on a busy machine, in seconds.
PATIENCE_SECONDS: Final = 60
JOB: Final = JobRef("scans", "long")
PATH: Final = f"/workflows/{JOB.workflow_id}/jobs/{JOB.job_id}/logs/search"
#: Lines of the job. One search takes about a second.
LINES: Final = 150_000


@pytest.fixture(scope="module")
def redis_server(server: RedisServer) -> RedisServer:
    """A store with a long job."""
    store = Store(server.url)
    attempt = store.open(JOB, "token")
    for first in range(1, LINES, 1000):
        store.append(attempt, make_lines(first, 1000))
    store.finish(attempt, Status.COMPLETED, 0, 0, LINES + 1)
    store.close()
    return server


@pytest.fixture(scope="module")
def service(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with two workers, for the tests that leave it running."""
    directory = tmp_path_factory.mktemp("service")
    with serving(directory, redis_server.url, workers=2, heartbeat_seconds=1) as service:
        yield service


def scan_server(service: Service) -> psutil.Process:
    """The scan server of a service."""
    found: list[psutil.Process] = []

    def look() -> bool:
        for each in psutil.Process(service.pid).children():
            with contextlib.suppress(psutil.Error):
                found.extend([each] if "scans" in each.cmdline() else [])
        return bool(found) and len(found[-1].children()) >= 2

    wait_until(look, PATIENCE_SECONDS, "the scan server runs")
    return found[-1]


def processes(service: Service) -> list[psutil.Process]:
    """The scan server's processes, which do the scans."""
    found: list[psutil.Process] = scan_server(service).children()
    return found


def cpu_seconds(each: psutil.Process) -> float:
    """The CPU time used by a process."""
    times = each.cpu_times()
    return float(times.user + times.system)


def search(service: Service, subject: str = "tests", path: str = PATH, timeout: float = 60) -> httpx.Response:
    """One page of a search, which takes up to a second because nothing is found; or the answer at ``path``."""
    headers = {"Authorization": f"Bearer {service.token(subject=subject)}"}
    params = {"q": "nowhere"} if path == PATH else {}
    return httpx.get(service.url + path, params=params or None, headers=headers, timeout=timeout)


@contextlib.contextmanager
def searching(
    service: Service, subject: str = "tests", path: str = PATH, ignored: Sequence[type[Exception]] = ()
) -> Iterator[list[httpx.Response]]:
    """Repeats a search, or a request for ``path``, while the block runs. Yields the answers so far."""
    answers: list[httpx.Response] = []
    over = threading.Event()

    def run() -> None:
        while not over.is_set():
            with contextlib.suppress(*ignored):
                answers.append(search(service, subject, path))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield answers
    finally:
        over.set()
        thread.join(PATIENCE_SECONDS)


def busy_process(service: Service) -> psutil.Process:
    """The process that is working on a scan."""
    found: list[psutil.Process] = []

    def look() -> bool:
        before = {each: cpu_seconds(each) for each in processes(service)}
        time.sleep(0.1)
        with contextlib.suppress(psutil.NoSuchProcess):
            found.extend(each for each, seconds in before.items() if cpu_seconds(each) > seconds)
        return bool(found)

    wait_until(look, PATIENCE_SECONDS, "a process scans")
    return found[0]


def test_a_scan_has_a_low_priority_and_loses_more_of_it(service: Service) -> None:
    """The service's other processes have the usual priority, that of the tests. The next scan has that of the first."""
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    low, lowest = (min(usual + times * NICENESS, 19) for times in (1, 2))

    def priorities() -> set[int]:
        """Those of all threads of the processes that scan. A process that another test has ended is replaced."""
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            threads = [thread.id for each in processes(service) for thread in each.threads()]
            return {os.getpriority(os.PRIO_PROCESS, thread) for thread in threads}
        return set()

    with searching(service):
        wait_until(lambda: priorities() == {low, lowest}, PATIENCE_SECONDS, "a scan has less priority")
    wait_until(lambda: priorities() == {low}, PATIENCE_SECONDS, "it has its priority again")
    others = [service.pid, *service.worker_pids(), scan_server(service).pid]
    assert {os.getpriority(os.PRIO_PROCESS, pid) for pid in others} == {usual}


def test_a_live_line_does_not_wait_for_searches(service: Service, redis_server: RedisServer) -> None:
    """Although four searches never end."""
    job = Foreign(redis_server.url, "scans", "live")
    headers = {"Authorization": f"Bearer {service.token()}"}
    job.line("first")
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(Stream(service, f"{job.path}/events", headers)).wait_for(b"id: 1\n\n")

        def delay(number: int) -> float:
            began = time.monotonic()
            job.line("live")
            stream.wait_for(b"id: %d\n\n" % number)
            return time.monotonic() - began

        quiet = statistics.median(map(delay, range(2, 12)))
        for subject in ("a", "b", "c", "d"):
            stack.enter_context(searching(service, subject))
        busy_process(service)
        delays = sorted(map(delay, range(12, 52)))

    assert delays[-4] < 0.25 + 5 * quiet


def test_a_process_that_dies_fails_only_its_own_search(service: Service) -> None:
    """With 503 and Retry-After. It is replaced immediately."""
    victims: list[psutil.Process] = []
    with searching(service) as answers:
        # A process that looks busy may just have answered.
        in_time = deadline(60, "a search fails")
        while all(each.status_code == 200 for each in answers) and in_time():
            victims.append(busy_process(service))
            with contextlib.suppress(psutil.Error):
                victims[-1].kill()
            time.sleep(0.5)
        count = len(answers)
        wait_until(lambda: len(answers) > count + 1, PATIENCE_SECONDS, "it goes on")

    failed = [each for each in answers if each.status_code != 200]
    assert len(failed) <= len(victims)
    assert {each.status_code for each in failed} == {503}
    assert int(failed[0].headers["retry-after"]) > 0
    assert failed[0].json()["detail"] == "Searches are unavailable; try again."
    assert answers[-1].status_code == 200
    assert not set(victims) & set(processes(service))


def test_a_process_that_hangs_is_replaced(service: Service) -> None:
    """Its search gets 503 within the documented time, unlike anyone else's."""
    with searching(service) as answers:
        victim = busy_process(service)
        began = time.monotonic()
        victim.suspend()
        wait_until(lambda: any(each.status_code != 200 for each in answers), PATIENCE_SECONDS, "the search has failed")
        took = time.monotonic() - began
    wait_until(lambda: not is_alive(victim.pid), PATIENCE_SECONDS, "it has gone")

    assert took < WAIT_SECONDS + max(ANSWER_SECONDS, HANG_SECONDS) + 20
    assert [each.status_code for each in answers if each.status_code != 200] == [503]
    assert search(service).status_code == 200


def test_a_frozen_server_is_restarted(service: Service) -> None:
    """Meanwhile, searches are rejected once they have waited for their turn, and the operator is notified."""

    def ready() -> dict[str, object]:
        answer = httpx.get(f"{service.url}/readyz", timeout=5, verify=service.verify)
        assert answer.status_code == 200
        return dict(answer.json())

    stopped = scan_server(service)
    wait_until(lambda: ready() == {"status": "ready"}, PATIENCE_SECONDS, "all is well")
    assert service.metric("chronoverse_scans_up") == 1
    os.killpg(stopped.pid, signal.SIGSTOP)
    began = time.monotonic()
    refused = search(service)
    took = time.monotonic() - began
    wait_until(lambda: "warning" in ready(), PATIENCE_SECONDS, "it is noticed")
    assert ready() == {"status": "ready", "warning": "Searches are unavailable."}
    assert service.metric("chronoverse_scans_up") == 0
    wait_until(lambda: ready() == {"status": "ready"}, PATIENCE_SECONDS, "all is well again")
    assert search(service).status_code == 200
    assert service.metric("chronoverse_scans_up") == 1
    assert not is_alive(stopped.pid)

    assert refused.status_code == 503
    assert took < WAIT_SECONDS + 8


def stop_in_a_search(service: Service, number: signal.Signals) -> None:
    """Ends the master during a search with that signal, and waits until all of its processes are gone."""
    server = scan_server(service)
    left = [server, *server.children(), *psutil.Process(service.pid).children()]
    with searching(service, ignored=[httpx.HTTPError]):
        busy_process(service)
        service.signal(number)
    service.wait(PATIENCE_SECONDS)
    wait_until(lambda: not any(is_alive(each.pid) for each in left), PATIENCE_SECONDS, "all have gone")


@pytest.mark.timeout(300)
def test_no_process_and_no_file_outlives_its_service(redis_server: RedisServer, tmp_path: Path) -> None:
    """However the master ends, even during a search. A killed service leaves no file permanently.

    Cleaning up temporary files does not stop searches, even when the scan server restarts afterwards.
    """
    temporary, data = tmp_path / "temporary", tmp_path / "data"
    temporary.mkdir()
    environ = {"TMPDIR": str(temporary)}
    with Service(data, redis_server.url, environ=environ) as service:
        assert scan_server(service)
        (made,) = temporary.iterdir()
        stop_in_a_search(service, signal.SIGKILL)
        service.start()
        assert scan_server(service)
        (made_again,) = temporary.iterdir()
        assert made_again != made
        for each in temporary.iterdir():
            each.rename(tmp_path / "away")
        assert search(service).status_code == 200
        scan_server(service).kill()
        assert search(service).status_code == 200
        stop_in_a_search(service, signal.SIGTERM)


def test_a_reload_restarts_the_server(service: Service) -> None:
    """Searches wait meanwhile. Afterwards, there is one server."""
    with searching(service) as answers:
        before = scan_server(service)
        wait_until(lambda: answers, PATIENCE_SECONDS, "a first page")
        service.signal(signal.SIGHUP)
        wait_until(lambda: not is_alive(before.pid), PATIENCE_SECONDS, "the old one has gone")
        count = len(answers)
        wait_until(lambda: len(answers) > count + 1, PATIENCE_SECONDS, "searches go on")
        assert scan_server(service) != before

    assert {each.status_code for each in answers} <= {200, 503}
    assert answers[-1].status_code == 200
