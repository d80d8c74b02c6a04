"""Filters the lines of a log, or the changes of a workflow, for a stream. Pure."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

from chronoverse.joblog.labels import Labels, has_labels
from chronoverse.joblog.matcher import MAX_JOINED_PROGRAM, Matcher

#: Maximum characters of a line to match with a regular expression. Matching blocks the event loop for up to 10 ms.
MAX_CHARACTERS: Final = 2**16


class LineFilter(NamedTuple):
    """Passes lines of the output stream ``stream`` whose message matches the query ``q``. None: no condition.

    With ``regex``, ``q`` is a regular expression. A workflow's change passes if its job has the ``status`` and all
    ``labels``.
    """

    stream: str | None = None
    q: str | None = None
    regex: bool = False
    status: str | None = None
    labels: Labels = ()

    @property
    def of_lines(self) -> dict[str, Any]:
        """The filter as arguments of a scan of lines."""
        return {"stream": self.stream, "q": self.q, "regex": self.regex}

    def select(self, contents: Sequence[tuple[str | None, Any]]) -> list[bool]:
        """Which of ``contents`` pass. Each has a line's stream and message (UTF-8), or a job's status and labels.

        Entries without a stream, such as gaps, are not lines, and always pass.
        """
        if self.status or self.labels:
            return [self._has_job(status, labels) for _, (status, labels) in contents]
        passing = [stream is None or self.stream in (None, stream) for stream, _ in contents]
        if self.q is None or not any(passing):
            return passing
        matcher = matcher_of(self.q, self.regex)
        messages = ["" if stream is None else content.decode("utf-8", "replace") for stream, content in contents]
        if matcher.program_size:
            messages = [message[:MAX_CHARACTERS] for message in messages]
        # One search for all messages takes 0.1 µs per line, including decoding. Regular expressions could block longer.
        is_short = not matcher.program_size or sum(map(len, messages)) <= MAX_CHARACTERS
        if is_short and not matcher.may_match(messages):
            return [stream is None for stream, _ in contents]
        return [
            passes and (stream is None or matcher.matches(message))
            for passes, (stream, _), message in zip(passing, contents, messages, strict=True)
        ]

    def _has_job(self, status: str, labels: Labels) -> bool:
        # The labels of an expired job are unknown.
        return self.status in (None, status) and (
            has_labels(labels, self.labels) or (status == "DELETED" and not labels)
        )


# 128 compiled queries take up to 35 MB. Others are recompiled for each slice, in 0.1 ms.
@lru_cache(128)
def matcher_of(q: str, regex: bool) -> Matcher:
    """The compiled query. Raises ValueError if it is malformed, or too expensive for a stream."""
    matcher = Matcher(q, regex=regex, max_bytes=384 * 2**10)
    if matcher.program_size > MAX_JOINED_PROGRAM:
        raise ValueError(
            f"is too expensive for a stream, which matches each new line: {matcher.program_size} instructions,"
            f" of at most {MAX_JOINED_PROGRAM}. Use fewer classes and repetitions, or search the log"
        )
    return matcher
