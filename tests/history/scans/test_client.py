"""A worker's scan gets an answer or :class:`ScansUnavailable`, within a limited time."""

import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Final

import pytest

from chronoverse.errors import NotALog, ScansUnavailable, ShareExceeded
from chronoverse.history.pages import Page
from chronoverse.history.scans import client
from chronoverse.history.scans.client import ScanClient
from chronoverse.history.scans.endpoint import ScanEndpoint
from chronoverse.history.scans.scan import LineScan, ReplayScan, error_to_json

#: Seconds that these tests' scans wait for their turn.
PATIENCE: Final = 0.3
#: The head of an answer, and the first line of one with a page.
HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"
FIRST_LINE: Final = b'{"position":7,"has_more":true}\n'
#: An answer with an empty page.
EMPTY_PAGE: Final = HEAD % len(FIRST_LINE) + FIRST_LINE
#: The server's message when it starts a scan.
BEGINS: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


@pytest.fixture
def endpoint(request: pytest.FixtureRequest) -> Iterator[ScanEndpoint]:
    """On Linux, or on the test's platform."""
    found = ScanEndpoint(getattr(request, "param", "linux"))
    yield found
    found.listener.close()
    if not found.path.is_relative_to("/proc"):
        shutil.rmtree(found.path.parent)


@contextmanager
def answering(endpoint: ScanEndpoint, answer: Callable[[socket.socket], object]) -> Iterator[ScanClient]:
    """A client of a server that calls ``answer`` with its first connection, after the request has arrived."""

    def serve() -> None:
        connection, _ = endpoint.listener.accept()
        with connection:
            request = b""
            while not request.endswith(b"}") and (more := connection.recv(65_536)):
                request += more
            answer(connection)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield client_of(endpoint)
    thread.join(5)


def client_of(endpoint: ScanEndpoint) -> ScanClient:
    """A client, as in a worker."""
    found = ScanClient()
    found.connect_to(endpoint)
    return found


def ask(scans: ScanClient) -> Page:
    asked = LineScan(
        workflow_id="wf_1", job_id="job_1", position=0, limit=1, asked_at=time.monotonic(), patience=PATIENCE
    )
    with scans.ask(asked, "tests") as pending:
        return pending.page()


@pytest.mark.parametrize(
    ("endpoint", "body", "lines"),
    [("linux", b"", []), ("darwin", b'{"a":1}\n{"b":2}', [b'{"a":1}', b'{"b":2}'])],
    indirect=["endpoint"],
)
def test_a_page_is_what_the_server_has_found(endpoint: ScanEndpoint, body: bytes, lines: list[bytes]) -> None:
    """A page can be empty although the scan has made progress."""
    with answering(endpoint, lambda sock: sock.sendall(HEAD % len(FIRST_LINE + body) + FIRST_LINE + body)) as scans:
        assert ask(scans) == Page(lines, 7, True)


@pytest.mark.parametrize(
    ("kind", "body", "error", "reason"),
    [
        (b"application/octet-stream", error_to_json(NotALog("this key holds a list")), NotALog, "holds a list"),
        (b"text/html", b"<html>", RuntimeError, "returned 500; its log"),
    ],
)
def test_an_error_of_the_server_is_raised(
    endpoint: ScanEndpoint, kind: bytes, body: bytes, error: type[Exception], reason: str
) -> None:
    """Like when the worker reads the log itself. gunicorn's own errors have another type."""
    sent = b"HTTP/1.1 500 Error\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n%b" % (kind, len(body), body)
    with answering(endpoint, lambda sock: sock.sendall(sent)) as scans, pytest.raises(error, match=reason):
        ask(scans)


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200", HEAD % 100, HEAD % 100 + FIRST_LINE])
def test_a_server_that_dies_is_unavailable(endpoint: ScanEndpoint, sent: bytes) -> None:
    """However much of its answer has arrived: an incomplete page is never used."""
    with answering(endpoint, lambda sock: sock.sendall(sent)) as scans, pytest.raises(ScansUnavailable):
        ask(scans)


@pytest.mark.parametrize(
    ("server", "seconds"), [("is down", PATIENCE), ("accepts", PATIENCE), ("begins", 3 * PATIENCE)]
)
def test_a_server_that_hangs_is_unavailable(
    endpoint: ScanEndpoint, monkeypatch: pytest.MonkeyPatch, server: str, seconds: float
) -> None:
    """The worker waits as long as a scan may wait for its turn or, once it has begun, take."""
    monkeypatch.setattr(client, "ANSWER_SECONDS", 3 * PATIENCE)
    over = threading.Event()

    def hang(sock: socket.socket) -> None:
        sock.sendall(BEGINS if server == "begins" else b"")
        over.wait(60)

    with nullcontext(client_of(endpoint)) if server == "is down" else answering(endpoint, hang) as scans:
        began = time.monotonic()
        with pytest.raises(ScansUnavailable):
            ask(scans)
        assert seconds <= time.monotonic() - began < 30
        over.set()


def test_a_server_that_starts_late_is_waited_for(endpoint: ScanEndpoint) -> None:
    """A restart only delays its clients: they wait in the socket's queue."""
    found = list[Page]()
    thread = threading.Thread(target=lambda: found.append(ask(client_of(endpoint))))
    thread.start()
    time.sleep(PATIENCE / 3)
    with answering(endpoint, lambda sock: sock.sendall(BEGINS + EMPTY_PAGE)):
        thread.join(5)

    assert found == [Page([], 7, True)]


def test_without_a_server_the_message_says_why() -> None:
    """With another configuration, gunicorn starts no scan server."""
    with pytest.raises(ScansUnavailable, match=r"gunicorn\.conf\.py"):
        ask(ScanClient())


def test_the_server_notices_that_a_client_has_left(endpoint: ScanEndpoint) -> None:
    """It can still answer: the client may have closed only its sending side."""
    heard: list[bytes] = []

    def answer(sock: socket.socket) -> None:
        heard.append(sock.recv(1))
        sock.sendall(EMPTY_PAGE)

    with answering(endpoint, answer) as scans:
        asked = LineScan(workflow_id="w", job_id="j", position=0, limit=1, asked_at=time.monotonic(), patience=PATIENCE)
        with scans.ask(asked, "tests") as pending:
            pending.shorten()
            assert pending.page() == Page([], 7, True)
    assert heard == [b""]


def test_the_scans_of_a_subject_delay_no_other_subject(endpoint: ScanEndpoint) -> None:
    scans = client_of(endpoint)

    def ask(subject: str, patience: float) -> AbstractContextManager[object]:
        now = time.monotonic()
        asked = LineScan(workflow_id="w", job_id="j", position=0, limit=1, asked_at=now, patience=patience)
        return scans.ask(asked, subject)

    with ask("ada", 60), ask("bob", 60), pytest.raises(ShareExceeded), ask("ada", 0.05):
        pass


def test_a_replay_does_not_wait_for_a_missing_server(endpoint: ScanEndpoint) -> None:
    """The worker filters by itself while the server starts or is down, which is reported to operators."""
    scan = ReplayScan(
        workflow_id="w",
        job_id="j",
        position=0,
        stream=None,
        q="x",
        regex=False,
        is_redacted=False,
        asked_at=time.monotonic(),
        patience=PATIENCE,
    )
    scans = client_of(endpoint)
    assert (scans.is_down, scans.replay(scan, "tests")) == (False, None)
    endpoint.report(False)
    assert (scans.is_down, scans.replay(scan, "tests")) == (True, None)
    endpoint.report(True)
    assert not scans.is_down
    with pytest.raises(ScansUnavailable):
        scans.replay(scan, "tests")
