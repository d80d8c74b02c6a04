"""Masks secrets in known formats: keys of clouds and code hosts, tokens, passwords in URLs, private keys. Pure.

Each secret is replaced by :data:`_MASKED` before a line is stored. One RE2 pass finds the few lines that can contain
secrets.
"""

import re
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from operator import itemgetter
from typing import Final

from chronoverse.errors import SettingsError
from chronoverse.joblog.matcher import ENDS, ExpressionSet, compile_groups, strip_and_map, strip_sequences

_MASKED: Final = b"[masked]"
#: Maximum bytes at the end of a text that are held back as the possible beginning of a secret.
MAX_HELD: Final = 8_192
#: Maximum secrets masked individually in a line, at some microseconds each. A line with more is masked as a whole.
MAX_SECRETS: Final = 1_000

#: Each row is a form of two RE2 expressions. The first finds candidates; the second matches the secret, or captures it
#: in the first matching group. ``~``: the secret must not follow a word character or sign, except an escape such as
#: ``\n`` of JSON. Passwords in URLs exclude placeholders; docker://alpine:3.18@sha256:… contains no password.
_ROWS: Final = r"""
AKIA|ASIA|ABIA|ACCA           (?:^|[^A-Z0-9])((?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16})\b
IQoJb3JpZ2lu|FwoGZXIvYXdz     (?:IQoJb3JpZ2lu|FwoGZXIvYXdz)[\w/+=%]{100,}
(?i:secret_?access_?key)      (?i:secret_?access_?key)\\?["']?[\s:=]{1,4}\\?["']?([A-Za-z0-9/+]{40})(?:[^A-Za-z0-9/+]|$)
gh[opsur]_|github_pat_        gh[opsur]_[A-Za-z0-9]{36,}|github_pat_\w{60,}
GITLAB-                       GITLAB-[\w-]{20,}(?:\.[0-9a-z.]+)?
xox[a-z]-|xapp-               xox[a-eoprs]-[A-Za-z0-9%-]{10,}|xapp-[0-9]-[A-Za-z0-9-]{20,}
hooks\.slack\.com             hooks\.slack\.com/(?:services|workflows|triggers)/([\w/-]{20,})
[rs]k_(?:live|test)_|whsec_   ~([rs]k_(?:live|test)_[A-Za-z0-9]{24,}|whsec_[A-Za-z0-9+/=]{32,})
AIza|GOCSPX-|ya29\.           ~(AIza[\w-]{35,}|GOCSPX-[\w-]{28,}|ya29\.[\w.-]{30,})
npm_|_authToken               ~(npm_[A-Za-z0-9]{36})\b|_authToken=\\?["']?([^\s"'\\$]{8,})
pypi-AgE                      pypi-AgE[\w-]{50,}
eyJ                           eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}
://[^\s/:@"'<>]*:[^\s/@"'<>]+@  ://[^\s/:@"'<>]*:([^\s/@"'<>$*{][^\s/"'<>]{3,255})@(?:[^s]|s[^h]|sh[^a]|sha[^2])
""".replace("~", r"(?:^|[^A-Za-z0-9+_-]|\\[nrt])").replace(
    "GITLAB", "gl(?:pat|oas|dt|rtr?|cbt|ptt|ft|imt|agent|soat|ffct)"
)
_FORMS: Final = [(row.split()[0], row.split()[1]) for row in _ROWS.strip().splitlines()]

#: The beginning and end of private keys, which enclose headers and lines of base64.
_MARKER: Final = re.compile(rb"-----(BEGIN|END) [A-Z0-9 ]{0,20}PRIVATE KEY(?: BLOCK)?-----")
_INLINE: Final = re.compile(rb"(?:\\+[nr]|[A-Za-z0-9+/=])*")
_BASE64: Final = re.compile(rb"[A-Za-z0-9+/=]+(?:\\+[nr])?")
_HEADER: Final = re.compile(rb"(?:Proc-Type|DEK-Info|Version|Comment|Charset|Hash): .*|")
#: Minimum characters of the first base64 line of a key.
_LEAST_BODY: Final = 40

#: Matches the beginning of a possible secret at the end of a text. Passwords in URLs, and keys that follow a name, have
#: patterns of their own, because other parts of the form precede the secret.
_UNFINISHED: Final = (
    rf"(?:{'|'.join(hint for hint, _ in _FORMS[:-1])})\S*\z|[a-z0-9]://[^\s/]*\z"
    r"""|(?i:secret_?access_?key)\\?["']?[\s:=]{0,4}\\?["']?[A-Za-z0-9/+]{0,40}\z"""
)

Span = tuple[int, int]


class SecretForms:
    """The built-in forms, and ``more``: pairs of a name and an RE2 expression.

    If ``more`` is None, masks nothing: the built-in forms are off, too. Raises :class:`SettingsError` for an invalid
    expression.
    """

    def __init__(self, more: Iterable[tuple[str, str]] | None = ()) -> None:
        self.is_on: Final = more is not None
        rows = [*_FORMS] if self.is_on else []
        self._forms: Final = [compile_groups(form) for _, form in rows]
        hints, where = [hint for hint, _ in rows], ""
        try:
            for name, expression in more or ():
                where = f"form {name}"
                self._forms.append(compile_groups(expression))
                if self._forms[-1].search(b""):
                    raise ValueError("matches the empty string")
                # Several lines are searched at once. If the expression does not allow this, "" accepts all lines.
                hints.append("" if ENDS.search(expression) else f"(?m){expression}")
            where = "the forms together"
            self._candidates: Final = ExpressionSet([*hints, "PRIVATE KEY"] if self.is_on else [], is_folded=False)
        except ValueError as error:
            raise SettingsError(f"CHRONOVERSE_MASK_FORMS: {where}: {error}") from None
        #: Matches the beginning of a possible secret at the end of a text.
        self.unfinished: Final = compile_groups(_UNFINISHED)

    def mask_lists(
        self, lists: Iterable[tuple[str, bool, list[bytes]]], pause: Callable[[], object] = lambda: None
    ) -> None:
        """Masks lists of lines in place. Each has its stream, and a flag if its last line continues in the next list.

        Calls ``pause`` often: a line of 64 KiB can take some milliseconds.
        """
        streams = defaultdict[str, list[tuple[bytes, list[bytes]]]](list)
        for name, is_partial, lines in lists:
            streams[name].append((b"" if is_partial else b"\n", lines))
        for found in streams.values():
            if not any(self.may_be_in(text) for text in _whole_lines(found, pause)):
                continue
            mask, line = StreamMask(self), list[tuple[list[bytes], int]]()
            for end, lines in [*found, (b"\n", [b""])]:  # ends the last line, if it is unfinished
                for index in range(len(lines)):
                    line.append((lines, index))
                    if end:
                        pause()
                        masked = mask.mask_pieces([pieces[at] for pieces, at in line])
                        for (pieces, at), piece in zip(line, masked, strict=True):
                            pieces[at] = piece
                        line = []

    def may_be_in(self, text: bytes) -> bool:
        """Whether any line of ``text`` can contain a secret."""
        plain = strip_sequences(text.decode("latin-1")).encode("latin-1") if b"\x1b" in text else b""
        return bool(self._candidates.matches(text) or self._candidates.matches(plain))

    def spans(self, line: bytes) -> Iterator[Span]:
        """The positions of secrets in a line, except private keys. Secrets can overlap."""
        for index in self._candidates.matches(line):
            # The last candidate expression is for private keys, which have no form.
            for found in self._forms[index].finditer(line) if index < len(self._forms) else ():
                groups = map(found.span, range(1, found.re.groups + 1))
                yield next((span for span in groups if span[0] >= 0), found.span())


#: Masks nothing.
UNMASKED: Final = SecretForms(None)


def _whole_lines(lists: Iterable[tuple[bytes, Sequence[bytes]]], pause: Callable[[], object]) -> Iterator[bytes]:
    """Joins the lines of ``lists``, with their line endings, into texts of some 4 KB. Calls ``pause`` often."""
    begun, size = list[bytes](), 0
    for end, lines in lists:
        for start in range(0, len(lines), 32):
            begun.append(end.join([*lines[start : start + 32], b""]))
            size += len(begun[-1])
            # Searching each short list alone would take five times as long.
            if end and size >= 4096:
                pause()
                yield b"".join(begun)
                begun, size = [], 0
    yield b"".join(begun)


class StreamMask:
    """Masks the lines of one stream, in order, because a private key spans several lines."""

    def __init__(self, forms: SecretForms) -> None:
        self._forms = forms
        #: Within a private key: how many bytes precede and follow its BEGIN marker in that line (each line can have the
        #: same prefix), and whether a line of base64 has come.
        self.key: tuple[int, int, bool] | None = None
        #: The last bytes of the unfinished line, as :meth:`mask_part` got them.
        self.before = b""

    def __call__(self, text: bytes) -> bytes:
        """Masks lines separated by newlines. The number of lines stays the same."""
        before, self.before = self.before, b""
        if self.key is None and not self._forms.may_be_in(before + text):
            return text
        first, *others = text.split(b"\n")
        return b"\n".join(self.mask_pieces(line)[-1] for line in [[before, first], *([each] for each in others)])

    def mask_part(self, text: bytes) -> bytes:
        """Masks a part of a line. The next call continues the line."""
        key, before = self.key, self.before
        masked = self(text)
        # Only a whole line shows whether a key continues in the next one.
        self.key, self.before = key, (before + text)[-MAX_HELD:]
        return masked

    def mask_pieces(self, pieces: Sequence[bytes]) -> list[bytes]:
        """Masks the pieces of one line. Every piece that contains a part of a secret gets a mask."""
        line = b"".join(pieces)
        spans, masked, end = self._spans(line), list[bytes](), 0
        for piece in pieces:
            position, end, parts = end, end + len(piece), list[bytes]()
            first, after = bisect_right(spans, position, key=itemgetter(1)), bisect_left(spans, end, key=itemgetter(0))
            for start, stop in spans[first:after]:
                parts += [line[position:start], _MASKED]
                position = stop
            masked.append(b"".join([*parts, line[position:end]]))
        return masked

    def undecided(self, text: bytes) -> int:
        """How many bytes at the end of ``text``, the next part of a line, could be the beginning of a secret."""
        tail = (self.before + text)[-MAX_HELD:] if self._forms.is_on else b""
        if self.key is None:
            found = self._forms.unfinished.search(tail)
            if found is None:
                return 0
            # The possible secret can be within another one, such as a token in a URL's password.
            outer = [first for first, end in self._forms.spans(tail) if first < found.start() < end]
            tail = tail[min([found.start(), *outer]) :]
        return min(len(text), len(tail))

    def _spans(self, line: bytes) -> list[Span]:
        """The positions of a line's secrets, in order and without overlaps."""
        spans = [*islice(self._forms.spans(line), MAX_SECRETS + 1)]
        if b"\x1b" in line:
            stripped, original = strip_and_map(line.decode("latin-1"))
            plain = stripped.encode("latin-1")
            found = [*islice(self._forms.spans(plain), MAX_SECRETS + 1), *self._key_spans(plain)]
            spans += [(original(start), original(end - 1) + 1) for start, end in found]
        else:
            spans += self._key_spans(line)
        if len(spans) > MAX_SECRETS:
            return [(0, len(line))]
        joined: list[Span] = []
        for start, end in sorted(spans):
            if joined and start < joined[-1][1]:
                start, end = joined[-1][0], max(end, joined.pop()[1])
            joined.append((start, end))
        return joined

    def _key_spans(self, line: bytes) -> Sequence[Span]:
        """The positions of private keys, or parts of one, in a line."""
        spans: list[Span] = []
        start: int | None = None
        markers = [*_MARKER.finditer(line)] if b"PRIVATE KEY" in line else []
        if self.key is not None:
            start, after, has_body = self.key
            # Some programs print a prefix only once.
            is_bare = _BASE64.fullmatch(line.strip()) or _HEADER.fullmatch(line.strip())
            begin, end = (0, len(line)) if is_bare else (start, len(line) - after)
            body = line[begin:end].strip()
            is_base64 = (has_body or len(body) >= _LEAST_BODY) and _BASE64.fullmatch(body) is not None
            if not markers and (is_base64 or _HEADER.fullmatch(body)):
                self.key = start, after, has_body or is_base64
                return [(begin, end)] if body else []
            self.key = None
            start = min(start, markers[0].start()) if markers and markers[0][1] == b"END" else None
        for marker in markers:
            if marker[1] == b"BEGIN" and start is None:
                start = marker.start()
            elif marker[1] == b"END" and start is not None:
                spans.append((start, marker.end()))
                start = None
        if start is not None:
            inline = _INLINE.match(line, marker.end())
            assert inline is not None
            spans.append((start, inline.end()))
            if len(inline[0]) < _LEAST_BODY:
                self.key = start, len(line) - marker.end(), False
        return spans
