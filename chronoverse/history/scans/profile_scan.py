"""Finds where a job's time went, from its timeline, the timelines of good runs, and the lines around pauses."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from typing import Any, NamedTuple

import orjson

from chronoverse.errors import ArchiveDamaged, JobNotFound, NotALog
from chronoverse.history.pages import PageBudget
from chronoverse.history.scans.comparison import DerivedReader
from chronoverse.history.tiered_log import BatchReader
from chronoverse.joblog.model import Job, Line, Status, seconds_of
from chronoverse.joblog.summary import MAX_MESSAGE, cut_line
from chronoverse.joblog.timelines import Pause, Profile, Timeline, compare, progress


class JobProfile(NamedTuple):
    """A job's timeline up to ``scanned_to``, and its ``profile`` compared with ``good`` runs.

    ``compared_with``: the good runs' ids, or None if there are none. If time ran out before all logs were read,
    ``good`` is empty and ``is_whole`` is False.
    """

    timeline: Timeline
    scanned_to: int
    compared_with: list[str] | None
    good: list[Timeline]
    is_whole: bool
    profile: Profile


def read_job_profile(job: Job, others: Sequence[Job], runs: DerivedReader, budget: PageBudget) -> JobProfile:
    timeline, scanned_to = runs.timeline(job, budget)
    is_whole = scanned_to >= job.last
    good: list[Timeline] = []
    names: list[str] = []
    for other in others:
        try:
            found, position = runs.timeline(other, budget)
        except (ArchiveDamaged, JobNotFound, NotALog):
            continue
        is_whole = is_whole and position >= other.last
        names.append(other.ref.job_id)
        good.append(found)
    if not is_whole:
        good = []
    return JobProfile(timeline, scanned_to, names or None, good, is_whole, compare(timeline, good))


def read_profile(job: Job, found: JobProfile, read: BatchReader, now: float, pool: ThreadPoolExecutor) -> bytes:
    """The profile's JSON. ``now`` is Unix time. ``pool`` reads lines. Raises what ``read`` raises."""
    profile = found.profile
    numbers = sorted({pause.number for pause in (*profile.slower, *profile.pauses)})
    lines = dict(zip(numbers, pool.map(lambda number: _lines_around(job, number, read), numbers), strict=True))
    return orjson.dumps(
        {
            "job": job.to_json(),
            "compared_with": found.compared_with,
            "seconds": profile.total / 1000,
            "usual": profile.usual and profile.usual.to_json(),
            "slower": [_pause_json(pause, lines[pause.number], MAX_MESSAGE) for pause in profile.slower],
            "pauses": [_pause_json(pause, lines[pause.number], MAX_MESSAGE) for pause in profile.pauses],
            "running": _running_json(job, found, read, now) if job.status is Status.RUNNING else None,
            "complete": found.is_whole,
            "scanned_to": found.scanned_to,
            "truncated": found.timeline.shortest is not None,
            "strip": [(elapsed / 1000, number) for elapsed, number in found.timeline.strip()],
        }
    )


def read_slower(job: Job, found: JobProfile, read: BatchReader) -> list[bytes] | None:
    """The three pauses with the largest excess, as JSON. None if time ran out. Raises what ``read`` raises."""
    if not found.is_whole:
        return None
    first = found.profile.slower[:3]
    # A summary's messages have at most 200 characters.
    return [orjson.dumps(_pause_json(pause, _lines_around(job, pause.number, read), 200)) for pause in first]


def _lines_around(job: Job, number: int, read: BatchReader) -> tuple[Line | None, Line | None]:
    """The line before line ``number``, and this line. None for a line that was dropped, or is outside the log."""
    batches = read(job, min(number, job.last) + 1, descending=True, limit=2)
    lines = list(islice(chain.from_iterable(batch.lines for batch in batches), 2))
    before = lines.pop(0) if lines and lines[0].sequence_num == number else None
    return lines[0] if lines else None, before


def _pause_json(pause: Pause, lines: tuple[Line | None, Line | None], characters: int) -> dict[str, Any]:
    # A foreign runner can write a time of any length.
    short = (line and line._replace(timestamp=line.timestamp[:64]) for line in lines)
    after, before = (line and orjson.Fragment(cut_line(line, characters)) for line in short)
    return {
        "after": after,
        "before": before,
        "seconds": pause.ms / 1000,
        "usual": pause.usual and pause.usual.to_json(),
        "excess": None if pause.excess is None else pause.excess / 1000,
    }


def _running_json(job: Job, found: JobProfile, read: BatchReader, now: float) -> dict[str, Any]:
    """A running job's silent and remaining seconds. All values are None if its last line has no valid time."""
    newest = next(chain.from_iterable(batch.lines for batch in read(job, job.last + 1, descending=True)), None)
    since = seconds_of(newest.timestamp if newest else job.started_at)
    # Log records without a time have the time 0.
    if not since:
        return {"silent_seconds": None, "usual": None, "seconds_left": None}
    so_far = progress(found.timeline, found.good, max(0, round(1000 * (now - since))))
    return {
        "silent_seconds": so_far.silent / 1000,
        "usual": so_far.usual and so_far.usual.to_json(),
        "seconds_left": so_far.left and so_far.left.to_json(),
    }
