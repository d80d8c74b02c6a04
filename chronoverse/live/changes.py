"""The ring of a workflow's changes, each encoded once for all its viewers."""

from collections.abc import Sequence

from chronoverse.errors import StoreError
from chronoverse.joblog.entries import RawEntry, in_sequence
from chronoverse.joblog.model import End, OutOfSequence
from chronoverse.live.feed import EventFrame, Feed
from chronoverse.store.changes import CHANGES_LOST, read_change


class ChangesFeed(Feed):
    """A feed whose frames are changes. Its ``ref`` has no job's id."""

    def encode(self, entries: Sequence[RawEntry], after: int) -> tuple[list[EventFrame], End | OutOfSequence | None]:
        """The frames of ``entries``. Raises :class:`StoreError` when some are missing before them."""
        return encode_changes(self.ref.workflow_id, entries, after), None


def encode_changes(workflow_id: str, entries: Sequence[RawEntry], after: int) -> list[EventFrame]:
    """The frames of ``entries``, which follow change ``after``. Raises :class:`StoreError` if they do not."""
    if not in_sequence(entries, after):
        raise StoreError(CHANGES_LOST)
    changes = [read_change(workflow_id, entry) for entry in entries]
    # Each frame has an id of its own, as that of a line.
    return [EventFrame(change.number, "", change.to_frame()) for change in changes]
