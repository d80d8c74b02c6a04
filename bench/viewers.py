"""Many viewers in one process: raw sockets, one epoll loop, every number checked."""

import re
import selectors
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

#: Bytes read at once: more than a viewer is ever sent in one write.
READ_BYTES: Final = 1 << 20
#: Connections being opened at the same time.
WINDOW: Final = 64

_NUMBER: Final = re.compile(rb'"sequence_num":(\d+),')
_STAMP: Final = re.compile(rb"T=(\d+) ")


@dataclass
class Viewer:
    """One connection: what it has seen, and whether that was in order."""

    rest: bytes = b""
    last: int = 0
    lines: int = 0
    wrong: int = 0
    ended: bool = False


@dataclass
class Report:
    """What all viewers saw. Delays are in milliseconds, one for each write received, of its newest line."""

    viewers: list[Viewer]
    delays: list[float] = field(default_factory=list)
    started: float = 0.0
    finished: float = 0.0
    reads: int = 0

    @property
    def deliveries(self) -> int:
        """Lines received, by all viewers together."""
        return sum(viewer.lines for viewer in self.viewers)

    @property
    def wrong(self) -> int:
        """Lines that were lost, doubled or out of order."""
        return sum(viewer.wrong for viewer in self.viewers)

    def delay(self, quantile: float) -> float:
        """That quantile of the delays."""
        ranked = sorted(self.delays)
        return ranked[int((len(ranked) - 1) * quantile)] if ranked else float("nan")


def watch(
    address: tuple[str, int],
    path: str,
    headers: str,
    count: int,
    expect: int,
    seconds: float,
    ready: Callable[[], None],
) -> Report:
    """``count`` viewers of ``path`` until each has had ``expect`` lines, or ``seconds`` are over.

    ``ready`` is called once all are connected. The lines carry ``T=<CLOCK_MONOTONIC in ns>`` for the delays.
    """
    report = Report([Viewer() for _ in range(count)])
    selector = selectors.DefaultSelector()
    request = f"GET {path} HTTP/1.1\r\nHost: bench\r\n{headers}\r\n".encode()
    waiting, answered, done = iter(report.viewers), 0, 0
    opened = sum(_open(selector, address, request, viewer) for _, viewer in zip(range(WINDOW), waiting, strict=False))
    deadline = time.monotonic() + seconds
    while opened and done < count and time.monotonic() < deadline:
        for key, _ in selector.select(0.1):
            viewer, connection = key.data
            try:
                chunk = connection.recv(READ_BYTES)
            except BlockingIOError:
                continue
            report.reads += 1
            if not viewer.rest and not viewer.lines and chunk:
                answered += 1
                assert chunk.startswith(b"HTTP/1.1 200"), chunk[:300]
                for following in waiting:
                    opened += _open(selector, address, request, following)
                    break
                if answered == count:
                    ready()
            _take(report, viewer, chunk)
            if not chunk or viewer.lines >= expect:
                done += not viewer.ended
                viewer.ended = True
                if not chunk:
                    selector.unregister(connection)
                    connection.close()
    for key in list(selector.get_map().values()):
        key.data[1].close()
    selector.close()
    return report


def _open(selector: selectors.BaseSelector, address: tuple[str, int], request: bytes, viewer: Viewer) -> int:
    connection = socket.create_connection(address, timeout=20)
    connection.sendall(request)
    connection.setblocking(False)
    selector.register(connection, selectors.EVENT_READ, (viewer, connection))
    return 1


def _take(report: Report, viewer: Viewer, chunk: bytes) -> None:
    text = viewer.rest + chunk
    numbers = [int(number) for number in _NUMBER.findall(text)]
    if not numbers:
        viewer.rest = text[-4096:] or b" "
        return
    now = time.monotonic()
    report.started, report.finished = report.started or now, now
    viewer.wrong += sum(1 for one, two in zip([viewer.last, *numbers], numbers, strict=False) if two != one + 1)
    viewer.lines += len(numbers)
    viewer.last = numbers[-1]
    cut = text.rfind(b'"sequence_num":%d,' % viewer.last)
    stamps = _STAMP.findall(text[max(0, cut - 400) : cut])
    if stamps:
        report.delays.append((time.monotonic_ns() - int(stamps[-1])) / 1e6)
    viewer.rest = text[cut + 16 :][-4096:]
