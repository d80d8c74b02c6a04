"""The scan server of a service: it starts and ends with the service. Its death delays or rejects only searches."""

import contextlib
import os
import random
import re
import signal
import statistics
import threading
import time
from collections.abc import Iterator
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
def searching(service: Service, subject: str = "tests", path: str = PATH) -> Iterator[list[httpx.Response]]:
    """Repeats a search, or a request for ``path``, while the block runs. Yields the answers so far."""
    answers: list[httpx.Response] = []
    over = threading.Event()

    def run() -> None:
        while not over.is_set():
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


def test_scans_run_at_a_low_priority(service: Service) -> None:
    """The service's other processes have the usual one, that of the tests."""
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    server = scan_server(service)
    usual = [service.pid, *service.worker_pids(), server.pid]

    def priorities(pids: list[int]) -> set[int]:
        return {os.getpriority(os.PRIO_PROCESS, pid) for pid in pids}

    # Queried each time: a process that another test has ended is replaced.
    wait_until(
        lambda: priorities([each.pid for each in server.children()]) == {min(ours + NICENESS, 19)},
        PATIENCE_SECONDS,
        "the processes can scan",
    )
    assert priorities(usual) == {ours}


def test_a_long_scan_loses_priority(service: Service) -> None:
    """Its process keeps the lower priority for the next scan."""
    lowest = min(os.getpriority(os.PRIO_PROCESS, 0) + 2 * NICENESS, 19)

    def is_lowered(process: psutil.Process) -> bool:
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            ours = os.getpriority(os.PRIO_PROCESS, process.pid)
            return ours < lowest and any(
                os.getpriority(os.PRIO_PROCESS, each.id) == lowest for each in process.threads()
            )
        return False

    with searching(service):
        wait_until(
            lambda: any(is_lowered(each) for each in processes(service)), PATIENCE_SECONDS, "a scan has less priority"
        )
    wait_until(
        lambda: not any(is_lowered(each) for each in processes(service)), PATIENCE_SECONDS, "it has its priority again"
    )


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


def test_a_worker_leaves_filtering_stored_lines_of_a_stream_to_the_scan_server(service: Service) -> None:
    """As its CPU time shows. The stream has the lines that grep finds, and reports its progress."""
    workers, scanning = [psutil.Process(pid) for pid in service.worker_pids()], processes(service)
    before = sum(map(cpu_seconds, workers)), sum(map(cpu_seconds, scanning))
    headers = {"Authorization": f"Bearer {service.token()}"}
    path = PATH.replace("logs/search", "events?regex=true&q=(1|2)7%2B(71)?7$")
    with Stream(service, path, headers) as stream:
        stream.wait_for(b"event: end", PATIENCE_SECONDS)
    used = sum(map(cpu_seconds, workers)) - before[0], sum(map(cpu_seconds, scanning)) - before[1]

    found = [int(each) for each in re.findall(rb"event: log\ndata: [^\n]*\nid: ([0-9]+)\n\n", stream.body)]
    assert found == [n for n in range(1, LINES + 1) if re.search(r"(1|2)7+(71)?7$", f"line {n}")]
    assert used[0] < used[1] / 2


def test_two_searches_share_fairly(service: Service) -> None:
    """Each gets as many pages as the other."""
    with searching(service, "one") as first, searching(service, "other") as second:
        wait_until(lambda: min(len(first), len(second)) >= 3, PATIENCE_SECONDS, "both have had some pages")
        pages = len(first), len(second)

    assert max(pages) <= 2 * min(pages)
    assert {each.status_code for each in (*first, *second)} == {200}


def test_the_scans_of_one_token_do_not_delay_those_of_others(service: Service, redis_server: RedisServer) -> None:
    """Eight summaries of a long log never end. Each takes seconds, and both workers receive requests for them."""
    Foreign(redis_server.url, "scans", "short").lines(["x"] * 1_000).end()

    def seconds() -> float:
        began = time.monotonic()
        url = service.url + PATH.replace(JOB.job_id, "short")
        headers = {"Authorization": f"Bearer {service.token(subject='other')}"}
        answer = httpx.get(url, params={"q": "nowhere"}, headers=headers, timeout=PATIENCE_SECONDS)
        assert answer.status_code == 200, answer.text
        return time.monotonic() - began

    seconds()
    quiet = max(seconds() for _ in range(3))
    path = PATH.replace("logs/search", "summary")
    with contextlib.ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(searching(service, path=path))
        busy_process(service)
        late = [seconds() for _ in range(5)]

    assert sorted(late)[-2] < 3 * quiet + 2


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


def test_a_download_is_complete_or_visibly_incomplete(service: Service) -> None:
    """Every process that works for it is killed. Clients must not take a part of the log for the whole."""
    url = f"{service.url}/workflows/{JOB.workflow_id}/jobs/{JOB.job_id}/logs/raw"
    headers = {"Authorization": f"Bearer {service.token()}"}
    ended: list[int] = []

    def download() -> None:
        try:
            got = httpx.get(url, params={"q": "line"}, headers=headers, timeout=PATIENCE_SECONDS)
            ended.append(got.text.count("\n") if got.status_code == 200 else LINES)
        except httpx.HTTPError:
            ended.append(LINES)

    thread = threading.Thread(target=download)
    thread.start()
    in_time = deadline(60, "the download is over")
    while thread.is_alive() and in_time():
        for each in processes(service):
            with contextlib.suppress(psutil.Error):
                each.kill()
        thread.join(0.3)

    assert ended == [LINES]
    assert search(service).status_code == 200


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


def test_a_killed_server_is_restarted(service: Service) -> None:
    """A search at that moment can fail; later ones work. The killed server's processes exit on their own."""
    before = [scan_server(service), *processes(service)]
    os.kill(before[0].pid, signal.SIGKILL)
    answers = []
    wait_until(
        lambda: answers.append(search(service)) or answers[-1].status_code == 200,  # type: ignore[func-returns-value]
        PATIENCE_SECONDS,
        "searches work",
    )
    wait_until(lambda: not any(is_alive(each.pid) for each in before), PATIENCE_SECONDS, "the old ones have gone")

    assert {each.status_code for each in answers} <= {200, 503}
    assert scan_server(service) not in before
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
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            with contextlib.suppress(httpx.HTTPError):
                search(service)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        busy_process(service)
        service.signal(number)
    finally:
        over.set()
    service.wait(PATIENCE_SECONDS)
    wait_until(lambda: not any(is_alive(each.pid) for each in left), PATIENCE_SECONDS, "all have gone")
    asking.join(PATIENCE_SECONDS)


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
        service.start()
        stop_in_a_search(service, signal.SIGINT)


def test_a_search_without_a_client_ends(service: Service, redis_server: RedisServer) -> None:
    """On average, it takes less work than one whose client stays: both end by the clock."""
    job = Foreign(redis_server.url, "scans", "costly")
    for _ in range(300):
        job.line("".join(random.choices("ab", k=6_500)))
    # Each line takes some 10 ms, and lines are compared for up to a second.
    costly = PATH.replace(JOB.job_id, "costly") + "?regex=true&q=(%3F:a.%7B0,50%7D)%7B4%7Dz"

    def cpu_of_search(seconds: float) -> float:
        before = sum(map(cpu_seconds, processes(service)))
        with contextlib.suppress(httpx.TimeoutException):
            search(service, path=costly, timeout=seconds)
        # A subject has one scan at a time, so this one starts once that one has ended.
        wait_until(lambda: search(service, path=f"{PATH}?limit=1&q=1").is_success, PATIENCE_SECONDS, "it has ended")
        return sum(map(cpu_seconds, processes(service))) - before

    pairs: list[tuple[float, float]] = []

    def takes_less() -> bool:
        pairs.append((cpu_of_search(0.05), cpu_of_search(PATIENCE_SECONDS)))
        abandoned, whole = map(sum, zip(*pairs, strict=True))
        return len(pairs) >= 3 and 0 < abandoned < 0.75 * whole

    wait_until(takes_less, PATIENCE_SECONDS, "abandoned searches take less")


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
