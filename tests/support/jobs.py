"""Jobs run by the real runner in a thread, and their logs in the store."""

import io
import sys
import threading
from pathlib import Path
from typing import Any, Self

from chronoverse.joblog.model import JobRef
from chronoverse.runner.command import SignalForwarder
from chronoverse.runner.run import run
from chronoverse.store import Store
from tests.support.servers import RedisServer

JOB = JobRef("wf_1", "job_1")


def key(kind: str, job: JobRef = JOB) -> str:
    """The key of a job. Spelled out here, because it is part of the public contract."""
    return f"chronoverse:{{{job.workflow_id}}}:{job.job_id}:{kind}"


def read_log(server: RedisServer, job: JobRef = JOB) -> tuple[list[dict[str, str]], dict[str, str] | None]:
    """The lines of the Redis stream, and the terminal entry, if any. Fails unless the ids are 1-0, 2-0, …."""
    entries = []
    for number, (entry_id, flat) in enumerate(server.ask("XRANGE", key("log", job), "-", "+"), start=1):
        assert entry_id == b"%d-0" % number
        fields = [part.decode() for part in flat]
        entries.append(dict(zip(fields[::2], fields[1::2], strict=True)))
    end = entries.pop() if entries and entries[-1].get("event") == "end" else None
    return entries, end


def read_end(server: RedisServer, job: JobRef = JOB) -> dict[str, str]:
    """The terminal entry."""
    end = read_log(server, job)[1]
    assert end is not None
    return end


def outcome(server: RedisServer, job: JobRef = JOB) -> tuple[str, str | None]:
    """The log's final status and exit code."""
    end = read_end(server, job)
    return end["status"], end.get("exit_code")


def read_lines(server: RedisServer, job: JobRef = JOB) -> list[str]:
    """The messages of all lines."""
    return [entry["message"] for entry in read_log(server, job)[0]]


class RunningJob:
    """Python code that a thread runs as a job. Leaving the ``with`` block ends the job and joins the thread.

    The code can call ``wait()``. Its n-th call returns after the n-th call of :meth:`release`.
    """

    def __init__(self, code: str, store: Store, directory: Path, job: JobRef = JOB, **limits: Any) -> None:
        self._gate = directory / f"{job.job_id}.gate"
        self._gate.write_bytes(b"")
        self._releases = 0
        self.out = io.BytesIO()
        self.err = io.BytesIO()
        self.signals = SignalForwarder()
        self.code: int | None = None
        self.error: BaseException | None = None
        argv = [sys.executable, "-c", f"gate = {str(self._gate)!r}\n{_WAIT}\n{code}"]
        options: dict[str, Any] = {"out": self.out, "err": self.err, "signals": self.signals, **limits}
        self._thread = threading.Thread(target=self._run, args=(argv, store, job), kwargs=options)

    def _run(self, *args: Any, **options: Any) -> None:
        try:
            self.code = run(*args, **options)
        except BaseException as error:
            self.error = error

    def release(self) -> None:
        """Lets the job's next ``wait()`` return."""
        self._releases += 1
        self._gate.write_bytes(b"." * self._releases)

    def result(self, timeout: float = 60) -> int | None:
        """Waits for the runner. Returns its exit code, or None if it raised an exception, then in ``error``."""
        self._thread.join(timeout)
        assert not self._thread.is_alive(), f"the runner is still busy; its stderr: {self.stderr_text!r}"
        return self.code

    @property
    def stderr_text(self) -> str:
        """The runner's stderr so far."""
        return self.err.getvalue().decode()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._gate.write_bytes(b"." * 1000)
        self._thread.join(70)


_WAIT = """
import os, sys, time
waits = 0
def wait():
    global waits
    waits += 1
    sys.stdout.flush()
    end = time.monotonic() + 120
    while os.path.getsize(gate) < waits:
        assert time.monotonic() < end, "nobody lets the job go on"
        time.sleep(0.005)
"""
