"""The store's replies as values. Pure: RESP2 and RESP3 shapes alike, and nothing in them is trusted."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from hashlib import sha1
from typing import Any, Final

from chronoverse.errors import AppendRefused, Closed, CorruptLog, Deleted, Fenced, Held, SequenceGap
from chronoverse.joblog.entries import RawEntry, entry_number, read_terminal
from chronoverse.joblog.values import End, Job, JobRef, Status, parse_exit_code, parse_number

#: The highest sub-number of an id: reading after ``7-<this>`` starts at line 8 whatever shape entry 7 has.
LAST_PART: Final = 2**64 - 1


def after(number: int) -> str:
    """The id behind which line ``number`` + 1 is the first."""
    return f"{number}-{LAST_PART}"


def streams(reply: Any) -> Iterator[tuple[bytes, Sequence[RawEntry]]]:
    """An XREAD reply's (key, entries): a map in RESP3, pairs in RESP2, null when nothing came."""
    if isinstance(reply, dict):
        yield from reply.items()
    elif reply:
        yield from reply


def changed(message: Any) -> Sequence[bytes] | None:
    """The keys that the server says have changed; None for all: the database was flushed."""
    keys: Sequence[bytes] | None = message[1]
    return keys


def known_by(entry: RawEntry | None) -> tuple[bytes, str]:
    """What scripts know an entry by: its id, and a hash of its fields. Empty for none."""
    return (b"", "") if entry is None else (entry[0], sha1(b"\0".join(entry[1]), usedforsecurity=False).hexdigest())


def scored(reply: list[Any]) -> list[tuple[float, bytes]]:
    """A WITHSCORES reply's (score, member): pairs in RESP3, flat in RESP2."""
    pairs = reply if reply and isinstance(reply[0], list) else zip(reply[::2], reply[1::2], strict=True)
    return [(float(score), member) for member, score in pairs]


def lease_expired(reply: list[Any] | None) -> bool:
    """Whether ``get_job.lua`` found the job's lease gone, and has not judged yet."""
    return reply is not None and reply[5] == 1


def is_foreign(reply: Any) -> bool:
    """Whether ``get_job.lua`` found a job that no runner of ours has opened: it has no ``attempt``."""
    return isinstance(reply, list) and b"attempt" not in reply[0][::2]


def job(ref: JobRef, reply: list[Any] | None) -> Job | None:
    """A job out of ``get_job.lua``'s reply. The terminal entry is believed first, then the hash, then the stream."""
    if reply is None:
        return None
    flat, first_id, last_id, first_timestamp, terminal, _ = reply
    named = {_text(name): _text(value) for name, value in zip(flat[::2], flat[1::2], strict=True)}
    last = entry_number(last_id) if last_id else 0
    status = named.get("status", "")
    archived = parse_number(named.get("archived", "")) or 0
    end: End | None = None
    if terminal:
        # A terminal entry without a number of its own, such as 5-1, is the one behind line 5.
        end = read_terminal(last if last_id.endswith(b"-0") else last + 1, terminal)
    elif status in Status.__members__ and Status(status).terminal:
        end = _end_from_hash(named, last, archived, holds_entries=bool(first_id))
    known = Job(
        ref=ref,
        status=Status.RUNNING if last or status == "RUNNING" else Status.PENDING,
        attempt=parse_number(named.get("attempt", "")) or (1 if last else 0),
        created_at=named.get("created_at"),
        started_at=named.get("started_at") or _text(first_timestamp) or None,
        last=max(last, archived),
        archived=archived,
        redactions=parse_number(named.get("redactions", "")) or 0,
    )
    known = known.ended(end) if end else known
    hot = max(entry_number(first_id), 1) if first_id else known.last + 1
    first = (parse_number(named.get("archived_first", "")) or 1) if archived else hot
    return replace(known, first=first, hot=hot)


def _end_from_hash(named: dict[str, str], last: int, archived: int, *, holds_entries: bool) -> End:
    """The end of a job whose log does not hold it: expired before its hash, trimmed away, or never written."""
    lines = parse_number(named.get("lines", ""))
    if lines is None:
        lines = max(last if holds_entries else last - 1, archived, 0)
    elif last > lines + 1:
        lines = last
    # What the archive has is believed before what the log's runner said of it.
    whole = named.get("archive_state") == "complete" and last <= archived + 1
    return End(
        (archived if whole else max(lines, archived)) + 1,
        Status(named["status"]),
        parse_exit_code(named.get("exit_code", "")),
        lines,
        parse_number(named.get("dropped", "")) or 0,
        named.get("finished_at"),
    )


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


def refusal(word: str, rest: list[Any]) -> AppendRefused:
    """The error behind a script's answer."""
    if word == "GAP":
        return SequenceGap(rest[0])
    return {
        "HELD": Held("another live runner holds this job"),
        "DELETED": Deleted("the job was deleted, and nothing can be written under its id for now"),
        "CLOSED": Closed("the job has already ended"),
        "FENCED": Fenced("this runner's lease is gone: it expired, or another runner took the job over"),
        "TAINTED": CorruptLog("the log holds entry ids that are not 1-0, 2-0, 3-0, …"),
    }[word]
