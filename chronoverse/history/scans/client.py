"""How a worker asks the scan server."""

import contextlib
import http.client
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import orjson

from chronoverse.errors import ScansUnavailable
from chronoverse.history.pages import Page
from chronoverse.history.scans.comparison import NewLinesPage
from chronoverse.history.scans.scan import COMPARED_WITH, HAS_MORE, POSITION, BaseScan, error_from_json
from chronoverse.history.scans.turns import ScanTurns
from chronoverse.history.scans.workflow_scan import JobsPage, WorkflowPosition

#: Seconds between two attempts to connect to a scan server that is just starting.
CONNECT_RETRY_SECONDS: Final = 0.05
#: Seconds that a scan may take, waiting and the page's own seconds not included. The server ends a process that takes
#: longer, see :data:`chronoverse.history.scans.server.HANG_SECONDS`.
ANSWER_SECONDS: Final = 15.0


class ScanClient:
    """Asks the scan server that listens at the path that was given to :meth:`connect_to`."""

    def __init__(self) -> None:
        self._server: tuple[Path, ScanTurns] | None = None

    def connect_to(self, path: Path, turns: int) -> None:
        """Sets where the server listens, and the file of its :class:`ScanTurns`. The process that has started the
        server calls this.
        """
        self._server = path, ScanTurns(turns)

    @contextlib.contextmanager
    def ask(self, scan: BaseScan, subject: str) -> Iterator["PendingScan"]:
        """Sends ``scan`` when no other scan of ``subject`` is under way in any worker.

        Closes the connection at the end of the ``with`` block. Raises :class:`ShareExceeded` when other scans of the
        subject, and :class:`ScansUnavailable` when the server, take all of the scan's patience.
        """
        if self._server is None:
            raise ScansUnavailable("there is no scan server: this service was started without gunicorn.conf.py")
        path, turns = self._server
        deadline = scan.asked_at + scan.patience
        with turns.hold(subject, deadline), contextlib.closing(_UnixConnection(path, deadline)) as connection:
            with _translated():
                connection.request("POST", scan.PATH, scan.to_json())
            yield PendingScan(connection, connection.sock)


class PendingScan:
    """A scan that was sent to the server."""

    def __init__(self, connection: http.client.HTTPConnection, sock: socket.socket) -> None:
        self._connection = connection
        self._sock = sock

    def shorten(self) -> None:
        """Tells the server that the client has closed its side: the page is to end soon."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def page(self) -> Page:
        """The page that a :class:`Scan` asks for, after waiting for it. Raises as :meth:`_answer` does."""
        headers, lines = self._answer()
        return _page(headers, lines)

    def new_lines(self) -> NewLinesPage:
        """The page that a :class:`NewLinesScan` asks for. Raises as :meth:`_answer` does."""
        headers, lines = self._answer()
        return NewLinesPage(_page(headers, lines), orjson.loads(headers[COMPARED_WITH]))

    def jobs_page(self) -> JobsPage:
        """The page that a :class:`WorkflowScan` asks for. Raises as :meth:`_answer` does."""
        headers, jobs = self._answer()
        position = orjson.loads(headers[POSITION])
        return JobsPage(jobs, position and WorkflowPosition.from_json(position))

    def summary(self) -> bytes:
        """The JSON that a :class:`SummaryScan` asks for. Raises as :meth:`_answer` does."""
        _, (json,) = self._answer()
        return json

    def _answer(self) -> tuple[http.client.HTTPMessage, list[bytes]]:
        """The headers and the lines of the answer, after waiting for it.

        Raises what the server has raised, and :class:`ScansUnavailable` when it died or does not answer.
        """
        with _translated():
            response = self._connection.getresponse()
            body = response.read()
            if "Content-Length" not in response.headers:
                raise http.client.IncompleteRead(body)
        if response.status == 200:
            return response.headers, body.split(b"\n") if body else []
        if response.getheader("Content-Type") == "application/octet-stream":
            raise error_from_json(body)
        raise RuntimeError(f"the scan server has answered with {response.status}, and has logged why")


def _page(headers: http.client.HTTPMessage, lines: list[bytes]) -> Page:
    return Page(lines, int(headers[POSITION]), headers[HAS_MORE] == "1")


class _UnixConnection(http.client.HTTPConnection):
    """A connection to the Unix socket at ``path``. ``deadline`` is on the monotonic clock."""

    def __init__(self, path: Path, deadline: float) -> None:
        super().__init__("scans", timeout=ANSWER_SECONDS + deadline - time.monotonic())
        self._path = str(path)
        self._deadline = deadline

    def connect(self) -> None:
        """Connects. While the server starts, this tries again until the deadline. Raises OSError."""
        while True:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                sock.settimeout(self.timeout)
                sock.connect(self._path)
            except OSError:
                sock.close()
                if time.monotonic() > self._deadline:
                    raise
                time.sleep(CONNECT_RETRY_SECONDS)
            else:
                self.sock = sock
                return


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        raise ScansUnavailable(f"the scan server does not answer: {error!r}") from error
