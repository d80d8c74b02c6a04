"""Cuts long JSON lists into slices, so that a large document is not parsed all at once."""

import re
from collections.abc import Callable, Iterator
from typing import Any, Final

import orjson
from werkzeug.exceptions import BadRequest

from chronoverse.web.http.bodies import SLICE_BYTES, without_strings

#: Maximum brackets outside strings. Finding so many takes 0.2 s, in slices.
_MAX_BRACKETS: Final = 500_000

#: A bracket, or a whole object that contains no lists and no deeper objects. Most objects contain neither.
_BRACKETS: Final = re.compile(rb"\{[^][{}]*+(?:\{[^][{}]*+\}[^][{}]*+)*+\}|[][{}]")
_AFTER_ELEMENT: Final = re.compile(rb"[ \t\r\n]*+([],])")

#: Start and end of some list elements in a text. An element longer than SLICE_BYTES has its own slice.
Slice = tuple[int, int]


def cut_lists(text: bytearray, path: bytes, pause: Callable[[], None]) -> tuple[bytearray, list[Slice]]:
    """Cuts out the elements of all lists at the nesting ``path``, which ends with the list's own bracket.

    Returns the rest of the text, and the slices. In the rest, each list contains the indexes of its slices. Calls
    ``pause`` often. Raises 400 for some invalid JSON; most errors are found later, when the parts are parsed.
    """
    rest, slices, is_open = bytearray(), list[Slice](), bytearray()
    copied = start = element = first = 0
    for at, end in _brackets(text, pause):
        if text[at] in b"[{":
            if is_open == path:
                element = at
            is_open.append(text[at])
            if is_open == path:
                rest += text[copied:end]
                start, first = end, len(slices)
            if end == at + 1:
                continue
        elif is_open == path:
            slices.append((start, at))
            rest += b",".join(b"%d" % index for index in range(first, len(slices)))
            copied = at
        del is_open[-1:]
        if is_open == path and end - start >= SLICE_BYTES:
            if end - element > SLICE_BYTES:
                slices.append((start, element))
                start = element
            slices.append((start, end))
            found = _AFTER_ELEMENT.match(text, end)
            if found is None:
                raise BadRequest("the body is not JSON: expected a comma after a bracket")
            start = found.end() if found[1] == b"," else found.start(1)
    return rest + text[copied:], slices


def load_elements(text: bytearray, where: Slice) -> list[Any]:
    """The elements in a slice. Raises 400 for invalid JSON."""
    try:
        # A slice before a long element ends with a comma.
        elements: list[Any] = orjson.loads(b"[" + text[slice(*where)].rstrip(b" \t\r\n,") + b"]")
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the body is not JSON: {error}") from error
    return elements


def _brackets(text: bytearray, pause: Callable[[], None]) -> Iterator[Slice]:
    """Positions of brackets outside strings, or of whole objects: see :data:`_BRACKETS`."""
    start = count = 0
    for part in without_strings(text, pause):
        for found in _BRACKETS.finditer(part):
            yield start + found.start(), start + found.end()
            count += 1
        if count > _MAX_BRACKETS:
            raise BadRequest(f"the body has more than {_MAX_BRACKETS} brackets around values")
        start += len(part)
