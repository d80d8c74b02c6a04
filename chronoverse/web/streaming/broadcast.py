"""Writes the same frames to all caught-up viewers with one feed and filter, in one pass.

A pass costs one ``send`` per viewer. Reading each viewer's state, too, would double its time.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from chronoverse.joblog.line_filter import LineFilter
from chronoverse.live.feed import WAKES_PER_YIELD, Feed
from chronoverse.live.tail import Tail
from chronoverse.live.viewer import Viewer

if TYPE_CHECKING:
    from chronoverse.web.streaming.stream_writer import StreamWriter


class BroadcastGroup:
    """The caught-up viewers with one feed and filter.

    All have the same position in the feed's ring, so one viewer, the *leader*, decides what all receive. A group with
    members is in ``feed.groups`` under its ``key``, and in ``feed.waiters`` instead of their viewers. While the group
    writes, other greenlets run only where the feed or its filter budget yields.
    """

    #: All members are caught up.
    is_replaying = False
    #: Always due: the housekeeper wakes the group in each round.
    due = 0.0

    def __init__(self, feed: Feed, tail: Tail, key: object = None) -> None:
        self._feed: Final = feed
        self._tail: Final = tail
        self._key: Final = key
        #: Each member, and its ``take``. The first member's viewer is the leader.
        self._members: dict[StreamWriter, Callable[[bytes], int]] = {}
        self._ends_at = float("inf")
        self._is_writing = False
        self._woken = False
        self._leaving: list[StreamWriter] = []

    @property
    def line_filter(self) -> LineFilter | None:
        return self._leader.line_filter

    @property
    def _leader(self) -> Viewer:
        return next(iter(self._members)).viewer

    def join(self, member: "StreamWriter") -> bool:
        """Adds a member, unless the group is writing or at another position. Returns whether it was added."""
        viewer, feed = member.viewer, self._feed
        if viewer.ring_position is None or self._is_writing or feed.final is not None:
            return False
        if self._members and viewer.ring_position != self._leader.ring_position:
            self.wake()
            # Other greenlets ran meanwhile, and may have woken, closed or added this member, or removed all others.
            if member.is_behind or member.group is not None or not self._members:
                return False
            if viewer.ring_position is None or viewer.ring_position != self._leader.ring_position:
                return False
        if not self._members:
            self._ends_at = float("inf")
            feed.groups[self._key] = self
            feed.waiters.add(self)
        elif viewer.has_skipped:
            self._leader.note_skipped()
        feed.waiters.discard(viewer)
        self._members[member] = member.take
        member.group = self
        self._ends_at = min(self._ends_at, viewer.ends_at)
        return True

    def remove(self, member: "StreamWriter") -> None:
        """Removes ``member``, if it is in the group. Its viewer continues alone from the group's position."""
        if member not in self._members:
            return
        leader, feed = self._leader, self._feed
        del self._members[member]
        member.group = None
        feed.waiters.add(member.viewer)
        if member.viewer is not leader:
            member.viewer.follow(leader)
        elif self._members:
            self._leader.follow(leader)
        if not self._members:
            # Breaks a cycle that would keep the feed's ring in memory until the next garbage collection.
            feed.groups.pop(self._key, None)
            feed.waiters.discard(self)

    def leave(self, member: "StreamWriter") -> bool:
        """Removes ``member`` and returns True. While the group writes, returns False, and removes it afterwards."""
        if self._is_writing:
            self._leaving.append(member)
            return False
        self.remove(member)
        return True

    def wake(self) -> None:
        """Writes new frames to all members. Never waits for any of them."""
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
        """One pass. Returns whether another pass may be needed at once."""
        feed = self._feed
        # Yields only here, before reading the feed and the members, because both can change meanwhile.
        feed.filter_budget.give_way()
        if self._tail.clock() >= self._ends_at:
            self._let_go()
        if not self._members:
            return False
        leader = self._leader
        before = leader.ring_position
        if before is None or feed.final is not None:
            self._dissolve(list(self._members))
            return False
        frames = leader.try_next(member.viewer.subject for member in self._members)
        if leader.done:
            member = next(iter(self._members))
            self.remove(member)
            member.fall_behind(member.encode(frames or b""))
            return True
        if leader.needs_store_read:
            self._dissolve(list(self._members))
            return False
        if frames:
            if lines := (leader.ring_position or before) - before:
                self._tail.count_delivered(self._feed.ref, lines, len(frames), len(self._members) - 1)
            self._write(frames)
        has_more = bool(self._members) and self._leader.has_more
        return self._woken or frames == b"" or (bool(frames) and has_more)

    def _let_go(self) -> None:
        now = self._tail.clock()
        self._dissolve([member for member in self._members if member.viewer.ends_at <= now])
        self._ends_at = min((member.viewer.ends_at for member in self._members), default=float("inf"))

    def _write(self, frames: bytes) -> None:
        data, fell_behind = next(iter(self._members)).encode(frames), []
        size = len(data)
        for number, (member, take) in enumerate(list(self._members.items()), 1):
            try:
                sent = take(data)
            except OSError:
                # The socket is full or closed. The member's next write raises any other error again.
                sent = 0
            if sent != size:
                fell_behind.append((member, sent))
            if number % WAKES_PER_YIELD == 0:
                self._feed.yield_to_loop()
        for member, sent in fell_behind:
            if member in self._members:
                self.remove(member)
                member.fall_behind(memoryview(data)[sent:])

    def _dissolve(self, members: list["StreamWriter"]) -> None:
        for number, member in enumerate(members, 1):
            # A member may have been closed while other greenlets ran.
            if member in self._members:
                self.remove(member)
                member.wake()
            if number % WAKES_PER_YIELD == 0:
                self._feed.yield_to_loop()
