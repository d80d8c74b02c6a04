"""The shape of a line: its text without the parts that differ between runs.

``docs/answers.md`` has the rules. Times, numbers, hashes and temporary names become the same placeholder, so that a
hash without letters has the same shape as other hashes. A shape is stored as 64 bits of its BLAKE2b hash.
"""

import re
import struct
from bisect import bisect_left
from collections.abc import Collection, Sequence
from hashlib import blake2b
from typing import Final, TypeVar

from chronoverse.joblog.matcher import strip_sequences

_Value = TypeVar("_Value")

#: Must change when a line's shape or the format of a packed set changes.
VERSION: Final = 3
#: Against a million shapes, one new line in 2 * 10^13 is missed because of a collision.
_HASH_BYTES: Final = 8
#: Maximum shapes of one log. A comparison with more would need too much memory.
MAX_SHAPES: Final = 100_000
#: Bytes per shape in a packed set: its hash, and its first line's number.
ENTRY_BYTES: Final = _HASH_BYTES + 6
#: Bytes of the hash at the beginning of a packed set, and maximum bytes of a packed set.
_DIGEST_BYTES: Final = 16
MAX_SET_BYTES: Final = _DIGEST_BYTES + _HASH_BYTES + MAX_SHAPES * ENTRY_BYTES

#: Maximum bytes of a line or word used as a cache key. For longer ones, the key is a hash.
_MAX_KEY: Final = 256

#: First, all digits become 0: many lines and words then become equal, and are found in the cache.
_DIGITS: Final = bytes.maketrans(b"123456789", b"000000000")

#: Units of time and size after a number. There are two signs for micro.
_UNIT: Final = (
    "(?:(?:n|u|\u00b5|\u03bc|m)s|"
    r"[smhd]|secs?|seconds?|mins?|minutes?|hrs?|hours?|days?|milliseconds?|bytes?"
    r"|[kKMGT]|[kKMGT]?i?[bB](?:its?)?(?:/s|ps)?)(?![A-Za-z0-9_])"
)
_IS_UNIT: Final = re.compile(_UNIT)
#: Marks a word that begins with a unit, until a line's words are joined.
_UNIT_MARK: Final = "\x01"
#: Numbers with units, and lists of numbers.
_NUMBERS: Final = re.compile(f"#(?: {_UNIT_MARK}{_UNIT})?(?:,? #(?: {_UNIT_MARK}{_UNIT})?)*".encode())
_TEMPORARY: Final = re.compile(
    r"(?:/private)?(?:/var/tmp|/tmp|/dev/shm|/run/user/0+|/var/folders/[^/]+/[^/]+(?:/T)?)/[^/:;,'\"`()\[\]<>]+"
    r"|[A-Za-z]:\\Users\\[^\\]+\\AppData\\Local\\Temp\\[^\\:;,'\"]+"
    r"|(?<=/)\.?tmp[._-]?[A-Za-z0-9_]{6,10}(?![A-Za-z0-9_])"
)
#: Git references, such as branches and tags, and more names of temporary files.
_REFERENCES: Final = re.compile(
    r"(?<=refs/)[^\s:'\"`]+|(?<=^origin/)[^\s:'\"`]+|(?<='origin/)[^\s:'\"`]+|(?<=/_temp/)[^/:;,'\"`()\[\]<>]+"
    r"|(?<=\.mesonpy-)[a-z0-9_]{8}|~(?=[A-Za-z]*[A-Z0])[A-Za-z0]{6}(?![A-Za-z0-9_])"
)
#: A web application's files that have their hashes in their names.
_BUNDLE: Final = re.compile(r"-(?=[a-z-]*[A-Z0_])[\w-]{8}(?=\.(?:js|css|map|mjs)\b)")
#: Phrases of git and CI systems with a part that differs between runs, and progress bars.
_PHRASES: Final = re.compile(
    rb"(?<=\bbranch ')[^']+|(?<= -B )\S+|(?<=^ref: )\S+|(?<=\(ref is )[^)]+|(?<=^HEAD is now at # ).+"
    rb"|(?<=^Previous HEAD position was # ).+|(?<=^Secret source: ).+"
    rb"|^(?:Actions|Attestations|Checks|Contents|Deployments|Discussions|IdToken|Issues|Metadata|Models|Packages|Pages"
    rb"|PullRequests|RepositoryProjects|SecurityEvents|Statuses): (?:read|write)$"
    rb"|(?<=\[)(?=[-#. ]*+[=>])[-=>#. ]++(?=\])"
)
#: IPv6 addresses, and MAC addresses with colons.
_COLONS: Final = re.compile(
    r"(?<![A-Za-z0-9:])(?=[0:]*(?:[a-fA-F]|(?<=::)))(?:[0a-fA-F]{0,4}:){2,7}[0a-fA-F]{0,4}(?:%[a-z]+0+)?(?![A-Za-z0-9:])"
)
#: Used after a sign or separator, to prevent a match of a number if a hash or UUID follows.
_NO_ID: Final = r"(?!(?=[0a-fA-F]{6})0*[a-fA-F][0a-fA-F]*(?![A-Za-z0-9])|[0a-fA-F]{8}-[0a-fA-F]{4}-)"
#: Suffixes of version numbers.
_VERSION_TAIL: Final = (
    r"(?:[-.]?(?:alpha|beta|rc|dev|pre|preview|nightly|snapshot|post)[-.]?0*(?:\.0+)*(?![A-Za-z0-9]))?"
    r"(?:-0+)?(?:-g[0a-f]{7,40}(?![A-Za-z0-9]))?"
)
#: The long alternatives are tried only where a run of letters and digits begins, which keeps the time linear.
_NUMBER: Final = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    # Hashes and UUIDs, MAC addresses, words that look random.
    r"(?=[a-fA-F]*0)[0a-fA-F]{6,}(?:-[0a-fA-F]{4}-(?:[0a-fA-F]{4}-){2}[0a-fA-F]{12})?|[0a-fA-F]{2}(?:-[0a-fA-F]{2}){5}"
    r"|[a-fA-F]{8}-(?:[0a-fA-F]{4}-){3}[0a-fA-F]{12}|(?=[A-Za-z0]{12})0*(?:[A-Za-z]+0+){3,}[A-Za-z]*"
    r")(?![A-Za-z0-9])"
    r"|(?<![A-Za-z0-9])(?:SHA|sha|MD|md)0+[:=-][A-Za-z0+/]{20,}={0,2}"
    # Cache directories that are named after hashes.
    r"|(?<=/)[0a-f]{2}(?=/)"
    # Numbers, also joined ones such as times and versions, with or without a unit.
    rf"|0[xX][0a-fA-F]+|(?:(?<![^=(\[{{<>:,;|\"'])[-+]{_NO_ID})?"
    rf"0+(?:(?:[.,:/_+T-]{_NO_ID}|[/-][A-Z][a-z][a-z][/-])0+)*(?:[eE][-+]?0+)?{_VERSION_TAIL}"
    rf"(?:(?:[dhms]|min)0+(?:\.0+)?)*(?:Z|{_UNIT})?"
)
#: Maps all hexadecimal digits (decimal ones are already 0) to one character. ``_ID`` finds ids in the result.
_HEX: Final = bytes.maketrans(b"0abcdefABCDEF", b"\x00" * 13)
_ID: Final = re.compile(rb"\x00{8}(?:-\x00{4}){3}-\x00{12}|\x00+")
#: Characters that separate an id from the text before it: no rule joins text across them.
_BEFORE_ID: Final = frozenset(b" \t\n=([{<\"'")
#: Names of months and days, and AM and PM.
_NAMES: Final = (
    frozenset({"Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"})
    | {"Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"}
    | {"AM", "PM"}
)
#: Repeated characters of rulers, progress bars and marks.
_REPEATED: Final = re.compile(r"([-=.*~#+_^<>!|:/\\\u2500-\u259f\u2022\u00b7\u2026])\1\1+")


class _Words(dict[bytes, bytes]):
    """The masked form of each word, computed on first lookup."""

    def __missing__(self, word: bytes) -> bytes:
        text = word.decode("utf-8", "surrogatepass")
        if "/" in text or "\\" in text:
            text = _TEMPORARY.sub("#", text)
            if "refs/" in text or "origin/" in text or "_temp/" in text or ".mesonpy-" in text or "~" in text:
                text = _REFERENCES.sub("#", text)
        if ".js" in text or ".css" in text or ".map" in text:
            text = _BUNDLE.sub("-#", text)
        if "0" in text:
            if text.count(":") > 1:
                text = _COLONS.sub("#", text)
            text = _NUMBER.sub("#", text)
        elif (name := text.strip("[](){}<>\"',.:;")) in _NAMES:
            text = text.replace(name, "#")
        elif _IS_UNIT.match(text):
            text = _UNIT_MARK + text
        # Searches first: few words have repeated characters, and a search takes a third of a substitution's time.
        if _REPEATED.search(text):
            text = _REPEATED.sub(r"\1\1", text)
        masked = text.encode("utf-8", "surrogatepass")
        _remember(self, word, masked)
        return masked


class ShapeHasher(dict[bytes, int]):
    """The hash of each line's shape, computed on first lookup."""

    def __init__(self) -> None:
        super().__init__()
        self._words = _Words()
        #: Long lines, by hash.
        self._long: dict[bytes, int] = {}

    def hashes(self, messages: Sequence[str]) -> list[int]:
        """The hash of each message's shape, in order."""
        text = "\n".join(messages).encode("utf-8", "surrogatepass").translate(_DIGITS)
        if b"\x1b" not in text:
            # One pass over all lines takes half the time of a pass per line.
            text = _with_equal_ids(text)
        lines = text.split(b"\n")
        if len(lines) != len(messages):
            # Splitting failed, because a foreign runner's message contains newlines, or the list was empty.
            lines = [each.encode("utf-8", "surrogatepass").translate(_DIGITS) for each in messages]
        return list(map(self.__getitem__, lines))

    def shape(self, message: str) -> str:
        line = message.encode("utf-8", "surrogatepass").translate(_DIGITS)
        return self._shape(_without_sequences(line)).decode("utf-8", "surrogatepass")

    def __missing__(self, line: bytes) -> int:
        key = line if len(line) <= _MAX_KEY else blake2b(line, digest_size=16).digest()
        if key is not line and (known := self._long.get(key)) is not None:
            return known
        plain = _with_equal_ids(_without_sequences(line))
        # Removing a control sequence can join the text around it into another one, which stays.
        if plain != line and b"\x1b" not in plain:
            found = self[plain]
            if b"\x1b" not in line:
                return found
        else:
            found = int.from_bytes(blake2b(self._shape(plain), digest_size=_HASH_BYTES).digest(), "little")
        _remember(self if key is line else self._long, key, found)
        return found

    def _shape(self, plain: bytes) -> bytes:
        """The shape, in UTF-8, of a line in which all digits are 0. The line has no control sequences."""
        masked = b" ".join(map(self._words.__getitem__, plain.split()))
        if b"# \x01" in masked or b"# #" in masked or b"#, #" in masked:
            masked = _NUMBERS.sub(b"#", masked)
        # Looks for parts of the phrases first: this is several times as fast as the substitution.
        if (
            b"branch '" in masked
            or b" -B " in masked
            or b"(ref is " in masked
            or b"HEAD " in masked
            or b">]" in masked
            or b"=]" in masked
            or b"> ]" in masked
            or masked.startswith((b"ref: ", b"Secret source: "))
            or masked.endswith((b": read", b": write"))
        ):
            masked = _PHRASES.sub(b"#", masked)
        return masked.replace(b"\x01", b"")


def _without_sequences(line: bytes) -> bytes:
    if b"\x1b" not in line:
        return line
    return strip_sequences(line.decode("utf-8", "surrogatepass")).encode("utf-8", "surrogatepass")


def _with_equal_ids(text: bytes) -> bytes:
    """Zeroes UUIDs, and runs of eight or more hexadecimal digits. Does not change a line's shape.

    Lines that differ only in ids, as many do, become equal. ``text`` is one or more lines without control sequences, in
    which all decimal digits are 0. Returns ``text`` itself if nothing changes.
    """
    classes = text.translate(_HEX)
    parts: list[bytes] = []
    done = end = 0
    while (start := classes.find(b"\x00" * 8, end)) >= 0:
        found = _ID.match(classes, start)
        assert found is not None
        end = found.end()
        has_digit = text.find(b"0", start, end) >= 0
        is_word = (not start or text[start - 1] in _BEFORE_ID) and not text[end : end + 1].isalnum()
        if has_digit and is_word:
            parts += [text[done:start], found[0].replace(b"\x00", b"0")]
            done = end
    return b"".join([*parts, text[done:]])


def _remember(memory: dict[bytes, _Value], key: bytes, value: _Value) -> None:
    # The caches of lines and words take about 45 MiB at most.
    if len(key) <= _MAX_KEY:
        if len(memory) >= 50_000:
            memory.clear()
        memory[key] = value


class ShapeSet:
    """The shapes of one log's lines, at most :data:`MAX_SHAPES` (about 17 MB of memory).

    ``first`` maps each shape to its first line's number. If the log has more shapes, ``is_full`` is set, ``first`` is
    empty, and no log can be compared with this one.
    """

    def __init__(self) -> None:
        self.first: Final[dict[int, int]] = {}
        self.is_full = False

    @property
    def hashes(self) -> Collection[int]:
        return self.first.keys()

    def first_line(self, shape: int) -> int | None:
        """The number of the first line of this shape. None if no line has it."""
        return self.first.get(shape)

    def add(self, hashes: Sequence[int], numbers: Sequence[int]) -> None:
        """Adds lines: their shapes, and their numbers in ascending order."""
        if self.is_full:
            return
        # In this reversed order, the first line of each shape overwrites later ones.
        for shape, number in dict(zip(reversed(hashes), reversed(numbers), strict=True)).items():
            if number < self.first.get(shape, number + 1):
                self.first[shape] = number
        if len(self.first) > MAX_SHAPES:
            self.is_full = True
            self.first.clear()

    def to_bytes(self) -> bytes:
        """The packed set: the BLAKE2b hash of the rest, ``is_full`` as 64 bits, and 14 bytes per shape.

        Columns: all hashes, ascending (64 bits); the lower 32 bits of all line numbers; their next 16 bits.
        Little-endian, like all machines for which RE2 has wheels. Not compressed, because hashes are random.
        """
        hashes = sorted(self.first)
        # A foreign runner can number its lines beyond 48 bits. Such numbers become 0 (unknown).
        numbers = [number if number < 2**48 else 0 for number in map(self.first.__getitem__, hashes)]
        low, high = [number & 0xFFFFFFFF for number in numbers], [number >> 32 for number in numbers]
        count = len(hashes)
        packed = struct.pack(f"<{1 + count}Q{count}I{count}H", self.is_full, *hashes, *low, *high)
        return blake2b(packed, digest_size=_DIGEST_BYTES).digest() + packed


class PackedShapes:
    """A log's shapes, as packed by :meth:`ShapeSet.to_bytes`. Has the members of :class:`ShapeSet`.

    Raises ValueError for invalid data.
    """

    def __init__(self, data: bytes) -> None:
        packed = memoryview(data)[_DIGEST_BYTES:]
        count, rest = divmod(len(packed) - _HASH_BYTES, ENTRY_BYTES)
        if data[:_DIGEST_BYTES] != blake2b(packed, digest_size=_DIGEST_BYTES).digest() or count < 0 or rest:
            raise ValueError("not a set of shapes, or damaged")
        hashes_end = _HASH_BYTES * (1 + count)
        self.is_full: Final = bool(packed[0])
        self.hashes: Final = packed[_HASH_BYTES:hashes_end].cast("Q")
        self.size: Final = len(data)
        numbers = packed[hashes_end:]
        self._low, self._high = numbers[: 4 * count].cast("I"), numbers[4 * count :].cast("H")

    def first_line(self, shape: int) -> int | None:
        """The number of the first line of this shape, 0 if unknown. None if no line has it."""
        index = bisect_left(self.hashes, shape)
        if index == len(self.hashes) or self.hashes[index] != shape:
            return None
        return self._low[index] | self._high[index] << 32


#: The shapes of a whole log, collected or archived.
Shapes = ShapeSet | PackedShapes
