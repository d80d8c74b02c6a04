"""Secrets become ``***``: in whatever pieces a stream brings them, before anything is published or spooled."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from chronoverse.errors import InvalidMask

MASK: Final = b"***"
#: Characters that a secret must have: a shorter one would mask half of the log, and so be told by it.
MIN_CHARACTERS: Final = 4
#: Bytes that a secret may have: as many may have to be held back until it is known whether it is one.
MAX_BYTES: Final = 65_536


class Masks:
    r"""What to mask: secrets, each bytes of any kind.

    Of a secret with several lines every line that is long enough is masked, wherever it stands and however it is
    indented; the shorter ones where the whole secret stands. Each of its lines becomes a line of its own, ``***``.
    Line ends may be ``\n``, ``\r\n`` or ``\r``. Newlines and blanks at its ends are not part of it, nor are blanks at
    the ends of its lines: a program that reads the secret may remove them.

    Raises :class:`InvalidMask` for a secret that is too short or too long, without telling what it is.
    """

    def __init__(self, secrets: Iterable[bytes] = ()) -> None:
        found = {part for secret in secrets for part in _parts(secret)}
        self._longest_first = sorted(found, key=len, reverse=True)
        self._all = re.compile(b"|".join(map(re.escape, self._longest_first)) or b"(?!)")
        self._first = re.compile(b"[%b]" % b"".join(re.escape(part[:1]) for part in found) if found else b"(?!)")
        self._multiline = any(b"\n" in part for part in found)
        self._reach = max(map(len, found), default=1) - 1
        # By up to four first bytes, since one byte alone would make a candidate of every tenth.
        self._by_head: dict[bytes, list[bytes]] = {}
        for part in self._longest_first:
            for length in range(1, MIN_CHARACTERS + 1):
                self._by_head.setdefault(part[:length], []).append(part)

    def __bool__(self) -> bool:
        return bool(self._longest_first)

    def mask(self, text: bytes) -> bytes:
        """``text``, of which nothing comes before or after, masked: leftmost secret first, the longest at a place."""
        return self._all.sub(_replacement, text) if self._occur_in(text) else text

    def mask_decided(self, text: bytes) -> tuple[bytes, bytes]:
        """The part of ``text`` that is decided, masked; and the rest, which may be the beginning of a secret."""
        hold = self._undecided(text, 0)
        if hold == 0 or not self._occur_in(text):
            return text[:hold], text[hold:]
        masked, position = [], 0
        while position < hold:
            found = self._all.search(text, position)
            if found is None or found.start() >= hold:
                break
            masked += [text[position : found.start()], _replacement(found)]
            position = found.end()
            if position > hold:
                hold = self._undecided(text, position)
        return b"".join([*masked, text[position:hold]]), text[hold:]

    def _occur_in(self, text: bytes) -> bool:
        # Ten times as fast as the alternation, which is needed for the few texts only that have a secret in them.
        return any(part in text for part in self._longest_first)

    def _undecided(self, text: bytes, start: int) -> int:
        """The first place from ``start`` on from which all of ``text`` is the beginning of a secret, or its end."""
        start = max(start, len(text) - self._reach)
        if not self._multiline:
            start = max(start, text.rfind(b"\n", start) + 1)
        while found := self._first.search(text, start):
            start = found.start()
            likely = self._by_head.get(text[start : start + MIN_CHARACTERS])
            if likely:
                rest = text[start:]
                if any(len(part) > len(rest) and part.startswith(rest) for part in likely):
                    return start
            start += 1
        return len(text)


class Masker:
    """Masks one stream. However its bytes come in, all that is given out is, joined, :meth:`Masks.mask` of them."""

    def __init__(self, masks: Masks) -> None:
        self._masks = masks
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """What is decided, masked. The beginning of what may become a secret is held back."""
        masked, self._held = self._masks.mask_decided(self._held + data)
        return masked

    def close(self) -> bytes:
        """The rest: it has become no secret, or a shorter one."""
        text, self._held = self._held, b""
        return self._masks.mask(text)


def load_masks(
    values: Iterable[str] = (),
    names: Iterable[str] = (),
    files: Iterable[Path] = (),
    environ: Mapping[str, str] | None = None,
) -> Masks:
    """The masks of a command line: given as they are, as names of variables of ``environ``, and as files.

    Raises :class:`InvalidMask`, which names what was given but no value.
    """
    secrets = [_checked("--mask", _encoded(value)) for value in values]
    secrets += [_checked(f"--mask-env {name}", _encoded(_variable(name, environ or {}))) for name in names]
    secrets += [_checked(f"--mask-file {path}", _content(path)) for path in files]
    return Masks(secrets)


def _checked(source: str, secret: bytes) -> bytes:
    try:
        _parts(secret)
    except InvalidMask as error:
        raise InvalidMask(f"{source}: {error}") from None
    return secret


def _encoded(text: str) -> bytes:
    # As the system gave it: what is not UTF-8 in an argument or a variable comes as surrogates. PEP 383.
    return text.encode("utf-8", "surrogateescape")


def _variable(name: str, environ: Mapping[str, str]) -> str:
    if not environ.get(name):
        raise InvalidMask(f"--mask-env {name}: the variable is {'empty' if name in environ else 'not set'}")
    return environ[name]


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 3)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InvalidMask(f"--mask-file {path}: {reason}") from None


def _parts(secret: bytes) -> list[bytes]:
    """What to look for: the lines that are long enough, and the whole where others are not."""
    whole = re.sub(rb"\r*+\n|\r++", b"\n", secret).strip()
    if _characters(whole) < MIN_CHARACTERS:
        raise InvalidMask(
            f"a secret to mask must have {MIN_CHARACTERS} characters at least, without the blanks at its ends"
        )
    if len(whole) > MAX_BYTES:
        raise InvalidMask(f"a secret to mask may have {MAX_BYTES} bytes at most")
    if b"\n" not in whole:
        return [whole]
    lines = [line.strip() for line in whole.split(b"\n")]
    parts = [line for line in lines if _characters(line) >= MIN_CHARACTERS]
    if all(not line or line in parts for line in lines):
        return parts
    return [whole, b"\n".join(line.rstrip() for line in whole.split(b"\n")), *parts]


def _characters(text: bytes) -> int:
    return len(text.decode("utf-8", "replace"))


def _replacement(found: re.Match[bytes]) -> bytes:
    """A whole secret's lines stay lines: their number does not change with what is masked."""
    return b"\n".join(MASK if line.strip() else line for line in found[0].split(b"\n"))
