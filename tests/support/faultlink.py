"""One connection of the fault proxy: two sockets, two directions, and the faults that both heed."""

import contextlib
import selectors
import socket
import struct
from dataclasses import dataclass, field
from typing import Final

#: Towards the server, and towards the client.
UP: Final = "up"
DOWN: Final = "down"
BOTH: Final = (UP, DOWN)

#: Bytes held for one direction of one connection.
BUFFER_BYTES: Final = 65_536
#: Bytes that a trip can be set off by: they are looked for across reads.
MAX_ASKED_BYTES: Final = 256
#: Seconds between a throttled direction's grants.
TICK_SECONDS: Final = 0.01


@dataclass
class Trip:
    """Cuts the first connection that sets it off, once ``passing`` more bytes have gone in ``direction``.

    It is set off by the bytes ``asked`` on their way up, or where these are empty by any byte in its direction.
    """

    direction: str
    passing: int
    asked: bytes


@dataclass
class Faults:
    """What is in force now, shared by all links, and what they have forwarded."""

    stalled: frozenset[str] = frozenset()
    rates: dict[str, float] = field(default_factory=dict)
    trips: list[Trip] = field(default_factory=list)
    forwarded: dict[str, int] = field(default_factory=lambda: {UP: 0, DOWN: 0})


@dataclass
class _Flow:
    """One direction."""

    direction: str
    source: socket.socket
    sink: socket.socket
    buffer: bytearray = field(default_factory=bytearray)
    #: The source has said that no more comes, and the sink was told.
    ended: bool = False
    #: Bytes that may still be taken, when throttled.
    credit: float = 0
    #: The last bytes forwarded, with which a trip's ``asked`` may begin.
    recent: bytes = b""


class Link:
    """A client's connection and ours to the server. Once it is ``over`` nothing passes; then :meth:`close` it."""

    def __init__(self, client: socket.socket, server: socket.socket, faults: Faults) -> None:
        self.over = False
        #: Whether a fault ended it.
        self.cut = False
        self._faults = faults
        self._armed: Trip | None = None
        self._ends = (client, server)
        self._flows = (_Flow(UP, client, server), _Flow(DOWN, server, client))
        for sock in self._ends:
            sock.setblocking(False)
            if sock.family == socket.AF_INET:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def wants(self) -> dict[socket.socket, int]:
        """What each end is to be watched for, under the faults in force."""
        masks = dict.fromkeys(self._ends, 0)
        for flow in self._flows:
            if not self._held(flow):
                if flow.buffer:
                    masks[flow.sink] |= selectors.EVENT_WRITE
                elif not flow.ended:
                    masks[flow.source] |= selectors.EVENT_READ
        return masks

    def grant(self, seconds: float) -> None:
        """Time has passed: throttled flows may take some more."""
        for flow in self._flows:
            rate = self._faults.rates.get(flow.direction, 0)
            flow.credit = min(max(1.0, rate * TICK_SECONDS * 2), flow.credit + rate * seconds)

    def forward(self, sock: object, events: int) -> None:
        """Moves what can be moved, now that ``sock`` is ready for ``events``."""
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
        """Forgets the trip that was set off here."""
        self._armed = None

    def reset(self) -> None:
        """It is over, and both ends will see a reset."""
        self.over = self.cut = True

    def close(self) -> None:
        """Closes both ends, which nobody may watch any more."""
        for sock in self._ends:
            if self.cut:
                reset(sock)
            else:
                sock.close()

    def _held(self, flow: _Flow) -> bool:
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
        if self._armed is None:
            self._armed = self._set_off(flow)
        trip = self._armed if self._armed and self._armed.direction == flow.direction else None
        sent = 0
        if trip is None:
            sent = flow.sink.send(flow.buffer)
        elif trip.passing > 0:
            sent = flow.sink.send(flow.buffer[: trip.passing])
            trip.passing -= sent
        self._faults.forwarded[flow.direction] += sent
        flow.recent = (flow.recent + bytes(flow.buffer[:sent]))[-MAX_ASKED_BYTES:]
        del flow.buffer[:sent]
        if trip is not None and trip.passing <= 0 and flow.buffer:
            self.reset()

    def _set_off(self, flow: _Flow) -> Trip | None:
        """The first trip that what ``flow`` is about to forward sets off; it is this link's alone then."""
        for trip in self._faults.trips:
            behind = self._behind(flow, trip)
            if behind is not None:
                self._faults.trips.remove(trip)
                if trip.direction == UP:
                    trip.passing += behind
                return trip
        return None

    def _behind(self, flow: _Flow, trip: Trip) -> int | None:
        """At which byte of the flow's buffer the trip begins, if it does."""
        if not trip.asked:
            return 0 if flow.direction == trip.direction else None
        if flow.direction != UP:
            return None
        before = flow.recent[-(len(trip.asked) - 1) :] if len(trip.asked) > 1 else b""
        found = (before + bytes(flow.buffer)).find(trip.asked)
        return None if found < 0 else found - len(before) + len(trip.asked)


def reset(sock: socket.socket) -> None:
    """Closes with a reset where there is one (TCP); what the kernel still holds is thrown away. ``man 7 socket``."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
