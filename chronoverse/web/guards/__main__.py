"""``python -m chronoverse.web.guards`` prints the table of the guards' bounds, made from the package's docstring."""

import re
from importlib import import_module
from operator import attrgetter
from typing import Final

from chronoverse.web import guards

_CONSTANT: Final = re.compile(r"{([a-z_.]+)\.([A-Z_]+)([a-z_.]*)}")


def markdown_table() -> str:
    """A row for each bound: what it bounds, its value, and the constants that have it."""
    rows = ["| what | bound | where |", "|---|---|---|"]
    for entry in re.findall(r"^- (.+(?:\n  .+)*)", guards.__doc__ or "", re.MULTILINE):
        text = " ".join(entry.split())
        where = list(dict.fromkeys(f"`web.{match[1]}.{match[2]}`" for match in _CONSTANT.finditer(text)))
        what, _, bound = _CONSTANT.sub(_value, text).partition(": ")
        rows.append(f"| {what} | {bound} | {', '.join(where)} |")
    return "\n".join(rows) + "\n"


def _value(match: re.Match[str]) -> str:
    """The constant's value, with the unit that its name ends with."""
    name = (match[2] + match[3]).lower()
    value = attrgetter(match[2] + match[3])(import_module(f"chronoverse.web.{match[1]}"))
    if name.endswith("bytes_per_second"):
        return f"{value:,} bytes"
    if name.endswith("seconds"):
        return f"{value:g} s" if value >= 0.01 else f"{value * 1000:g} ms"
    if name.endswith("bytes"):
        return f"{value >> 20} MiB" if value % 2**20 == 0 else f"{value >> 10} KiB"
    return f"{value:,}"


if __name__ == "__main__":
    print(markdown_table(), end="")
