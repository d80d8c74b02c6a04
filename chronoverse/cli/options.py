"""What several commands take on their command lines."""

import re
from typing import Final

import click

from chronoverse.joblog.values import IDENTIFIER

#: Seconds in the units of ``--ttl``, and the longest that a token may be good for: ten years.
_UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3_600, "d": 86_400}
_MAX_TTL: Final = 315_360_000


def identifier(text: str) -> str:
    """A workflow's or a job's id."""
    if not IDENTIFIER.fullmatch(text):
        raise click.BadParameter("ids are 1 to 128 of A-Z a-z 0-9 . _ - and start with a letter or digit")
    return text


def duration(text: str) -> int:
    """Seconds out of a number with its unit."""
    found = re.fullmatch("([0-9]{1,9})([smhd]?)", text)
    seconds = int(found[1]) * _UNITS[found[2]] if found else 0
    if not 0 < seconds <= _MAX_TTL:
        raise click.BadParameter("give a number of s, m, h or d, such as 90s or 1h, up to ten years")
    return seconds
