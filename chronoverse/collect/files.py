"""Reads a log file as a stream of bytes, across rotations, without interpreting them.

A rotation renames ``0.log`` to ``0.log.TIME``, and the program opens a new ``0.log``. Later, the renamed file is
compressed to ``0.log.TIME.gz``, and the oldest file is removed. This module keeps files open, so that it can still read
a removed file, but copies nothing.
"""

import contextlib
import gzip
import io
import os
import stat
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

#: Bytes per read. A file that grows fast then delays others for only a few milliseconds.
READ_BYTES: Final = 131_072
#: Seconds without new bytes after which a file is considered complete, if the next file has bytes. The writer switches
#: stdout and stderr to the next file at different times.
SETTLE_SECONDS: Final = 0.5
#: Maximum number of files held open. The kubelet keeps 5, of 10 MiB each. While nothing can be published, removed
#: files use up to 1 GiB of disk.
HELD_FILES: Final = 100
#: Bytes at the beginning of a file that identify it. They include a timestamp in nanoseconds.
HEAD_BYTES: Final = 64
DAMAGED: Final = (OSError, EOFError, zlib.error)


class Position(NamedTuple):
    """A log's position: its file's inode and first bytes (hexadecimal), an offset, and the rotated files in order."""

    inode: int
    head: str
    offset: int
    order: Sequence[str] = ()


class _File:
    def __init__(self, path: str) -> None:
        self._raw = io.FileIO(path, opener=_open_regular)
        self.close = self._raw.close
        self.is_compressed = path.endswith(".gz")
        self.file = gzip.GzipFile(fileobj=self._raw) if self.is_compressed else self._raw
        #: Whether bytes before this file are missing.
        self.follows_gap = False
        self.inode = os.fstat(self.file.fileno()).st_ino
        self._head = b""
        self._is_damaged = False
        self.seek(0)
        if self.is_compressed:
            self._head = self.read(HEAD_BYTES)
            self.seek(0)

    @property
    def unread(self) -> int:
        """Number of unread bytes, or 1 if only a gap is left. A compressed file counts as unread until it is read."""
        size = os.fstat(self.file.fileno()).st_size
        unread = (0 if self._is_at_end else size) if self.is_compressed else max(0, size - self.offset)
        return unread or int(self.has_gap)

    @property
    def head(self) -> bytes:
        if len(self._head) < HEAD_BYTES and not self.is_compressed:
            self._head = os.pread(self.file.fileno(), HEAD_BYTES, 0)
        return self._head

    def read(self, size: int = READ_BYTES) -> bytes:
        data, file = b"", self.file
        try:
            data = (file.read1(size) if isinstance(file, gzip.GzipFile) else file.read(size)) or b""
        except DAMAGED:  # treats this as the end of the file
            self.has_gap |= not self._is_damaged
            self._is_damaged = True
        self.offset += len(data)
        self._is_at_end = not data
        if not data and not self.is_compressed and os.fstat(file.fileno()).st_size < self.offset:
            self._head, self.follows_gap = b"", True  # the file was truncated
            self.seek(0)
        return data

    def seek(self, offset: int) -> bool:
        """Continues at ``offset``. Returns whether the file is long enough."""
        #: Whether bytes before the next one are missing.
        self.has_gap = self.follows_gap and not offset
        self.offset, self._is_at_end, self._is_damaged = 0, False, False
        with contextlib.suppress(*DAMAGED):
            self.offset = self.file.seek(offset)
        return self.offset == offset and (self.is_compressed or offset <= os.fstat(self.file.fileno()).st_size)

    def is_at(self, position: Position) -> bool:
        """Whether ``position`` is certainly in this file. An inode is no proof, as it is reused soon after removal."""
        head = bytes.fromhex(position.head)
        is_known = len(head) == HEAD_BYTES or self.is_compressed or self.inode == position.inode
        return head != b"" and is_known and self.head[: len(head)] == head

    def is_copy(self, other: "_File") -> bool:
        """Whether this is the same file as ``other``, or a compressed copy of it."""
        return self.inode == other.inode or (self.is_compressed and self.head == other.head != b"")


class LogFiles:
    """The bytes of the log ``path``, oldest rotated file first. Never waits.

    ``order`` is from an earlier :class:`Position`. ``clock`` returns monotonic seconds.
    """

    def __init__(self, path: Path, order: Sequence[str] = (), clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        #: Open files, in order. ``_at`` is the index of the file being read.
        self._files: list[_File] = []
        self._at = 0
        #: The names of the rotated files, in the order in which they were found. Older ones may have been removed.
        self.order = order
        #: When bytes or a new file last appeared.
        self.changed_at = clock()
        self.find_newer()

    def read(self) -> bytes | None:
        """Returns the next bytes, empty if there are none yet, or None between two files."""
        self.find_newer()
        if not self._files:
            return b""
        current, *later = self._files[self._at :]
        if data := current.read():
            self.changed_at = self._clock()
            return data
        is_silent = self._clock() - self.changed_at > SETTLE_SECONDS
        # No program still writes to a file that is compressed, or has two successors.
        if later and (len(later) > 1 or current.is_compressed or (is_silent and later[0].unread)):
            later[0].has_gap |= current.has_gap
            self._at += 1
            return None
        return b""

    @property
    def has_gap(self) -> bool:
        """Whether bytes are missing before the next byte."""
        return bool(self._files) and self._files[self._at].has_gap

    def take_gap(self) -> bool:
        """Like :attr:`has_gap`, but True only once per gap."""
        if not self.has_gap:
            return False
        self._files[self._at].has_gap = False
        return True

    @property
    def unread(self) -> int:
        """Number of unread bytes; see :attr:`_File.unread`."""
        return sum(each.unread for each in self._files[self._at :])

    @property
    def head(self) -> bytes | None:
        """The first bytes of the oldest open file that has any. None if there are no files."""
        return next((each.head for each in self._files if each.head), b"") if self._files else None

    def position(self, unused: int = 0) -> Position | None:
        """The position of the next byte to read, minus ``unused`` bytes. None if there are no files."""
        if not self._files:
            return None
        current = self._files[self._at]
        return Position(current.inode, current.head.hex(), current.offset - unused, tuple(self.order))

    def go_to(self, position: Position | None) -> bool:
        """Continues at ``position``. If it no longer exists, starts at the beginning and returns False."""
        for each in self._files:
            each.seek(0)
        for index, each in enumerate(self._files):
            if position and each.is_at(position) and each.seek(position.offset):
                self._at = index
                self.release(position.inode)
                return True
            each.seek(0)
        self._at = 0
        return False

    def release(self, inode: int) -> None:
        """Closes the files that come before the one with this inode."""
        while self._at and self._files[0].inode != inode:
            self._files.pop(0).close()
            self._at -= 1

    def close(self) -> None:
        for each in self._files:
            each.close()
        self._files, self._at = [], 0

    def find_newer(self) -> None:
        """If the log was rotated, opens the files created since the last call."""
        newest = self._files[-1] if self._files else None
        if newest and self._inode() in (0, newest.inode):
            return
        # Retries if the log is rotated while its files are opened.
        for _ in range(10):
            seen = self._inode(), self._rotated()
            opened = {name: file for name in [*seen[1], ""] if (file := self._open(name))}
            inode = opened[""].inode if "" in opened else 0
            if seen == (inode, self._rotated()):
                break
            for file in opened.values():
                file.close()
        else:
            return
        known = [each for each in self.order if each in opened]
        new = [each for each in opened if each and each not in known]
        # Each file begins with a timestamp. If the clock was set back, sorts the times cyclically, so that the current
        # file is last (or, if that is empty, the last uncompressed one).
        plain = [opened[each].head for each in new if not opened[each].is_compressed]
        last = (opened[""].head if "" in opened else b"") or max(plain, default=b"")
        new.sort(key=lambda each: (opened[each].head <= last, opened[each].head))
        # Rotation removes the oldest names first. So if the newest known file still exists, all later files do, unless
        # their names are older because the clock was set back.
        if newest:
            may_lack = not any(each.is_copy(newest) for each in opened.values())
        else:
            may_lack = bool(known) and known != [*self.order][-len(known) :]
        has_unseen, before = newest is None or len(new) > 1, b""
        self.order = [*known, *new]
        for name in (each for each in [*known, *new, ""] if each in opened):
            file, is_new = opened[name], name not in known
            is_back, before = has_unseen and b"" < file.head < before, file.head
            if (newest and not is_new) or any(file.is_copy(each) for each in self._files):
                file.close()
                continue
            file.follows_gap = file.has_gap = is_back or (is_new and may_lack)
            may_lack &= not is_new
            self._files.append(file)
            self.changed_at = self._clock()
        while len(self._files) > HELD_FILES:
            self._files.pop(0).close()
            if self._at:
                self._at -= 1
            else:
                self._files[0].follows_gap = self._files[0].has_gap = True

    def _inode(self) -> int:
        """The inode of the current file. 0 if there is none: during a rotation, or if the log was deleted."""
        with contextlib.suppress(OSError):
            return os.stat(self._path).st_ino
        return 0

    def _rotated(self) -> set[str]:
        """The names of rotated files, except those being compressed (``.tmp``)."""
        prefix = f"{self._path.name}."
        with contextlib.suppress(OSError):
            found = [each for each in os.listdir(self._path.parent) if each.startswith(prefix)]
            return {each.removesuffix(".gz") for each in found if not each.endswith(".tmp")}
        return set()

    def _open(self, name: str) -> _File | None:
        """Opens a rotated file, or the current one if ``name`` is empty. Returns None if it is gone."""
        path = self._path.parent / name if name else self._path
        for ending in ("", ".gz"):
            with contextlib.suppress(FileNotFoundError):
                return _File(f"{path}{ending}")
        return None


def _open_regular(path: str, flags: int) -> int:
    """Opens a regular file. Links are refused, as they could lead to the agent's token, and pipes, as they block."""
    if not stat.S_ISREG(os.lstat(path).st_mode):
        raise OSError(f"not a regular file: {path}")
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
