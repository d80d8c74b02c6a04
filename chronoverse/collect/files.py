"""One log file as a stream of bytes, across its rotations. Knows nothing of what is in it.

A program writes ``0.log``. Whoever rotates renames it to ``0.log.TIME``, and the program then opens a new ``0.log``.
Later the renamed file is compressed to ``0.log.TIME.gz``, and the oldest one is removed. Files are held open, so what
was on the disk once can be read to its end. They are the only copy: nothing is kept here.
"""

import gzip
import io
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

#: Bytes of one read. So a file that grows fast delays no other for longer than some milliseconds.
READ_BYTES: Final = 131_072
#: Seconds for which a file must be silent, after the next one has bytes, until it counts as complete. Its writer opens
#: the next file for its two streams one after the other.
SETTLE_SECONDS: Final = 0.5
#: Files that are held open. The kubelet keeps 5 of 10 MiB. While nobody takes lines, 1 GiB of removed files stays on
#: the disk at most.
HELD_FILES: Final = 100
#: Bytes at a file's beginning by which it is recognized. A line's time has nanoseconds.
HEAD_BYTES: Final = 64


class Position(NamedTuple):
    """A place in a log: a file, by its inode and its first bytes (hexadecimal), and the order of the rotated files.

    Their names have times, and clocks go back.
    """

    inode: int
    head: str
    offset: int
    order: Sequence[str] = ()


@dataclass(eq=False)
class _File:
    """A file that is held open. ``name`` is what it was renamed to, without ``.gz``, once that is known."""

    file: io.FileIO | gzip.GzipFile
    name: str = ""
    offset: int = 0
    _head: bytes = b""
    _is_at_end: bool = False

    def __post_init__(self) -> None:
        self.is_compressed = isinstance(self.file, gzip.GzipFile)
        self.inode = os.fstat(self.file.fileno()).st_ino

    @property
    def unread(self) -> int:
        """Bytes that were not read. Of a compressed file all of its bytes, until its end was read."""
        size = os.fstat(self.file.fileno()).st_size
        return (0 if self._is_at_end else size) if self.is_compressed else max(0, size - self.offset)

    @property
    def head(self) -> bytes:
        if len(self._head) < HEAD_BYTES and not (self.is_compressed and self._head):
            offset = self.offset
            self.seek(0)
            self._head = self.read(HEAD_BYTES)
            self.seek(offset)
        return self._head

    def read(self, size: int = READ_BYTES) -> bytes:
        try:
            data = self.file.read(size) or b""
        except (OSError, EOFError):  # a damaged file ends where it is damaged
            data = b""
        self.offset += len(data)
        self._is_at_end = not data
        return data

    def seek(self, offset: int) -> bool:
        """Continues at ``offset``. Whether the file has as many bytes."""
        try:
            self.offset = self.file.seek(offset)
        except (OSError, EOFError):
            return False
        return self.offset == offset <= (offset if self.is_compressed else os.fstat(self.file.fileno()).st_size)

    def is_at(self, position: Position) -> bool:
        """Whether the position is in this file."""
        head = bytes.fromhex(position.head)
        is_known = len(head) == HEAD_BYTES or (self.is_compressed and head) or self.inode == position.inode
        return bool(is_known) and self.head[: len(head)] == head

    def is_copy(self, other: "_File") -> bool:
        """Whether this is the ``other``, or its compressed copy."""
        return self.inode == other.inode or (self.is_compressed and self.head == other.head != b"")


class LogFiles:
    """The bytes of the file ``path``, from the oldest file that is there, or from ``position``. Never waits for more.

    ``found`` says whether the file of the position is there. ``clock`` is monotonic seconds.
    """

    def __init__(
        self, path: Path, position: Position | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._path = path
        self._clock = clock
        #: The file that is being read, and those that come after it.
        self._files: list[_File] = []
        #: The names of the rotated files, in the order in which they were seen.
        self._order: list[str] = []
        #: When there were bytes last, or a new file.
        self.changed_at = clock()
        #: Whether files were dropped that nobody had read.
        self.has_dropped = False
        self.find_newer()
        self.found = position is not None and self._go_to(position)

    def read(self) -> bytes | None:
        """The next bytes, empty when there are none now, or None where a file ends and the next begins."""
        known = len(self._files)
        if known and (data := self._files[0].read()):
            self.changed_at = self._clock()
            return data
        self.find_newer()
        if known < 2:
            return b""
        is_silent = self._clock() - self.changed_at > SETTLE_SECONDS and self._files[1].unread
        # A file that was followed by two others, or was compressed, has no writer any more.
        if known > 2 or self._files[0].is_compressed or is_silent:
            self._files.pop(0).file.close()
            return None
        return b""

    @property
    def unread(self) -> int:
        """Bytes that were not read; see :attr:`_File.unread`."""
        return sum(each.unread for each in self._files)

    @property
    def is_rotated(self) -> bool:
        """Whether there are rotated files. Others may be gone."""
        return bool(self._order)

    def position(self, unused: int = 0) -> Position | None:
        """Where reading continues, ``unused`` bytes before what was read. None while there is no file."""
        if not self._files:
            return None
        current = self._files[0]
        return Position(current.inode, current.head.hex(), current.offset - unused, tuple(self._order))

    def close(self) -> None:
        _close(self._files)
        self._files = []

    def find_newer(self) -> None:
        """Opens the files that have come since the last call, if the log was rotated."""
        try:
            inode = os.stat(self._path).st_ino
        except OSError:  # between the renaming and the new file, or the log is gone
            inode = 0
        if self._files and inode in (0, self._files[-1].inode):
            return
        # The log may be rotated again while the files are opened.
        for _ in range(10):
            names = self._rotated()
            opened = [self._open(name) for name in [*names, ""] if name not in self._order]
            files = [each for each in opened if each is not None]
            if self._rotated() == names:
                break
            _close(files)
        else:
            return
        # A new name is that of a file that is held, or comes after those.
        known = [each for each in self._order if each in names]
        self._order = [*known, *(each for each in names if each not in known)]
        for file in files:
            if held := next((each for each in self._files if file.is_copy(each)), None):
                held.name = file.name or held.name
                _close([file])
            else:
                self._files.append(file)
                self.changed_at = self._clock()
        while len(self._files) > HELD_FILES:
            self._files.pop(0).file.close()
            self.has_dropped = True

    def _go_to(self, position: Position) -> bool:
        at = next((each for each in self._files if each.is_at(position)), None)
        if at is None or not at.seek(position.offset):
            return False
        known = list(position.order)
        before = known[: known.index(at.name)] if at.name in known else known
        self._order.sort(key=lambda name: known.index(name) if name in known else len(known))
        later = [each for each in self._files if each is not at and each.name not in before]
        later.sort(key=lambda each: self._order.index(each.name) if each.name else len(self._order))
        _close(each for each in self._files if each is not at and each not in later)
        self._files = [at, *later]
        return True

    def _rotated(self) -> tuple[str, ...]:
        """The names of rotated files, the oldest first. What ends in ``.tmp`` is being compressed."""
        prefix = f"{self._path.name}."
        try:
            names = os.listdir(self._path.parent)
        except OSError:
            return ()
        found = {each.removesuffix(".gz") for each in names if each.startswith(prefix) and not each.endswith(".tmp")}
        return tuple(sorted(found))

    def _open(self, name: str) -> _File | None:
        """Opens a rotated file, or with an empty name the one that is being written. None when it is gone."""
        path = self._path.parent / name if name else self._path
        for open_it in (io.FileIO, lambda path: gzip.GzipFile(f"{path}.gz")):
            try:
                return _File(open_it(path), name)
            except FileNotFoundError:
                continue
        return None


def _close(files: Iterable[_File]) -> None:
    for each in files:
        each.file.close()
