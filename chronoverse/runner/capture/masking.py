"""Replaces secrets with ``***`` before anything is published or spooled, even if a read splits a secret."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from chronoverse.errors import InvalidMask
from chronoverse.joblog.secret_forms import SecretForms

#: Minimum characters of a secret. A shorter secret would occur everywhere in a log, and its masks would reveal it.
_MIN_CHARACTERS: Final = 4
#: Maximum bytes of a secret. Up to this many bytes are held back while they could begin a secret.
MAX_BYTES: Final = 65_536


class Masks:
    """The secrets to mask, as arbitrary bytes.

    Masks each line of a secret wherever it occurs, but very short lines only as a part of the whole secret. Ignores
    line endings, and whitespace next to them and around the secret, because programs can change these. Raises
    :class:`InvalidMask` if a secret is too short or too long. The error does not contain the secret.
    """

    def __init__(self, secrets: Iterable[bytes] = (), forms: SecretForms | None = None) -> None:
        self.forms: Final = forms or SecretForms(None)
        found = {part for secret in secrets for part in _parts(secret)}
        self._longest_first = sorted(found, key=len, reverse=True)
        self._all = re.compile(b"|".join(map(re.escape, self._longest_first)) or b"(?!)")

    def mask(self, text: bytes) -> bytes:
        """Masks a complete text. Of overlapping secrets, masks the leftmost, then the longest."""
        return self._all.sub(_replacement, text) if self._occur_in(text) else text

    def mask_decided(self, text: bytes) -> tuple[bytes, bytes]:
        """Masks the beginning of a text. Returns the masked part, and the unmasked rest, which could begin a secret.

        Prepend the rest to the stream's next piece; pass the last rest to :meth:`mask`. The joined results equal
        :meth:`mask` of the whole stream, however it is split.
        """
        end = self._undecided_from(text, 0)
        if end == 0 or not self._occur_in(text):
            return text[:end], text[end:]
        masked, position = [], 0
        while position < end:
            found = self._all.search(text, position)
            if found is None or found.start() >= end:
                break
            masked += [text[position : found.start()], _replacement(found)]
            position = found.end()
            if position > end:
                end = self._undecided_from(text, position)
        return b"".join([*masked, text[position:end]]), text[end:]

    def _occur_in(self, text: bytes) -> bool:
        # This check is ten times as fast as the regular expression, which few texts need.
        return any(part in text for part in self._longest_first)

    def _undecided_from(self, text: bytes, start: int) -> int:
        """The first position, from ``start``, at which the rest of ``text`` could begin a secret; else its end."""
        end = len(text)
        for part in self._longest_first:
            position = max(start, len(text) - len(part) + 1)
            while (position := text.find(part[:1], position, end)) >= 0:
                if part.startswith(text[position:]):
                    end = position
                    break
                position += 1
        return end


def load_masks(
    values: Iterable[str] = (),
    names: Iterable[str] = (),
    files: Iterable[Path] = (),
    environ: Mapping[str, str] | None = None,
    forms: SecretForms | None = None,
) -> Masks:
    """The masks for a command line's options. Raises :class:`InvalidMask` with the option's name, never the secret."""
    environ = environ or {}
    given = [("--mask", os.fsencode(value)) for value in values]
    for name in names:
        if not environ.get(name):
            raise InvalidMask(f"--mask-env {name}: the variable is {'empty' if name in environ else 'not set'}")
        given.append((f"--mask-env {name}", os.fsencode(environ[name])))
    given += [(f"--mask-file {path}", _content(path)) for path in files]
    for source, secret in given:
        try:
            _parts(secret)
        except InvalidMask as error:
            raise InvalidMask(f"{source}: {error}") from None
    return Masks((secret for _, secret in given), forms)


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 3)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InvalidMask(f"--mask-file {path}: {reason}") from None


def _parts(secret: bytes) -> list[bytes]:
    whole = re.sub(rb"\r*+\n|\r++", b"\n", secret).strip()
    if _characters(whole) < _MIN_CHARACTERS:
        raise InvalidMask(
            f"a secret to mask must have at least {_MIN_CHARACTERS} characters, without surrounding whitespace"
        )
    if len(whole) > MAX_BYTES:
        raise InvalidMask(f"a secret to mask can have at most {MAX_BYTES} bytes")
    if b"\n" not in whole:
        return [whole]
    lines = [line.strip() for line in whole.split(b"\n")]
    parts = [line for line in lines if _characters(line) >= _MIN_CHARACTERS]
    if all(not line or line in parts for line in lines):
        return parts
    return [whole, b"\n".join(line.rstrip() for line in whole.split(b"\n")), *parts]


def _characters(text: bytes) -> int:
    return len(text.decode("utf-8", "replace"))


def _replacement(found: re.Match[bytes]) -> bytes:
    """A secret's mask. Has as many lines as the secret, so that line numbers stay the same."""
    return b"\n".join(b"***" if line.strip() else line for line in found[0].split(b"\n"))
