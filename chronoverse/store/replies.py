"""Parses the store's replies. Pure. Accepts RESP2 and RESP3, and validates everything."""

import re
from collections.abc import Iterator, Sequence
from hashlib import sha1
from typing import Any, Final

from chronoverse.errors import (
    Closed,
    CorruptLog,
    Deleted,
    Fenced,
    Held,
    JobNotFound,
    LabelSet,
    QuotaReached,
    SequenceGap,
    TooManyFiles,
)
from chronoverse.joblog.entries import RawEntry, entry_number, read_terminal
from chronoverse.joblog.labels import read_labels
from chronoverse.joblog.model import (
    MAX_NUMBER,
    End,
    Job,
    JobRef,
    Status,
    iso_or_none,
    parse_exit_code,
    parse_number,
    read_time,
)

_SHA256: Final = re.compile("[0-9a-f]{64}")


def id_after(number: int) -> str:
    """The highest possible entry id of line ``number``. The next higher id belongs to line ``number`` + 1."""
    return f"{number}-{2**64 - 1}"


def stream_entries(reply: Any) -> Iterator[tuple[bytes, Sequence[RawEntry]]]:
    """The (key, entries) pairs of an XREAD reply: a map in RESP3, pairs in RESP2, null after a timeout."""
    if isinstance(reply, dict):
        yield from reply.items()
    elif reply:
        yield from reply


def entry_fingerprint(entry: RawEntry | None) -> tuple[bytes, str]:
    """An entry's id and the SHA-1 of its fields, for scripts to compare. Both are empty for None."""
    return (b"", "") if entry is None else (entry[0], sha1(b"\0".join(entry[1]), usedforsecurity=False).hexdigest())


def is_unlisted(reply: Any) -> bool:
    """Whether ``settle_job.lua`` found an unlisted foreign job, which lacks a field that our runners set."""
    return isinstance(reply, list) and not reply[6] and not {b"attempt", b"created_at"} <= set(reply[0][::2])


def parse_job(ref: JobRef, reply: list[Any] | None) -> Job | None:
    """Parses a reply of ``settle_job.lua``. Every reported state of a job comes from this function.

    The terminal entry takes precedence, then the hash, then the stream. The start of a foreign job is the time at which
    it was listed, or its first entry's time.
    """
    if reply is None:
        return None
    flat, first_id, last_id, first_timestamp, terminal, _, listed, labels = reply
    fields = dict(_pairs(flat))
    # Numbers above MAX_NUMBER cannot be shown.
    last = min(entry_number(last_id), MAX_NUMBER) if last_id else 0
    status = fields.get("status", "")
    archived = parse_number(fields.get("archived", "")) or 0
    end: End | None = None
    if terminal:
        # A terminal entry with an id such as 5-1 counts as number 6.
        end = read_terminal(last if last_id.endswith(b"-0") else last + 1, terminal)
    elif status in Status.__members__ and Status(status).terminal:
        end = _end_from_hash(fields, last, archived, holds_entries=bool(first_id))
    last_line = end.sequence_num - 1 if end else max(last, archived)
    first_stored = min(max(entry_number(first_id), 1), MAX_NUMBER) if first_id else last_line + 1
    has_lines = max(last, archived) > 0
    begun = has_lines or (status in Status.__members__ and status != "PENDING")
    created_at = read_time(fields.get("created_at", ""))
    listed_at = iso_or_none(float(listed)) if listed and created_at is None else None
    first_time = None if archived else read_time(_text(first_timestamp))
    started_at = listed_at or read_time(fields.get("started_at", "")) or first_time or created_at
    job = Job(
        ref=ref,
        status=Status.RUNNING if begun else Status.PENDING,
        attempt=parse_number(fields.get("attempt", "")) or int(has_lines),
        created_at=created_at or started_at,
        started_at=started_at if begun else None,
        first=(parse_number(fields.get("archived_first", "")) or 1) if archived else first_stored,
        first_stored=first_stored,
        last=last_line,
        archived=archived,
        redactions=parse_number(fields.get("redactions", "")) or 0,
        # Invalid UTF-8 becomes lone surrogates, which no label may contain.
        labels=read_labels(dict(_pairs(labels, "surrogateescape"))),
        archive_sha256=sha256 if _SHA256.fullmatch(sha256 := fields.get("archive_sha256", "")) else None,
    )
    return job.ended(end) if end else job


def _end_from_hash(fields: dict[str, str], last: int, archived: int, *, holds_entries: bool) -> End:
    """The end of a job whose terminal entry has expired, was trimmed, or was never written."""
    lines = parse_number(fields.get("lines", ""))
    if lines is None:
        lines = max(last if holds_entries else last - 1, archived, 0)
    elif last > lines + 1:
        lines = last
    # The archive takes precedence over the runner's count.
    whole = fields.get("archive_state") == "complete" and last <= archived + 1
    return End(
        (archived if whole else max(lines, archived)) + 1,
        Status(fields["status"]),
        parse_exit_code(fields.get("exit_code", "")),
        lines,
        parse_number(fields.get("dropped", "")) or 0,
        read_time(fields.get("finished_at", "")),
    )


def _pairs(flat: Sequence[bytes], errors: str = "replace") -> Iterator[tuple[str, str]]:
    texts = [each.decode("utf-8", errors) for each in flat]
    return zip(texts[::2], texts[1::2], strict=True)


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


def accepted(answer: list[Any]) -> list[Any]:
    """A script's reply without its leading OK. Raises the error of any other reply."""
    word = answer[0].decode()
    if word == "OK":
        return answer[1:]
    if word == "GAP":
        raise SequenceGap(answer[1])
    if word == "QUOTA":
        raise QuotaReached(answer[1])
    if word == "LABEL_SET":
        keys = [key.decode() for key in answer[1:]]
        reason = "it has another value, the job has the maximum number of labels, or the job has ended"
        raise LabelSet(f"label {', '.join(keys)}: {reason}", keys)
    raise {
        "HELD": Held("another live runner holds this job"),
        "RUNS": Held("a live runner holds this job"),
        "UNKNOWN": JobNotFound("no such job"),
        "DELETED": Deleted("the job was deleted, and its id is blocked"),
        "CLOSED": Closed("the job has already ended"),
        "FENCED": Fenced("lease lost: it expired, or another runner took over the job"),
        "FILES": TooManyFiles("the records of this job come from too many files"),
        "TAINTED": CorruptLog("the log holds entry ids that are not 1-0, 2-0, 3-0, …"),
    }[word]
