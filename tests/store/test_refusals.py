"""The answer of each runner operation in each state of its job, and whether it changes anything."""

from collections.abc import Callable
from typing import Any, Final

import pytest

from chronoverse.archive.job_objects import archive_lock
from chronoverse.archive.retention import delete_job
from chronoverse.errors import AppendRefused, Held, SequenceGap
from chronoverse.joblog.model import Attempt, Status
from chronoverse.store import Store
from tests.support.bench import JOB, Bench, make_lines
from tests.support.servers import RedisServer

Step = Callable[[Bench, Attempt], object]


def ask(command: str, kind: str, *values: object) -> Step:
    """Runs a command on one of the job's keys."""
    return lambda bench, attempt: bench.ask(command, bench.key(kind), *values)


def opened(token: str) -> Step:
    return lambda bench, attempt: bench.store.open(JOB, token)


def ended(status: Status) -> Step:
    return lambda bench, attempt: bench.store.finish(attempt, status, 0, 0, 3)


def wait_again(bench: Bench, attempt: Attempt) -> None:
    bench.store.finish(Attempt(JOB, "b", 2, 3), Status.PENDING, 0, 0, 3)


def mark_deleted(bench: Bench, attempt: Attempt) -> None:
    with archive_lock(bench.store, JOB) as token:
        bench.store.chunks.mark_deleting(JOB, token, 60_000)


def delete(bench: Bench, attempt: Attempt) -> None:
    delete_job(bench.store, None, JOB, tombstone_ms=60_000)


EXPIRE: Final = ask("DEL", "lease")
#: Events after the runner opened the job with the token "a" and appended two lines.
STATES: Final[dict[str, tuple[Step, ...]]] = {
    "runs": (),
    "expired": (EXPIRE,),
    "in grace": (ask("SET", "lease", "grace:9999999999999"),),
    "taken": (EXPIRE, opened("b")),
    "opened again": (EXPIRE, opened("a")),
    "waits": (ended(Status.PENDING),),
    "waits again": (ended(Status.PENDING), opened("b"), wait_again),
    "completed": (ended(Status.COMPLETED),),
    "kept": (ended(Status.COMPLETED), ask("HSET", "job", "archived", 2), ask("PERSIST", "job")),
    "expired log": (ended(Status.COMPLETED), ask("DEL", "log")),
    "lost": (
        EXPIRE,
        ask("XADD", "log", "3-0", "event", "end", "status", "LOST"),
        ask("HSET", "job", "status", "LOST", "lines", 2),
    ),
    "foreign end": (ask("XADD", "log", "3-0", "event", "end"),),
    "no log": (ask("DEL", "log"),),
    "no hash": (ask("DEL", "job"),),
    "trimmed": (ask("XTRIM", "log", "MAXLEN", 0),),
    "archived": (ask("DEL", "log"), ask("HSET", "job", "archived", 2)),
    "corrupt": (ask("XADD", "log", "2-1", "message", "x"),),
    "skipped": (ask("XADD", "log", "4-0", "message", "x"),),
    "being deleted": (ended(Status.PENDING), mark_deleted),
    "deleted": (ended(Status.COMPLETED), delete),
}
OPERATIONS: Final[dict[str, Callable[[Store, Attempt], Any]]] = {
    "open": lambda store, attempt: store.open(JOB, "a")[2:],
    "by b": lambda store, attempt: store.open(JOB, "b")[2:],
    "new": lambda store, attempt: store.open(JOB, "c", 1)[2:],
    "again": lambda store, attempt: store.open(JOB, "a", 1)[2:],
    "register": lambda store, attempt: store.register(JOB),
    "known": lambda store, attempt: store.append(attempt, make_lines(1, 2)),
    "next": lambda store, attempt: store.append(attempt, make_lines(2, 2)),
    "beyond": lambda store, attempt: store.append(attempt, make_lines(4, 1)),
    "lost known": lambda store, attempt: store.append_lost(attempt, 1, 2),
    "lost": lambda store, attempt: store.append_lost(attempt, 3, 4),
    "lost partly": lambda store, attempt: store.append_lost(attempt, 2, 4),
    "lost beyond": lambda store, attempt: store.append_lost(attempt, 4, 5),
    "renew": lambda store, attempt: store.renew(attempt),
    "confirm": lambda store, attempt: store._ask(
        "confirm", JOB, ("log", "job", "lease"), attempt.token, 86_400_000, 1_000, attempt.attempt
    ),
    "wait": lambda store, attempt: store.finish(attempt, Status.PENDING, 1, 0, 3),
    "early wait": lambda store, attempt: store.finish(attempt, Status.PENDING, 1, 0, 2),
    "end": lambda store, attempt: store.finish(attempt, Status.COMPLETED, 0, 0, 3),
    "fail": lambda store, attempt: store.finish(attempt, Status.FAILED, 1, 0, 3),
    "early end": lambda store, attempt: store.finish(attempt, Status.COMPLETED, 0, 0, 2),
    "foreign": lambda store, attempt: store.end(JOB, Status.CANCELED, None).status,
}
#: Answers, one column per operation. Errors are letters: Held, Closed, Fenced, Deleted or coRrupt; "g" and a number
#: is a gap with the expected number. Suffixes: "*" the stored values have changed, "'" the lease was extended,
#: "e" another key expires from now on.
TABLE: Final = """
runs          1,3'  H     H  1,3'  False  3'  4*' g3 3'  5*' g3 g3 -' 3' -*' g3  -*e -*e g3  H
expired       2,3*' 2,3*' g3 g3    False  F   F   F  F   F   F  F  F  F  F   F   F   F   F   H
in grace      2,3*' 2,3*' g3 g3    False  F   F   F  F   F   F  F  F  F  F   F   F   F   F   H
taken         H     2,3'  H  H     False  F   F   F  F   F   F  F  F  F  F   F   F   F   F   H
opened again  2,3'  H     H  2,3'  False  F   F   F  F   F   F  F  F  F  F   F   F   F   F   H
waits         2,3*' 2,3*' g3 g3    False  F   F   F  F   F   F  F  F  F  -   F   F   F   F   CANCELED*e
waits again   3,3*' 3,3*' g3 g3    False  F   F   F  F   F   F  F  F  F  F   F   F   F   F   CANCELED*e
completed     C     C     C  C     False  C   C   C  C   C   C  C  F  4  F   F   -   F   F   C
kept          C     C     C  C     False  C   C   C  C   C   C  C  F  4  F   F   -   F   F   C
expired log   C     C     C  C     False  C   C   C  C   C   C  C  F  F  F   F   -   F   F   C
lost          C     C     C  C     False* F   F   F  F   F   F  F  F  4e F   F   F   F   F   C*e
foreign end   C     C     C  C     False* C   C   C  C   C   C  C  -' 4' F   F   F   F   F   C*e
no log        1,1'  H     H  1,1'  False  3*' g1  g1 3*' g1  g1 g1 -' 1' g1  g1  g1  g1  g1  H
no hash       0,3*' H     H  0,3*' False  3'  4*' g3 3'  5*' g3 g3 -' 3' -*' g3  -*e -*e g3  H
trimmed       1,3'  H     H  1,3'  False  3'  4*' g3 3'  5*' g3 g3 -' 3' -*' g3  -*e -*e g3  H
archived      1,3'  H     H  1,3'  False  3*' 4*' g3 3'  5*' g3 g3 -' 3' -*' g3  -*e -*e g3  H
corrupt       R     R     R  R     False  R   R   R  R   R   R  R  -' 3' -*' -*' -*e -*e -*e H
skipped       R     R     R  R     False  R   R   R  R   R   R  R  -' 5' -*' -*' -*e -*e -*e H
being deleted D     D     D  D     D      D   D   D  D   D   D  D  D  D  D   D   D   D   D   D
deleted       D     D     D  D     D      D   D   D  D   D   D  D  D  D  D   D   D   D   D   D
"""
LETTERS: Final = {"Held": "H", "Closed": "C", "Fenced": "F", "Deleted": "D", "CorruptLog": "R"}


def expiring(bench: Bench) -> set[str]:
    return {kind for kind in ("job", "log") if bench.ttl(kind) > 0}


def outcome(bench: Bench, state: str, operation: str) -> str:
    attempt = bench.store.open(JOB, "a")
    bench.store.append(attempt, make_lines(1, 2))
    for step in STATES[state]:
        step(bench, attempt)
    bench.ask("PEXPIRE", bench.key("lease"), 10_000)
    before, expired = bench.snapshot(), expiring(bench)
    try:
        answer = OPERATIONS[operation](bench.store, attempt)
        code = "-" if answer is None else str(answer).strip("([])").replace(", ", ",")
    except SequenceGap as error:
        code = f"g{error.expected}"
    except (AppendRefused, Held) as error:
        code = LETTERS[type(error).__name__]
    after, expire = bench.snapshot(), expiring(bench)
    is_renewed = bench.ttl("lease") > 86_300_000
    marks = {"*": after != before, "'": is_renewed, "e": expire - expired}
    return code + "".join(mark for mark, is_seen in marks.items() if is_seen)


@pytest.mark.parametrize("state", STATES)
def test_what_each_operation_answers(
    bench_server: tuple[str, int], servers: Callable[[str], RedisServer], prefix: str, state: str
) -> None:
    """Refusals change nothing and do not extend a lease."""
    kind, protocol = bench_server
    rows = {line[:13].strip(): line[13:].split() for line in TABLE.splitlines()}
    found = []
    for number, operation in enumerate(OPERATIONS):
        bench = Bench(servers(kind), f"{prefix}{number}", protocol)
        # Keeps jobs from being LOST, which requires that the server's uptime exceeds a lease.
        bench.store = bench.new_store(lease_seconds=86_400)
        found.append(outcome(bench, state, operation))
        bench.close()
    assert found == rows[state]
