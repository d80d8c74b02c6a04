"""Runs a command, shows its output unchanged, publishes every line, and returns the command's exit code.

Errors of the store never delay, stop or fail the command.
"""

import contextlib
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Final

from chronoverse.errors import AppendRefused, ChronoverseError, Closed, Deleted, NotALog, SpoolError
from chronoverse.joblog.labels import Labels
from chronoverse.joblog.model import MAX_LINE_BYTES, JobRef, Status
from chronoverse.joblog.terminal import counted
from chronoverse.runner.capture.masking import Masks
from chronoverse.runner.capture.pipes import Capture
from chronoverse.runner.command import SignalForwarder, Tee, open_standard, run_command
from chronoverse.runner.publisher import JobResult, LogWriter, Publisher
from chronoverse.runner.spool.spool import Spool
from chronoverse.runner.spool.spool_file import MAX_ORPHANS, SpoolRoom, orphaned_spools

OPEN_SECONDS: Final = 1.0
DELIVER_SECONDS: Final = 60.0
#: The room of a spool without a file: up to 64 MiB of lines wait in memory.
MEMORY_ONLY: Final = SpoolRoom(memory_bytes=67_108_864)


def run(
    argv: Sequence[str],
    store: "LogWriter | Callable[[], LogWriter]",
    job: JobRef,
    *,
    out: BinaryIO | None = None,
    err: BinaryIO | None = None,
    max_line_bytes: int = MAX_LINE_BYTES,
    room: SpoolRoom = MEMORY_ONLY,
    lease_seconds: float = 30.0,
    open_seconds: float = OPEN_SECONDS,
    deliver_seconds: float = DELIVER_SECONDS,
    masks: Masks | None = None,
    pty: bool = False,
    require_log: bool = False,
    retry: bool = False,
    more_follow: bool | None = None,
    labels: Labels = (),
    service_url: str | None = None,
    page: Callable[[JobRef], str] | None = None,
    signals: SignalForwarder | None = None,
) -> int:
    """Runs ``argv`` as ``job``. Returns its exit code: 128 + n for signal n, 127 not found, 126 not executable.

    ``store`` can be a function, called in the publisher's thread. ``more_follow``: whether other commands follow as
    attempts of this job; None for a single command. ``service_url`` and ``page`` are for messages. With
    ``require_log``, raises what :meth:`Publisher.start` raises.
    """
    tees = {
        "stdout": Tee(out or open_standard(1)),
        "stderr": Tee(err or open_standard(2), err is None and os.isatty(2)),
    }
    say = tees["stderr"].say
    connect = store if callable(store) else lambda: store
    make_publisher = partial(
        Publisher,
        connect,
        job,
        say=say,
        lease_seconds=lease_seconds,
        find_free_id=retry,
        labels=labels,
        # The previous command may still be delivering its last lines.
        wait_for_lease=more_follow is not None,
    )
    if page:
        say(page(job))
    spool = _open_spool(job, room, say, retry=retry, service_url=service_url)
    recovered, recovered_lines = spool.path, spool.undelivered
    publisher = make_publisher(spool)
    signals = signals or SignalForwarder()
    refusal: ChronoverseError | None = None
    with signals, _short_switch_interval():
        try:
            # Waits for the store only if the job must be open, or its id known, before the command starts.
            seconds = open_seconds if require_log or retry or recovered is not None else 0
            publisher.start(seconds, must_open=require_log)
        except ChronoverseError as error:
            if require_log:
                publisher.stop()
                spool.preserve()
                say("command not started: --require-log is set and the log cannot be published")
                raise
            refusal = error
            say(f"nothing is published: {error}; the command still runs")
            if recovered is not None and _refuses_id(error):
                # Our lines cannot follow those of the earlier runner, which stay in its file.
                spool.save_state(retry=True)
                spool.preserve()
                recovered = None
                spool = Spool(replace(room, name=job.job_id))
                spool.force_spill(True)
                publisher = make_publisher(spool)
        if page and publisher.job != job and publisher.base is not None:
            say(page(publisher.job))
        if recovered is not None:
            say(f"first delivering {counted(recovered_lines)} of an earlier runner of this job, from {recovered}")
        try:
            # A recovered spool file can contain the end of an earlier command. Its exit code still counts for the job.
            earlier = spool.state.get("ending") or (None, None)
            before = (earlier[1] or 0) if more_follow is not None and earlier[0] == Status.PENDING else 0
            spool.save_state(ending=None, retry=None, server=service_url or "")
            capture = Capture(tees, spool.put, max_line_bytes=max_line_bytes, masks=masks)
            code = run_command(argv, capture, say, signals, pty=pty)
            status = Status.CANCELED if signals.received else Status.FAILED
            if more_follow and not signals.received:
                publisher.end(JobResult(Status.PENDING, max(code, before)))
            else:
                publisher.end(JobResult(status if code or before else Status.COMPLETED, max(code, before)))
            if refusal is None:
                count = len(signals.received)
                show = tees["stderr"].show_status
                wait_delivered(publisher, deliver_seconds, show, lambda: len(signals.received) > count)
                tees["stderr"].clear_status()
        finally:
            publisher.stop()
            refusal = refusal or publisher.refusal
            # If a command of a series starts after the job's end and prints nothing, there is nothing to deliver.
            is_over = more_follow is not None and isinstance(refusal, Closed) and not spool.end
            close_and_report(publisher, service_url, delivered=publisher.ended or is_over, refusal=refusal)
    return code


def _open_spool(
    job: JobRef, room: SpoolRoom, say: Callable[[str], None], *, retry: bool, service_url: str | None
) -> Spool:
    """A spool for the job. Unless ``retry``, recovers the spool that an earlier runner of the job left, if any."""
    others: list[tuple[Path, dict[str, Any]]] = []
    left = orphaned_spools(room.directory, "" if retry else job.job_id) if room.directory else {}
    for path, state in left.items():
        if not retry and (state.get("workflow"), state.get("job")) == tuple(job):
            with contextlib.suppress(SpoolError):  # another runner has just opened the file
                return Spool.recover(path, room)
        others.append((path, state))
    if others:
        path, state = others[0]
        count = f"at least {MAX_ORPHANS}" if len(others) >= MAX_ORPHANS else len(others)
        runs = "another run" if len(others) == 1 else f"{count} other runs"
        which = "them" if len(others) == 1 else "the oldest"
        server = state.get("server", service_url)
        # An empty ``server`` means that the run published directly to a store, which CHRONOVERSE_URL may not serve.
        prefix = "env -u CHRONOVERSE_URL " if service_url and not server else ""
        command = _deliver_command(path, server, retry=state.get("retry", False))
        say(f"{runs} left undelivered lines. Upload {which} with: {prefix}{command}")
    return Spool(replace(room, name=job.job_id))


def wait_delivered(
    publisher: Publisher, seconds: float, show: Callable[[str], object], is_stopped: Callable[[], bool] = lambda: False
) -> None:
    """Waits until all is delivered or ``is_stopped()``, but only 5 s if the store was never reached. Shows progress."""
    start = time.monotonic()
    show_at = start + 1
    # Seconds between checks for a signal, which cannot wake a waiting thread.
    while not publisher.join(0.1):
        now = time.monotonic()
        left = start - now + (min(seconds, 5.0) if publisher.is_unreached else seconds)
        if is_stopped() or left <= 0:
            return
        if now >= show_at:
            show_at += 1
            lines, file = publisher.spool.undelivered, publisher.spool.path or "a file"
            what, them = counted(lines) if lines else "the job's end", "them" if lines > 1 else "it"
            show(f"delivering {what}, for up to {math.ceil(left)} s; Ctrl-C keeps {them} in {file}")


def close_and_report(
    publisher: Publisher, service_url: str | None = None, *, delivered: bool, refusal: ChronoverseError | None
) -> None:
    """Closes a stopped publisher's spool. Reports dropped lines, and how to deliver the rest later.

    ``delivered``: the store has everything, so the spool's file is removed. ``refusal``: the error that stopped
    delivery permanently. ``service_url``: the service that we publish through.
    """
    spool, say = publisher.spool, publisher.say
    undelivered = spool.undelivered
    is_refused = _refuses_id(refusal)
    retry = is_refused or (publisher.find_free_id and publisher.base is None)
    if delivered:
        path = None
        spool.abandon()
    else:
        spool.save_state(retry=retry or None)
        path = spool.preserve()
    if spool.dropped:
        say(f"{counted(spool.dropped, 'line was', 'lines were')} dropped: the spool was full")
    if delivered or (path is None and isinstance(refusal, Deleted)):
        return
    if undelivered:
        say(f"{counted(undelivered, 'line was', 'lines were')} not delivered to the store")
    elif publisher.ended:
        say("the store acknowledged all lines, but they were not verified")
    else:
        say("the job's end was not delivered to the store")
    if path is None:
        if spool.file_error is not None:
            say(f"the lines could not be kept in {spool.room.directory}: {spool.file_error}")
        return
    what = "publish under another id" if is_refused else "deliver later"
    say(f"{what}: {_deliver_command(path, service_url, retry=retry)}")


def _deliver_command(path: Path, service_url: str | None, *, retry: bool) -> str:
    server = ("--server", service_url) if service_url else ()
    options = ("--retry",) if retry else ()
    return shlex.join(["chronoverse", "deliver", *server, *options, str(path)])


def _refuses_id(refusal: ChronoverseError | None) -> bool:
    return isinstance(refusal, AppendRefused | NotALog)


@contextlib.contextmanager
def _short_switch_interval() -> Iterator[None]:
    before = sys.getswitchinterval()
    # With Python's default of 5 ms, output took 5 times as long, as the pipes' reader waited for the GIL at each read.
    sys.setswitchinterval(0.0002)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
