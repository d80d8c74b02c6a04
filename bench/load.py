"""The load generator: many viewers in one process, with raw sockets on one epoll. It checks every received byte."""

import contextlib
import gc
import select
import socket
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Final

from bench.check import Refused, Stream
from bench.delays import Delays
from bench.machine import raise_limits
from bench.reference import Grammar, Reference, Wrong

#: Bytes of one read, more than any peer writes at once.
READ_BYTES: Final = 1 << 20
#: How long viewers continue to read after their last lines, to detect extra lines, in seconds.
SETTLE_SECONDS: Final = 0.25
#: Number of client addresses, from 127.0.0.2. Each has 28,000 ports, and a used port is blocked for a minute.
SOURCES: Final = 8
#: Linux's number of this option; Python 3.11 has no name for it. connect() then chooses the port, which must differ
#: only from those of connections to the same address.
IP_BIND_ADDRESS_NO_PORT: Final = 24


@dataclass(frozen=True)
class Target:
    """The address of a job's stream. ``headers`` are complete lines including CR LF."""

    host: str
    port: int
    path: str
    headers: str = ""

    def request(self, more: str) -> bytes:
        """A viewer's request."""
        head = f"GET {self.path} HTTP/1.1\r\nHost: {self.host}\r\nAccept: text/event-stream\r\n"
        return f"{head}{self.headers}{more}\r\n".encode()


@dataclass(frozen=True)
class Load:
    """The viewers, and the lines that each must receive: after line ``after``, up to line ``last``.

    With ``lead``, one viewer reads everything first, and the others are compared with it. ``window`` is the number of
    concurrent connects. Lines up to ``warm`` are not timed.
    """

    targets: list[Target]
    grammar: Grammar
    viewers: int
    last: int
    seconds: float
    after: int = 0
    warm: int = 0
    timed: bool = True
    lead: bool = False
    window: int = 64
    headers: list[str] = field(default_factory=lambda: [""])
    first_job: int = 0


@dataclass
class Report:
    """The viewers' results. Delays are milliseconds from sending a line to receiving it.

    ``share`` is the generator's own CPU time as a share of one core, between the first and the last line, and
    ``whole_share`` from the first connect.
    """

    viewers: int = 0
    complete: int = 0
    refused: int = 0
    cut: int = 0
    wrong: int = 0
    stories: list[str] = field(default_factory=list)
    deliveries: int = 0
    caught_up_seconds: float = 0.0
    span_seconds: float = 0.0
    share: float = 0.0
    whole_share: float = 0.0
    #: 99th percentile from connect() to the first bytes of the body.
    first_byte_p99_ms: float = float("nan")
    p50_ms: float = float("nan")
    p99_ms: float = float("nan")


class Viewer:
    """One connection and its state."""

    __slots__ = ("done", "opened_at", "receive", "request", "settled", "sock", "stream", "which")

    def __init__(self, which: int, stream: Stream, sock: socket.socket, request: bytes) -> None:
        self.which = which
        self.stream = stream
        self.sock = sock
        self.receive = sock.recv_into
        self.request = request
        self.opened_at = time.monotonic()
        self.done = False
        self.settled = False


class ViewerLoop:
    """All viewers of a :class:`Load`. ``say`` is called with the messages ``begun``, ``ready`` and ``done``."""

    def __init__(self, load: Load, say: Connection) -> None:
        self.load = load
        self.report = Report(viewers=load.viewers)
        self._say = say
        self._references = [
            Reference(load.grammar, load.first_job + index, load.after, load.last) for index in range(len(load.targets))
        ]
        self._epoll = select.epoll()
        self._by_fd: dict[int, Viewer] = {}
        self._buffer = bytearray(READ_BYTES)
        self._view = memoryview(self._buffer)
        self._delays = Delays()
        self._first_bytes: list[float] = []
        self._opened = self._settled = self._done = self._over = 0
        self._ready = False
        self._first = self._last = self._began = 0.0
        self._cpu_began = self._cpu_first = self._cpu_last = 0.0

    def run(self) -> Report:
        """Connects, receives and closes. Ends when all viewers have received their last line, or after ``seconds``."""
        load = self.load
        if load.lead:
            self._run_lead()
        self._say.send(("begun", None))
        self._began, self._cpu_began = time.monotonic(), time.process_time()
        deadline = self._began + load.seconds
        ended = 0.0
        while True:
            while self._opened < load.viewers and self._opened - self._settled < load.window:
                self._open()
            now = time.monotonic()
            if self._done + self._over >= load.viewers and not ended:
                ended = now
                self._say.send(("done", None))
            if now > deadline or (ended and now > ended + SETTLE_SECONDS):
                break
            for fd, events in self._epoll.poll(0.05, 512):
                self._event(self._by_fd[fd], events)
        if not ended:
            self._say.send(("done", None))
        self._finish()
        return self.report

    def _open(self) -> None:
        which = self._opened
        job = which % len(self.load.targets)
        target = self.load.targets[job]
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        sock.bind((f"127.0.0.{2 + which % SOURCES}", 0))
        request = target.request(self.load.headers[which % len(self.load.headers)])
        viewer = Viewer(which, Stream(self._references[job], self.load.after), sock, request)
        self._opened += 1
        self._by_fd[sock.fileno()] = viewer
        with contextlib.suppress(BlockingIOError):
            sock.connect((target.host, target.port))
        self._epoll.register(sock.fileno(), select.EPOLLOUT)

    def _event(self, viewer: Viewer, events: int) -> None:
        if viewer.request:
            self._ask(viewer)
            return
        stream = viewer.stream
        before = stream.position
        try:
            size = viewer.receive(self._view)
            if not size:
                self._lose(viewer, "" if viewer.done else "cut")
                return
            stream.feed(self._buffer, self._view, size)
        except BlockingIOError:
            return
        except Refused as error:
            self._lose(viewer, "refused", str(error))
            return
        except Wrong as error:
            self._lose(viewer, "wrong", str(error))
            return
        except OSError as error:
            self._lose(viewer, "" if viewer.done else "cut", str(error))
            return
        if not viewer.settled and stream.answered:
            self._first_bytes.append(time.monotonic() - viewer.opened_at)
            self._settle(viewer)
        position = stream.position
        if position != before:
            self._progress(viewer, before, position)

    def _progress(self, viewer: Viewer, before: int, position: int) -> None:
        reference = viewer.stream.reference
        if self.load.timed:
            self._delays.note(reference, before, position)
        if not self._first:
            self._first, self._cpu_first = time.monotonic(), time.process_time()
        if position >= reference.goal and not viewer.done:
            viewer.done = True
            self._done += 1
            if self._done == self.load.viewers:
                self._stop_clock()

    def _stop_clock(self) -> None:
        self._last, self._cpu_last = time.monotonic(), time.process_time()

    def _ask(self, viewer: Viewer) -> None:
        try:
            sent = viewer.sock.send(viewer.request)
        except OSError as error:
            self._lose(viewer, "refused", str(error))
            return
        viewer.request = viewer.request[sent:]
        if not viewer.request:
            self._epoll.modify(viewer.sock.fileno(), select.EPOLLIN)

    def _settle(self, viewer: Viewer) -> None:
        viewer.settled = True
        self._settled += 1
        if self._settled == self.load.viewers and not self._ready:
            self._ready = True
            self._say.send(("ready", time.monotonic() - self._began))

    def _lose(self, viewer: Viewer, why: str, story: str = "") -> None:
        """Removes a viewer. An empty ``why`` means that it has received everything."""
        report = self.report
        viewer.request = b""
        self._epoll.unregister(viewer.sock.fileno())
        if why:
            setattr(report, why, getattr(report, why) + 1)
            self._over += 1
            self._done -= viewer.done
            if len(report.stories) < 3:
                report.stories.append(f"viewer {viewer.which} {why}: {story}")
        if not viewer.settled:
            self._settle(viewer)

    def _run_lead(self) -> None:
        """Runs the leads: one viewer per job, which reads everything before the others start."""
        for job, target in enumerate(self.load.targets):
            stream = Stream(self._references[job], self.load.after)
            with socket.create_connection((target.host, target.port), timeout=self.load.seconds) as sock:
                sock.sendall(target.request(self.load.headers[0]))
                while stream.position < stream.reference.goal:
                    size = sock.recv_into(self._view)
                    if not size:
                        raise Wrong("the lead was cut off")
                    stream.feed(self._buffer, self._view, size)

    def _finish(self) -> None:
        if not self._last:
            self._stop_clock()
        report = self.report
        viewers = self._by_fd.values()
        report.complete = sum(
            viewer.done and viewer.stream.position == viewer.stream.reference.goal for viewer in viewers
        )
        report.deliveries = sum(viewer.stream.lines for viewer in viewers)
        report.span_seconds = self._last - (self._first or self._began)
        report.caught_up_seconds = self._last - self._began
        report.share = (self._cpu_last - self._cpu_first) / max(report.span_seconds, 1e-9)
        report.whole_share = (self._cpu_last - self._cpu_began) / max(report.caught_up_seconds, 1e-9)
        if self._first_bytes:
            report.first_byte_p99_ms = 1000 * sorted(self._first_bytes)[len(self._first_bytes) * 99 // 100]
        if self.load.timed:
            report.p50_ms, report.p99_ms = self._delays.quantiles(self.load.warm)
        for viewer in viewers:
            viewer.sock.close()
        self._epoll.close()


def generate(load: Load, say: Connection) -> None:
    """The load generator's process. Sends ``begun``, ``ready``, ``done``, and then the report; or ``failed``."""
    raise_limits()
    # This code creates no reference cycles, and a garbage collection would look like a delay.
    gc.disable()
    try:
        say.send(("report", ViewerLoop(load, say).run()))
    except (Wrong, Refused, OSError) as error:
        say.send(("failed", f"{type(error).__name__}: {error}"))
