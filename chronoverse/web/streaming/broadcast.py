"""The caught-up viewers of one job, who all stand at its head: they are written to as one.

What one viewer costs then is one ``send`` of the same bytes, and nothing of its own is touched: with thousands of
viewers it is their own state, fetched from memory for each line, that a line would cost besides.
"""

from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from chronoverse.joblog import sse
from chronoverse.live.feed import BREATH_WAKES, Feed
from chronoverse.live.tail import Tail
from chronoverse.live.viewer import Viewer


class Member(Protocol):
    """Drives a viewer by itself when it is not in a crowd; see
    :class:`chronoverse.web.streaming.stream_writer.StreamWriter`."""

    viewer: Viewer
    crowd: "BroadcastGroup | None"

    @property
    def busy(self) -> bool: ...
    def wake(self) -> None: ...
    def carry_on(self, rest: memoryview | bytes) -> None: ...


class GroupWorker(NamedTuple):
    """What all viewers of a worker share. ``heartbeat`` is in seconds, on ``clock``."""

    tail: Tail
    heartbeat: float
    clock: Callable[[], float]


class BroadcastGroup:
    """A waiter on ``channel`` in place of its members. ``chunk`` frames bytes for the wire; ``emptied`` is called then.

    Everything here runs on one gevent hub, and only ``channel.breathe`` lets others go on in between.
    """

    def __init__(
        self, channel: Feed, worker: GroupWorker, chunk: Callable[[bytes], bytes], emptied: Callable[[], object]
    ) -> None:
        self.due = float("inf")
        self._channel: Final = channel
        self._worker: Final = worker
        self._chunk = chunk
        self._emptied = emptied
        self._members: dict[Member, Callable[[bytes], int]] = {}
        self._cursor = 0
        self._position = 0
        self._state: bytes | None = None
        self._sent_at = 0.0
        self._writing = self._again = False
        self._leaving: list[Member] = []

    def join(self, member: Member, send: Callable[[bytes], int]) -> bool:
        """Takes in a member that stands where the others do; False when it does not, or just now nobody can join."""
        viewer, channel = member.viewer, self._channel
        place = viewer.ring_position
        if place is None or self._writing or channel.final is not None:
            return False
        if self._members and place != self._position:
            self.wake()
            # Others went on meanwhile: it may have been woken, closed or let in.
            place = viewer.ring_position
            if place is None or member.busy or member.crowd is not None:
                return False
        if not self._members:
            self._cursor, self._position = viewer.cursor, place
            self._state, self._sent_at = channel.state, viewer.sent_at
            channel.viewers.add(self)
            self.due = viewer.sent_at + self._worker.heartbeat
        elif (place, channel.state) != (self._position, self._state):
            return False
        channel.viewers.discard(viewer)
        self._members[member] = send
        channel.group_size = len(self._members) - 1
        member.crowd = self
        self.due = min(self.due, viewer.ends_at)
        return True

    def remove(self, member: Member) -> None:
        """Lets a member go, to stand for itself where the crowd stood. Does nothing when it is none."""
        if self._members.pop(member, None) is not None:
            member.crowd = None
            self._channel.group_size = max(len(self._members) - 1, 0)
            member.viewer.moved(self._cursor, self._position, self._sent_at)
            self._channel.viewers.add(member.viewer)
            if not self._members:
                self._worker.tail.leave(self._channel, self)
                self._emptied()

    def leave(self, member: Member) -> bool:
        """As :meth:`remove`; False while others are being written to: then the member is let go, and woken, after that.

        It may or may not have got the same yet.
        """
        if self._writing:
            self._leaving.append(member)
            return False
        self.remove(member)
        return True

    def wake(self) -> None:
        """Writes what is new to everybody. Never waits for any of them."""
        if self._writing:
            self._again = True
            return
        self._writing = True
        try:
            while self._step():
                self._again = False
        finally:
            self._writing = False
        leaving, self._leaving = self._leaving, []
        self._dissolve([member for member in leaving if member in self._members])

    def _step(self) -> bool:
        """Whether there may be more to do at once."""
        channel = self._channel
        taken = None
        if channel.state is self._state and channel.final is None:
            taken = channel.take(self._position, None)
        if taken is None:
            self._dissolve(list(self._members))
            return False
        now = self._worker.clock()
        if taken.frames:
            before, self._sent_at = self._cursor, now
            self._cursor, self._position = taken.cursor, taken.position
            self._write(self._chunk(taken.frames))
            return self._again or before < self._cursor < channel.cursor
        if now >= self.due:
            self._attend(now)
        return self._again

    def _write(self, chunk: bytes) -> None:
        size, behind = len(chunk), []
        for number, (member, send) in enumerate(list(self._members.items()), 1):
            try:
                sent = send(chunk)
            except BlockingIOError:
                sent = 0
            except OSError:
                # It is closed already, or its next write says why it must be.
                sent = 0
            if sent != size:
                behind.append((member, sent))
            if number % BREATH_WAKES == 0:
                self._channel.breathe()
        for member, sent in behind:
            if member in self._members:
                self.remove(member)
                member.carry_on(memoryview(chunk)[sent:])

    def _attend(self, now: float) -> None:
        """Heartbeats, and members whose time has come."""
        if not self._worker.tail.healthy(self._channel.ref):
            # What is to be said now each viewer knows for itself.
            self._dissolve(list(self._members))
            return
        if now >= self._sent_at + self._worker.heartbeat:
            self._sent_at = now
            self._write(self._chunk(sse.HEARTBEAT))
        self._dissolve([member for member in self._members if member.viewer.ends_at <= now])
        ends = [member.viewer.ends_at for member in self._members]
        self.due = min([self._sent_at + self._worker.heartbeat, *ends])

    def _dissolve(self, members: list[Member]) -> None:
        for number, member in enumerate(members, 1):
            self.remove(member)
            member.wake()
            if number % BREATH_WAKES == 0:
                self._channel.breathe()
