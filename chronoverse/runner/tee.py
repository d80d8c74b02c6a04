"""The job's output on our own stdout and stderr: unchanged, unbuffered, and never in the job's way."""

import select
from typing import BinaryIO, cast

from chronoverse.client.terminal import plain_text


def open_standard(descriptor: int) -> BinaryIO:
    """Our own stdout (1) or stderr (2), without Python's buffer between."""
    return cast("BinaryIO", open(descriptor, "wb", buffering=0, closefd=False))


class Tee:
    """Writes all bytes to ``stream`` at once. A reader that has gone is forgotten: the log goes on without it."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream: BinaryIO | None = stream

    def __call__(self, data: bytes) -> None:
        """Waits only as the job itself would have, for a reader that is slow."""
        if self._stream is None:
            return
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[self._write(self._stream, rest) :]
            self._stream.flush()
        except (OSError, ValueError):
            self._stream = None

    def say(self, text: str) -> None:
        """A message of our own, told apart from the job's by its prefix. It may quote what the service has said."""
        self(b"chronoverse: %b\n" % plain_text(text).encode("utf-8", "replace"))

    @staticmethod
    def _write(stream: BinaryIO, data: memoryview) -> int:
        # Anybody who shares our terminal may have made it non-blocking: then a write may take nothing.
        try:
            written: int | None = stream.write(data)
        except BlockingIOError as error:
            written = error.characters_written
        if not written:
            select.select([], [stream], [])
        return written or 0
