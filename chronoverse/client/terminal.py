"""A job's log on a terminal, where its lines may show text and colours and do nothing else.

A job's output is not to be trusted: an escape sequence can set the clipboard, retitle the window, rewrite
earlier lines or make the terminal type. https://dgl.cx/2023/09/ansi-terminal-security lists what came of it.
"""

import re
from typing import Final

from chronoverse.joblog.values import Gap, Line

#: Ends whatever colours a line left on, so that they reach neither the next line nor the shell's prompt.
RESET: Final = "\x1b[0m"

# Only what a terminal could act on, or what would reorder the text around it. Plain lines match nothing.
_UNSAFE = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")

# ECMA-48, https://ecma-international.org/publications-and-standards/standards/ecma-48/
_SEQUENCE = re.compile(
    "\x1b\\[(?P<sgr>[0-9;:]*)m"
    # CSI, up to its final byte. One without an end ends where its parameters do, not at the text's end.
    "|(?:\x1b\\[|\x9b)[0-?]*[ -/]*[@-~]?"
    # DCS, SOS, OSC, PM and APC, up to ST or BEL, or to what aborts them; without an end, up to the line's.
    "|(?:\x1b[PX\\]^_]|[\x90\x98\x9d\x9e\x9f])[^\x07\n\x18\x1a\x1b\x9c]*(?:\x1b\\\\|[\x07\x18\x1a\x9c])?"
    "|\x1b[ -/]*[0-~]?"
    "|(?P<shown>[\x0a\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069])"
    "|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)
#: SGR parameters that start a colour and take the following ones along: ``38;5;n`` and ``38;2;r;g;b``.
_COLOUR: Final = {"38", "48", "58"}
_COLOUR_LENGTH: Final = {"5": 3, "2": 5}
#: SGR 8: text that is there and cannot be seen.
_CONCEAL: Final = "8"


def sanitize(text: str, colour: bool) -> str:
    r"""``text`` with every control sequence taken out, except tabs and, if ``colour``, SGR (``ESC [ … m``).

    What would break the line or turn its direction is shown by its number.

    >>> sanitize("a\x1b[2Jb\x1b]0;title\x07c\u202ed", colour=False)
    'abc<U+202E>d'
    """
    if not _UNSAFE.search(text):
        return text
    colour_is_on = False

    def replace(found: re.Match[str]) -> str:
        nonlocal colour_is_on
        if (shown := found["shown"]) is not None:
            return f"<U+{ord(shown):04X}>"
        if not colour or found["sgr"] is None:
            return ""
        parameters = _visible(found["sgr"])
        colour_is_on = parameters.strip("0") != ""
        return f"\x1b[{parameters}m"

    clean = _SEQUENCE.sub(replace, text)
    return clean + RESET if colour_is_on else clean


def plain_text(text: str) -> str:
    """``text`` of any number of lines without control sequences and colours: what a command may say of anything.

    Every command's output goes through this, or through :class:`Rendering` where it is a log's lines.
    """
    return "\n".join(sanitize(line, colour=False) for line in text.split("\n"))


def _visible(parameters: str) -> str:
    """SGR parameters without the one that hides text. The 8 of ``38;5;8`` is a grey, and stays."""
    given = parameters.split(";")
    kept: list[str] = []
    while given:
        length = _COLOUR_LENGTH.get(given[1], 1) if given[0] in _COLOUR and len(given) > 1 else 1
        if given[0].partition(":")[0].lstrip("0") != _CONCEAL:
            kept += given[:length]
        given = given[length:]
    return ";".join(kept)


def gap_notice(gap: Gap) -> str:
    """What a reader is told instead of lines that cannot be had.

    >>> gap_notice(Gap(2, 900, "trimmed"))
    '--- lines 2-900 are gone (trimmed) ---'
    """
    which = f"line {gap.first} is" if gap.first == gap.last else f"lines {gap.first}-{gap.last} are"
    return f"--- {which} gone ({plain_text(gap.reason)}) ---"


def redaction_notice(first: int, last: int) -> str:
    """What a reader is told of lines above that have been redacted since.

    >>> redact_notice(2, 9)
    '--- lines 2-9 have been redacted: what they said above is to be shown no more ---'
    """
    which = f"line {first} has" if first == last else f"lines {first}-{last} have"
    return f"--- {which} been redacted: what they said above is to be shown no more ---"


class LineRenderer:
    """Lines as the text to print. Remembers one thing: whose long line, cut into pieces, is still open."""

    def __init__(self, *, timestamps: bool = False, colour: bool = True, raw: bool = False) -> None:
        self._timestamps = timestamps
        self._colour = colour
        self._raw = raw
        self._open: str | None = None

    def render(self, line: Line) -> str:
        """The text of the next line; of a piece, without a newline."""
        start = self.close_line() if self._open != line.stream else ""
        if self._timestamps and self._open is None:
            start += self._clean(line.timestamp) + " "
        self._open = line.stream if line.partial else None
        return start + self._clean(line.message) + ("" if line.partial else "\n")

    def close_line(self) -> str:
        """What must be printed before anything that does not go on with an open line."""
        start = "" if self._open is None else "\n"
        self._open = None
        return start

    def _clean(self, text: str) -> str:
        return text if self._raw else sanitize(text, self._colour)
