"""Hands the same frames to all viewers of one feed and one filter that have caught up, in one pass.

In a pass a viewer costs one ``send``. Fetching its own state from memory for each line would cost as much again.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from chronoverse.joblog import sse
from chronoverse.joblog.line_filter import LineFilter
from chronoverse.live.feed import BUSY, WAKES_PER_YIELD, Feed
from chronoverse.live.tail import Tail
from chronoverse.live.viewer import BUSY_SECONDS, CURSOR_SECONDS

if TYPE_CHECKING:
    from chronoverse.web.streaming.stream_writer import StreamWriter


class BroadcastGroup:
    """The caught-up viewers of one feed that have the same ``line_filter``.

    They are all at the same position of the feed's ring. While the group has members, it is in ``feed.groups``, by its
    ``key``, and in ``feed.waiters`` instead of their viewers. ``encode`` makes of frames what members take. Other
    greenlets run only where the feed or its filter budget lets them.
    """

    #: All members have caught up.
    is_replaying = False

    def __init__(
        self,
        feed: Feed,
        tail: Tail,
        encode: Callable[[bytes], bytes],
        line_filter: LineFilter | None = None,
        key: object = None,
    ) -> None:
        #: When the group must be woken though the feed has nothing new, on the tail's clock.
        self.due = float("inf")
        self.line_filter: Final = line_filter
        self._feed: Final = feed
        self._tail: Final = tail
        self._encode = encode
        self._key: Final = key
        #: Whether lines at the end of what was sent did not pass the filter, and the clients do not know that yet.
        self._has_skipped = False
        #: Each member, and its ``take``.
        self._members: dict[StreamWriter, Callable[[bytes], int]] = {}
        self._cursor = 0
        self._position = 0
        self._version = 0
        self._sent_at = 0.0
        #: Seconds, the same for all members.
        self._heartbeat = 0.0
        self._is_writing = False
        #: Whether the group was woken while it was writing.
        self._woken = False
        #: Who asked to leave while the group was writing.
        self._leaving: list[StreamWriter] = []

    def join(self, member: "StreamWriter") -> bool:
        """Adds a member whose viewer is where the group is. Returns whether it was added.

        While the group is writing, nobody is added. If the viewer is ahead of the group, the group is written to first.
        """
        viewer, feed = member.viewer, self._feed
        position = viewer.ring_position
        if position is None or self._is_writing or feed.final is not None:
            return False
        if self._members and position != self._position:
            self.wake()
            # Other greenlets ran meanwhile: one may have woken, closed or added this member, or removed all others.
            position = viewer.ring_position
            if position is None or member.is_behind or member.group is not None or not self._members:
                return False
        if not self._members:
            self._cursor, self._position = viewer.cursor, position
            self._version, self._sent_at = feed.version, viewer.sent_at
            self._has_skipped, self._heartbeat = False, viewer.heartbeat_seconds
            feed.groups[self._key] = self
            feed.waiters.add(self)
            self.due = viewer.sent_at + self._heartbeat
        elif (position, feed.version) != (self._position, self._version):
            return False
        feed.waiters.discard(viewer)
        self._members[member] = member.take
        member.group = self
        self.due = min(self.due, viewer.ends_at)
        if viewer.has_skipped:
            self._note_skipped()
        return True

    def remove(self, member: "StreamWriter") -> None:
        """Removes a member. Its viewer goes on by itself from the group's position. Does nothing for a non-member."""
        if self._members.pop(member, None) is not None:
            member.group = None
            viewer = member.viewer
            viewer.advance(self._cursor, self._position, self._sent_at, has_skipped=self._has_skipped)
            self._feed.waiters.add(member.viewer)
            if not self._members:
                # Otherwise the feed's ring would be in memory until garbage is collected.
                self._feed.groups.pop(self._key, None)
                self._feed.waiters.discard(self)

    def leave(self, member: "StreamWriter") -> bool:
        """Removes a member, and returns True. While the group is writing, returns False, and does it afterwards."""
        if self._is_writing:
            self._leaving.append(member)
            return False
        self.remove(member)
        return True

    def wake(self) -> None:
        """Writes what is new to all members. Never waits for any of them."""
        if self._is_writing:
            self._woken = True
            return
        self._is_writing = True
        try:
            while self._step():
                self._woken = False
        finally:
            self._is_writing = False
        leaving, self._leaving = self._leaving, []
        self._dissolve([member for member in leaving if member in self._members])

    def _step(self) -> bool:
        """One pass. Returns whether another one may have something to do at once."""
        feed = self._feed
        # Before anything is read of the feed and the members, which may change meanwhile.
        feed.filter_budget.give_way()
        new = None
        if feed.version == self._version and feed.final is None:
            new = feed.take(self._position, self.line_filter, (member.viewer.subject for member in self._members))
        if new is None:
            # The end, a changed job, or lines that the ring has dropped: each viewer handles these for itself.
            self._dissolve(list(self._members))
            return False
        now = self._tail.clock()
        if new.frames:
            before, self._sent_at = self._cursor, now
            frames = sse.cursor(before) + new.frames if self._has_skipped else new.frames
            self._tail.count_delivered(new.position - self._position, len(new.frames), len(self._members))
            self._cursor, self._position, self._has_skipped = new.cursor, new.position, False
            self._write(frames)
            return self._woken or before < self._cursor < feed.cursor
        if new is BUSY:
            self.due = min(self.due, now + BUSY_SECONDS)
        elif new.cursor > self._cursor:
            self._cursor, self._position = new.cursor, new.position
            self._note_skipped()
            if self._cursor < feed.cursor:
                return True
        if now >= self.due:
            self._handle_due(now)
        return self._woken

    def _note_skipped(self) -> None:
        self._has_skipped = True
        self.due = min(self.due, self._sent_at + CURSOR_SECONDS)

    def _write(self, frames: bytes) -> None:
        data, fell_behind = self._encode(frames), []
        size = len(data)
        for number, (member, take) in enumerate(list(self._members.items()), 1):
            try:
                sent = take(data)
            except OSError:
                # It is full, or closed already, or the member's own next write raises the same and closes it.
                sent = 0
            if sent != size:
                fell_behind.append((member, sent))
            if number % WAKES_PER_YIELD == 0:
                self._feed.yield_to_loop()
        for member, sent in fell_behind:
            if member in self._members:
                self.remove(member)
                member.fall_behind(memoryview(data)[sent:])

    def _handle_due(self, now: float) -> None:
        """Sends the cursor and heartbeats, and lets members go that must end now."""
        if not self._tail.healthy(self._feed.ref):
            # The store does not answer. Each viewer knows for itself what to say then.
            self._dissolve(list(self._members))
            return
        if self._has_skipped and now >= self._sent_at + CURSOR_SECONDS:
            self._has_skipped, self._sent_at = False, now
            self._write(sse.cursor(self._cursor))
        if now >= self._sent_at + self._heartbeat:
            self._sent_at = now
            self._write(sse.HEARTBEAT)
        self._dissolve([member for member in self._members if member.viewer.ends_at <= now])
        ends = [member.viewer.ends_at for member in self._members]
        self.due = min([self._sent_at + self._heartbeat, *ends])
        if self._has_skipped:
            self._note_skipped()

    def _dissolve(self, members: list["StreamWriter"]) -> None:
        """Removes ``members``, and wakes each to go on by itself."""
        for number, member in enumerate(members, 1):
            self.remove(member)
            member.wake()
            if number % WAKES_PER_YIELD == 0:
                self._feed.yield_to_loop()
