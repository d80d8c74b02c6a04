"""``/events`` of a running job: waiting, heartbeats, and viewers that leave, stop reading, or whose token expires."""

import contextlib
import random
import re
import socket
import struct
from collections.abc import Callable, Iterator

import psutil
import pytest

from tests.support.service import Service
from tests.support.waiting import wait_until
from tests.web.routes.foreign import TIMESTAMP, Foreign
from tests.web.routes.wire import PATIENCE_SECONDS, Endpoint, Stream, request_bytes

OpenStream = Callable[..., Stream]

OPEN_STREAMS = "chronoverse_streams_open"


@pytest.fixture(autouse=True)
def no_open_streams(service: Service) -> None:
    """Waits until the previous test's streams are closed."""
    wait_until(lambda: service.metric(OPEN_STREAMS) == 0, PATIENCE_SECONDS, "no stream is open")


@contextlib.contextmanager
def silent_viewer(service: Service, job: Foreign) -> Iterator[socket.socket]:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect((service.host, service.port))
        sock.sendall(request_bytes(f"{job.path}/events".encode(), service.token()))
        yield sock


@pytest.mark.long
def test_streams_leave_no_descriptor(service: Service, open_stream: OpenStream, job: Foreign) -> None:
    """100 short streams: some end, others are left by their clients."""
    job.lines(["x"] * 3)
    ended = job.sibling(f"{job.job_id}-ended").lines(["x"] * 3).end()

    def visit(count: int) -> None:
        for number in range(count):
            open_stream(ended if number % 2 else job).wait_for(b"id: 3\n\n").close()

    def descriptors() -> list[int]:
        """Each worker's descriptors, once no stream is open and no job is watched."""
        names = (OPEN_STREAMS, "chronoverse_jobs_watched")
        wait_until(lambda: not any(map(service.metric, names)), PATIENCE_SECONDS, "no stream is open")
        return [psutil.Process(pid).num_fds() for pid in service.worker_pids()]

    visit(40)
    before = descriptors()
    visit(100)
    wait_until(lambda: all(now <= then + 4 for now, then in zip(descriptors(), before, strict=True)), 15, "closed")


def test_live_lines_are_delivered_once_and_one_by_one(open_stream: OpenStream, job: Foreign) -> None:
    """To viewers from the first line, from the middle, at the live end, and of one stream only."""
    job.lines(["old"] * 4, ("stdout", "stderr"))
    streams = [open_stream(job, query) for query in ("", "?offset=2", "?offset=latest", "?stream=stderr&tail=1")]
    for stream in streams:
        stream.wait_for(b"event: job")
    for _ in range(6):
        number = job.line("new", "stderr")
        streams[2].wait_for(b"id: %d\n\n" % number)
    job.end()

    numbers = [stream.wait_end().numbers() for stream in streams]
    assert numbers == [[*range(1, 11)], [*range(3, 11)], [*range(5, 11)], [*range(4, 11)]]


def test_a_heartbeat_is_a_single_line(open_stream: OpenStream, job: Foreign) -> None:
    """A silent job has only ``:`` lines, which do not become part of the next event."""
    job.line("one")
    stream = open_stream(job).wait_for(b"id: 1\n\n:\n").wait_for(b"\n\n:\n:\n")
    job.line("two")
    stream.wait_for(b"id: 2\n\n")

    assert re.search(rb"id: 1\n\n(:\n)+event: log\ndata: {[^\n]+}\nid: 2\n\n", stream.body)


@pytest.mark.parametrize("is_reset", [False, True])
def test_a_disconnected_viewer_is_detected_immediately(service: Service, job: Foreign, is_reset: bool) -> None:
    """Without writing a line or a heartbeat to it, whether its connection is closed (FIN) or reset (RST)."""
    job.line("one")
    with silent_viewer(service, job) as sock:
        wait_until(lambda: service.metric(OPEN_STREAMS) == 1, PATIENCE_SECONDS, "the stream is open")
        if is_reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            # With unread bytes, close() would reset the connection.
            sock.shutdown(socket.SHUT_RDWR)

    wait_until(lambda: service.metric(OPEN_STREAMS) == 0, 10, "the stream is closed here too")


def test_a_viewer_that_does_not_read_does_not_delay_others(
    service: Service, open_stream: OpenStream, job: Foreign
) -> None:
    """Megabytes of lines wait for it, and another viewer still gets each line immediately."""
    job.line("first")
    with silent_viewer(service, job):
        wait_until(lambda: service.metric(OPEN_STREAMS) == 1, PATIENCE_SECONDS, "the stream is open")
        stream = open_stream(job).wait_for(b"id: 1\n\n")
        for _ in range(20):
            job.lines(["x" * 50_000] * 10)
            stream.wait_for(b"\nid: %d\n\n" % job.last, 2)
        job.end()

        assert stream.wait_end().numbers() == [*range(1, 202)]
        assert service.metric(OPEN_STREAMS) == 1


def test_slow_viewers_get_every_line(service: Service, job: Foreign) -> None:
    """Once and in order, although their sockets are full and the ring has dropped lines that they need."""
    job.line("first")
    with contextlib.ExitStack() as stack:
        viewers = [stack.enter_context(silent_viewer(service, job)) for _ in range(4)]
        wait_until(lambda: service.metric(OPEN_STREAMS) == 4, PATIENCE_SECONDS, "the streams are open")
        received = [bytearray() for _ in viewers]
        rng = random.Random(20261124)
        for _ in range(20):
            job.lines(["x" * rng.choice((10, 1000, 40_000)) for _ in range(40)])
            for viewer, body in zip(viewers[1:], received[1:], strict=True):
                body += viewer.recv(rng.choice((1, 1000, 100_000)))
        job.end()
        for viewer, body in zip(viewers, received, strict=True):
            viewer.settimeout(PATIENCE_SECONDS)
            while not body.endswith(b"0\r\n\r\n") and (chunk := viewer.recv(1_000_000)):
                body += chunk
            assert re.findall(rb"\nid: ([0-9]+)\n", body) == [b"%d" % number for number in range(1, job.last + 2)]


def test_a_pipelined_request_does_not_break_the_stream(endpoint: Endpoint, service: Service, job: Foreign) -> None:
    """It is answered after the stream, unless the stream announced that it closes the connection.

    nginx keeps the client's connection open, and the answers do not mix.
    """
    job.line("one")
    paths = (f"{job.path}/events".encode(), b"/healthz")
    requests = [request_bytes(path, service.token()).replace(b"Connection: close\r\n", b"") for path in paths]
    with endpoint.connect(PATIENCE_SECONDS) as sock:
        sock.sendall(b"".join(requests))
        received = b""
        while b"id: 1\n\n" not in received and (chunk := sock.recv(65_536)):
            received += chunk
        job.line("two", timestamp=TIMESTAMP)
        job.end()
        while not received.endswith(b'{"status":"ok"}\n') and (chunk := sock.recv(65_536)):
            received += chunk

    stream, _, rest = received.partition(b"\r\n0\r\n\r\n")
    assert stream.endswith(b"id: 3\n\n")
    assert stream.count(b"HTTP/1.1 ") == 1
    assert rest.count(b"HTTP/1.1 200 ") == (b"\r\nConnection: close\r\n" not in stream)
    assert endpoint is service or rest
