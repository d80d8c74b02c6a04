"""One connection of the fault proxy: two sockets, two directions, and the faults in force for both."""

import contextlib
import selectors
import socket
import struct
from dataclasses import dataclass, field
from typing import Final

#: To the server, and to the client.
UP: Final = "up"
DOWN: Final = "down"
BOTH: Final = (UP, DOWN)

#: Buffer size per direction of a connection, in bytes.
BUFFER_BYTES: Final = 65_536
#: Maximum bytes of a trigger's text, which can be spread over several reads.
MAX_REQUEST_BYTES: Final = 256
#: Seconds between additions to the credit of a throttled direction.
TICK_SECONDS: Final = 0.01


@dataclass
class Trigger:
    """Resets the first connection that fires it, after ``passing`` more bytes in ``direction``.

    Fired by the bytes ``request`` on their way up or, without these, by any byte in its direction.
    """

    direction: str
    passing: int
    request: bytes


@dataclass
class Faults:
    """The faults in force, shared by all links, and the number of bytes that the links have forwarded."""

    stalled: frozenset[str] = frozenset()
    rates: dict[str, float] = field(default_factory=dict)
    triggers: list[Trigger] = field(default_factory=list)
    forwarded: dict[str, int] = field(default_factory=lambda: {UP: 0, DOWN: 0})


@dataclass
class _Flow:
    """One direction."""

    direction: str
    source: socket.socket
    sink: socket.socket
    buffer: bytearray = field(default_factory=bytearray)
    #: Whether the source has reached its end, and the sink was shut down.
    ended: bool = False
    #: Bytes that can still be read while throttled.
    credit: float = 0
    #: The last bytes forwarded. They can contain the start of a trigger's ``request``.
    recent: bytes = b""


class Link:
    """A client's connection and the proxy's own to the server. Must be closed with :meth:`close` when ``over``."""

    def __init__(self, client: socket.socket, server: socket.socket, faults: Faults) -> None:
        self.over = False
        #: Whether a fault ended it.
        self.cut = False
        self._faults = faults
        self._fired: Trigger | None = None
        self._ends = (client, server)
        self._flows = (_Flow(UP, client, server), _Flow(DOWN, server, client))
        for sock in self._ends:
            sock.setblocking(False)
            if sock.family == socket.AF_INET:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def wants(self) -> dict[socket.socket, int]:
        """The events to watch for at each end, under the faults in force."""
        masks = dict.fromkeys(self._ends, 0)
        for flow in self._flows:
            if not self._is_blocked(flow):
                if flow.buffer:
                    masks[flow.sink] |= selectors.EVENT_WRITE
                elif not flow.ended:
                    masks[flow.source] |= selectors.EVENT_READ
        return masks

    def add_credit(self, seconds: float) -> None:
        """Adds to the credit of throttled flows after ``seconds``."""
        for flow in self._flows:
            rate = self._faults.rates.get(flow.direction, 0)
            flow.credit = min(max(1.0, rate * TICK_SECONDS * 2), flow.credit + rate * seconds)

    def forward(self, sock: object, events: int) -> None:
        """Forwards what it can when ``sock`` is ready for ``events``."""
        try:
            for flow in self._flows:
                if flow.sink is sock and events & selectors.EVENT_WRITE and flow.buffer:
                    self._send(flow)
                elif flow.source is sock and events & selectors.EVENT_READ and not flow.buffer and not flow.ended:
                    self._receive(flow)
        except BlockingIOError:
            return
        except OSError:
            self.over = True
            return
        self.over = self.over or all(flow.ended for flow in self._flows)

    def disarm(self) -> None:
        """Removes the trigger that has fired here."""
        self._fired = None

    def reset(self) -> None:
        """Ends the link. Both ends receive a reset."""
        self.over = self.cut = True

    def close(self) -> None:
        """Closes both ends, which must no longer be watched."""
        for sock in self._ends:
            if self.cut:
                reset(sock)
            else:
                sock.close()

    def _is_blocked(self, flow: _Flow) -> bool:
        faults = self._faults
        return flow.direction in faults.stalled or (flow.direction in faults.rates and flow.credit < 1)

    def _receive(self, flow: _Flow) -> None:
        limit = int(flow.credit) if flow.direction in self._faults.rates else BUFFER_BYTES
        data = flow.source.recv(min(max(limit, 1), BUFFER_BYTES))
        if not data:
            flow.ended = True
            flow.sink.shutdown(socket.SHUT_WR)
            return
        flow.credit -= len(data)
        flow.buffer += data
        self._send(flow)

    def _send(self, flow: _Flow) -> None:
        if self._fired is None:
            self._fired = self._fire(flow)
        trigger = self._fired if self._fired and self._fired.direction == flow.direction else None
        sent = 0
        if trigger is None:
            sent = flow.sink.send(flow.buffer)
        elif trigger.passing > 0:
            sent = flow.sink.send(flow.buffer[: trigger.passing])
            trigger.passing -= sent
        self._faults.forwarded[flow.direction] += sent
        flow.recent = (flow.recent + bytes(flow.buffer[:sent]))[-MAX_REQUEST_BYTES:]
        del flow.buffer[:sent]
        if trigger is not None and trigger.passing <= 0 and flow.buffer:
            self.reset()

    def _fire(self, flow: _Flow) -> Trigger | None:
        """The first trigger that the buffer of ``flow`` fires, which is removed so that no other link fires it."""
        for trigger in self._faults.triggers:
            start = self._start(flow, trigger)
            if start is not None:
                self._faults.triggers.remove(trigger)
                if trigger.direction == UP:
                    trigger.passing += start
                return trigger
        return None

    def _start(self, flow: _Flow, trigger: Trigger) -> int | None:
        """The position in the flow's buffer from which the trigger counts its bytes; None if it does not fire."""
        if not trigger.request:
            return 0 if flow.direction == trigger.direction else None
        if flow.direction != UP:
            return None
        before = flow.recent[-(len(trigger.request) - 1) :] if len(trigger.request) > 1 else b""
        found = (before + bytes(flow.buffer)).find(trigger.request)
        return None if found < 0 else found - len(before) + len(trigger.request)


def reset(sock: socket.socket) -> None:
    """Closes a TCP socket with a reset, which discards the kernel's buffers. See ``man 7 socket``."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
