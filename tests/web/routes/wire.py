"""HTTP at the level of bytes: streams that are read while they are open, and requests that no library would send."""

import contextlib
import http.client
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Protocol, Self
from urllib.parse import urlsplit

import httpx
import orjson

from tests.support.service import Service
from tests.support.waiting import deadline, wait_until

#: Time limit of anything that a test waits for, on a busy machine, in seconds.
PATIENCE_SECONDS: Final = 10.0


class Endpoint(Protocol):
    """The clients' endpoint: the service itself, or nginx in front of it."""

    @property
    def url(self) -> str: ...

    @property
    def verify(self) -> ssl.SSLContext | bool:
        """The value for httpx's ``verify``."""

    def connect(self, timeout: float) -> socket.socket:
        """Opens a connection for HTTP/1.1."""

    def logs(self) -> str:
        """Its complete log, with one character per byte."""


class PatientClient(httpx.Client):
    """Retries a request while it is answered with 503, as a service that is busy with searches requests."""

    def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
        in_time = deadline(3 * PATIENCE_SECONDS, "the service is less busy")
        while (response := super().send(request, **options)).status_code == 503 and in_time():
            time.sleep(0.1)
        return response


def pages(client: httpx.Client, path: str, **query: Any) -> Iterator[httpx.Response]:
    """The answer of each page from ``path`` on, by ``Link``, which must agree with ``cursor``."""
    answer, in_time = client.get(path, params=query or None), deadline(60, "the last page")
    while in_time():
        assert answer.status_code == 200, answer.text
        yield answer
        link = answer.links.get("next", {}).get("url")
        assert (link is None) == (answer.json()["cursor"] is None)
        if link is None:
            return
        answer = client.get(link)


def everything(client: httpx.Client, path: str, key: str = "logs", **query: Any) -> list[Any]:
    """What all pages from ``path`` on list."""
    return [each for page in pages(client, path, **query) for each in page.json()[key]]


class Stream:
    """A GET request whose body is collected by a thread. To be closed by the caller."""

    def __init__(self, endpoint: Endpoint, path: str, headers: Mapping[str, str]) -> None:
        self.body = b""
        self.ended = False
        #: Whether the connection ended before the response was complete.
        self.cut = False
        self._connection = http.client.HTTPConnection(urlsplit(endpoint.url).netloc, timeout=PATIENCE_SECONDS * 3)
        self._connection.sock = endpoint.connect(PATIENCE_SECONDS * 3)
        self._connection.request("GET", path, headers=dict(headers))
        self._response = self._connection.getresponse()
        self.status = self._response.status
        self.headers = {name.lower(): value for name, value in self._response.getheaders()}
        self._thread = threading.Thread(target=self._collect, daemon=True)
        self._thread.start()

    def _collect(self) -> None:
        try:
            while chunk := self._response.read1(65_536):
                self.body += chunk
        except (OSError, ValueError, AttributeError, http.client.HTTPException):
            self.cut = True
        finally:
            self.ended = True

    def wait_for(self, text: bytes, timeout: float = PATIENCE_SECONDS) -> Self:
        """Waits until ``text`` has arrived."""
        self.wait_until(lambda: text in self.body or self.ended, timeout, f"{text!r}")
        assert text in self.body, f"{self.status}, ended without {text!r}: {self.body[-2000:]!r}"
        return self

    def wait_end(self, timeout: float = PATIENCE_SECONDS) -> Self:
        """Waits until the response has ended."""
        return self.wait_until(lambda: self.ended, timeout, "the end")

    def wait_until(self, predicate: Callable[[], object], timeout: float, what: str) -> Self:
        """Waits until ``predicate()`` is true. A failure shows what has arrived instead."""
        try:
            wait_until(predicate, timeout, what)
        except AssertionError as error:
            raise AssertionError(f"{error}, but {self.body[-2000:]!r}") from None
        return self

    def blocks(self) -> list[dict[str, Any]]:
        """The complete blocks so far: see :func:`blocks`."""
        return blocks(self.body)

    def numbers(self) -> list[int]:
        return [block["data"]["sequence_num"] for block in self.blocks() if block.get("event") == "log"]

    def close(self) -> None:
        sock = self._connection.sock
        for end in (sock, getattr(getattr(self._response.fp, "raw", None), "_sock", None)):
            if end is not None:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE_SECONDS)
        self._response.close()
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def blocks(body: bytes) -> list[dict[str, Any]]:
    """The fields of each complete block in ``body``, by name, without heartbeats.

    Stricter than a client: fails for anything that the service must not send.
    """
    found = []
    for block in body.split(b"\n\n")[:-1]:
        lines = [line.split(b": ", 1) for line in block.split(b"\n") if line != b":"]
        fields: dict[str, Any] = {name.decode(): value.decode() for name, value in lines}
        assert len(fields) == len(lines), block
        if fields.get("event") in ("log", "job", "gap", "connected", "end"):
            fields["data"] = orjson.loads(fields["data"])
        found.append(fields)
    return found


def logged(service: Service, message: str, start: int = 0) -> list[dict[str, str]]:
    """The fields of the lines with this message in the service's log, from byte ``start``."""
    lines = [line for line in service.logs(start).splitlines() if f"[INFO] {message} " in line]
    return [{name: text.strip('"') for name, text in re.findall(r'(\w+)=("[^"]*"|\S+)', line)} for line in lines]


def exchange(
    endpoint: Endpoint, request: bytes, timeout: float = PATIENCE_SECONDS
) -> tuple[int, dict[str, str], bytes]:
    """Sends ``request`` unchanged.

    Returns the status, headers and complete body of the answer, and closes the connection.
    """
    with endpoint.connect(timeout) as sock:
        # If the server rejects a request at its first bytes, the rest cannot be sent.
        with contextlib.suppress(OSError):
            sock.sendall(request)
            # A TLS connection cannot be closed in one direction only.
            if not isinstance(sock, ssl.SSLSocket):
                sock.shutdown(socket.SHUT_WR)
        return receive(sock)


def receive(sock: socket.socket) -> tuple[int, dict[str, str], bytes]:
    response = http.client.HTTPResponse(sock)
    response.begin()
    headers = {name.lower(): value for name, value in response.getheaders()}
    return response.status, headers, response.read()


def request_bytes(target: bytes, token: str, *lines: bytes, method: bytes = b"GET") -> bytes:
    """A request for ``target`` with further header ``lines``, all of them unchanged."""
    head = [method + b" " + target + b" HTTP/1.1", b"Host: localhost", b"Authorization: Bearer " + token.encode()]
    return b"\r\n".join([*head, b"Connection: close", *lines, b"", b""])
