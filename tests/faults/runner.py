"""``chronoverse run`` as a process, with ``emitter.py`` as its job."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from chronoverse.joblog.model import JobRef
from tests.faults.oracle import Printed
from tests.support.commands import chronoverse_argv
from tests.support.service import ROOT

#: Time limit of any expected event on a busy machine, in seconds.
PATIENCE_SECONDS: Final = 60.0

_EMITTER: Final = str(Path(__file__).with_name("emitter.py"))


class Runner:
    """Publishes what writer ``a`` prints as ``job`` to the store at ``url``.

    ``settings`` are environment variables in lower case, without ``CHRONOVERSE_``.
    """

    def __init__(self, directory: Path, url: str, job: JobRef, rate: float, **settings: Any) -> None:
        self.job = job
        self._progress = directory / f"{job.job_id}.progress"
        self._errors = self._progress.with_suffix(".err")
        emitter = (sys.executable, "-S", "-E", _EMITTER, str(self._progress), "a", str(rate))
        ours = {"redis_url": url, "data_dir": directory / f"{job.job_id}.data", **settings}
        clean = {name: value for name, value in os.environ.items() if not name.startswith("CHRONOVERSE_")}
        with self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                chronoverse_argv("run", "--workflow", job.workflow_id, "--job", job.job_id, "--", *emitter),
                env={
                    **clean,
                    **{f"CHRONOVERSE_{name.upper()}": str(value) for name, value in ours.items()},
                    "PYTHONPATH": str(ROOT),
                },
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )

    @property
    def begun(self) -> int:
        """How many lines the job has started to print."""
        with contextlib.suppress(FileNotFoundError):
            return int(self._progress.read_bytes() or b"0")
        return 0

    @property
    def stderr_text(self) -> str:
        """The runner's messages on stderr, where the job itself prints nothing."""
        return self._errors.read_text()

    def end_job(self) -> None:
        """Makes the job end with EXIT_CODE."""
        self._progress.with_name(self._progress.name + ".stop").touch()

    def wait(self) -> int:
        """Waits for the runner to exit, and returns its exit code."""
        return self.process.wait(PATIENCE_SECONDS)

    @property
    def printed(self) -> Printed:
        """The oracle's input. All lines that were started must be in the log."""
        return Printed(self.begun, self.begun)

    def close(self) -> None:
        """Ends the job and the runner, whatever their state."""
        self.end_job()
        self.process.kill()
        self.process.wait()
