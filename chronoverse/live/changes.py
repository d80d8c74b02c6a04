"""The feed of a workflow's changes. Each change is encoded once for all viewers."""

from collections.abc import Sequence

import orjson

from chronoverse.joblog import sse
from chronoverse.joblog.entries import RawEntry, entry_number, in_sequence
from chronoverse.joblog.events import EventName
from chronoverse.joblog.model import End, OutOfSequence
from chronoverse.live.feed import EventFrame, Feed
from chronoverse.store.changes import read_change


class ChangesFeed(Feed):
    """A feed whose frames are changes. Its ``ref`` has an empty job id."""

    def encode(self, entries: Sequence[RawEntry], after: int) -> tuple[list[EventFrame], End | OutOfSequence | None]:
        """The frames of ``entries``. If changes before them are missing, skips ahead and returns no frames.

        Raises :class:`StoreError` for an invalid entry.
        """
        # After change 0, there can be no gap: any change can be the first in the store.
        if not in_sequence(entries, after or entry_number(entries[0][0]) - 1):
            self.skip(entry_number(entries[-1][0]))
            return [], None
        events = list[EventFrame]()
        for entry in entries:
            number, job, _ = change = read_change(self.ref.workflow_id, entry)
            shown = change.to_json()
            frame = sse.frame(EventName.JOB, orjson.dumps(shown), number)
            # The stream is "", because None would mean that the frame has no ``id:``.
            events.append(EventFrame(number, "", frame, content=(shown["status"], job.labels)))
        return events, None
