"""Selects the lines of a log, or the changes of a workflow, that a stream contains. Pure."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

import orjson

from chronoverse.joblog.labels import Labels, has_labels
from chronoverse.joblog.matcher import MAX_JOINED_PROGRAM, Matcher

#: Characters of a line that an expression is compared with. The event loop waits for at most 10 ms.
MAX_CHARACTERS: Final = 2**16

_DATA: Final = b"\ndata: "


class LineFilter(NamedTuple):
    """Passes lines of the output stream ``stream`` whose message matches the query ``q``.

    With ``regex``, the query is a regular expression. None means no condition. A change of a workflow passes if its job
    has the ``status`` and all ``labels``.
    """

    stream: str | None = None
    q: str | None = None
    regex: bool = False
    status: str | None = None
    labels: Labels = ()

    @property
    def of_lines(self) -> dict[str, Any]:
        """The filter's fields for a scan of lines."""
        return {"stream": self.stream, "q": self.q, "regex": self.regex}

    def select(self, lines: Sequence[tuple[str | None, bytes]]) -> list[bool]:
        """Which of ``lines`` pass. Each is given by its output stream and its SSE frame.

        A frame without a stream, such as a gap's, is not a line, and always passes.
        """
        if self.status or self.labels:
            return [self._has_job(orjson.loads(_data_of(frame))) for _, frame in lines]
        passing = [stream is None or self.stream in (None, stream) for stream, _ in lines]
        if self.q is None or not any(passing):
            return passing
        matcher = matcher_of(self.q, self.regex)
        if not _may_match(matcher, b"".join([frame for _, frame in lines])):
            return [stream is None for stream, _ in lines]
        return [
            passes and (stream is None or _matches(matcher, frame))
            for passes, (stream, frame) in zip(passing, lines, strict=True)
        ]

    def _has_job(self, job: dict[str, Any]) -> bool:
        has_status = self.status in (None, job["status"])
        labels = tuple(job.get("labels", {}).items())
        # Of a job that has expired, the labels are not known any more.
        return has_status and (has_labels(labels, self.labels) or (job["status"] == "DELETED" and not labels))


def _data_of(frame: bytes) -> bytes:
    start = frame.index(_DATA) + len(_DATA)
    return frame[start : frame.index(b"\n", start)]


# 128 compiled queries have up to 35 MB. Others are compiled again for each slice, which takes 0.1 ms.
@lru_cache(128)
def matcher_of(q: str, regex: bool) -> Matcher:
    """The compiled query. Raises ValueError for an expression that is malformed, or too expensive for a stream."""
    matcher = Matcher(q, regex=regex, max_bytes=384 * 2**10)
    if matcher.program_size > MAX_JOINED_PROGRAM:
        raise ValueError(
            f"is too expensive for a stream, which compares each new line: {matcher.program_size} instructions,"
            f" of at most {MAX_JOINED_PROGRAM}. Use fewer classes and repetitions, or search the log"
        )
    return matcher


def _may_match(matcher: Matcher, frames: bytes) -> bool:
    """Whether a line in ``frames`` may match. Finding that none does takes 0.05 µs a line."""
    if b"\\u001b" in frames or (matcher.program_size and len(frames) > MAX_CHARACTERS):
        return True
    literal = matcher.lowercase_in_json(frames)
    if literal is not None:
        return literal in frames.lower()
    pattern = matcher.in_unescaped_json
    return pattern is None or b"\\" in frames or pattern.search(frames) is not None


def _matches(matcher: Matcher, frame: bytes) -> bool:
    if not _may_match(matcher, frame):
        return False
    message: str = orjson.loads(_data_of(frame))["message"]
    return matcher.matches(message[:MAX_CHARACTERS] if matcher.program_size else message)
