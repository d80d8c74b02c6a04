"""Runs one case with the runner under test: starts the runner, injects faults, and reads the log from the service."""

import contextlib
import itertools
import os
import secrets
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from chronoverse.cli.conformance.proxy import Fault, Proxy
from chronoverse.cli.conformance.service import LEASE_SECONDS, WORKFLOW, Target
from chronoverse.client.client import Client
from chronoverse.errors import ChronoverseError, Held, JobNotFound
from chronoverse.joblog.labels import Labels
from chronoverse.joblog.model import MAX_LINE_BYTES, Attempt, Gap, JobRef, Line, Status, iso_timestamp
from chronoverse.runner.http_log_writer import HttpLogWriter
from chronoverse.settings import job_environ

#: Timeout in seconds of each wait of a case: the runner's end, a line, the job's end. The longest case takes 15 s.
PATIENCE_SECONDS: Final = 60.0


class Case(NamedTuple):
    """A case: the runner's input, the faults, and the expected log.

    The command is ``argv``, or a ``script`` for sh. The script's ``$1`` is the path of the case's gate: a file that
    does not exist yet. ``out`` is expected on stdout, ``err`` on stderr, ``both`` in the whole log (None: anything).
    """

    name: str
    holds: str
    script: str = "echo one; echo two"
    out: Sequence[str] = ("one", "two")
    err: Sequence[str] | None = ()
    both: Sequence[str] | None = None
    code: int = 0
    argv: Sequence[str] = ()
    labels: Mapping[str, str] = {}
    faults: tuple[Fault, ...] = ()
    #: Called before the runner's start; called once the log has the line "one".
    before: "Callable[[Trial], object] | None" = None
    during: "Callable[[Trial], object] | None" = None
    #: Yields a sentence for each violation. Default: :func:`check_log`.
    check: "Callable[[Trial], Iterator[str]] | None" = None
    #: Expected fields of the job.
    job: Mapping[str, Any] = {}


class Broken(Exception):
    """Raised to stop a case that has already failed. The message says why it failed."""


class Result(NamedTuple):
    """The result of a case. ``problems`` is empty if the case holds. ``stderr`` is the end of the runner's stderr."""

    case: Case
    problems: list[str]
    seconds: float
    stderr: str


@dataclass(eq=False)
class Trial:
    """A running case. :meth:`run` and :meth:`read_back` set ``job`` and ``events``: the job and log in the service."""

    case: Case
    _command: Sequence[str]
    _target: Target
    _directory: Path
    _stop: threading.Event
    job: dict[str, Any] = field(default_factory=dict)
    events: list[Line | Gap] = field(default_factory=list)
    began: float = 0.0
    ended: float = 0.0
    other: Attempt | None = None

    def __post_init__(self) -> None:
        self.ref = JobRef(WORKFLOW, f"{self.case.name}-{secrets.token_hex(4)}")
        self.gate = self._directory / "gate"
        self.proxy = Proxy(self._target.url, self.case.faults)
        self.client = Client(self._target.url, self._target.token, max_retry_seconds=10)
        self._writer = HttpLogWriter(self._target.url, self._target.token)

    def run(self) -> None:
        """Runs the runner to its end. Raises :class:`Broken`."""
        serving = threading.Thread(target=self.proxy.serve_forever, args=(0.05,))
        serving.start()
        try:
            if self.case.before:
                self.case.before(self)
            self._run_command()
        finally:
            self.proxy.shutdown()
            serving.join()
            self.proxy.server_close()

    @property
    def stderr(self) -> str:
        """The end of the runner's stderr."""
        path = self._directory / "stderr"
        return path.read_bytes()[-2_000:].decode("utf-8", "replace") if path.exists() else ""

    @property
    def lines(self) -> list[Line]:
        return [each for each in self.events if isinstance(each, Line)]

    def messages(self, stream: str | None) -> list[str]:
        """The lines of ``stream`` (None: of the whole log). Joins the pieces of each line."""
        joined, goes_on = list[str](), False
        for line in self.lines:
            if stream in (None, line.stream):
                if goes_on:
                    joined[-1] += line.message
                else:
                    joined.append(line.message)
                goes_on = line.partial
        return joined

    def _run_command(self) -> None:
        case, environ = self.case, job_environ()
        environ |= {
            "CHRONOVERSE_URL": self.proxy.url,
            "CHRONOVERSE_TOKEN": self._target.runner_token,
            "CHRONOVERSE_LEASE_SECONDS": str(LEASE_SECONDS),
            "CHRONOVERSE_DATA_DIR": str(self._directory / "data"),
        }
        argv = [*filled_in(self._command, self.ref, case.labels)]
        argv += case.argv or ("sh", "-c", case.script, "sh", str(self.gate))
        self.began = time.time()
        with (self._directory / "stdout").open("wb") as out, (self._directory / "stderr").open("wb") as err:
            try:
                self.process = subprocess.Popen(
                    argv, env=environ, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
                )
            except OSError as error:
                raise Broken(f"CMD cannot be run: {error.strerror}") from error
        try:
            if case.during:
                self.wait_for_line("one")
                case.during(self)
            self._wait_for_end()
        finally:
            self.kill()
        self.ended = time.time()

    def close(self) -> None:
        self.client.close()
        self._writer.close()

    def _wait_for_end(self) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(1.0)
                return
            if self._stop.is_set() or time.monotonic() > deadline:
                raise Broken(f"the runner has not ended within {PATIENCE_SECONDS:g} s")
            if self.other:
                self._writer.renew(self.other)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def read_back(self) -> None:
        """Waits for the job's end, and reads the job and its log. Raises :class:`Broken` if it does not end."""
        try:
            self.client.job(self.ref)
            # A job whose runner is gone becomes LOST a second after its lease expires.
            answer = self.client.wait(
                self.ref, q=None, regex=False, stream=None, offset=None, seconds=2 * LEASE_SECONDS
            )
            self.job = answer["job"]
            if not Status(self.job["status"]).terminal:
                raise Broken(f"the job is still {self.job['status']}")
            self.events = [each for each in self.client.follow(self.ref, offset=0) if isinstance(each, Line | Gap)]
        except JobNotFound as error:
            raise Broken("no such job in the service") from error

    def wait_for_line(self, text: str) -> None:
        """Waits until the log has the line. Raises :class:`Broken` after 30 s, or if the runner ends first."""
        deadline = time.monotonic() + PATIENCE_SECONDS / 2
        while self.process.poll() is None and not self._stop.is_set() and time.monotonic() < deadline:
            with contextlib.suppress(JobNotFound):
                answer = self.client.wait(self.ref, q=text, regex=False, stream=None, offset=None, seconds=2)
                if answer["outcome"] == "matched":
                    return
        raise Broken(f"the line {text!r} is not in the log while the command runs")

    def open_other(self, *messages: str, labels: Labels = ()) -> None:
        """Opens the job as a second runner as soon as it is free, and appends lines. Raises :class:`AppendRefused`."""
        token, deadline = secrets.token_hex(16), time.monotonic() + PATIENCE_SECONDS / 2
        while self.other is None:
            try:
                self.other = self._writer.open(self.ref, token, labels=labels)
            except Held:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.25)
        for message in messages:
            line = Line(self.other.next, iso_timestamp(time.time()), message, "stdout")
            self.other = self.other._replace(next=self._writer.append(self.other, [line]))

    def end_other(self, status: Status) -> None:
        """Ends the second runner's job, or with PENDING only its attempt. Does nothing without :meth:`open_other`."""
        if self.other:
            self._writer.finish(self.other, status, 0, 0, self.other.next)
            self.other = None


def filled_in(command: Sequence[str], ref: JobRef, labels: Mapping[str, str]) -> Iterator[str]:
    """Yields the arguments with ids and labels inserted. Repeats an argument with ``{label}`` for each label."""
    for argument in command:
        named = argument.replace("{workflow}", ref.workflow_id).replace("{job}", ref.job_id)
        if "{label}" in named:
            yield from (named.replace("{label}", f"{key}={value}") for key, value in labels.items())
        else:
            yield named


def check_log(trial: Trial) -> Iterator[str]:
    """Checks that the log has all lines of the command, once and in order, and the right end."""
    trial.read_back()
    for stream, expected in (("stdout", trial.case.out), ("stderr", trial.case.err), (None, trial.case.both)):
        found = trial.messages(stream) if expected is not None else ()
        for number, (one, other) in enumerate(itertools.zip_longest(found, expected or ()), 1):
            if one != other:
                yield f"line {number} of {stream or 'both streams'}: {_quoted(one)}, and should be: {_quoted(other)}"
                break
    if trial.lines and trial.lines[-1].partial:
        yield "the log ends with a partial line"
    yield from (
        f"lines {gap.first} to {gap.last} are missing ({gap.reason})" for gap in trial.events if isinstance(gap, Gap)
    )
    if any(len(line.message.encode()) - 2 * line.message.count("\ufffd") > MAX_LINE_BYTES for line in trial.lines):
        yield f"an entry has more than {MAX_LINE_BYTES} bytes"
    yield from check_end(trial)


def check_end(trial: Trial) -> Iterator[str]:
    """Checks that the job and the runner ended as the command did."""
    code, labels = trial.case.code, trial.case.labels
    end = {"status": "FAILED" if code else "COMPLETED", "exit_code": code, "lines": len(trial.lines), "dropped": 0}
    for name, expected in {**end, "labels": labels, **trial.case.job}.items():
        found = trial.job.get(name)
        # The runner may set its own labels, such as those of a CI system.
        if found != expected and not (name == "labels" and expected.items() <= (found or {}).items()):
            yield f"the job's {name} is {found} and should be {expected}"
    yield from check_exit(trial)


def check_exit(trial: Trial) -> Iterator[str]:
    if trial.process.returncode != trial.case.code:
        yield f"the runner exited with {trial.process.returncode}, and should exit with {trial.case.code}"


def _quoted(message: str | None) -> str:
    if message is None:
        return "none"
    return repr(message) if len(message) <= 80 else f"{message[:80]!r}… ({len(message)} characters)"


def try_case(case: Case, command: Sequence[str], target: Target, stop: threading.Event) -> Result:
    """Runs a case, and returns its result. Ends early once ``stop`` is set."""
    began, problems = time.monotonic(), list[str]()
    with tempfile.TemporaryDirectory(prefix="chronoverse-conformance-", ignore_cleanup_errors=True) as directory:
        trial = Trial(case, command, target, Path(directory), stop)
        try:
            trial.run()
            problems += (case.check or check_log)(trial)
        except Broken as broken:
            problems.append(str(broken))
        except ChronoverseError as error:
            problems.append(f"the case could not be run: {error}")
        finally:
            trial.close()
        if trial.proxy.unused and not problems:
            problems.append("no fault was injected: the runner sent no such request")
        return Result(case, problems, time.monotonic() - began, trial.stderr)
