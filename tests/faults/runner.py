"""``chronoverse run`` with a job that proves its lines, in a process of its own, behind a fault proxy of its own."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from chronoverse.joblog.values import JobRef
from tests.faults.oracle import Printed
from tests.support.commands import command
from tests.support.faultproxy import FaultProxy
from tests.support.service import ROOT

#: Seconds for whatever must come on a busy machine.
PATIENCE_SECONDS: Final = 30.0

_EMITTER: Final = str(Path(__file__).with_name("emitter.py"))


class Runner:
    """Publishes what ``writer`` prints as ``job`` to the store at ``store``: a socket behind a proxy, or just a URL.

    ``settings`` are its own, lower case; ``environ`` is added to its environment as it is.
    """

    def __init__(
        self, directory: Path, store: Path | str, job: JobRef, writer: str, rate: float, count: int, **settings: Any
    ) -> None:
        self.job = job
        self.writer = writer
        self.padding: int = int(str(settings.pop("padding", 0)))
        self._proxy = FaultProxy(store).start() if isinstance(store, Path) else None
        url = self._proxy.redis_url if self._proxy else store
        self._ledger = directory / f"{job.job_id}-{writer}.ledger"
        self._output = self._ledger.with_suffix(".out")
        self._errors = self._ledger.with_suffix(".err")
        self.data_dir = Path(str(settings.pop("data_dir", directory / f"{job.job_id}-{writer}.data")))
        emitting = (sys.executable, "-S", "-E", _EMITTER, str(self._ledger), writer, str(count), str(rate))
        ours = {"CHRONOVERSE_REDIS_URL": url, "CHRONOVERSE_DATA_DIR": str(self.data_dir)}
        added: dict[str, str] = {"PYTHONPATH": "", **settings.pop("environ", {})}
        added["PYTHONPATH"] = f"{ROOT}:{added['PYTHONPATH']}".rstrip(":")
        ours |= {f"CHRONOVERSE_{name.upper()}": str(value) for name, value in settings.items()}
        clean = {name: value for name, value in os.environ.items() if not name.startswith("CHRONOVERSE_")}
        with self._output.open("wb") as out, self._errors.open("wb") as err:
            self.process = subprocess.Popen(
                command("run", "--workflow", job.workflow_id, "--job", job.job_id, "--", *emitting, str(self.padding)),
                env={**clean, **ours, **added},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )

    @property
    def proxy(self) -> FaultProxy:
        """Between it and the store."""
        assert self._proxy is not None
        return self._proxy

    @property
    def begun(self) -> int:
        """Lines that the job began to print."""
        with contextlib.suppress(FileNotFoundError):
            return int(self._ledger.read_bytes() or b"0")
        return 0

    @property
    def stderr_text(self) -> str:
        """What the runner says on its stderr; the job prints nothing there."""
        return self._errors.read_text()

    @property
    def shown(self) -> list[str]:
        """The job's lines as they came out of the runner."""
        return self._output.read_text().splitlines()

    def print_half_line(self) -> None:
        """Has the job print half a line and wait."""
        self._ledger.with_name(self._ledger.name + ".half").touch()

    def end(self) -> None:
        """Has the job end, with EXIT_CODE."""
        self._ledger.with_name(self._ledger.name + ".stop").touch()

    def wait(self, seconds: float = PATIENCE_SECONDS) -> int:
        """The runner's exit code."""
        return self.process.wait(seconds)

    def printed(self, required: int | None = None) -> Printed:
        """For the oracle; all that was begun must be there unless ``required`` says how much."""
        return Printed(self.begun, self.begun if required is None else required, self.padding)

    def close(self) -> None:
        """Ends what is left of it."""
        self.end()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()
        if self._proxy is not None:
            self._proxy.stop()
