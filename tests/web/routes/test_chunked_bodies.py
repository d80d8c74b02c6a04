"""Bodies of very small chunks, which gunicorn reads one by one, do not delay other requests."""

import contextlib
import threading

import httpx
import pytest

from tests.support.processes import processor_time
from tests.support.service import Service

pytestmark = pytest.mark.long

CHUNKS = 80_000


@pytest.mark.parametrize(
    ("path", "status"),
    [("/workflows/chunks/jobs/job_1/logs", 400), pytest.param("/nothing", 404, marks=pytest.mark.long)],
)
def test_others_are_served_while_a_body_of_small_chunks_is_read(service: Service, path: str, status: int) -> None:
    """Even if no route reads the body: gunicorn reads it before the connection's next request."""
    headers = f"Authorization: Bearer {service.token('*')}\r\nContent-Type: application/json\r\n"
    head = f"POST {path} HTTP/1.1\r\nHost: h\r\n{headers}Transfer-Encoding: chunked\r\n\r\n"
    answers = list[bytes]()
    (pid,) = service.worker_pids()
    began = processor_time(pid)

    def send() -> None:
        # The second request is read after the whole body. If that takes too long, the connection is reset.
        with service.connect(60) as sock, contextlib.suppress(ConnectionError):
            sock.sendall(head.encode() + b"1\r\n[\r\n" * CHUNKS + b"0\r\n\r\n")
            sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
            while received := sock.recv(65_536):
                answers.append(received)

    sender, spans = threading.Thread(target=send), list[int]()
    with httpx.Client(base_url=service.url, timeout=60, verify=False) as client:
        sender.start()
        while sender.is_alive():
            before = processor_time(pid)
            assert client.get("/healthz").status_code == 200
            spans.append(processor_time(pid) - before)
    sender.join()

    assert answers[0].startswith(f"HTTP/1.1 {status} ".encode())
    # All chunks used to be read before any other request was handled.
    assert max(spans) < (processor_time(pid) - began) / 3
