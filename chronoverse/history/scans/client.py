"""Sends scans from a worker to the scan server."""

import contextlib
import http.client
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import orjson

from chronoverse.errors import ScansUnavailable
from chronoverse.history.pages import Page
from chronoverse.history.scans.endpoint import ScanEndpoint, ScanTurns
from chronoverse.history.scans.scan import BaseScan, ReplayScan, WorkflowPosition, error_from_json
from chronoverse.history.scans.workflow_scan import JobsPage

#: Maximum seconds of a scan once started; see :data:`chronoverse.history.scans.server.HANG_SECONDS`.
ANSWER_SECONDS: Final = 15.0


class ScanClient:
    """Sends scans to the server at the endpoint given to :meth:`connect_to`."""

    def __init__(self) -> None:
        self._server: tuple[ScanEndpoint, ScanTurns] | None = None

    def connect_to(self, endpoint: ScanEndpoint) -> None:
        self._server = endpoint, ScanTurns(endpoint.file)

    @property
    def is_down(self) -> bool:
        """Whether the server is down, according to the process that starts it."""
        return self._server is None or self._server[0].is_up is False

    @contextlib.contextmanager
    def ask(self, scan: BaseScan, subject: str) -> Iterator["PendingScan"]:
        """Waits until no worker runs a scan for ``subject``, then sends ``scan``. Closes the connection on exit.

        Raises :class:`ShareExceeded` if the scan's patience runs out, :class:`ScansUnavailable` if no server answers.
        """
        if self._server is None:
            raise ScansUnavailable("no scan server: this service was started without gunicorn.conf.py")
        endpoint, turns = self._server
        deadline = scan.asked_at + scan.patience
        turn = turns.hold(f"{scan.TURN}\n{subject}", deadline)
        with turn, contextlib.closing(_UnixConnection(endpoint.path, deadline)) as connection:
            with _translated():
                # The server answers "100 Continue" when a process starts the scan.
                connection.request("POST", scan.PATH, scan.to_json(), {"Expect": "100-continue"})
            yield PendingScan(connection, connection.sock, deadline)

    def replay(self, scan: ReplayScan, subject: str) -> tuple[bytes, int] | None:
        """The event frames that ``scan`` requests, and the last number that they cover. Raises what :meth:`ask` raises.

        None if no server runs: streams continue, because the worker then filters by itself.
        """
        if self._server is None or not self._server[0].is_up:
            return None
        with self.ask(scan, subject) as pending:
            head, frames = pending.answer()
            return frames, head["position"]


class PendingScan(NamedTuple):
    """A scan sent to the server, which must start it before the monotonic time ``deadline``."""

    connection: http.client.HTTPConnection
    sock: socket.socket
    deadline: float

    def shorten(self) -> None:
        """Makes the server end the page early, because the client has closed its side."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)

    def page(self) -> Page:
        """Waits for the page that a :class:`LineScan` requests. Raises what :meth:`answer` raises."""
        head, lines = self.answer()
        return Page(lines.split(b"\n") if lines else [], **head)

    def jobs_page(self) -> JobsPage:
        """Waits for the page that a :class:`WorkflowScan` requests. Raises what :meth:`answer` raises."""
        head, jobs = self.answer()
        return JobsPage(jobs.split(b"\n") if jobs else [], head["position"] and WorkflowPosition(*head["position"]))

    def answer(self) -> tuple[dict[str, Any], bytes]:
        """The answer's first line, parsed, and its rest. Raises the server's error, and :class:`ScansUnavailable`."""
        with _translated():
            self.sock.settimeout(_seconds_until(self.deadline))
            self.sock.recv(1, socket.MSG_PEEK)
            self.sock.settimeout(ANSWER_SECONDS)
            response = self.connection.getresponse()
            body = response.read()
            if "Content-Length" not in response.headers:
                raise http.client.IncompleteRead(body)
        if response.status == 200:
            head, _, rest = body.partition(b"\n")
            return orjson.loads(head), rest
        if response.getheader("Content-Type") == "application/octet-stream":
            raise error_from_json(body)
        raise RuntimeError(f"the scan server returned {response.status}; its log has the reason")


class _UnixConnection(http.client.HTTPConnection):
    """A connection to the Unix socket at ``path``, with a connect timeout at the monotonic time ``deadline``."""

    def __init__(self, path: Path, deadline: float) -> None:
        super().__init__("scans", timeout=_seconds_until(deadline))
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _seconds_until(deadline: float) -> float:
    return max(deadline - time.monotonic(), 0.001)


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        raise ScansUnavailable(f"the scan server is not responding: {error!r}") from error
