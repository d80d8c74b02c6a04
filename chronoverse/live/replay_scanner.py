"""Replays with a query, on the side of the scan server: reads as a worker does, in a process that delays nobody."""

from chronoverse.history.page_budget import PageBudget
from chronoverse.history.scans.scan import ReplayScan
from chronoverse.joblog import sse
from chronoverse.joblog.line_filter import LineFilter
from chronoverse.joblog.model import OutOfSequence
from chronoverse.live.replay_cache import FIRST_LINES, ReplayCache


def read_frames(cache: ReplayCache, scan: ReplayScan, budget: PageBudget) -> tuple[bytes, int]:
    """The event frames that ``scan`` asks for, and the last number that they cover.

    They end before what closes the log, and where nothing follows. So a worker that gets nothing reads on by itself,
    and decides what that means. Raises as :meth:`ReplayCache.read_after` does.
    """
    ref, line_filter = scan.ref, LineFilter(scan.stream, scan.q, scan.regex)
    if scan.is_redacted:
        cache.invalidate(ref)
    job = cache.store.get_job(ref)
    found: list[bytes] = []
    cursor, lines = scan.position, FIRST_LINES
    while not budget.is_used_up():
        segment = cache.read_after(ref, line_filter, cursor, lines, job)
        if segment is None or isinstance(segment.closing, OutOfSequence):
            # The worker can read such an entry only together with the line before it.
            break
        if found and found[-1] == sse.cursor(cursor) and segment.frames.startswith((b"id:", b"event: log\n")):
            # Of several blocks with only an id, the last one is enough.
            found.pop()
        found.append(segment.frames)
        budget.bytes_left -= len(segment.frames)
        cursor, lines, job = segment.cursor, segment.next_count, segment.job or job
        if segment.closing:
            break
    return b"".join(found), cursor
