"""Two nodes behind a real nginx with the shipped configuration, over TLS, with HTTP/1.1 and HTTP/2."""

import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from chronoverse.joblog.model import Attempt, JobRef, Status
from chronoverse.joblog.sse import Decoder, ServerSentEvent
from chronoverse.store import Store
from tests.support.bench import make_lines
from tests.support.nginx import Nginx
from tests.support.service import Service, serving
from tests.support.tools import tool
from tests.support.waiting import wait_until

PATIENCE_SECONDS: Final = 10.0
#: curl's exit codes for a truncated body, in HTTP/1.1 and HTTP/2.
CUT_OFF: Final = (18, 92)
#: A text that the test puts wherever a client can mistakenly put a token. It must not be in any log.
CANARY: Final = "canary-7f3a"

VERSIONS: Final = ("--http1.1", "--http2")

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def second(embedded_service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A second node on the first one's store, with the log level ``debug``."""
    url, secret = f"unix://{embedded_service.data_dir}/server.sock", embedded_service.secret.decode()
    directory = tmp_path_factory.mktemp("second")
    with serving(directory, url, jwt_secret=secret, heartbeat_seconds=1, log_level="debug") as service:
        yield service


@pytest.fixture(scope="module")
def nginx(embedded_service: Service, second: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    """nginx in front of both nodes."""
    nodes = [(each.host, each.port) for each in (embedded_service, second)]
    with Nginx(tmp_path_factory.mktemp("nginx"), nodes) as nginx:
        yield nginx


class Curl:
    """An event stream that curl reads. Its body grows until the stream ends."""

    def __init__(self, nginx: Nginx, token: str, path: str, version: str, output: Path) -> None:
        self._output = output
        command = [tool("curl"), "--no-buffer", "--silent", version, "--cacert", str(nginx.certificate)]
        command += ["--header", f"Authorization: Bearer {token}", nginx.url + path]
        with output.open("wb") as written:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=written)

    @property
    def body(self) -> bytes:
        """The bytes received so far."""
        return self._output.read_bytes()

    def wait_for(self, text: bytes) -> None:
        """Waits until ``text`` has arrived."""
        wait_until(lambda: text in self.body, PATIENCE_SECONDS, f"{text!r}")

    def events(self) -> list[ServerSentEvent]:
        """The events so far, without ``job`` events."""
        return [event for event in Decoder().feed(self.body) if event.event != "job"]

    def close(self) -> None:
        """Stops curl if it is still running."""
        self.process.kill()
        self.process.wait(PATIENCE_SECONDS)


@pytest.fixture
def stream(nginx: Nginx, embedded_service: Service, tmp_path: Path) -> Iterator[Callable[..., Curl]]:
    """A function that opens a stream of a job of the workflow ``nginx``."""
    opened: list[Curl] = []

    def stream(job: str, version: str = "--http2") -> Curl:
        path = f"/workflows/nginx/jobs/{job}/events"
        opened.append(Curl(nginx, embedded_service.token(), path, version, tmp_path / str(len(opened))))
        return opened[-1]

    yield stream
    for each in opened:
        each.close()


def test_the_configuration_is_valid_and_has_no_warnings(nginx: Nginx) -> None:
    """With ``nginx -t``, like an operator."""
    messages = nginx.check()

    assert "test is successful" in messages
    assert "[warn]" not in messages


@pytest.mark.parametrize("version", VERSIONS)
def test_lines_arrive_one_by_one_and_the_end_ends_the_response(
    stream: Callable[..., Curl], embedded_store: Store, version: str
) -> None:
    """nginx buffers nothing: each line arrives before the next one is written, most of them within two seconds."""
    name = f"live{version}-{secrets.token_hex(4)}"
    attempt = embedded_store.open(JobRef("nginx", name), "token")
    curl = stream(name, version)
    curl.wait_for(b"event: job")
    delays = []
    for number in range(1, 21):
        started = time.monotonic()
        embedded_store.append(attempt, make_lines(number, 1))
        curl.wait_for(b"id: %d\n\n" % number)
        delays.append(time.monotonic() - started)
    embedded_store.finish(attempt, Status.COMPLETED, 0, 0, 21)

    assert curl.process.wait(PATIENCE_SECONDS) == 0
    assert sorted(delays)[10] < 2
    assert [event.event for event in curl.events()] == ["connected", *["log"] * 20, "end"]


def test_a_quiet_stream_gets_its_heartbeats(stream: Callable[..., Curl], embedded_store: Store) -> None:
    """nginx forwards heartbeats immediately, in both HTTP versions."""
    embedded_store.register(JobRef("nginx", "quiet"))
    for curl in [stream("quiet", version) for version in VERSIONS]:
        curl.wait_for(b"\n\n:\n:\n")


def opened(store: Store, name: str) -> Attempt:
    """Starts a job and appends one line."""
    attempt = store.open(JobRef("nginx", name), "token")
    store.append(attempt, make_lines(1, 1))
    return attempt


def test_a_reload_disconnects_no_stream(nginx: Nginx, stream: Callable[..., Curl], embedded_store: Store) -> None:
    """nginx's old worker keeps serving its streams for a while; the new worker answers new requests."""
    attempt = opened(embedded_store, "reload")
    curl = stream("reload")
    curl.wait_for(b"id: 1\n\n")
    before = nginx.workers()
    nginx.signal(signal.SIGHUP)
    wait_until(lambda: nginx.workers() - before, PATIENCE_SECONDS, "new workers")
    with nginx.client() as client:
        assert client.get("/healthz").status_code == 200
    embedded_store.append(attempt, make_lines(2, 1))
    embedded_store.finish(attempt, Status.COMPLETED, 0, 0, 3)

    assert curl.process.wait(PATIENCE_SECONDS) == 0
    assert [event.id for event in curl.events() if event.event == "log"] == ["1", "2"]


def test_the_services_answers_pass_through(nginx: Nginx) -> None:
    """Status and headers are the service's, plus nginx's Strict-Transport-Security and Server."""
    with nginx.client() as client:
        refused = client.get("/workflows/nginx/jobs/none/events")

    assert refused.status_code == 401
    assert refused.headers["Content-Type"] == "application/problem+json"
    assert refused.headers["WWW-Authenticate"] == "Bearer"
    assert refused.headers["X-Content-Type-Options"] == "nosniff"
    assert refused.headers["Cache-Control"] == "no-store"
    assert int(refused.headers["Strict-Transport-Security"].removeprefix("max-age=")) >= 31_536_000
    assert refused.headers["Server"] == "nginx"


def test_no_token_is_in_any_log(nginx: Nginx, embedded_service: Service, second: Service) -> None:
    """Tokens in every part of requests that succeed or fail. One node logs at level ``debug``."""
    token = embedded_service.token()
    headers = {"Authorization": f"Bearer {token}", "Cookie": f"t={CANARY}", "Referer": f"{nginx.url}/?t={CANARY}"}
    job = "/workflows/nginx/jobs/canary"
    with nginx.client(headers=headers) as client:
        client.post(f"{job}/attempts", json={"token": "c" * 32})
        for _ in range(4):
            assert client.get(job).status_code == 200
            client.get(f"{job}/logs?token={CANARY}")
            client.get(f"{job}/{token}?access_token={token}")
            client.get(f"{job}/events", headers={"Authorization": f"Bearer {CANARY}"})
            # nginx closes the connection after rejecting this, so the next request must not use it.
            client.request("TRACE", f"{job}?jwt={token}", headers={"Connection": "close"})
        client.get("/x", headers={"X": "a" * 9000})
    wait_until(lambda: '"status":"431"' in nginx.logs(), PATIENCE_SECONDS, "the last request is logged")
    logs = nginx.logs() + embedded_service.logs() + second.logs()

    assert '"path":"/workflows/nginx/jobs/canary"' in logs
    assert CANARY not in logs
    assert token not in logs
    assert token.rpartition(".")[2] not in logs


def test_a_killed_node_disconnects_only_its_own_streams_and_fails_no_request(
    nginx: Nginx, second: Service, stream: Callable[..., Curl], embedded_store: Store
) -> None:
    """In both HTTP versions, clients can distinguish a disconnect from an end. Requests go to the other node.

    No later test needs the second node.
    """
    attempt = opened(embedded_store, "cut")
    curls = [stream("cut", version) for version in VERSIONS for _ in range(4)]
    for curl in curls:
        curl.wait_for(b"id: 1\n\n")
    cut = int(second.metric("chronoverse_streams_open"))
    second.kill()
    wait_until(lambda: sum(c.process.poll() in CUT_OFF for c in curls) == cut, PATIENCE_SECONDS, f"{cut} cuts")
    with nginx.client() as client:
        answers = [client.get("/readyz").status_code for _ in range(10)]
    embedded_store.append(attempt, make_lines(2, 1))
    embedded_store.finish(attempt, Status.COMPLETED, 0, 0, 3)

    assert 0 < cut < len(curls)
    assert answers == [200] * 10
    codes = [curl.process.wait(PATIENCE_SECONDS) for curl in curls]
    assert codes.count(0) == len(curls) - cut
    for curl, code in zip(curls, codes, strict=True):
        assert [event.event for event in curl.events()] == ["connected", "log", *([] if code else ["log", "end"])]
