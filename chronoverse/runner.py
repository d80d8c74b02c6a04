"""Runs a command, shows its output as it is, publishes every line, and exits as the command did.

    command ─> pipes ─> capture ─> spool ─> publisher ─> store
                           └─> echo ─> our own stdout and stderr

The job's life is its own: nothing that happens to the store can delay, stop or fail it.
"""

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Final

from chronoverse.command import Command
from chronoverse.cutter import MAX_LINE_BYTES
from chronoverse.echo import Echo, standard
from chronoverse.joblog import JobRef, Status, iso_timestamp
from chronoverse.publisher import Ending, Ledger, Publisher, jittered
from chronoverse.relay import Relay
from chronoverse.spool import MAX_PENDING_BYTES, Spool

#: Seconds that the command waits at most for the store to let us in. After that it starts, and we go on asking.
OPEN_SECONDS: Final = 1.0
#: Seconds for which lines are delivered after the command has ended, unless told otherwise.
DELIVER_SECONDS: Final = 60.0
#: Seconds between looks for a signal while the last lines are delivered: a handler cannot wake a waiting thread.
SIGNAL_POLL_SECONDS: Final = 0.1
#: Seconds for which Python lets one thread go on while another waits. At its default, 5 ms, a busy publisher
#: keeps the pipes' reader waiting at every read: a job that prints flat out took 5 times as long, now 2 times.
SWITCH_SECONDS: Final = 0.0002


@dataclass(frozen=True, slots=True)
class Limits:
    """The runner's knobs: bytes and seconds."""

    max_line_bytes: int = MAX_LINE_BYTES
    max_pending_bytes: int = MAX_PENDING_BYTES
    lease_seconds: float = 30.0
    open_seconds: float = OPEN_SECONDS
    deliver_seconds: float = DELIVER_SECONDS


def run(
    argv: Sequence[str],
    store: Ledger,
    job: JobRef,
    *,
    out: BinaryIO | None = None,
    err: BinaryIO | None = None,
    limits: Limits = Limits(),
    relay: Relay | None = None,
    popen: Callable[..., "subprocess.Popen[bytes]"] = subprocess.Popen,
    clock: Callable[[], float] = time.time,
    backoff: Callable[[int], float] = jittered,
) -> int:
    """Runs ``argv`` as ``job`` and returns its exit code: 128 + n for signal n, 127 not found, 126 not executable.

    Called from the main thread it passes SIGINT, SIGTERM and SIGHUP on. Raises, and starts nothing, when the
    store turns us away at once: :class:`Held`, :class:`Closed`, :class:`Tainted`, :class:`NotALog`.
    """
    echoes = {"stdout": Echo(out or standard(1)), "stderr": Echo(err or standard(2))}
    say = echoes["stderr"].say
    spool = Spool(limits.max_pending_bytes)
    publisher = Publisher(store, job, spool, say, lease_seconds=limits.lease_seconds, backoff=backoff)
    relay = relay or Relay()
    command = Command(argv, echoes, spool.put, relay, max_line_bytes=limits.max_line_bytes, popen=popen, clock=clock)
    with relay, _switching_often():
        try:
            publisher.start(limits.open_seconds)
            code = command.run()
            publisher.end(Ending(_status(code, relay), code), iso_timestamp(clock()))
            _deliver(publisher, relay, limits.deliver_seconds, say)
        finally:
            publisher.stop()
    return code


def _status(code: int, relay: Relay) -> Status:
    if code == 0:
        return Status.COMPLETED
    return Status.CANCELED if relay.received else Status.FAILED


def _deliver(publisher: Publisher, relay: Relay, seconds: float, say: Callable[[str], None]) -> None:
    """Waits until the last lines are delivered, a further signal comes, or ``seconds`` are over."""
    signals = len(relay.received)
    deadline = time.monotonic() + seconds
    while not publisher.join(SIGNAL_POLL_SECONDS):
        if len(relay.received) > signals or time.monotonic() >= deadline:
            publisher.stop()
            break
    if publisher.undelivered:
        say(f"{publisher.undelivered} lines were not delivered to the store")
    elif not publisher.ended:
        say("the job's end was not delivered to the store")


@contextlib.contextmanager
def _switching_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
