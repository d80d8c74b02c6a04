"""Makes lines safe to print on a terminal: removes all control sequences except colors.

A job's output is untrusted. An escape sequence can set the clipboard, change the window's title, rewrite earlier
lines, or make the terminal send input: see https://dgl.cx/2023/09/ansi-terminal-security.
"""

import re
from dataclasses import dataclass
from typing import Final

from chronoverse.joblog.model import Gap, Line

# Characters that a terminal could interpret, or that change the text's direction. Most lines have none.
_UNSAFE = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")

# ECMA-48, https://ecma-international.org/publications-and-standards/standards/ecma-48/
_SEQUENCE = re.compile(
    "\x1b\\[(?P<sgr>[0-9;:]*)m"
    # CSI, up to its final byte. Without a final byte it ends where its parameters end, not at the text's end.
    "|(?:\x1b\\[|\x9b)[0-?]*[ -/]*[@-~]?"
    # DCS, SOS, OSC, PM and APC, up to ST or BEL, or to a character that aborts them; else up to the line's end.
    "|(?:\x1b[PX\\]^_]|[\x90\x98\x9d\x9e\x9f])[^\x07\n\x18\x1a\x1b\x9c]*(?:\x1b\\\\|[\x07\x18\x1a\x9c])?"
    "|\x1b[ -/]*[0-~]?"
    # Any other control character, and the control characters after it that begin no sequence.
    "|[\x00-\x08\x0b-\x1f\x7f-\x9f][\x00-\x08\x0b-\x1a\x1c-\x1f\x7f-\x8f\x91-\x97\x99\x9a\x9c]*"
)
#: Shown in place of characters that would break the line or change its direction.
_SHOWN: Final = {
    number: f"<U+{number:04X}>"
    for number in (0x0A, 0x61C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A))
}


def sanitize(text: str, colour: bool) -> str:
    r"""Removes control sequences from a line. Keeps tabs and, with ``colour``, SGR (``ESC [ … m``).

    Replaces a character that would break the line, or change its direction, with its number.

    >>> sanitize("a\x1b[2Jb\x1b]0;title\x07c\u202ed", colour=False)
    'abc<U+202E>d'
    """
    # Unsafe characters are not printable. This check takes a fifth of the search's time.
    if text.isprintable() or not _UNSAFE.search(text):
        return text
    if not colour:
        # A function per match would take two to nine times as long, and block the worker.
        return _SEQUENCE.sub("", text).translate(_SHOWN)
    colour_is_on = False

    def replace(found: re.Match[str]) -> str:
        nonlocal colour_is_on
        if found["sgr"] is None:
            return ""
        parameters = _visible(found["sgr"])
        colour_is_on = parameters.strip("0") != ""
        return f"\x1b[{parameters}m"

    clean = _SEQUENCE.sub(replace, text).translate(_SHOWN)
    # Resets colors at the end of the line, so that they do not affect the next line or the shell's prompt.
    return clean + "\x1b[0m" if colour_is_on else clean


def plain_text(text: str) -> str:
    """Removes control sequences and colors from ``text``, which can have several lines."""
    return "\n".join(sanitize(line, colour=False) for line in text.split("\n"))


def _visible(parameters: str) -> str:
    """SGR parameters without 8, which hides text. The 8 in ``38;5;8`` is a gray and stays."""
    given = parameters.split(";")
    visible: list[str] = []
    while given:
        # Some colors take several parameters: ``38;5;n`` and ``38;2;r;g;b``.
        length = {"5": 3, "2": 5}.get(given[1], 1) if given[0] in ("38", "48", "58") and len(given) > 1 else 1
        if given[0].partition(":")[0].lstrip("0") != "8":
            visible += given[:length]
        given = given[length:]
    return ";".join(visible)


def counted(number: int, one: str = "line", many: str = "lines") -> str:
    """A number with its noun.

    >>> counted(1), counted(2, "line was", "lines were")
    ('1 line', '2 lines were')
    """
    return f"{number} {one if number == 1 else many}"


def gap_notice(gap: Gap) -> str:
    """The text printed instead of unavailable lines.

    >>> gap_notice(Gap(2, 900, "trimmed"))
    '--- lines 2-900 are gone (trimmed) ---'
    """
    which = f"line {gap.first} is" if gap.first == gap.last else f"lines {gap.first}-{gap.last} are"
    return f"--- {which} gone{f' ({plain_text(gap.reason)})' if gap.reason else ''} ---"


def redaction_notice(first: int, last: int) -> str:
    """The text printed after a redaction of lines above it. Some lines in the range may be unchanged.

    >>> redaction_notice(2, 9)
    '--- text in lines 2-9 was redacted ---'
    """
    which = f"line {first}" if first == last else f"lines {first}-{last}"
    return f"--- text in {which} was redacted ---"


@dataclass(slots=True, eq=False, kw_only=True)
class LineRenderer:
    """Formats lines for printing. Remembers which stream has an open partial line.

    Only the line with the next number continues a partial line, because its rest may be among missing lines. With
    ``skips_numbers``, any line does. With ``only_stream``, pass :meth:`render` all lines, so that none seems missing.
    """

    timestamps: bool = False
    numbers: bool = False
    colour: bool = True
    raw: bool = False
    only_stream: str | None = None
    skips_numbers: bool = False
    _open: str | None = None
    _next_number: int = 0

    def render(self, line: Line) -> str:
        """The text of the next line. A partial line has no newline at the end."""
        follows = self.skips_numbers or line.sequence_num == self._next_number
        self._next_number = line.sequence_num + 1
        if self.only_stream not in (None, line.stream):
            return "" if follows else self.close_line()
        start = "" if follows and self._open == line.stream else self.close_line()
        if self.numbers and self._open is None:
            start += f"{line.sequence_num:>6}  "
        if self.timestamps and self._open is None:
            start += self._clean(line.timestamp) + " "
        self._open = line.stream if line.partial else None
        return start + self._clean(line.message) + ("" if line.partial else "\n")

    def close_line(self) -> str:
        """The text that ends an open partial line. Print it before anything that does not continue that line."""
        start = "" if self._open is None else "\n"
        self._open = None
        return start

    def _clean(self, text: str) -> str:
        return text if self.raw else sanitize(text, self.colour)
