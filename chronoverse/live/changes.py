"""The feed of a workflow's changes. Each change is encoded once for all viewers."""

from collections.abc import Sequence

from chronoverse.joblog.entries import RawEntry, entry_number, in_sequence
from chronoverse.joblog.model import End, OutOfSequence
from chronoverse.live.feed import EventFrame, Feed
from chronoverse.store.changes import read_change


class ChangesFeed(Feed):
    """A feed whose frames are changes. Its ``ref`` has an empty job id."""

    def encode(self, entries: Sequence[RawEntry], after: int) -> tuple[list[EventFrame], End | OutOfSequence | None]:
        """The frames of ``entries``. If changes before them are missing, skips ahead and returns no frames."""
        if follow(entries, after):
            return encode_changes(self.ref.workflow_id, entries), None
        self.skip(entry_number(entries[-1][0]))
        return [], None


def follow(entries: Sequence[RawEntry], after: int) -> bool:
    """Whether ``entries`` continue after change ``after`` without a gap. ``after`` 0 accepts any first entry."""
    return in_sequence(entries, after or entry_number(entries[0][0]) - 1)


def encode_changes(workflow_id: str, entries: Sequence[RawEntry]) -> list[EventFrame]:
    """The frames of ``entries``. Raises :class:`StoreError` for an invalid entry."""
    changes = [read_change(workflow_id, entry) for entry in entries]
    # The stream is "", because None would mean that a frame has no ``id:``.
    return [EventFrame(each.number, "", each.to_frame(), content=(each.status, each.job.labels)) for each in changes]
