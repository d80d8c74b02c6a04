"""Recovers the undamaged lines of a spool file that was truncated or has lost disk blocks."""

import contextlib
import secrets
import shutil
import sqlite3
import tempfile
from pathlib import Path
from typing import Final

from chronoverse.errors import SpoolError, SpoolInUse
from chronoverse.runner.spool.spool import MemoryBatches, Spool
from chronoverse.runner.spool.spool_file import PAGE_BYTES, SPOOL_MAX_BYTES, SpoolFile

_NAMED: Final = 10


def recover_whole(path: Path, *, in_place: bool) -> tuple[Spool, str]:
    """The undamaged lines of the spool file ``path``, and a sentence about damage (empty if there is none).

    Writes them into a new file. ``in_place`` replaces ``path`` with the new file, and renames the old one to
    FILE.damaged; otherwise the new file is temporary. Raises :class:`SpoolInUse`, and :class:`SpoolError` if all is
    damaged or, with ``in_place``, if the lines' job is unknown.
    """
    try:
        return Spool.recover(path, keep_all=True), ""
    except SpoolError as error:
        if isinstance(error, SpoolInUse) or not path.is_file() or not path.stat().st_size:
            raise
        refused = error
    try:
        with tempfile.TemporaryDirectory(dir=path.parent if in_place else None) as directory:
            draft, lacks = _write_whole(path, Path(directory))
            if draft is None:
                raise refused
            damage = f"{path} is damaged: {lacks or 'a part of it'} cannot be read"
            try:
                spool = Spool.recover(draft, keep_all=True)
            except SpoolError:  # the file's state contradicts its lines
                raise refused from None
            if not in_place:
                return spool, damage
            spool.preserve()
            if "job" not in spool.state:
                raise SpoolError(f"{refused}; `deliver --print` prints the undamaged lines")
            kept = path.with_name(f"{path.name}.{secrets.token_hex(4)}.damaged")
            for ending in ("-journal", ""):  # SQLite would apply the journal to the new file
                with contextlib.suppress(FileNotFoundError):
                    Path(f"{path}{ending}").rename(f"{kept}{ending}")
            draft.rename(path)
    except (OSError, sqlite3.Error) as error:
        raise SpoolError(f"{refused}; its undamaged lines cannot be written to another file: {error}") from error
    return Spool.recover(path, keep_all=True), f"{damage}; the damaged file is kept as {kept}"


def _write_whole(path: Path, directory: Path) -> tuple[Path | None, str]:
    """Writes the undamaged batches of file ``path`` into a new file in ``directory``.

    Returns its path (None if there are no batches), and the missing lines, numbered from 1 as printed.
    """
    draft: SpoolFile | None = None
    lacking: list[str] = []
    waiting = MemoryBatches()
    end, is_broken = 0, False
    with contextlib.ExitStack() as stack:
        damaged = _open(path, directory, stack)
        if damaged is None:
            return None, ""
        state = damaged.valid_state()
        for batch in damaged.whole_batches():
            if batch is None:
                is_broken = True
                continue
            if is_broken and batch.ordinal > end:
                lacking.append(
                    f"lines {end + 1} to {batch.ordinal}" if draft else f"everything before line {batch.ordinal + 1}"
                )
            end, is_broken = batch.end, False
            draft = draft or SpoolFile.create(directory, "whole")
            waiting.add(batch)
            if waiting.size >= 1_048_576:
                draft.write(state, add=waiting)
                waiting = MemoryBatches()
        if draft is None:
            return None, ""
        draft.write(state, add=waiting)
    draft.close()
    named = lacking[:_NAMED] + [f"{len(lacking) - _NAMED} other ranges"] * (len(lacking) > _NAMED)
    return draft.path, ", ".join(named + [f"everything after line {end}"] * is_broken)


def _open(path: Path, directory: Path, stack: contextlib.ExitStack) -> SpoolFile | None:
    """Opens the damaged file, or a copy in ``directory`` with a new first page. None if it is not a spool file."""
    with contextlib.suppress(sqlite3.Error):  # its first page may not even be that of a database
        file = SpoolFile(path, is_damaged=True)
        stack.callback(file.close)
        if file.has_our_tables():
            return file
    with path.open("rb") as content:
        content.seek(PAGE_BYTES)
        # The second page must be the root of the table: a leaf or an interior page.
        if content.read(1) not in (b"\x05", b"\x0d") or path.stat().st_size > SPOOL_MAX_BYTES:
            return None
    copy = SpoolFile.create(directory, "copy")
    copy.close()
    first = bytearray(copy.path.read_bytes()[:PAGE_BYTES])
    # https://www.sqlite.org/fileformat.html#in_header_database_size
    pages = max(path.stat().st_size // PAGE_BYTES, 3)
    first[28:32] = pages.to_bytes(4, "big")
    shutil.copyfile(path, copy.path)
    with copy.path.open("r+b") as content:
        content.write(first)
        content.truncate(pages * PAGE_BYTES)
    file = SpoolFile(copy.path, is_damaged=True)
    stack.callback(file.close)
    return file
