"""Finds the likely cause in a failed job's log without comparing it to good runs: a linear model scores its lines.

A line has two scores: ``screen`` selects the lines to show, and ``line`` selects the most telling one of these. A score
is the sum of the weights of the line's :data:`FEATURES` and of its distance from the end of the failed step
(:data:`BEFORE`, :data:`AFTER`). ``python -m bench.causes --data DIR --learn`` learns the weights.
"""

import math
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from chronoverse.joblog.matcher import MAX_PROGRAM, ExpressionSet, Matcher, compile_groups, strip_sequences

#: Maximum lines of a cause, so that it fits on one screen.
CAUSE_LINES: Final = 30
#: Scores are divided by this before ``exp`` turns them into shares.
UNIT: Final = 10
#: Maximum lines kept during a scan. Those with the lowest scores are dropped.
MAX_CLUES: Final = 2_000
#: Meanings of exit codes, shown when no line explains a failure. The page uses them, too.
EXIT_MEANINGS: Final = {
    124: "Timed out",
    126: "Command not executable",
    127: "Command not found",
    134: "Aborted",
    137: "Killed, most likely out of memory",
    139: "Segmentation fault",
    143: "Terminated",
}
#: A cause with more than this share of all scores has high confidence.
HIGH: Final = 0.6

#: Words in lines that look like errors: an RE2 expression, case-insensitive. The page also searches for it.
ERROR_WORDS: Final = (
    r"\b(([a-z.]{3,})?errors?|fatal|panic(ked)?|[a-z.]*exception|traceback|fail(s|ed|ing|ures?)?|segfault"
    r"|segmentation fault|core dumped|out of memory|permission denied|command not found|undefined reference|unhandled"
    r"|not ok)\b|\berr!|[✕-✘❌]"
)
#: Texts that contain an error word but report no problem: some phrases, names of files and modules, and lines of passed
#: tests. They are removed from a line before matching. The page uses them, too.
NOTHING_WRONG: Final = (
    r"\b(?:0|no|without|zero) (?:errors?|fail(?:ed|ures?)|exceptions?)\b|\b(?:errors?|fail(?:ed|ures?))\s?[:=]\s?0\b"
    r"|[/\\._-](?:errors?|exceptions?|fail(?:s|ed|ures?)?|panic|fatal)\b"
    r"|\b(?:errors?|exceptions?|fail(?:s|ed|ures?)?|panic|fatal)(?:[/\\_-]\w|\.[a-z]{1,5}\b)"
    r"|^\s*(?:[✓✔✅]|ok\b|\[ok\]|pass\b|--- pass|=== run).*"
    r"|^[^,;]*(?:\b(?:ok|pass(?:ed)?)|\[\s*ok\s*\])\s*$"
)
#: Matches candidate lines (case-insensitive), which may report a failure, or the end of the failed step. It has no
#: anchors, so that the prefilter of archived lines can use it.
_SIGNAL: Final = (
    r"err(?:or|!)|fatal|panic|exception|traceback|fail|segfault|segmentation|dumped|out of memory|denied|not found"
    r"|undefined|unhandled|abort|can ?not|can't|could ?n|unable|invalid|missing|unexpected|unknown|refused|illegal"
    r"|does ?n|(?:is|was) not|no such|not (?:ok|defined|allowed|supported|installed|permitted|match|declared)"
    r"|unrecognized|undeclared|unresolved|mismatch|incompatible|conflict|timed? ?out|time limit|deadline|no output"
    r"|killed|no space|connection reset|sig(?:segv|abrt|kill|term|ill|bus)|overflow|use-after-free|expect"
    r"|should (?:be|have|equal|not|match)|to (?:equal|be|deeply|match|contain|have)\b|but (?:got|was|found|instead)"
    r"|actual|received|assert|caused by|reason:|problem:|non-zero|exit(?:ed|s)?\b|exceeded|terminated|unsuccessful"
    r"|[0-9] (?:\w+ )?(?:problems?|broken|offenses?|warnings?|tests?|passed|examples?|specs?|passing)\b"
    r"|\*\*\* |\x1b\[(?:[0-9;]*;)?(?:31|91)m|[\x{2715}-\x{2718}\x{274c}\x{d7}\x{25cf}\x{203c}]|\^\^| \^"
    r"|\w\.[a-z]\w{0,5}(?::[0-9]|\([0-9]+[,)])"
    r"|post job cleanup|cleaning up project|after_script|task finished|uploading artifacts|your build"
)


class Feature(NamedTuple):
    """A feature of lines: an RE2 expression and its weights."""

    name: str
    screen: int
    line: int
    pattern: str


#: Case-insensitive unless an expression says otherwise.
FEATURES: Final = (
    Feature("word of an error", 19, 9, ERROR_WORDS),
    Feature(
        "begins with one",
        22,
        1,
        r"^\W*(?:[\w./-]+:\s*)?(?:fatal|[a-z.]*error|[a-z.]*exception|panic|fail(?:ed|ures?)?)(?:[^\w-]|$)",
    ),
    Feature(
        "a kind of error, and a text",
        7,
        9,
        r"\b(?:[a-z.]*error|fatal|[a-z.]*exception|panic|failure)(?:\[[\w-]+\]| [a-z]*[0-9]+)?!?: +\S",
    ),
    Feature("name of an error", 3, 15, r"\b(?-i:[A-Z][a-zA-Z]*(?:Error|Exception|Failure)\b)"),
    Feature("in capitals", 18, 3, r"(?-i:\b(?:ERROR|FATAL|FAIL|FAILED|FAILURES?|PANIC|ERR!|NOT OK)\b)"),
    Feature(
        "not as it should be",
        -2,
        2,
        r"\b(?:not found|can ?not|can't|could ?n[o']t|unable|invalid|missing|undefined|unexpected|unknown|denied"
        r"|refused|illegal|does ?n[o']t|is not|was not|no such|not (?:defined|allowed|supported|installed|permitted"
        r"|match\w*|declared)|unrecognized|undeclared|unresolved|mismatch\w*|incompatible|conflict\w*)\b",
    ),
    Feature(
        "timed out",
        -9,
        10,
        r"\b(?:timed? ?out|timeout (?:after|exceeded|reached|expired|waiting|of)|time limit|deadline exceeded"
        r"|no output has been received)\b",
    ),
    Feature(
        "words of a system",
        16,
        21,
        r"\b(?:killed|no space left|out of memory|segmentation fault|segfault|core dumped|permission denied"
        r"|command not found|no such file|undefined reference|access denied|connection (?:refused|reset)|sig(?:segv"
        r"|abrt|kill|term|ill|bus)|stack overflow|heap-use-after-free)\b",
    ),
    Feature(
        "expected and actual",
        8,
        8,
        r"\b(?:expected|expecting)\b.*\b(?:to|but|got|actual|received|found|instead|not)\b|\bshould (?:be|have|equal"
        r"|not|match)\b|\bto (?:equal|be|deeply|match|contain|have)\b|\bbut (?:got|was|found|actual|instead)\b"
        r"|^\W*(?:expected|actual|received|got|want|left|right)\b\W*[:=]",
    ),
    Feature("assertion", 10, 16, r"\bassert(?:ion)?s?\b|\bassert[_(A-Z]|^E   "),
    Feature(
        "heading of a failure",
        21,
        7,
        r"^\s*(?:--- FAIL|FAIL(?:ED)?(?:[^\w-]|$)|not ok\b|[0-9]+\) \S|\* ?FAIL|# FAIL|\(failed\)|_{3,} .* _{3,}"
        r"|={3,} (?:FAIL|ERROR)|\x{25cf} |failures?:|errors?:)",
    ),
    Feature("cross", 13, 7, r"[\x{2715}-\x{2718}\x{274c}\x{d7}\x{2a2f}\x{203c}\x{1f6a8}\x{1f4a5}]|^\s*(?:\[x\]|x )"),
    Feature(
        "passed",
        -19,
        -15,
        r"[\x{2713}\x{2714}\x{2705}]|^\s*(?:ok\b|\[ok\]|pass\b|--- PASS|PASS:?\b|=== RUN)|\bok$|\.\.\. ?ok\b"
        r"|\bpass(?:ed)?$|\[\s*OK\s*\]",
    ),
    Feature("place in a file", 7, 19, r"(?:^|[\s(\"'\[\]])[\w./\\~@+-]*\w\.[a-z]\w{0,5}(?::[0-9]+|\([0-9]+[,)])"),
    Feature(
        "place, and a severity",
        9,
        -7,
        r"\.[a-z]\w{0,6}[:(][0-9]+(?:[:,][0-9]+)?\)?:? +(?:fatal |syntax )?(?:error|warning|note)",
    ),
    Feature(
        "how many failed",
        -5,
        -15,
        r"\b[0-9]+ (?:\w+ )?(?:errors?|fail(?:ed|ures?|ing)|problems?|broken|offenses?|warnings?)\b|\b(?:errors?"
        r"|fail(?:ed|ures?)|problems)\s?[:=] ?[0-9]|\b[0-9]+ (?:tests?|passed|examples?|specs?|assertions|scenarios"
        r"|passing)\b",
    ),
    Feature(
        "a tool's farewell",
        10,
        -17,
        r"\bmake(?:\[[0-9]+\])?: \*\*\*|\bninja: build stopped|npm ERR!|\berror: command\b|recipe for target"
        r"|\bELIFECYCLE\b",
    ),
    Feature(
        "word in a name",
        -14,
        -11,
        r"[/\\._-](?:errors?|exceptions?|fail(?:ed|ures?|s)?|panic|fatal)(?:[/\\._-]|\b)|\b(?:errors?|exceptions?"
        r"|fail(?:ed|ures?|s)?)(?:[/\\_-]\w|\.[a-z]{1,5}\b)",
    ),
    Feature("address", -8, -3, r"\bhttps?://"),
    Feature(
        "mark of an error",
        -8,
        6,
        r"^\s*(?:\[(?:error|fatal|fail(?:ed|ure)?|err|critical|severe)\]|##\[error\]|::error|\((?:error|EE)\)|e/|e:"
        r"|error\b|fatal\b|!|\*\* |panic|critical)",
    ),
    Feature("a program says", -4, 12, r"^[\w./+-]+: (?:line [0-9]+: )?[\w./$\"'` -]+: \S|^\S*sh: "),
    Feature("red", 18, 13, r"\x1b\[(?:[0-9;]*;)?(?:31|91)m"),
    Feature("green", -6, -9, r"\x1b\[(?:[0-9;]*;)?(?:32|92)m"),
    Feature("indented", 3, 9, r"^(?:\s{2,}|\t)\S"),
    Feature("three words", -13, 3, r"[a-z]{2,} [a-z]{2,} [a-z]{2,}"),
    Feature("ends with a colon", 12, 13, r":\s*$"),
    Feature(
        "mark of a CI system",
        18,
        2,
        r"^(?:##\[error\](?:process completed with exit code|the process .* failed|the operation was canceled|(?:bash"
        r"|cmd|powershell) exited)|the command \".*(?:exited with [1-9]|failed (?:and|[0-9]+ times))|error: job failed"
        r"|exited with code [1-9]|no output has been received|the job exceeded the maximum|finished: failure"
        r"|build step .* marked build as failure|error: script returned exit code|script returned exit code [1-9]"
        r"|error: build step .* failed|the build has been terminated|\[taskcluster:error\]|unsuccessful task run)",
    ),
    Feature(
        "after the steps",
        -1,
        -2,
        r"^(?:post job cleanup|cleaning up project directory|running after_script|##\[error\]|=== task finished"
        r"|uploading artifacts|done\. your build)",
    ),
)
#: The indices of features with a special role below.
_WORD, _MARK, _AFTER = (
    next(index for index, each in enumerate(FEATURES) if each.name == name)
    for name in ("word of an error", "mark of a CI system", "after the steps")
)

#: Distances before the end of the failed step, and their weights for screen and line. The end is the first line in
#: which a CI system reports the failure, or else the log's end.
BEFORE: Final = (
    (0, 18, 9),
    (1, -6, 5),
    (3, 2, 22),
    (6, 10, 14),
    (11, -4, 17),
    (21, 16, 8),
    (41, 4, 3),
    (81, 5, 4),
    (161, -11, -13),
    (321, -15, -22),
)
#: Distances after the end of the failed step, and their weights.
AFTER: Final = ((1, 10, -7), (21, -15, -17), (201, -14, -21))

#: Features are read from at most this many characters of a line, but error words are searched for in the whole line.
MAX_CHARACTERS: Final = 1_200
#: Times and other prefixes of log lines.
_PREFIX: Final = re.compile(
    r"(?:\[[^\]]{0,40}[0-9][^\]]{0,40}\] *|[0-9][0-9T:.,Z/+-]{7,} +|#[0-9]+ [0-9.]+ "
    r"|[0-9]{1,2}:[0-9]{2}:[0-9]{2}[.,0-9]* +)+"
)


def shown_text(message: str) -> str:
    """The beginning of a line as a terminal shows it, without leading timestamps."""
    text = strip_sequences(message[:MAX_CHARACTERS]).rstrip("\r").rpartition("\r")[2]
    found = _PREFIX.match(text)
    return text[found.end() :] if found else text


class Reading(NamedTuple):
    """The indices of the :data:`FEATURES` that a line has, and whether the line looks like an error."""

    features: frozenset[int]
    is_error: bool


class LineReader:
    """Finds the features of lines."""

    def __init__(self) -> None:
        self._features: Final = ExpressionSet(feature.pattern for feature in FEATURES)
        #: Matches candidate lines.
        self.signal: Final = Matcher(_SIGNAL, regex=True, max_joined=MAX_PROGRAM)
        self._words: Final = Matcher(ERROR_WORDS, regex=True)
        self._nothing_wrong: Final = compile_groups(f"(?i){NOTHING_WRONG}")

    def is_signal(self, message: str) -> bool:
        """Whether the line is a candidate. Only the features of candidates need to be read."""
        return self.signal.is_feasible(len(message)) and self.signal.matches(message)

    def read(self, message: str) -> Reading:
        text, raw = shown_text(message), message[:MAX_CHARACTERS].encode("utf-8", "replace")
        features = self._features.matches(text.encode("utf-8", "replace"))
        has_word = _WORD in features
        if len(message) > MAX_CHARACTERS:
            text = strip_sequences(message)
            has_word = self._words.matches(text)
        if b"\x1b" in raw:
            # Features can include colours, which are control sequences: only the raw text has them.
            features |= self._features.matches(raw)
        return Reading(features, has_word and self._is_error(text))

    def _is_error(self, text: str) -> bool:
        """Whether an error word remains after removing the parts that report no problem."""
        raw = text.encode("utf-8", "replace")
        if self._nothing_wrong.search(raw) is None:
            return True
        return self._words.matches(self._nothing_wrong.sub(b"", raw).decode("utf-8", "replace"))


#: Pairs of weights (screen, line): of the features, then of the rows of ``BEFORE``, then of the rows of ``AFTER``.
Weights = Sequence[tuple[int, int]]
WEIGHTS: Final[Weights] = tuple(
    (screen, line) for *_, screen, line in [each[:3] for each in FEATURES] + [*BEFORE] + [*AFTER]
)
#: The minimum distance of each row of the two tables.
_STARTS: Final = tuple([row[0] for row in table] for table in (BEFORE, AFTER))


def place_of(number: int, mark: int) -> int:
    """The index in :data:`WEIGHTS` of a line's place, if the failed step ends at line ``mark``."""
    if number <= mark:
        return len(FEATURES) + bisect_right(_STARTS[0], mark - number) - 1
    return len(FEATURES) + len(BEFORE) + bisect_right(_STARTS[1], number - mark) - 1


class Cause(NamedTuple):
    """Lines ``first`` to ``last``. ``telling``: the most telling line. ``share``: their share of all scores, 0 to 1."""

    first: int
    last: int
    telling: int
    share: float


@dataclass(slots=True)
class Clues:
    """The candidate lines scanned so far, in any order. Their scores do not yet include the weights of their places.

    If there are more than twice :data:`MAX_CLUES`, those with the lowest scores are dropped.
    """

    weights: Weights = WEIGHTS
    #: The first line in which a CI system reports a failed step, and the first that it prints after all steps.
    _mark: int | None = None
    _after: int | None = None
    _lines: list[tuple[int, int, int]] = field(default_factory=list)
    _sums: dict[frozenset[int], tuple[int, int]] = field(default_factory=dict)

    def add(self, number: int, features: frozenset[int]) -> None:
        if _MARK in features and (self._mark is None or number < self._mark):
            self._mark = number
        if _AFTER in features and (self._after is None or number < self._after):
            self._after = number
        self._lines.append(self._clue(number, features))
        if len(self._lines) > 2 * MAX_CLUES:
            last = max(number for number, *_ in self._lines)
            end, weights = self.end(last), self.weights
            self._lines.sort(key=lambda clue: clue[1] + weights[place_of(clue[0], end)][0])
            del self._lines[:-MAX_CLUES]

    def best(self, first: int, last: int, last_features: frozenset[int]) -> Cause | None:
        """The cause in lines ``first`` to ``last``, or None. ``last_features``: the features of line ``last``."""
        end = self.end(last)
        clues = [self._placed(clue, end) for clue in self._lines if first <= clue[0] <= last]
        if not clues:
            return None
        if end == last and not any(number == last for number, *_ in clues):
            clues.append(self._placed(self._clue(last, last_features), end))
        clues.sort()
        highest = max(screen for _, screen, _ in clues)
        parts = [math.exp((screen - highest) / UNIT) for _, screen, _ in clues]
        best, best_sum, stop, total = (0, 1), 0.0, 0, 0.0
        for start, (number, *_) in enumerate(clues):
            while stop < len(clues) and clues[stop][0] < number + CAUSE_LINES:
                total += parts[stop]
                stop += 1
            if total > best_sum:
                best, best_sum = (start, stop), total
            total -= parts[start]
        shown = clues[slice(*best)]
        room = CAUSE_LINES - 1 - (shown[-1][0] - shown[0][0])
        top = max(first, shown[0][0] - room // 2)
        telling = max(shown, key=lambda clue: (clue[2], -clue[0]))[0]
        return Cause(top, min(top + CAUSE_LINES - 1, last), telling, best_sum / sum(parts))

    def to_json(self) -> list[Any]:
        """The state, for :meth:`restore`. Contains only numbers."""
        return [self._mark, self._after, self._lines]

    def restore(self, json: list[Any]) -> None:
        """Continues from saved state."""
        self._mark, self._after, lines = json
        self._lines = [tuple(clue) for clue in lines]

    def _clue(self, number: int, features: frozenset[int]) -> tuple[int, int, int]:
        # The sums of a set of features are cached, because few different sets occur.
        if (sums := self._sums.get(features)) is None:
            screens, lines = zip((0, 0), *(self.weights[each] for each in features), strict=True)
            sums = self._sums[features] = sum(screens), sum(lines)
        return number, *sums

    def end(self, last: int) -> int:
        """The line at which the failed step ends. ``last`` is the log's last line."""
        return self._mark or self._after or last

    def _placed(self, clue: tuple[int, int, int], end: int) -> tuple[int, int, int]:
        """``clue`` with its place's weights added to the scores, if the failed step ends at line ``end``."""
        number, screen, line = clue
        more = self.weights[place_of(number, end)]
        return number, screen + more[0], line + more[1]
