"""Parses logs in CRI format (Container Runtime Interface): ``TIME STREAM TAGS TEXT``. No I/O.

https://github.com/kubernetes/design-proposals-archive/blob/main/node/kubelet-cri-logging.md
"""

from typing import Any, Final

from chronoverse.joblog.line_splitter import LineBatch, LineSplitter
from chronoverse.joblog.model import STREAMS, TIMESTAMP, read_time
from chronoverse.joblog.secret_forms import SecretForms

#: Maximum bytes of an unfinished line that are kept. By default, runtimes split lines at 16 KiB.
LONG_BYTES: Final = 4_194_304


class CriReader:
    """Parses a file's bytes into batches of lines. Joins pieces of a line: tag ``P``, and ``F`` for the last.

    A joined line longer than ``max_line_bytes`` becomes ``partial`` lines. A line in another format is kept unchanged,
    in the stream of the line before it. The result does not depend on the sizes of reads. ``state`` is the result of
    :meth:`state`. Masks secrets that match ``forms``.
    """

    def __init__(
        self, max_line_bytes: int, state: dict[str, Any] | None = None, forms: SecretForms | None = None
    ) -> None:
        self._max = max_line_bytes
        #: The bytes of the file's last, unfinished line.
        self.rest = b""
        saved = state or {}
        self._stream: str = saved.get("stream", "stdout")
        self._timestamp: str = saved.get("timestamp", "1970-01-01T00:00:00.000Z")
        self._masks = {stream: (forms or SecretForms(None)).mask() for stream in STREAMS}
        self._splitters = {stream: LineSplitter(stream, max_line_bytes, mask) for stream, mask in self._masks.items()}
        for stream, key in saved.get("keys", {}).items():
            self._masks[stream].key = tuple(key)
        for stream, before in saved.get("before", {}).items():
            self._masks[stream].before = before.encode("latin-1")
        #: Streams with an unfinished line.
        self._open: set[str] = set(saved.get("open", {}))
        for stream, (rest, *more) in saved.get("open", {}).items():
            splitter = self._splitters[stream]
            splitter.rest = rest.encode("latin-1")
            splitter.is_open, splitter.timestamp = more

    def state(self) -> dict[str, Any]:
        """The state from which to continue at the first byte of :attr:`rest`, as JSON."""
        splitters = {stream: self._splitters[stream] for stream in self._open}
        pieces = {
            stream: (each.rest.decode("latin-1"), each.is_open, each.timestamp) for stream, each in splitters.items()
        }
        keys = {stream: mask.key for stream, mask in self._masks.items() if mask.key}
        before = {stream: mask.before.decode("latin-1") for stream, mask in self._masks.items() if mask.before}
        return {"stream": self._stream, "timestamp": self._timestamp, "open": pieces, "keys": keys, "before": before}

    def feed(self, data: bytes) -> list[LineBatch]:
        """Parses bytes of the file. Returns the lines that they complete."""
        text, newline, self.rest = (self.rest + data).rpartition(b"\n")
        batches = self._read(text.split(b"\n")) if newline else []
        if len(self.rest) > LONG_BYTES:
            stream, _, text = self._parse(self.rest, self.rest.split(b" ", 3))
            self.rest = b""
            batches += self._continue(stream, b"P", text)
        return batches

    def end_file(self) -> list[LineBatch]:
        """Call this at the end of a file. Its last line may be truncated."""
        return self.feed(b"\n") if self.rest else []

    def close(self) -> list[LineBatch]:
        """Call this at the end of the log."""
        batches = self.end_file()
        for stream in sorted(self._open):
            batches += self._splitters[stream].close()
        self._open.clear()
        return batches

    def _read(self, lines: list[bytes]) -> list[LineBatch]:
        """Groups consecutive lines that differ only in text into batches."""
        batches: list[LineBatch] = []
        texts: list[bytes] = []
        known_time, known_stream = b"-", b""
        for line in lines:
            parts = line.split(b" ", 3)
            is_alike = len(parts) == 4 and parts[0][:23] == known_time and parts[1] == known_stream
            if is_alike and parts[2] == b"F" and self._stream not in self._open and len(parts[3]) <= self._max:
                texts.append(parts[3])
                continue
            if texts:
                batches += self._whole(texts)
                texts = []
            stream, tag, text = self._parse(line, parts)
            # Times in other formats are parsed for each line.
            known_time = parts[0][:23] if parts[0][-1:] == b"Z" and len(parts[0]) > 23 and text is not line else b"-"
            known_stream, self._stream = stream.encode(), stream
            if tag == b"F" and stream not in self._open and len(text) <= self._max:
                texts.append(text)
            else:
                batches += self._continue(stream, tag, text)
        return batches + (self._whole(texts) if texts else [])

    def _whole(self, texts: list[bytes]) -> list[LineBatch]:
        """Batches of whole lines of at most ``max_line_bytes``."""
        text = b"\n".join(texts)
        masked = self._masks[self._stream](text)
        if masked is text:
            return [LineBatch(self._stream, self._timestamp, text, len(texts))]
        # A mask may be longer than the secret.
        return LineSplitter(self._stream, self._max).feed(masked + b"\n", self._timestamp)

    def _parse(self, line: bytes, parts: list[bytes]) -> tuple[str, bytes, bytes]:
        """The stream, first tag and text of a line in the file. Stores its time."""
        tag = parts[2].partition(b":")[0] if len(parts) > 2 else b""
        if parts[1:2] not in ([b"stdout"], [b"stderr"]) or tag not in (b"F", b"P"):
            return self._stream, b"F", line
        time = parts[0].decode("latin-1")
        short = f"{time[:23]}Z"
        if not time.endswith("Z") or not TIMESTAMP.fullmatch(short):
            short = read_time(time) or ""
        if not short:
            return self._stream, b"F", line
        self._timestamp = short
        return parts[1].decode(), tag, parts[3] if len(parts) > 3 else b""

    def _continue(self, stream: str, tag: bytes, text: bytes) -> list[LineBatch]:
        """Returns the batches that a piece of a line completes."""
        splitter, self._stream = self._splitters[stream], stream
        batches = splitter.feed(text + b"\n" if tag == b"F" else text, self._timestamp)
        (self._open.add if splitter.rest or splitter.is_open else self._open.discard)(stream)
        return batches
