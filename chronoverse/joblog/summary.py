"""What a person, or a program with little room, needs first of a log: its new lines, its errors, and its last lines.

Pure. :class:`LineGroups` collects lines, and :func:`compose` writes the JSON within a number of bytes.
"""

import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from chronoverse.joblog.matcher import Matcher, strip_sequences
from chronoverse.joblog.values import Job, Line

#: Bytes of a summary: the fewest, the most, and how many it has if nobody asks for a number.
MIN_BYTES: Final = 1_024
MAX_BYTES: Final = 262_144
DEFAULT_BYTES: Final = 16_384
#: Last lines of the log, at most.
MAX_LAST_LINES: Final = 50
#: Groups of lines of one shape, at most. Lines of further shapes are only counted.
MAX_GROUPS: Final = 1_000
#: Characters of one message: this part of the summary's bytes, within these bounds.
MESSAGE_SHARE: Final = 1 / 16
MESSAGE_CHARACTERS: Final = (80, 1_000)

#: The words of a line that looks like an error, as an expression of RE2, in any case of letters.
ERROR_WORDS: Final = (
    r"\b(([a-z.]{3,})?errors?|fatal|panic(ked)?|[a-z.]*exception|traceback|fail(ed|ures?)|segfault|segmentation fault"
    r"|core dumped|out of memory|permission denied|command not found|undefined reference|unhandled)\b|\berr!"
)
#: Phrases that have such words, but say that nothing is wrong. They are taken out of a line before it is matched.
_NOTHING_WRONG: Final = re.compile(
    r"\b(?:0|no|without) (?:errors?|fail(?:ed|ures?)|exceptions?)\b|\b(?:errors?|fail(?:ed|ures?))\s?[:=]\s?0\b",
    re.IGNORECASE,
)


def error_matcher() -> Matcher:
    """Finds candidates for :func:`looks_like_error`: every such line, and some others."""
    return Matcher(ERROR_WORDS, regex=True)


def looks_like_error(matcher: Matcher, message: str) -> bool:
    """Whether a line looks like an error. ``matcher`` is that of :func:`error_matcher`, and matches the line."""
    text = strip_sequences(message)
    rest = _NOTHING_WRONG.sub("", text)
    return rest == text or matcher.matches(rest)


@dataclass(slots=True)
class LineGroup:
    """Lines of one shape: the first of them, and how many there are."""

    line: Line
    repeated: int = 1


@dataclass(slots=True)
class LineGroups:
    """Lines in the order of the log, those of one shape together. ``shape_of`` says what shape a message has.

    ``count`` is the number of all lines. ``is_complete`` says whether every line is in a group: there may be more than
    :data:`MAX_GROUPS` shapes.
    """

    shape_of: Callable[[str], Hashable]
    count: int = 0
    is_complete: bool = True
    _groups: dict[Hashable, LineGroup] = field(default_factory=dict)

    def add(self, line: Line) -> None:
        """Adds a line."""
        self.count += 1
        shape = self.shape_of(line.message)
        if group := self._groups.get(shape):
            group.repeated += 1
        elif len(self._groups) < MAX_GROUPS:
            # One character more than is shown, so that the line is marked as cut.
            self._groups[shape] = LineGroup(line._replace(message=line.message[: MESSAGE_CHARACTERS[1] + 1]))
        else:
            self.is_complete = False

    def groups(self) -> list[LineGroup]:
        """The groups by their first lines."""
        return list(self._groups.values())


def compose(
    job: Job,
    errors: LineGroups,
    last: Sequence[Line],
    *,
    max_bytes: int,
    is_complete: bool,
    compared_with: Sequence[str] | None = None,
    new: LineGroups | None = None,
) -> bytes:
    """The summary as JSON, in at most ``max_bytes``, which are :data:`MIN_BYTES` or more.

    ``last`` are the log's last lines in their order. ``is_complete`` says that all of the log was looked at.
    ``compared_with`` and ``new`` are None when there is no run to compare with. The three kinds of lines share the room
    evenly; what one kind does not need is for the others. The JSON says ``truncated`` when new lines or errors are
    left out.
    """
    least, most = MESSAGE_CHARACTERS
    characters = max(least, min(most, round(max_bytes * MESSAGE_SHARE)))
    compared = None if compared_with is None else list(compared_with)
    body: dict[str, Any] = {
        "job": job.to_json(),
        "compared_with": compared,
        "new": {"count": new.count if new else 0, "first": []},
        "errors": {"count": errors.count, "first": []},
        "last": [],
        "truncated": False,
    }
    while compared and len(orjson.dumps(body)) > max_bytes:
        # Five ids may have more characters than the smallest summary.
        compared.pop()
        is_complete = False
    room = max_bytes - len(orjson.dumps(body))
    kinds: list[Iterator[bytes]] = [
        (_line_json(group.line, characters, group.repeated) for group in (new.groups() if new else ())),
        (_line_json(group.line, characters, group.repeated) for group in errors.groups()),
        (_line_json(line, characters) for line in reversed(last)),
    ]
    shown, left_out = _share_room(kinds, room)
    body["new"]["first"], body["errors"]["first"], newest = ([orjson.Fragment(json) for json in each] for each in shown)
    body["last"] = newest[::-1]
    body["truncated"] = (
        not is_complete or left_out[0] or left_out[1] or not errors.is_complete or not (new or errors).is_complete
    )
    return orjson.dumps(body)


def _share_room(kinds: Sequence[Iterator[bytes]], room: int) -> tuple[list[list[bytes]], list[bool]]:
    """Takes one piece of each kind in turn, while the ``room`` of that many bytes lasts.

    Returns the pieces of each kind, and for each kind whether some of them were left out.
    """
    shown: list[list[bytes]] = [[] for _ in kinds]
    left_out = [False] * len(kinds)
    open_kinds = set(range(len(kinds)))
    while open_kinds:
        for kind in sorted(open_kinds):
            piece = next(kinds[kind], None)
            if piece is None:
                open_kinds.discard(kind)
            elif len(piece) + 1 > room:
                left_out[kind] = True
                open_kinds.discard(kind)
            else:
                shown[kind].append(piece)
                room -= len(piece) + 1
    return shown, left_out


def _line_json(line: Line, characters: int, repeated: int = 1) -> bytes:
    """A line, with a message of at most so many ``characters``: a longer one is cut off and marked."""
    json: dict[str, Any] = line._replace(message=line.message[:characters]).to_json()
    if len(line.message) > characters:
        json["truncated"] = True
    if repeated > 1:
        json["repeated"] = repeated
    return orjson.dumps(json)
