"""A log's summary: new lines, errors and last lines. Pure.

:class:`FoundLines` collects lines; :func:`compose` writes the JSON within a limited number of bytes.
"""

import re
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import orjson

from chronoverse.joblog.causes import CAUSE_LINES, HIGH, Cause
from chronoverse.joblog.labels import fit_labels
from chronoverse.joblog.matcher import strip_sequences
from chronoverse.joblog.model import Job, Line, Status
from chronoverse.joblog.past_runs import PastRuns

#: Minimum, maximum and default bytes of a summary.
MIN_BYTES: Final = 1_024
MAX_BYTES: Final = 262_144
DEFAULT_BYTES: Final = 16_384
MAX_LAST_LINES: Final = 50
#: Maximum groups of lines with one shape. Lines with further shapes are only counted.
MAX_GROUPS: Final = 1_000
#: Maximum hunks kept: those with the highest ranks.
MAX_HUNKS: Final = 200
#: Maximum characters of a message.
MAX_MESSAGE: Final = 1_000

#: Matches lines that only report a failure, count failures, or say where to read about them.
_CLOSING: Final = re.compile(
    r"(?i)\b(?:exit(?:ed)?(?: with)? (?:status|code)|process completed|previous errors?"
    r"|(?:errors?|fail(?:ed|ures?))[:=] ?[0-9]|(?:job|build|run|tests?|script|command) (?:has )?failed|build failure"
    r"|could not compile|traceback|complete log|full stack trace|for more information|finished: failure"
    r"|marked build as failure|re-run maven|after correcting the problems)\b"
    r"|^\W*(?:error\W+)?(?:help [0-9]+\]|mvn <goals>)"
    r"|\b[0-9]+ (?:errors?|fail(?:ed|ures?))(?:[,;.)]|\s*$)|\bmake(?:\[[0-9]+\])?: \*\*\*"
    r"|^\W*(?:fail|failed|failures|error)\W*$"
)
#: Matches lines that name the failed step and repeat its error. The error's own line is more telling.
_STEP: Final = re.compile(r"(?i)\bfailed to execute goal\b")
#: Matches lines that give a reason: an error's name and message, a source location and message, or a system error.
_WHY: Final = re.compile(
    r"(?i)(?:error|exception|violation|panic|fatal|failure)(?:\[[\w-]+\]| [a-z]*[0-9]+)?!?: +\S"
    r"|\bcaused by: |(?:^|[\s0-9])e: \S"
    r"|:[0-9]+:[0-9]+:? +(?:fatal )?(?:error|[a-z]+[0-9]+)\b|\.\w+:\[[0-9]+,[0-9]+\] |_test\.go:[0-9]+: "
    r"|\bexpect(?:ed)?\b.*\b(?:to|but)\b"
    r"|\bfailed: +\S|\bproblem: +\S|\baccess denied"
    r"|segmentation fault|\bkilled\b|no space left|out of memory|permission denied|command not found|no such file"
    r"|undefined reference|^E   +assert |\brefused\b|timed? out|deadline exceeded"
    r"|timeout (?:after|exceeded|reached|expired|waiting)"
)
#: Other signs of failure. They are not error words, because they are common in the names of passing tests.
_FAIL: Final = re.compile(r"\bFAIL\b|\u2718|\u2717|\bNOT OK\b|^not ok\b")

#: Matches lines that show a commit. Its subject is new in every run, and can mention any error.
_COMMIT: Final = re.compile(
    r"^\s*(?:HEAD is now at|Checking out|Merge (?:pull request|branch|commit)|commit [0-9a-f]{7,})\b"
)


def message_size(max_bytes: int) -> int:
    """Maximum characters of each message in an answer of ``max_bytes`` with several messages, such as a summary."""
    return max(80, min(MAX_MESSAGE, round(max_bytes / 16)))


def weight_of(message: str, is_error: bool) -> int:
    """How telling a line is: 3 if it gives a reason, 2 for another failure, 1 if it only reports a failure.

    0 for other lines, -1 for a line about the commit, new in every run. ``is_error``: the line looks like an error.
    """
    # The beginning is enough to judge a line.
    text = strip_sequences(message[:1_000])
    if _COMMIT.search(text):
        return -1
    if _CLOSING.search(text):
        return 1
    if _WHY.search(text) and not _STEP.search(text):
        return 3
    return 2 if is_error or _FAIL.search(text) else 0


@dataclass(slots=True)
class LineGroup:
    """Lines of one shape: their count, and the number, weight and (if kept) text of the first line."""

    number: int
    repeated: int
    weight: int
    line: Line | None = None


@dataclass(slots=True)
class Hunk:
    """Lines close together. ``telling``: the number of the line with the highest ``weight``."""

    first: int
    last: int
    size: int
    telling: int
    weight: int

    @property
    def rank(self) -> tuple[int, int, int]:
        """Hunks that give a reason rank highest, then larger ones, then later ones. The highest is the cause."""
        # A line that only reports a failure ranks no higher than any other line.
        return max(self.weight, 1), self.size, self.last


@dataclass(slots=True)
class FoundLines:
    """Lines of one kind found in the scanned part of a log, ``low`` to ``high``. That part grows at either end.

    Lines with one shape form a group. ``shape_of`` returns a message's shape, ``weigh`` how telling it is.
    ``is_whole``: all ``count`` lines are in groups. False if there are more than :data:`MAX_GROUPS` shapes.
    """

    shape_of: Callable[[str], int]
    weigh: Callable[[str], int]
    low: int
    high: int
    count: int = 0
    is_whole: bool = True
    _groups: dict[int, LineGroup] = field(default_factory=dict)
    _hunks: deque[Hunk] = field(default_factory=deque)

    def add(self, line: Line) -> None:
        self.count += 1
        number = line.sequence_num
        # One character more than shown, so that the line is marked as truncated.
        line = line._replace(message=line.message[: MAX_MESSAGE + 1])
        shape = self.shape_of(line.message)
        group = self._groups.get(shape)
        weight = self.weigh(line.message) if group is None else group.weight
        if group is None and len(self._groups) < MAX_GROUPS:
            self._groups[shape] = LineGroup(number, 1, weight, line)
        elif group is None:
            self.is_whole = False
        else:
            group.repeated += 1
            if number < group.number:
                group.number, group.line = number, line
        self._add_to_hunks(number, weight)

    def _add_to_hunks(self, number: int, weight: int) -> None:
        if weight < 0:
            return
        hunks = self._hunks
        for hunk in (hunks[0], hunks[-1]) if hunks else ():
            # Lines of a hunk can have one other line between them.
            if hunk.first - 2 <= number <= hunk.last + 2:
                hunk.first, hunk.last, hunk.size = min(hunk.first, number), max(hunk.last, number), hunk.size + 1
                if weight > hunk.weight or (weight == hunk.weight and number < hunk.telling):
                    hunk.telling, hunk.weight = number, weight
                return
        hunk = Hunk(number, number, 1, number, weight)
        if hunks and number < hunks[0].first:
            hunks.appendleft(hunk)
        else:
            hunks.append(hunk)
        if len(hunks) > MAX_HUNKS:
            # Keep the hunks at both ends, which can still grow.
            best = sorted(list(hunks)[1:-1], key=lambda each: each.rank)[MAX_HUNKS // 2 :]
            self._hunks = deque(sorted([hunks[0], hunks[-1], *best], key=lambda each: each.first))

    def groups(self) -> list[LineGroup]:
        """The groups, ordered by first line."""
        return sorted(self._groups.values(), key=lambda group: group.number)

    def best_hunk(self, begin: int = 1) -> Hunk | None:
        """The hunk with the highest rank whose most telling line is at or after line ``begin``."""
        hunks = [hunk for hunk in self._hunks if hunk.telling >= begin]
        return max(hunks, key=lambda hunk: hunk.rank, default=None)

    def to_json(self) -> list[Any]:
        """The state, for :meth:`restore`. Contains only numbers, no text of the log."""
        groups = [[shape, group.number, group.repeated, group.weight] for shape, group in self._groups.items()]
        hunks = [[each.first, each.last, each.size, each.telling, each.weight] for each in self._hunks]
        return [self.low, self.high, self.count, self.is_whole, groups, hunks]

    def restore(self, json: list[Any]) -> None:
        """Restores saved state. The groups then have no lines."""
        self.low, self.high, self.count, self.is_whole, groups, hunks = json
        self._groups = {shape: LineGroup(*rest) for shape, *rest in groups}
        self._hunks = deque(Hunk(*each) for each in hunks)


class Findings(NamedTuple):
    """What was found in a log: errors, last lines in order, new lines, and the ids of the runs ``compared_with``.

    If there was no run to compare with, ``new`` and ``compared_with`` are None, and ``guess`` is the likely cause.
    ``slower``: the pauses with the largest excess, as JSON, or None.
    """

    errors: FoundLines
    last: Sequence[Line]
    compared_with: Sequence[str] | None = None
    new: FoundLines | None = None
    guess: Cause | None = None
    slower: Sequence[bytes] | None = None


def compose(
    job: Job,
    found: Findings,
    max_bytes: int,
    read_line: Callable[[int], Line],
    read_past: Callable[[Collection[int]], PastRuns | None] = lambda _: None,
    baseline: str | None = None,
) -> bytes:
    """The summary as JSON, in at most ``max_bytes`` (:data:`MIN_BYTES` or more).

    ``read_past`` finds shapes in earlier runs. ``baseline``: the labels of the runs compared with. Pauses get at most a
    quarter of the bytes that are left; the three kinds of lines share the rest evenly.
    """
    errors, last, compared_with, new, guess, slower = found
    characters, begin = message_size(max_bytes), max(job.first, 1)
    scanned_to = max(errors.low, new.low if new else 0, begin)
    # Labels get at most a quarter of the room.
    shown_job = {**job.to_json(), "labels": fit_labels(dict(job.labels), max_bytes // 4)}
    compared = None if compared_with is None else list(compared_with)
    body: dict[str, Any] = {
        "job": shown_job,
        "compared_with": compared,
        "baseline": baseline and {"label": baseline},
        "new": {"count": _count(new, begin) if new else 0, "first": []},
        "errors": {"count": _count(errors, begin), "first": []},
        "last": [],
        "cause": None,
        "complete": scanned_to == begin,
        "scanned_to": scanned_to,
        "truncated": False,
        "verdict": None,
        "slower": None,
    }

    def room_left() -> int:
        return max_bytes - len(orjson.dumps(body))

    def offer(name: str, *values: Any) -> None:
        """Sets a member to the first of ``values`` that fits, else to None."""
        for body[name] in values:
            if room_left() >= 0:
                return
        body[name] = None

    groups = [_groups_for(each, errors.shape_of, begin, max_bytes, read_line) for each in (new, errors)]
    looked_for = {shape for each in groups for _, _, shape in each}
    cause = _cause(job, guess, new, last)
    if cause is not None:
        first, final, telling, kind, confidence = cause
        line = last[-1] if telling == last[-1].sequence_num else read_line(telling)
        cause_shape = errors.shape_of(line.message)
        looked_for.add(cause_shape)
    past = read_past(looked_for) if looked_for else None
    if cause is not None:
        seen = past and past.seen(cause_shape)
        # A foreign runner can write a time of any length.
        lines = [orjson.Fragment(cut_line(line, size, seen=seen)) for size in (characters, 0)]
        place = {"from": first, "to": final, "line": None, "kind": kind, "confidence": confidence}
        offer("cause", *({**place, "line": each} for each in lines))
        if past is not None and scanned_to == begin:
            offer("verdict", past.verdict(job, cause_shape))
    offer("baseline", body["baseline"])
    # Five ids can be longer than the smallest summary.
    while compared and room_left() < 0:
        compared.pop()
    room = room_left()
    is_slower_cut = False
    if slower is not None:
        (kept,), (is_slower_cut,) = _share_room([iter(slower)], min(room, max_bytes // 4))
        if kept or not slower:
            body["slower"] = [orjson.Fragment(json) for json in kept]
            room -= sum(len(json) + 1 for json in kept)
    kinds = [
        (cut_line(line, characters, repeated, past and past.seen(shape)) for line, repeated, shape in each)
        for each in groups
    ]
    shown, left_out = _share_room([*kinds, (cut_line(line, characters) for line in reversed(last))], room)
    body["new"]["first"], body["errors"]["first"], newest = ([orjson.Fragment(json) for json in each] for each in shown)
    body["last"] = newest[::-1]
    body["truncated"] = (
        scanned_to != begin
        or len(shown_job.get("labels", ())) != len(job.labels)
        or len(compared or ()) != len(compared_with or ())
        or is_slower_cut
        or not (errors.is_whole and (new or errors).is_whole)
        or left_out[0]
        or left_out[1]
    )
    return orjson.dumps(body)


def _groups_for(
    found: FoundLines | None,
    shape_of: Callable[[str], int],
    begin: int,
    max_bytes: int,
    read_line: Callable[[int], Line],
) -> list[tuple[Line, int, int]]:
    """The groups that may fit: the first line, line count and shape of each."""
    listed: list[tuple[Line, int, int]] = []
    room, characters = max_bytes, message_size(max_bytes)
    for group in found.groups() if found else ():
        if room < 0:
            break
        # A running job's log may have dropped these lines meanwhile.
        if group.number >= begin:
            line = group.line or read_line(group.number)
            whole = line if len(line.message) <= MAX_MESSAGE else read_line(group.number)
            line = line._replace(message=line.message[: characters + 1])
            room -= len(cut_line(line, characters, group.repeated))
            listed.append((line, group.repeated, shape_of(whole.message)))
    return listed


def _count(found: FoundLines, begin: int) -> int | None:
    """The number of lines found. None until all lines from ``begin`` are scanned."""
    return found.count if found.low <= begin else None


def _cause(
    job: Job, guess: Cause | None, new: FoundLines | None, last: Sequence[Line]
) -> tuple[int, int, int, str, str] | None:
    """The lines at which a failed or lost job's log opens: first, last, most telling; then kind and confidence."""
    if job.status not in (Status.FAILED, Status.LOST) or not last:
        return None
    hunk = new.best_hunk(job.first) if job.status is Status.FAILED and new else None
    # Without an error, the first new line shows where the runs diverge, unless the log begins with that line.
    if new and hunk and (hunk.weight or hunk.first > max(new.low, job.first)):
        first = max(hunk.first, hunk.telling - CAUSE_LINES + 1)
        kind, confidence = ("error", "high") if hunk.weight else ("new", "low")
        return first, hunk.last, hunk.telling, kind, confidence
    if job.status is Status.FAILED and guess:
        return guess.first, guess.last, guess.telling, "error", "high" if guess.share >= HIGH else "low"
    end = last[-CAUSE_LINES:]
    return end[0].sequence_num, end[-1].sequence_num, end[-1].sequence_num, "last", "low"


def _share_room(kinds: Sequence[Iterator[bytes]], room: int) -> tuple[list[list[bytes]], list[bool]]:
    """The pieces of each kind, taken in turn, that fit into ``room`` bytes; for each kind, whether any were omitted."""
    shown: list[list[bytes]] = [[] for _ in kinds]
    left_out = [False] * len(kinds)
    open_kinds = set(range(len(kinds)))
    while open_kinds:
        for kind in sorted(open_kinds):
            piece = next(kinds[kind], None)
            if piece is None:
                open_kinds.discard(kind)
            elif len(piece) > room:
                left_out[kind] = True
                open_kinds.discard(kind)
            else:
                shown[kind].append(piece)
                room -= len(piece) + 1
    return shown, left_out


def cut_line(line: Line, characters: int, repeated: int = 1, seen: dict[str, Any] | None = None) -> bytes:
    """A line as JSON. A message of more than ``characters`` is truncated, and the line is marked."""
    json: dict[str, Any] = line._replace(message=line.message[:characters]).to_json()
    if len(line.message) > characters:
        json["truncated"] = True
    if repeated > 1:
        json["repeated"] = repeated
    if seen is not None:
        json["seen"] = seen
    return orjson.dumps(json)
