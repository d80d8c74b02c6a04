"""Page cursors: opaque to clients, and good only for the listing they came from."""

import base64
import binascii
from collections.abc import Sequence
from typing import Any

import orjson

from chronoverse.errors import InvalidCursor


def encode_cursor(listing: Sequence[Any], place: Sequence[Any]) -> str:
    """A cursor for ``place`` in ``listing``; both are JSON scalars, ``listing`` all that the cursor is bound to."""
    return base64.urlsafe_b64encode(orjson.dumps([*listing, *place])).rstrip(b"=").decode()


def decode_cursor(cursor: str, listing: Sequence[Any], kinds: Sequence[type]) -> list[Any]:
    """The place in ``listing``, one value of each of ``kinds``.

    Raises: :class:`InvalidCursor`.
    """
    try:
        values = orjson.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
    except (binascii.Error, orjson.JSONDecodeError, ValueError) as error:
        raise InvalidCursor("cursor: this is not one of ours") from error
    if not isinstance(values, list) or len(values) != len(listing) + len(kinds):
        raise InvalidCursor("cursor: this is not one of ours")
    bound, place = values[: len(listing)], values[len(listing) :]
    if bound != list(listing):
        raise InvalidCursor("cursor: it was made for another job, order or filter")
    if any(type(value) is not kind for value, kind in zip(place, kinds, strict=True)):
        raise InvalidCursor("cursor: this is not one of ours")
    return place
