"""Parses logs in CRI format (Container Runtime Interface): ``TIME STREAM TAGS TEXT``. No I/O.

https://github.com/kubernetes/design-proposals-archive/blob/main/node/kubelet-cri-logging.md
"""

from typing import Any, Final

from chronoverse.joblog.line_splitter import LineBatch, LineSplitter
from chronoverse.joblog.model import STREAMS, read_time
from chronoverse.joblog.secret_forms import SecretForms

#: Maximum bytes kept of an unfinished line. By default, runtimes split lines at 16 KiB.
LONG_BYTES: Final = 4_194_304


class CriReader:
    """Parses a file's bytes into batches of lines. Joins pieces of a line, which have the tag ``P``, or ``F`` (last).

    A joined line longer than ``max_line_bytes`` becomes ``partial`` lines. A line in another format is kept unchanged,
    in the previous line's stream. The result does not depend on the sizes of reads. ``state``: an earlier
    :meth:`state`. Masks secrets that match ``forms``.
    """

    def __init__(self, max_line_bytes: int, forms: SecretForms, state: dict[str, Any] | None = None) -> None:
        #: The bytes of the file's last, unfinished line.
        self.rest = b""
        saved = state or {}
        self._stream: str = saved.get("stream", "stdout")
        self._timestamp: str = saved.get("timestamp", "1970-01-01T00:00:00.000Z")
        self._splitters = {stream: LineSplitter(stream, max_line_bytes, forms) for stream in STREAMS}
        for stream, (rest, is_open, timestamp, key, before) in saved.get("lines", {}).items():
            splitter = self._splitters[stream]
            splitter.rest, splitter.is_open, splitter.timestamp = rest.encode("latin-1"), is_open, timestamp
            splitter.mask.key, splitter.mask.before = key, before.encode("latin-1")

    def state(self) -> dict[str, Any]:
        """The state from which to continue at the first byte of :attr:`rest`, as JSON."""
        lines = {}
        for stream, each in self._splitters.items():
            key, before = each.mask.key, each.mask.before.decode("latin-1")
            lines[stream] = each.rest.decode("latin-1"), each.is_open, each.timestamp, key, before
        return {"stream": self._stream, "timestamp": self._timestamp, "lines": lines}

    def feed(self, data: bytes) -> list[LineBatch]:
        """Parses bytes of the file. Returns the lines that they complete."""
        text, newline, self.rest = (self.rest + data).rpartition(b"\n")
        batches = self._read(text.split(b"\n")) if newline else []
        if len(self.rest) > LONG_BYTES:
            _, text = self._parse(self.rest, self.rest.split(b" ", 3))
            self.rest = b""
            batches += self._splitters[self._stream].feed(text, self._timestamp)
        return batches

    def end_file(self, *, is_torn: bool = False) -> list[LineBatch]:
        """Call this at the end of a file. ``is_torn`` (a gap follows) drops the last line, which may be truncated."""
        self.rest = b"" if is_torn else self.rest
        return self.feed(b"\n") if self.rest else []

    def close(self, *, is_torn: bool = False) -> list[LineBatch]:
        """Call this at the log's end, or at a gap (``is_torn``), which may contain the rest of unfinished lines."""
        batches = self.end_file(is_torn=is_torn)
        for splitter in self._splitters.values():
            batches += splitter.close(is_torn=is_torn)
        return batches

    def _read(self, lines: list[bytes]) -> list[LineBatch]:
        """Passes lines to a splitter. Consecutive lines that differ only in text are passed together."""
        batches: list[LineBatch] = []
        texts: list[bytes] = []
        known: tuple[bytes, bytes] | None = None
        for line in lines:
            parts = line.split(b" ", 3)
            if len(parts) == 4 and (parts[0][:23], parts[1]) == known and parts[2] == b"F":
                texts += parts[3], b"\n"
                continue
            if texts:
                batches += self._splitters[self._stream].feed(b"".join(texts), self._timestamp)
            tag, text = self._parse(line, parts)
            texts = [text, b"\n"] if tag == b"F" else [text]
            # Times in other formats are parsed for each line. A partial line is passed alone, as it is at the end of a
            # read, because its parts decide where a long line with a secret is cut.
            is_known = tag == b"F" and parts[0][-1:] == b"Z" and len(parts[0]) > 23 and text is not line
            known = (parts[0][:23], parts[1]) if is_known else None
        return batches + self._splitters[self._stream].feed(b"".join(texts), self._timestamp)

    def _parse(self, line: bytes, parts: list[bytes]) -> tuple[bytes, bytes]:
        """The first tag and the text of a line in the file. Stores its stream and time."""
        tag = parts[2].partition(b":")[0] if len(parts) > 2 else b""
        if parts[1:2] not in ([b"stdout"], [b"stderr"]) or tag not in (b"F", b"P"):
            return b"F", line
        time = parts[0].decode("latin-1")
        timestamp = read_time(f"{time[:23]}Z" if len(time) > 23 and time.endswith("Z") else time)
        if timestamp is None:
            return b"F", line
        self._timestamp, self._stream = timestamp, parts[1].decode()
        return tag, parts[3] if len(parts) > 3 else b""
