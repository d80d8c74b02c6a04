"""The cost of ``chronoverse run`` for a job: ``python -m bench.runner [flat] [start]``.

Jobs run with and without it, in one run of this program.

    flat   1,000,000 lines of 100 bytes as fast as they can be printed, next to a ``serve`` with its archiver, as in
           production: lines/s from the start of ``run`` to its exit, wall time of the job
    start  ``run -- true`` through a service and to the store, ``logs``, ``--version``, and their unavoidable parts:
           Python, and its imports of click, http.client and ssl. Milliseconds over ``true``

Everything runs on the embedded server in its own directory. Takes about four minutes, and prints one line each.
"""

import contextlib
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import redis

from bench.peers.ours import answers
from bench.processes import ROOT, free_port, wait_until

LINES: Final = 1_000_000
ROUNDS: Final = 3
START_ROUNDS: Final = 12
FLAT: Final = f"import sys\nw = sys.stdout.write\nfor i in range({LINES}): w('%099d\\n' % i)"


class DataDirectory:
    """A data directory whose embedded server runs within the ``with`` block."""

    def __init__(self, directory: Path, root: Path = ROOT) -> None:
        self.directory, self.root = directory, root
        self.environ = {name: text for name, text in os.environ.items() if not name.startswith("CHRONOVERSE_")}
        self.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        self.environ |= {
            "CHRONOVERSE_DATA_DIR": str(directory / "data"),
            "PYTHONPATH": str(root),
            "PYTHONPYCACHEPREFIX": str(directory / "pyc"),
        }
        self.count = 0

    def run(self, *argv: str) -> list[str]:
        self.count += 1
        # Without the option, earlier versions publish to the store even if CHRONOVERSE_URL is set.
        url = self.environ.get("CHRONOVERSE_URL")
        server = ("--server", url) if url else ()
        command = (sys.executable, "-m", "chronoverse", "run", "--workflow", "bench")
        return [*command, "--job", f"j{self.count}", *server, "--", *argv]

    def client(self) -> "redis.Redis":
        return redis.Redis(unix_socket_path=str(self.directory / "data" / "server.sock"))

    def published(self) -> int:
        newest = self.client().xinfo_stream(self._log)["last-generated-id"]
        return int(newest.partition(b"-")[0])

    @property
    def _log(self) -> str:
        return f"chronoverse:{{bench}}:j{self.count}:log"


@contextlib.contextmanager
def data_directory(root: Path = ROOT) -> Iterator[DataDirectory]:
    from chronoverse.embedded.server import ServerLease

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        found = DataDirectory(Path(name), root)
        with ServerLease(Path(name) / "data"):
            execute(found.run("true"), found)
            yield found


class Spent(NamedTuple):
    """The cost of a command: seconds, peak memory in MB, and CPU seconds including its own commands."""

    seconds: float
    peak: float
    cpu: float


def execute(argv: list[str], at: DataDirectory, out: Path | None = None) -> Spent:
    with open(out or os.devnull, "wb") as file:
        began = time.monotonic()
        with subprocess.Popen(argv, stdout=file, stderr=subprocess.PIPE, env=at.environ, cwd=at.root) as child:
            assert child.stderr is not None
            errors = child.stderr.read()
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            sys.exit(f"{argv}: {errors.decode()}")
        return Spent(time.monotonic() - began, usage.ru_maxrss / 1024, usage.ru_utime + usage.ru_stime)


def flat() -> None:
    """Prints every round. On a busy machine rounds differ by half, so the best one alone would be misleading.

    Each job has its own data directory: the archiver works for two seconds after a job, and would take a core from the
    next one.
    """
    timed = f"import time; t = time.monotonic()\n{FLAT}\nsys.stdout.flush()"
    rounds: list[tuple[float, float, float, float, float]] = []
    for number in range(1, ROUNDS + 1):
        with data_directory() as at, serving(at):
            mark = at.directory / "wall"
            job = [sys.executable, "-c", f"{timed}\nopen({str(mark)!r}, 'w').write(str(time.monotonic() - t))"]
            alone = execute(job, at, at.directory / "direct")
            direct = float(mark.read_text())
            ours = execute(at.run(*job), at, at.directory / "ours")
            ratio, rate = float(mark.read_text()) / direct, LINES / ours.seconds
            assert at.published() == LINES + 1, at.published()
        with data_directory() as at, serving(at) as environ:
            through = through_service(at, environ)
            over_http = LINES / execute(through.run(sys.executable, "-c", FLAT), through).seconds
            assert through.published() == LINES + 1, through.published()
        cpu = 1e6 * (ours.cpu - alone.cpu) / LINES
        rounds.append((ratio, rate, over_http, ours.peak, cpu))
        said = f"job {ratio:.2f}x of > file ({direct:.2f} s), {rate:,.0f} lines/s, {ours.peak:.0f} MB"
        said = f"{said}, {cpu:.2f} us of the runner's CPU a line; over HTTP {over_http:,.0f} lines/s"
        print(f"flat   round {number}: {said}", flush=True)
    ratios, rates, https, peaks, cpus = (sorted(each)[ROUNDS // 2] for each in zip(*rounds, strict=True))
    said = f"job {ratios:.2f}x, {rates:,.0f} lines/s, over HTTP {https:,.0f} ({https / rates:.2f}x)"
    print(f"flat   median: {said}, {peaks:.0f} MB, {cpus:.2f} us of CPU a line")


def through_service(at: DataDirectory, environ: Mapping[str, str]) -> DataDirectory:
    """The same directory for commands that publish through its service."""
    argv = [sys.executable, "-m", "chronoverse", "token", "--scope", "logs:read", "--scope", "logs:write"]
    token = subprocess.check_output(argv, env=environ, cwd=at.root, text=True).strip()
    through = DataDirectory(at.directory, at.root)
    through.environ = {**environ, "CHRONOVERSE_TOKEN": token}
    through.count = 1_000  # its jobs have different ids
    return through


def start() -> None:
    """Commands alternate, so that the machine is equally busy for each."""
    chronoverse = [sys.executable, "-m", "chronoverse"]
    with data_directory() as at, serving(at) as environ:
        through = through_service(at, environ)
        commands: dict[str, tuple[DataDirectory, Callable[[], list[str]]]] = {
            "true": (at, lambda: ["true"]),
            "python -c pass": (at, lambda: [sys.executable, "-c", "pass"]),
            "imports": (at, lambda: [sys.executable, "-c", "import click, http.client, ssl"]),
            "--version": (at, lambda: [*chronoverse, "--version"]),
            "run, service": (through, lambda: through.run("true")),
            "logs": (through, lambda: [*chronoverse, "logs", "bench", "j1"]),
            "run, store": (at, lambda: at.run("true")),
        }
        took: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(START_ROUNDS):
            for name, (where, argv) in commands.items():
                took[name].append(execute(argv(), where).seconds * 1000)
    bare = min(took["true"])
    for name, each in took.items():
        best, median = min(each) - bare, statistics.median(each) - bare
        print(f"start  {name:14} {best:4.0f} ms over true at best, median {median:.0f}")


@contextlib.contextmanager
def serving(at: DataDirectory) -> Iterator[dict[str, str]]:
    """A service on the embedded server, with its archiver. Yields the environment of its clients."""
    port = free_port()
    environ = {**at.environ, "CHRONOVERSE_BIND": f"127.0.0.1:{port}", "CHRONOVERSE_URL": f"http://127.0.0.1:{port}"}
    with subprocess.Popen(
        [sys.executable, "app.py"], env=environ, cwd=at.root, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as service:
        try:
            assert service.stdout is not None
            while b"/events" not in (line := service.stdout.readline()):
                assert line, "the service did not start"
            # Its workers start after this message, and would share the cores with the measured commands.
            wait_until(lambda: answers(port), "no worker answers")
            yield environ
        finally:
            service.terminate()


def main(names: list[str]) -> None:
    parts = {each.__name__: each for each in (flat, start)}
    for name in names or list(parts):
        parts[name]()


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main(sys.argv[1:])
