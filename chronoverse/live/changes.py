"""The ring of a workflow's changes, each encoded once for all its viewers."""

from collections.abc import Sequence

from chronoverse.joblog.entries import RawEntry, entry_number, in_sequence
from chronoverse.joblog.model import End, OutOfSequence
from chronoverse.live.feed import EventFrame, Feed
from chronoverse.store.changes import read_change


class ChangesFeed(Feed):
    """A feed whose frames are changes. Its ``ref`` has an empty job id."""

    def encode(self, entries: Sequence[RawEntry], after: int) -> tuple[list[EventFrame], End | OutOfSequence | None]:
        """The frames of ``entries``. Empty if changes may be missing before them; viewers notice that."""
        if follow(entries, after):
            return encode_changes(self.ref.workflow_id, entries), None
        self.skip(entry_number(entries[-1][0]))
        return [], None


def follow(entries: Sequence[RawEntry], after: int) -> bool:
    """Whether ``entries`` follow change ``after`` without a gap. 0 is before the first change."""
    return in_sequence(entries, after or entry_number(entries[0][0]) - 1)


def encode_changes(workflow_id: str, entries: Sequence[RawEntry]) -> list[EventFrame]:
    """The frames of ``entries``. Raises :class:`StoreError`."""
    changes = [read_change(workflow_id, entry) for entry in entries]
    # Each frame has an id of its own, as that of a line.
    return [EventFrame(change.number, "", change.to_frame()) for change in changes]
