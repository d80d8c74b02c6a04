"""``chronoverse run`` as a process, with ``emitter.py`` as its job. Each runner has its own fault proxy."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from chronoverse.joblog.model import JobRef
from tests.faults.oracle import Printed
from tests.support.commands import chronoverse_argv
from tests.support.faultproxy import FaultProxy
from tests.support.service import ROOT

#: Time limit of any expected event on a busy machine, in seconds.
PATIENCE_SECONDS: Final = 60.0

_EMITTER: Final = str(Path(__file__).with_name("emitter.py"))


class Runner:
    """Publishes what ``writer`` prints as ``job``.

    ``store`` is a unix socket or a URL. The runner connects to a socket through a fault proxy, to a URL directly.
    ``settings`` are environment variables in lower case, without ``CHRONOVERSE_``.
    """

    def __init__(
        self, directory: Path, store: Path | str, job: JobRef, writer: str, rate: float, count: int, **settings: Any
    ) -> None:
        self.job = job
        self.writer = writer
        self.padding: int = int(str(settings.pop("padding", 0)))
        self._proxy = FaultProxy(store).start() if isinstance(store, Path) else None
        url = self._proxy.redis_url if self._proxy else store
        self._progress = directory / f"{job.job_id}-{writer}.progress"
        self._output = self._progress.with_suffix(".out")
        self._errors = self._progress.with_suffix(".err")
        self.data_dir = Path(str(settings.pop("data_dir", directory / f"{job.job_id}-{writer}.data")))
        emitter = (sys.executable, "-S", "-E", _EMITTER, str(self._progress), writer, str(count), str(rate))
        ours = {"CHRONOVERSE_REDIS_URL": url, "CHRONOVERSE_DATA_DIR": str(self.data_dir)}
        ours |= {f"CHRONOVERSE_{name.upper()}": str(value) for name, value in settings.items()}
        clean = {name: value for name, value in os.environ.items() if not name.startswith("CHRONOVERSE_")}
        with self._output.open("wb") as out, self._errors.open("wb") as err:
            self.process = subprocess.Popen(
                chronoverse_argv(
                    "run", "--workflow", job.workflow_id, "--job", job.job_id, "--", *emitter, str(self.padding)
                ),
                env={**clean, **ours, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )

    @property
    def proxy(self) -> FaultProxy:
        """The fault proxy between the runner and the store."""
        assert self._proxy is not None
        return self._proxy

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

    @property
    def output_lines(self) -> list[str]:
        """The job's lines on the runner's stdout."""
        return self._output.read_text().splitlines()

    def print_half_line(self) -> None:
        """Makes the job print half a line and wait."""
        self._progress.with_name(self._progress.name + ".half").touch()

    def end_job(self) -> None:
        """Makes the job end with EXIT_CODE."""
        self._progress.with_name(self._progress.name + ".stop").touch()

    def wait(self, seconds: float = PATIENCE_SECONDS) -> int:
        """Waits for the runner to exit, and returns its exit code."""
        return self.process.wait(seconds)

    def printed(self, required: int | None = None) -> Printed:
        """The oracle's input. All lines that were started must be in the log, or the first ``required``."""
        return Printed(self.begun, self.begun if required is None else required, self.padding)

    def close(self) -> None:
        """Ends the job, the runner and the proxy, whatever their state."""
        self.end_job()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()
        if self._proxy is not None:
            self._proxy.stop()
