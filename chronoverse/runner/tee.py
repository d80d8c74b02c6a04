"""Copies the command's output to our own stdout and stderr: unchanged and unbuffered."""

import select
from typing import BinaryIO, cast

from chronoverse.client.terminal import plain_text


def open_standard(descriptor: int) -> BinaryIO:
    """Our own stdout (1) or stderr (2), without Python's buffer."""
    return cast("BinaryIO", open(descriptor, "wb", buffering=0, closefd=False))


class Tee:
    """Writes bytes to ``stream`` at once. When its reader is gone, writing stops for good, and publishing goes on."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream: BinaryIO | None = stream

    def __call__(self, data: bytes) -> None:
        """Writes ``data``. It waits for a slow reader, as the command itself would without us."""
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
        """Writes a message of our own. Its prefix distinguishes it from the command's output.

        Control characters are removed, since a message may quote what the service has answered.
        """
        self(b"chronoverse: %b\n" % plain_text(text).encode("utf-8", "replace"))

    @staticmethod
    def _write(stream: BinaryIO, data: memoryview) -> int:
        # Any process that shares our terminal may have made it non-blocking. A write may then take nothing.
        try:
            written: int | None = stream.write(data)
        except BlockingIOError as error:
            written = error.characters_written
        if not written:
            select.select([], [stream], [])
        return written or 0
