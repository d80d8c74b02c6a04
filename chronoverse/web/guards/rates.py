"""Rates in bytes a second: how fast each subject may publish over HTTP, and how fast all replays together may write."""

import math
import time
from collections.abc import Callable, Iterable
from typing import Final

import gevent

from chronoverse import metrics
from chronoverse.errors import TooFast

#: Size of a subject's full bucket, in seconds at the rate. A build prints in bursts.
BURST_SECONDS: Final = 10.0
#: Bytes that each line costs beside its message: about what the store needs for its time, stream and number.
LINE_OVERHEAD_BYTES: Final = 48
#: Buckets that are stored. When there are more, full ones are dropped: the bucket of a new subject is full anyway.
MAX_SUBJECTS: Final = 1_000
#: Fewer replays of a worker than this are never slowed down. One replay fills a processor, and live lines have another.
FEW_REPLAYS: Final = 8
#: The longest pause of one replay, in seconds. So each reads at least one segment a second, and a segment is still in
#: the replay cache when the last of the replays comes to it.
MAX_PAUSE_SECONDS: Final = 1.0


class PublishThrottle:
    """A worker's token buckets (https://en.wikipedia.org/wiki/Token_bucket), one for each subject.

    ``rate`` is bytes a second; None is no limit. An append is accepted as a whole when the bucket is not empty. If it
    is larger than what is left, the bucket goes into debt, and the next appends wait. ``clock`` is monotonic.
    """

    def __init__(self, rate: int | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._clock = clock
        #: When each bucket will be full again.
        self._full_at: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._full_at)

    def check(self, subject: str) -> None:
        """Raises :class:`TooFast` when ``subject`` must wait, with the seconds."""
        seconds = self._full_at.get(subject, -math.inf) - BURST_SECONDS - self._clock()
        if seconds >= 0:
            raise TooFast(f"this token may publish {self._rate} bytes a second", math.floor(seconds) + 1)

    def spend(self, subject: str, messages: Iterable[str]) -> None:
        """Takes lines with these ``messages`` out of the subject's bucket."""
        if self._rate is None:
            return
        now, size = self._clock(), sum(len(message.encode()) + LINE_OVERHEAD_BYTES for message in messages)
        self._full_at[subject] = max(self._full_at.get(subject, now), now) + size / self._rate
        if len(self._full_at) > MAX_SUBJECTS:
            self._full_at = {each: full_at for each, full_at in self._full_at.items() if full_at > now}


class ReplayThrottle:
    """A token bucket for what all replays of a worker write, at ``rate`` bytes a second, to leave time for live lines.

    Each replay calls it with the bytes that it has written. ``current_replay`` identifies the one that calls.
    """

    def __init__(
        self,
        rate: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = gevent.sleep,
        current_replay: Callable[[], object] = gevent.getcurrent,
    ) -> None:
        self._rate: Final = rate
        self._clock: Final = clock
        self._sleep: Final = sleep
        self._current_replay: Final = current_replay
        #: When the bucket was empty last, or will have no debt any more.
        self._empty_at = 0.0
        #: When each replay has called last, the latest at the end.
        self._called_at: dict[int, float] = {}

    def __call__(self, size: int) -> None:
        """The calling replay has written ``size`` bytes. Pauses it before it reads on, if necessary."""
        now, calls, replay = self._clock(), self._called_at, id(self._current_replay())
        calls.pop(replay, None)
        calls[replay] = now
        # Replays are counted for longer than the longest pause, so that one that pauses is counted, too.
        while calls[longest_ago := next(iter(calls))] < now - 2 * MAX_PAUSE_SECONDS:
            del calls[longest_ago]
        if len(calls) < FEW_REPLAYS:
            return
        # A full bucket is 5 ms at the rate. A segment takes less to read and to write.
        empty_at = max(self._empty_at, now - 0.005) + size / self._rate
        self._empty_at = min(empty_at, now + MAX_PAUSE_SECONDS)
        # A shorter pause than this, in seconds, is left out. The event loop's clock is no finer.
        if (seconds := self._empty_at - now) >= 0.001:
            metrics.REPLAY_RESTS.inc(seconds)
            self._sleep(seconds)
