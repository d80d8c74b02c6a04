"""Through a real nginx with the configuration that we ship."""

import http.client
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from chronoverse.joblog import JobRef, Line, Status
from chronoverse.sse import Decoder
from chronoverse.store import Store
from tests.support.service import ROOT, Service
from tests.support.waiting import wait_until


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def nginx(embedded_service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where nginx serves. Only ports, paths and the user differ from ``deploy/nginx.conf``."""
    binary = shutil.which("nginx")
    if binary is None:
        missing = "nginx is not installed"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    folder, port = tmp_path_factory.mktemp("nginx"), free_port()
    text = (ROOT / "deploy" / "nginx.conf").read_text()
    for shipped, ours in {
        "user www-data;": "daemon off;",
        "8080": f"127.0.0.1:{port}",
        "127.0.0.1:8000": f"{embedded_service.host}:{embedded_service.port}",
        "/var/log/nginx/": f"{folder}/",
        "/run/nginx.pid": f"{folder}/nginx.pid",
    }.items():
        assert shipped in text
        text = text.replace(shipped, ours)
    conf = folder / "nginx.conf"
    conf.write_text(text)
    process = subprocess.Popen([binary, "-p", str(folder), "-c", str(conf), "-e", f"{folder}/startup.log"])
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: answers(url), 10, "nginx answers")
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)


def answers(url: str) -> bool:
    """Whether the service is reached through ``url``."""
    try:
        return httpx.get(f"{url}/healthz").status_code == 200
    except httpx.HTTPError:
        return False


def test_lines_arrive_one_by_one_and_the_end_ends_the_response(
    nginx: str, embedded_service: Service, embedded_store: Store
) -> None:
    """Nothing is buffered on the way: each line is there well before the next one is written."""
    job = JobRef("nginx", "live")
    attempt = embedded_store.open(job, "token")
    connection = http.client.HTTPConnection(nginx.removeprefix("http://"), timeout=10)
    connection.request(
        "GET", "/workflows/nginx/jobs/live/events", headers={"Authorization": f"Bearer {embedded_service.token()}"}
    )
    response, decoder, delays = connection.getresponse(), Decoder(), []
    received = list(decoder.feed(response.read1()))
    for number in range(1, 21):
        started = time.monotonic()
        embedded_store.append(attempt, [Line(number, "2026-03-03T10:00:05.123Z", f"line {number}", "stdout")])
        while not received or received[-1].id != str(number):
            received += decoder.feed(response.read1())
        delays.append(time.monotonic() - started)
    embedded_store.finish(attempt, Status.COMPLETED, 0, 0, 21)
    while chunk := response.read1():
        received += decoder.feed(chunk)
    connection.close()

    assert sorted(delays)[10] < 0.5
    assert [event.event for event in received if event.event != "job"] == ["connected", *["log"] * 20, "end"]


def test_a_quiet_stream_outlives_nginx_between_heartbeats(
    nginx: str, embedded_service: Service, embedded_store: Store
) -> None:
    """Heartbeats pass through as they are sent."""
    embedded_store.register(JobRef("nginx", "quiet"))
    headers = {"Authorization": f"Bearer {embedded_service.token()}"}
    with httpx.stream("GET", f"{nginx}/workflows/nginx/jobs/quiet/events", headers=headers, timeout=10) as response:
        body, chunks = b"", response.iter_raw()
        while body.count(b":\n") < 2 or not body.endswith(b"\n:\n"):
            body += next(chunks)

    assert body.endswith(b"\n\n:\n:\n")


def test_metrics_are_not_for_the_outside(nginx: str) -> None:
    """Prometheus scrapes the service itself."""
    assert httpx.get(f"{nginx}/metrics").status_code == 403


def test_refusals_pass_through_as_problem_documents(nginx: str, embedded_service: Service) -> None:
    """Status, type and body are the service's own."""
    refused = httpx.get(f"{nginx}/workflows/nginx/jobs/none/events")

    assert refused.status_code == 401
    assert refused.headers["Content-Type"] == "application/problem+json"
    assert refused.headers["WWW-Authenticate"].startswith("Bearer")


def test_no_token_reaches_the_access_log(
    nginx: str, embedded_service: Service, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Neither from the header nor from a query where it has no business."""
    canary = "canary-7f3a"
    httpx.get(f"{nginx}/workflows/nginx/jobs/x/logs?token={canary}", headers={"Authorization": f"Bearer {canary}"})
    folder = next(Path(tmp_path_factory.getbasetemp()).glob("nginx*"))
    wait_until(
        lambda: "/workflows/nginx/jobs/x/logs" in (folder / "access.log").read_text(), 5, "the request is logged"
    )

    assert canary not in (folder / "access.log").read_text()
    assert canary not in embedded_service.logs()
