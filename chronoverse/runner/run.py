"""Runs a command, shows its output as it is, publishes every line, and exits as the command did.

    command ─> pipes ─> capture ─> spool ─> publisher ─> store
                           └─> echo ─> our own stdout and stderr

The job's life is its own: nothing that happens to the store can delay, stop or fail it.
"""

import contextlib
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final

from chronoverse.errors import ChronoverseError, Closed, Deleted, SpoolError
from chronoverse.joblog.values import MAX_LINE_BYTES, JobRef, Status, iso_timestamp
from chronoverse.runner.capture.masking import Masks
from chronoverse.runner.command import Command
from chronoverse.runner.log_writer import JobResult, LogWriter
from chronoverse.runner.publisher import Publisher
from chronoverse.runner.signal_forwarder import SignalForwarder
from chronoverse.runner.spool.spool import Spool
from chronoverse.runner.spool.spool_file import SLOT_BYTES, SpoolRoom, orphaned_spools, read_state
from chronoverse.runner.tee import Tee, open_standard

#: Seconds that the command waits at most for the store to let us in. After that it starts, and we go on asking.
OPEN_SECONDS: Final = 1.0
#: Seconds for which lines are delivered after the command has ended, unless told otherwise.
DELIVER_SECONDS: Final = 60.0
#: Seconds between looks for a signal while the last lines are delivered: a handler cannot wake a waiting thread.
SIGNAL_POLL_SECONDS: Final = 0.1
#: Seconds for which Python lets one thread go on while another waits. At its default, 5 ms, a busy publisher
#: keeps the pipes' reader waiting at every read: a job that prints flat out took 5 times as long, now 2 times.
SWITCH_SECONDS: Final = 0.0002
#: Bytes of lines that may wait where there is no directory for a file.
MAX_PENDING_BYTES: Final = 32 * SLOT_BYTES
#: Room in memory only.
MEMORY_ONLY: Final = SpoolRoom(memory_bytes=MAX_PENDING_BYTES)


@dataclass(frozen=True, slots=True)
class RunLimits:
    """The runner's knobs: bytes and seconds."""

    max_line_bytes: int = MAX_LINE_BYTES
    room: SpoolRoom = MEMORY_ONLY
    lease_seconds: float = 30.0
    open_seconds: float = OPEN_SECONDS
    deliver_seconds: float = DELIVER_SECONDS


def run(
    argv: Sequence[str],
    store: LogWriter | Callable[[], LogWriter],
    job: JobRef,
    *,
    out: BinaryIO | None = None,
    err: BinaryIO | None = None,
    limits: RunLimits = RunLimits(),
    masks: Masks | None = None,
    pty: bool = False,
    service_url: str | None = None,
    signals: SignalForwarder | None = None,
    popen: Callable[..., "subprocess.Popen[bytes]"] = subprocess.Popen,
    clock: Callable[[], float] = time.time,
) -> int:
    """Runs ``argv`` as ``job`` and returns its exit code: 128 + n for signal n, 127 not found, 126 not executable.

    What ``masks`` names is neither published nor spooled; ``out`` and ``err`` show the job's bytes unchanged. With
    ``pty`` the command has a pseudo-terminal, and all that it prints is stdout.

    Called from the main thread it passes SIGINT, SIGTERM and SIGHUP on. Raises, and starts nothing, when the
    store turns us away at once: :class:`Held`, :class:`Closed`, :class:`Deleted`, :class:`CorruptLog`,
    :class:`NotALog`. A function in its place is called to get it, in a thread of its own.
    """
    echoes = {"stdout": Tee(out or open_standard(1)), "stderr": Tee(err or open_standard(2))}
    say = echoes["stderr"].say
    connect = store if callable(store) else partial(_given, store)
    spool = _spool(job, limits.room, say)
    publisher = Publisher(connect, job, spool, say, lease_seconds=limits.lease_seconds)
    signals = signals or SignalForwarder()
    size = limits.max_line_bytes
    command = Command(
        argv, echoes, spool.put, signals, max_line_bytes=size, masks=masks, pty=pty, popen=popen, clock=clock
    )
    with signals, _switching_often():
        try:
            publisher.start(limits.open_seconds)
            # A file that we took up says how an earlier command ended. How this one ends nobody knows yet.
            spool.remove_state("ending")
            code = command.run()
            publisher.end(JobResult(_status(code, signals), code), iso_timestamp(clock()))
            _deliver(publisher, signals, limits.deliver_seconds)
        finally:
            publisher.stop()
            close_and_report(publisher, say, service_url, delivered=publisher.ended, refusal=publisher.refusal)
    return code


def _given(store: LogWriter) -> LogWriter:
    return store


def _spool(job: JobRef, room: SpoolRoom, say: Callable[[str], None]) -> Spool:
    """A spool for the job: the one that an earlier runner of it left behind, if there is one."""
    others: list[Path] = []
    for path in orphaned_spools(room.directory) if room.directory else ():
        state = read_state(path) or {}
        if (state.get("workflow"), state.get("job")) == tuple(job):
            with contextlib.suppress(SpoolError):  # another runner was quicker
                spool = Spool.recover(path, room)
                say(f"{spool.end - spool.first} lines of an earlier runner of this job, in {path}, go before ours")
                return spool
        others.append(path)
    if others:
        oldest = shlex.quote(str(others[0]))
        say(f"undelivered lines of {len(others)} other jobs; the oldest: chronoverse deliver {oldest}")
    return Spool(replace(room, name=job.job_id))


def _status(code: int, relay: SignalForwarder) -> Status:
    if code == 0:
        return Status.COMPLETED
    return Status.CANCELED if relay.received else Status.FAILED


def _deliver(publisher: Publisher, relay: SignalForwarder, seconds: float) -> None:
    """Waits until the last lines are delivered, a further signal comes, or ``seconds`` are over."""
    signals = len(relay.received)
    deadline = time.monotonic() + seconds
    while not publisher.join(SIGNAL_POLL_SECONDS):
        if len(relay.received) > signals or time.monotonic() >= deadline:
            return


def close_and_report(
    publisher: Publisher,
    say: Callable[[str], None],
    service_url: str | None = None,
    *,
    delivered: bool,
    refusal: ChronoverseError | None,
) -> None:
    """Says what was dropped or not delivered, and how it can be: later, out of the file in which it is left.

    ``through`` is the service's URL, where there is one between us and the store. ``refusal`` is why it was not
    ``delivered`` and cannot be, if that is so.
    """
    undelivered = publisher.undelivered
    if publisher.dropped:
        say(f"{publisher.dropped} lines were dropped: there was no room to keep them")
    path = publisher.close(delivered=delivered)
    if delivered or (path is None and isinstance(refusal, Deleted)):
        return
    if undelivered:
        say(f"{undelivered} lines were not delivered to the store")
    elif publisher.ended:
        say("the store has all lines, as far as it says; they were not read back")
    elif refusal is None:
        say("the job's end was not delivered to the store")
    if path is None:
        return
    server = f"--server {shlex.quote(service_url)} " if service_url else ""
    if refusal is None:
        say(f"deliver later with: chronoverse deliver {server}{shlex.quote(str(path))}")
        return
    if isinstance(refusal, Closed):
        say(f"publish them under another id with: chronoverse deliver {server}--as JOB {shlex.quote(str(path))}")
    say(f"they are kept in {path}")


@contextlib.contextmanager
def _switching_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
