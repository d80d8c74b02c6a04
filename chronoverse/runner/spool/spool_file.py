"""The spool file: an SQLite database with a row per batch of lines. It survives a killed runner.

    batches  ordinal, position, stream, timestamp, text, lines, partial: as in a LineBatch.
             open_streams is empty: version 0.2 used it
    state    one row with a JSON object: the job, its token and numbers, how it ended, and how many lines were dropped

A runner keeps its file locked until its process ends, so a file that can be locked is orphaned.
"""

import contextlib
import os
import re
import sqlite3
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import orjson

from chronoverse.errors import SpoolError, SpoolInUse
from chronoverse.joblog.line_splitter import LineBatch
from chronoverse.joblog.model import IDENTIFIER, MAX_NUMBER, STREAMS, TIMESTAMP

SPOOL_MAX_BYTES: Final = 1_073_741_824
#: Maximum bytes of a batch: more than a read of 256 KiB after a line of 1 MiB.
MAX_BATCH_BYTES: Final = 2_097_152
#: Page size in bytes. A large batch takes many pages; small batches share a page, which is written as a whole.
PAGE_BYTES: Final = 16_384
#: The whole schema. No version wrote a file with another schema.
_TABLES: Final = (
    "CREATE TABLE batches (ordinal INTEGER PRIMARY KEY, position INTEGER, open_streams TEXT, stream TEXT, "
    "timestamp TEXT, text BLOB, lines INTEGER, partial INTEGER)",
    "CREATE TABLE state (json TEXT)",
)
_SETTINGS: Final = ("trusted_schema=OFF", "secure_delete=OFF", "locking_mode=EXCLUSIVE", "synchronous=OFF")


#: Maximum leftover files of other jobs that a runner opens before its command starts. Each takes a millisecond.
MAX_ORPHANS: Final = 100


@dataclass(frozen=True, slots=True)
class SpoolRoom:
    """The maximum bytes of a spool. Memory can always hold one batch of at most 2 MiB.

    Without a ``directory`` there is no file. Keeps ``keep_bytes`` of safe lines, because a store can lose lines.
    """

    directory: Path | None = None
    name: str = "job"
    memory_bytes: int = 16_777_216
    file_bytes: int = SPOOL_MAX_BYTES
    keep_bytes: int = 4_194_304


class SpoolFile:
    """An open and locked spool file. Any method can raise sqlite3.Error, for example if the disk is full."""

    def __init__(self, path: Path, *, is_damaged: bool = False) -> None:
        """Opens and locks ``path``, and rolls back an unfinished write. A damaged file can lack pages."""
        self.path = path
        address = f"{path.absolute().as_uri()}?mode=rw"
        self._connection = sqlite3.connect(address, timeout=0, isolation_level=None, check_same_thread=False, uri=True)
        # Refuses rows that are longer than any of ours.
        self._connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_BATCH_BYTES + PAGE_BYTES)
        self._execute = self._connection.execute
        self._written = b""
        try:
            for setting in (*_SETTINGS, f"page_size={PAGE_BYTES}", f"writable_schema={is_damaged}"):
                self._execute(f"PRAGMA {setting}")
            self._execute("BEGIN EXCLUSIVE")
            self._execute("COMMIT")
            self._execute("PRAGMA journal_mode=PERSIST")
        except sqlite3.Error:
            self._connection.close()
            raise

    @classmethod
    def create(cls, directory: Path, name: str) -> Self:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Cuts the name, because the longest ids would make it too long for a file.
        path = directory / f"{name[:64]}-{os.urandom(4).hex()}.sqlite"
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        try:
            file = cls(path)
            with file._transaction():
                for statement in (*_TABLES, "INSERT INTO state VALUES ('{}')"):
                    file._execute(statement)
        except sqlite3.Error:
            _unlink(path)
            raise
        return file

    @classmethod
    def open(cls, path: Path) -> tuple[Self, dict[str, Any]]:
        """Opens a leftover file, and reads its state. Raises :class:`SpoolInUse`, :class:`SpoolError`."""
        found = _stat(path)
        if found is None or not found.st_size:
            raise SpoolError(f"{path} {'is not a spool file' if path.exists() else 'does not exist'}")
        file: Self | None = None
        try:
            file = cls(path)
            return file, file._read_state()
        except (sqlite3.Error, SpoolError) as error:
            if file is not None:
                file._connection.close()
            raise error if isinstance(error, SpoolError) else _unreadable(path, error) from None

    @property
    def size(self) -> int:
        names = "page_count", "freelist_count", "page_size"
        pages, free, size = (self._execute(f"PRAGMA {name}").fetchone()[0] for name in names)
        return int((pages - free) * size)

    def read(self, index: int) -> Iterator[LineBatch]:
        return self._select("ordinal >= coalesce((SELECT max(ordinal) FROM batches WHERE ordinal <= ?), 0)", index)

    def next_at(self, index: int) -> LineBatch | None:
        return next(self._select("ordinal >= ?", index, text="x''"), None)

    def first_kept(self, index: int, position: int) -> int | None:
        kept = self._select("ordinal + lines > ? OR position + length(text) > ?", index, position, text="x''")
        return next((each.ordinal for each in kept), None)

    def count(self, start: int, stop: int) -> int:
        return int(self._execute(f"SELECT total(lines) FROM batches WHERE {_BETWEEN}", (start, stop)).fetchone()[0])

    def write(self, state: dict[str, Any], add: Iterable[LineBatch] = (), delete: tuple[int, int] = (0, 0)) -> None:
        """Atomically writes the state, adds batches, and deletes the batches between two indexes."""
        packed = orjson.dumps(state)
        with self._transaction():
            if delete[0] < delete[1]:
                self._execute(f"DELETE FROM batches WHERE {_BETWEEN}", delete)
            if packed != self._written:
                self._execute("UPDATE state SET json = ?", (packed.decode(),))
            rows = ((each.ordinal, each.position, "", *each[:5]) for each in add)
            self._connection.executemany("INSERT INTO batches VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
        self._written = packed

    def valid_batches(self) -> Iterator[LineBatch]:
        """All batches, in order. Raises ValueError if the file has data that no runner writes."""
        (found,) = self._execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise ValueError(" ".join(found.split()))
        end = 0
        for each in self._select("true"):
            if each.ordinal < end:
                raise ValueError("its lines overlap")
            if not _is_plausible(each):
                raise ValueError(f"invalid data after line {end}")
            end = each.end
            yield each

    def whole_batches(self) -> Iterator[LineBatch | None]:
        """The batches of a damaged file, in order. Yields None for data that no runner writes."""
        start = end = 0
        limit = -1
        while start <= MAX_NUMBER:
            try:
                found = None
                for found in self._select("ordinal >= ?", start, limit=limit):
                    is_whole = found.ordinal >= end and _is_plausible(found)
                    end = found.end if is_whole else end
                    start = max(start, found.ordinal + 1)
                    yield found if is_whole else None
                if limit < 0 or found is None:
                    return
                limit = -1
            except sqlite3.Error:
                # Python reads one row ahead, so the error can concern the row after next. Reads the next row alone.
                if limit < 0:
                    limit = 1
                    continue
                yield None
                start, limit = self._next_readable(start), -1

    def _next_readable(self, ordinal: int) -> int:
        """The next ordinal from which rows are readable. If there is none, a number beyond all ordinals."""
        step = 1
        while not self._is_readable(ordinal + step):
            step *= 2
            if step > MAX_NUMBER:
                return step
        low = ordinal + step // 2
        return low + bisect_left(range(low, ordinal + step), True, key=self._is_readable)

    def _is_readable(self, ordinal: int) -> bool:
        with contextlib.suppress(sqlite3.Error):
            next(self._select("ordinal >= ?", ordinal, limit=1), None)
            return True
        return False

    def has_our_tables(self) -> bool:
        """Whether the file has exactly the tables of a spool file."""
        tables = self._execute("SELECT sql FROM sqlite_master ORDER BY name").fetchmany(len(_TABLES) + 1)
        return tables == [(statement,) for statement in _TABLES]

    def valid_state(self) -> dict[str, Any]:
        """The state of a damaged file. Empty if invalid."""
        with contextlib.suppress(sqlite3.Error, SpoolError):
            return self._read_state()
        return {}

    def close(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            # Removes the journal file.
            self._execute("PRAGMA locking_mode=NORMAL")
            self._execute("PRAGMA journal_mode=DELETE")
        self._connection.close()
        with contextlib.suppress(OSError), self.path.open("rb") as file:
            os.fsync(file.fileno())

    def remove(self) -> None:
        _unlink(self.path)
        self._connection.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._execute("BEGIN IMMEDIATE")
        try:
            yield
            self._execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:  # SQLite ends transactions itself after some errors
                self._execute("ROLLBACK")
            raise

    def _select(self, condition: str, *values: int, text: str = "text", limit: int = -1) -> Iterator[LineBatch]:
        columns = f"ordinal, position, stream, timestamp, {text}, lines, partial"
        query = f"SELECT {columns} FROM batches WHERE {condition} ORDER BY ordinal LIMIT {limit}"
        with contextlib.closing(self._execute(query, values)) as rows:
            for ordinal, position, stream, timestamp, data, lines, partial in rows:
                yield LineBatch(stream, timestamp, data, lines, bool(partial), ordinal, position)

    def _read_state(self) -> dict[str, Any]:
        """The state's known values. Raises :class:`SpoolError` if one is invalid."""
        if not self.has_our_tables():
            raise SpoolError(f"{self.path} is not a spool file")
        query = "SELECT CAST(json AS BLOB) FROM state WHERE length(json) <= 1048576"
        (self._written,) = self._execute(query).fetchone() or (b"",)
        try:
            state = orjson.loads(self._written)
        except orjson.JSONDecodeError:
            state = None
        if not isinstance(state, dict):
            raise SpoolError(f"{self.path} is damaged: invalid state")
        for name, pattern in _STATE.items():
            if name in state and not re.fullmatch(pattern, orjson.dumps(state[name]).decode(), re.ASCII):
                raise SpoolError(f"{self.path} is damaged: invalid {name}")
        return {name: state[name] for name in _STATE if name in state}


def orphaned_spools(directory: Path, job_id: str = "") -> dict[Path, dict[str, Any]]:
    """The spool files that no process has open, with their states (empty if unreadable), oldest first.

    At most :data:`MAX_ORPHANS`, besides those named after ``job_id``.
    """
    # Omits new empty files, which their runners are still creating.
    new = time.time() - 60
    paths = (*directory.glob("*.sqlite"), *directory.glob("*.spool"))
    files = {path: stat for path in paths if (stat := _stat(path)) and (stat.st_size or stat.st_mtime < new)}
    found: dict[Path, dict[str, Any]] = {}
    for path in sorted(files, key=lambda path: (files[path].st_mtime, path)):
        if len(found) >= MAX_ORPHANS and not (job_id and path.name.startswith(f"{job_id[:64]}-")):
            continue
        state: dict[str, Any] = {}
        try:
            file, state = SpoolFile.open(path)
            file.close()
        except SpoolInUse:
            continue
        except SpoolError:
            pass  # delivering the file reports why
        if _stat(path):  # otherwise its runner has deleted it
            found[path] = state
    return found


def _stat(path: Path) -> os.stat_result | None:
    """The status of ``path`` if it is a file."""
    with contextlib.suppress(FileNotFoundError):
        return path.stat() if path.is_file() else None
    return None


def _unlink(path: Path) -> None:
    for each in (path, path.with_name(f"{path.name}-journal")):
        with contextlib.suppress(OSError):
            each.unlink()


def _unreadable(path: Path, error: sqlite3.Error) -> SpoolError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return SpoolInUse(f"{path} is in use: its runner is alive")
    if code == sqlite3.SQLITE_NOTADB:
        return SpoolError(f"{path} is not a spool file")
    return SpoolError(f"{path} {'is damaged' if code == sqlite3.SQLITE_CORRUPT else 'cannot be opened'}: {error}")


def _is_plausible(batch: LineBatch) -> bool:
    """Whether a runner can have written this batch. SQLite does not even enforce column types."""
    lines = batch.text.count(b"\n") + 1 if isinstance(batch.text, bytes) else 0
    return (
        all(type(number) is int and 0 <= number <= MAX_NUMBER for number in (batch.ordinal, batch.position))
        and batch.stream in STREAMS
        and isinstance(batch.timestamp, str)
        and TIMESTAMP.fullmatch(batch.timestamp) is not None
        and 0 < lines == batch.lines <= (1 if batch.partial else lines)
    )


#: Selects the batches between two indexes. Without the second condition, SQLite would also read all later rows.
_BETWEEN: Final = "ordinal >= ?1 AND ordinal < ?2 AND ordinal + lines <= ?2"
_COUNT: Final = "[0-9]{1,15}"
#: Valid values in a file's state, as JSON. Exit codes have at most the digits that a log can hold.
_STATE: Final[Mapping[str, str]] = {
    "workflow": f'"{IDENTIFIER.pattern}"',
    "job": f'"{IDENTIFIER.pattern}"',
    "token": '"[0-9a-f]{32,128}"',
    "base": f"-?{_COUNT}",
    "attempt": _COUNT,
    "earlier_end": _COUNT,
    "server": '"(https?://[!-~]*)?"',
    "ending": r'\["(PENDING|COMPLETED|FAILED|CANCELED|LOST)",(-?[0-9]{1,9}|null)\]',
    "labels": r"\{.*\}",
    "retry": "true",
    "dropped": _COUNT,
    "first": _COUNT,
    "acked": _COUNT,
    "end": _COUNT,
}
