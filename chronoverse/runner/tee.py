"""Copies the command's output to our own stdout and stderr: unchanged and unbuffered."""

import select
from typing import BinaryIO, cast

from chronoverse.client.terminal import plain_text


def open_standard(descriptor: int) -> BinaryIO:
    """Our own stdout (1) or stderr (2), without Python's buffer."""
    return cast("BinaryIO", open(descriptor, "wb", buffering=0, closefd=False))


class Tee:
    """Writes bytes to ``stream`` at once. When its reader is gone, writing stops for good, and publishing goes on."""

    def __init__(self, stream: BinaryIO, is_terminal: bool = False) -> None:
        self._stream: BinaryIO | None = stream
        self._is_terminal = is_terminal
        self._has_status = False

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
        self.clear_status()
        self(b"chronoverse: %b\n" % plain_text(text).encode("utf-8", "replace"))

    def show_status(self, text: str) -> None:
        """Shows how far something has come. On a terminal the next message takes its place; elsewhere it comes once."""
        if self._is_terminal:
            self(b"\r\x1b[Kchronoverse: %b" % plain_text(text).encode("utf-8", "replace"))
        elif not self._has_status:
            self.say(text)
        self._has_status = True

    def clear_status(self) -> None:
        """Removes the status from the terminal, if one is shown."""
        if self._has_status and self._is_terminal:
            self(b"\r\x1b[K")
        self._has_status = False

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
