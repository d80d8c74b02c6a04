"""The state of a job, derived from the replies of the store's scripts: each rule separately."""

from typing import Any, Final

import pytest

from chronoverse import errors
from chronoverse.joblog.model import MAX_NUMBER, End, JobRef, Status
from chronoverse.store.replies import accepted, entry_fingerprint, id_after, is_unlisted, parse_job, stream_entries

JOB: Final = JobRef("wf_1", "job_1")
EARLY, LATE = "2026-03-03T10:00:05.123Z", "2026-03-03T11:00:00.000Z"
LATE_MS: Final = b"1772535600000"


def reply(
    hash: dict[str, str] | None = None,
    ids: tuple[str, str] = ("", ""),
    stamp: str = "",
    terminal: dict[str, str] | None = None,
    listed: bytes | str = "",
    labels: tuple[bytes, ...] = (),
) -> list[Any]:
    """A reply of ``settle_job.lua``, with the ids of the first and last entry."""

    def flat(fields: dict[str, str] | None) -> list[bytes]:
        return [text.encode() for pair in (fields or {}).items() for text in pair]

    first, last = (each.encode() for each in ids)
    return [flat(hash), first, last, stamp.encode(), flat(terminal), 0, listed, [*labels]]


def ended(**fields: str) -> dict[str, str]:
    return {"status": "FAILED", "exit_code": "3", "finished_at": LATE, "dropped": "2", **fields}


def bare_end(number: int, status: Status = Status.COMPLETED) -> End:
    return End(number, status, None, number - 1, 0, None)


OWN: Final = {"status": "RUNNING", "attempt": "2", "created_at": EARLY, "started_at": LATE}
COMPLETE: Final = {"archive_state": "complete", "archived": "9"}
NUMBERS: Final = ("first", "first_stored", "last", "archived")
TIMES: Final = ("created_at", "started_at")


@pytest.mark.parametrize(
    ("answer", "names", "values"),
    [
        (reply({}), ("status", "attempt", *NUMBERS, *TIMES), ("PENDING", 0, 1, 1, 0, 0, None, None)),
        (reply({"status": "PENDING", "created_at": EARLY}), ("status", *TIMES), ("PENDING", EARLY, None)),
        (reply({"status": "RUNNING"}), ("status", "attempt"), ("RUNNING", 0)),
        (reply({"status": "odd"}), ("status",), ("PENDING",)),
        (reply(OWN), ("status", "attempt", *TIMES), ("RUNNING", 2, EARLY, LATE)),
        (reply(OWN, listed=b"5"), TIMES, (EARLY, LATE)),
        (reply(OWN, ("1-0", "3-0"), "soon"), (*TIMES, *NUMBERS), (EARLY, LATE, 1, 1, 3, 0)),
        (reply({"status": "RUNNING", "created_at": EARLY}, ("1-0", "1-0"), LATE), TIMES, (EARLY, LATE)),
        (reply({"status": "RUNNING", "created_at": EARLY}), TIMES, (EARLY, EARLY)),
        # Without a hash, everything follows from the entries and the listing.
        (reply({}, ("1-0", "1-0"), EARLY), ("status", "attempt", *TIMES), ("RUNNING", 1, EARLY, EARLY)),
        (reply({}, ("1-0", "1-0"), EARLY, listed=LATE_MS), TIMES, (LATE, LATE)),
        (reply({}, ("1-0", "1-0"), listed=b"1e300"), TIMES, (None, None)),
        # Remaining numbers, in the store and in the archive.
        (reply(OWN, ("4-0", "9-0")), NUMBERS, (4, 4, 9, 0)),
        (reply(OWN, ("", "9-0")), NUMBERS, (10, 10, 9, 0)),
        (reply(OWN, ("0-1", "9-0")), NUMBERS, (1, 1, 9, 0)),
        (reply(OWN, ("9" * 16 + "-0", "9" * 17 + "-0")), NUMBERS, (MAX_NUMBER, MAX_NUMBER, MAX_NUMBER, 0)),
        (reply({**OWN, "archived": "5"}, ("6-0", "9-0"), EARLY), NUMBERS, (1, 6, 9, 5)),
        (reply({**OWN, "archived": "5", "archived_first": "3"}), NUMBERS, (3, 6, 5, 5)),
        (reply({**OWN, "archived_first": "3"}, ("4-0", "9-0")), NUMBERS, (4, 4, 9, 0)),
        (reply({"archived": "5"}, ("6-0", "9-0"), EARLY), ("status", "attempt", *TIMES), ("RUNNING", 1, None, None)),
        # The end: the entry takes precedence over the hash. An out-of-sequence entry follows its line.
        (reply(OWN, ("1-0", "4-0"), "", {"event": "end"}), ("end", "last"), (bare_end(4), 3)),
        (reply(OWN, ("1-0", "4-1"), "", {"event": "end"}), ("end", "last"), (bare_end(5), 4)),
        (
            reply(ended(lines="7"), ("1-0", "4-0"), "", {"status": "LOST", "timestamp": EARLY}),
            ("status", "exit_code", "finished_at", "dropped", "lines"),
            ("LOST", None, EARLY, 0, 3),
        ),
        (reply(ended(lines="3")), ("end", "last"), (End(4, Status.FAILED, 3, 3, 2, LATE), 3)),
        (reply(ended(), ("1-0", "5-0")), ("end", "last"), (End(6, Status.FAILED, 3, 5, 2, LATE), 5)),
        (reply(ended(), ("", "5-0")), ("lines", "last", "first"), (4, 4, 5)),
        (reply(ended()), ("lines", "last", "first"), (0, 0, 1)),
        (reply(ended(lines="3"), ("1-0", "4-0")), ("lines", "last"), (3, 3)),
        (reply(ended(lines="3"), ("1-0", "5-0")), ("lines", "last"), (5, 5)),
        (reply(ended(archived="9")), ("lines", "last"), (9, 9)),
        (reply(ended(lines="3", archived="9")), ("lines", "last"), (3, 9)),
        (reply(ended(lines="12", archived="9")), ("lines", "last"), (12, 12)),
        (reply(ended(lines="12", **COMPLETE)), ("lines", "last"), (12, 9)),
        (reply(ended(lines="12", **COMPLETE), ("", "10-0")), ("lines", "last"), (12, 9)),
        (reply(ended(lines="12", **COMPLETE), ("", "11-0")), ("lines", "last"), (12, 12)),
        (reply(ended(lines="3", exit_code="x", dropped="y", finished_at="z")), ("end",), (bare_end(4, Status.FAILED),)),
        (reply({"status": "LOST"}), ("status",), ("LOST",)),
        # The hash's other fields.
        (reply({"redactions": "4", "archive_sha256": "a" * 64}), ("redactions", "archive_sha256"), (4, "a" * 64)),
        (reply({"redactions": "-4", "archive_sha256": "A" * 64}), ("redactions", "archive_sha256"), (0, None)),
        (reply(labels=(b"branch", b"main", b"odd", b"\xff")), ("labels",), ((("branch", "main"),),)),
    ],
)  # fmt: skip
def test_the_state_of_a_job(answer: list[Any], names: tuple[str, ...], values: tuple[Any, ...]) -> None:
    job = parse_job(JOB, answer)
    assert job
    assert (job.ref, tuple(getattr(job, name) for name in names)) == (JOB, values)


def test_an_unknown_job_is_none() -> None:
    assert parse_job(JOB, None) is None


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        ([b"GAP", 7], errors.SequenceGap, "7"),
        ([b"QUOTA", 8], errors.QuotaReached, "quota"),
        ([b"LABEL_SET", b"a", b"b"], errors.LabelSet, "label a, b: it has another value"),
        ([b"HELD"], errors.Held, "another live runner"),
        ([b"RUNS"], errors.Held, "a live runner"),
        ([b"DELETED"], errors.Deleted, "id is blocked"),
        ([b"CLOSED"], errors.Closed, "already ended"),
        ([b"FENCED"], errors.Fenced, "lease lost"),
        ([b"FILES"], errors.TooManyFiles, "too many files"),
        ([b"TAINTED", b"5-1"], errors.CorruptLog, "not 1-0, 2-0"),
    ],
)
def test_any_answer_but_ok_is_an_error(answer: list[Any], error: type[Exception], message: str) -> None:
    assert accepted([b"OK", 3, b"SLOW"]) == [3, b"SLOW"]
    with pytest.raises(error, match=message) as caught:
        accepted(answer)
    assert type(caught.value) is error
    assert getattr(caught.value, "expected", None) == (
        answer[1] if error in (errors.SequenceGap, errors.QuotaReached) else None
    )


def test_small_replies() -> None:
    """Both protocols' streams, the position between two lines, and the entries by which scripts recognize a log."""
    entries = [(b"1-0", [b"message", b"a"])]
    assert [*stream_entries({b"k": entries})] == [*stream_entries([(b"k", entries)])] == [(b"k", entries)]
    assert [*stream_entries(None)] == []
    assert id_after(5) == "5-18446744073709551615"
    assert entry_fingerprint(None) == (b"", "")
    assert entry_fingerprint(entries[0]) == (b"1-0", "63ddc53f491ff5b1a44c8de07b06c8619d71e8da")
    assert is_unlisted(reply({"attempt": "1"}))
    assert not is_unlisted(reply({"attempt": "1", "created_at": EARLY}))
    assert not is_unlisted(reply({}, listed=b"5"))
    assert not is_unlisted(None)
