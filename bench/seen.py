"""Was this line seen before: ``python -m bench.seen [--jobs 1000] [--shapes 2000]``. Takes two or three minutes.

Makes 200 runs of a job that installs with pip, compiles with gcc and tests with pytest, in which 30 lines occur for the
first time, 10 tests are flaky, and 5 breakages last for some runs. Archives them, and compares what the service says of
each of these lines and of each failed run with what was planted.

Then it measures the history of one line in a workflow of very many jobs, in the code of the scan server. Of the jobs
that are looked at, the sets of shapes are read with boto3 over HTTP from a server that waits 15 ms before each answer,
as S3 does; at first, and again.
"""

import argparse
import contextlib
import http.server
import itertools
import multiprocessing
import os
import random
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import orjson

from chronoverse.archive.archiver import Archiver
from chronoverse.archive.derived import derived_names
from chronoverse.archive.object_store import FileObjectStore, ObjectStore
from chronoverse.archive.reader import ArchiveReader
from chronoverse.archive.retention import RetentionPolicy
from chronoverse.archive.s3_store import S3ObjectStore
from chronoverse.history.scans.app import ScanApp
from chronoverse.history.scans.scan import HistoryScan, SummaryScan
from chronoverse.joblog.model import JobRef, Line, Status, iso_timestamp
from chronoverse.joblog.shapes import ShapeHasher, ShapeSet
from chronoverse.store import Store
from tests.support.servers import running

WORKFLOW: Final = "ci"
RUNS: Final = 200
#: Seconds that the object store waits before each answer.
S3_SECONDS: Final = 0.015
_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz"


def word(number: int) -> str:
    """A word of its own for each number, without digits: digits are no part of a shape."""
    return "".join(_LETTERS[number // 26**place % 26] for place in range(3)) + "ing"


class Plan:
    """What each run prints, and what is planted where: the runs by the text that they have in common."""

    def __init__(self, seed: int) -> None:
        choice = random.Random(seed)
        self.notices = {f"warning: {word(n)} is deprecated": choice.randrange(RUNS) for n in range(30)}
        broken = [(f"test_{word(100 + n)}", range(start, start + 4 + n)) for n, start in enumerate(range(25, 200, 38))]
        calm = [run for run in range(RUNS) if not any(run in span for _, span in broken)]
        flaky = [(f"test_{word(200 + n)}", sorted(choice.sample(calm, 6))) for n in range(10)]
        #: The runs in which each test fails.
        self.failures: Final[dict[str, list[int]]] = {name: [*runs] for name, runs in (*broken, *flaky)}
        self.logs: Final = [self._log(run, choice) for run in range(RUNS)]

    def failed(self, run: int) -> list[str]:
        """The tests that fail in a run."""
        return [name for name, runs in self.failures.items() if run in runs]

    def _log(self, run: int, choice: random.Random) -> list[str]:
        lines = [f"HEAD is now at {choice.getrandbits(160):040x}"]
        for number in range(12):
            lines.append(f"Collecting {word(300 + number)}=={choice.randrange(9)}.{choice.randrange(20)}")
            lines.append(f"  Downloading {word(300 + number)}.whl ({choice.uniform(1, 99):.1f} kB)")
        lines.append(f"Successfully installed in {choice.uniform(1, 9):.2f} s")
        for number in range(40):
            lines.append(f"gcc -O2 -c src/{word(400 + number)}.c -o /tmp/tmp{choice.getrandbits(32):08x}/out.o")
            noticed = [text for text, first in self.notices.items() if run >= first and hash_of(text) % 40 == number]
            lines += [f"src/{word(400 + number)}.c:{choice.randrange(1, 999)}:5: {text}" for text in noticed]
        tests = [f"test_{word(500 + number)}" for number in range(100)] + [*self.failures]
        failed = self.failed(run)
        for name in sorted(tests):
            end = "FAILED" if name in failed else "PASSED"
            lines.append(f"tests/{name}.py::{name} {end} [{choice.randrange(100):3}%]")
        if failed:
            lines.append("=========== FAILURES ===========")
        for name in failed:
            lines += [f"____ {name} ____", f"    def {name}(client):", ">       assert client.ask() == wanted"]
            lines.append(f"E       AssertionError: {name} got {choice.randrange(999)} instead")
            lines.append(f"tests/{name}.py:{choice.randrange(1, 99)}: AssertionError")
        lines.append(
            f"==== {len(failed)} failed, {len(tests) - len(failed)} passed in {choice.uniform(9, 20):.2f}s ===="
        )
        return lines

    def verdict(self, run: int, test: str) -> tuple[str, int | None] | None:
        """The rule of ``docs/answers.md``, by what was planted. The second value is the first run of a row."""
        before = [each for each in self.failures[test] if each < run]
        if not before:
            return "new", None
        if any(not self.failed(each) for each in range(before[0], run)):
            return "recurring", None
        row = run
        while row - 1 in before:
            row -= 1
        return ("since", row) if row < run else None


def hash_of(text: str) -> int:
    """A number that is the same in each run of the program."""
    return sum(map(ord, text))


def write(store: Store, run: str, messages: list[str], status: Status) -> None:
    """Writes a whole job."""
    attempt = store.open(JobRef(WORKFLOW, run), "bench")
    stamp = iso_timestamp(time.time())
    store.append(attempt, [Line(at, stamp, text, "stdout") for at, text in enumerate(messages, 1)])
    store.finish(attempt, status, int(status is Status.FAILED), 0, len(messages) + 1)


def archive(store: Store, objects: ObjectStore) -> None:
    """Archives all jobs that have ended."""
    policy = RetentionPolicy(hot_bytes=2**30, hot_seconds=0, retention_seconds=10**8)
    Archiver(store, objects, policy, stop=threading.Event()).run_once()


def answers(app: ScanApp, job: str, line: int, jobs: int) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """All pages of a line's history."""
    start = None
    while True:
        asked: dict[str, Any] = {"workflow_id": WORKFLOW, "job_id": job, "asked_at": time.monotonic(), "patience": 60.0}
        head, found = app.read_history(HistoryScan(line=line, jobs=jobs, start=start, **asked))
        yield head, found
        jobs, start = jobs - head["looked_at"], head["position"]
        if start is None:
            return


def check(url: str, directory: Path, seed: int) -> list[str]:
    """What is wrong, in words; and prints what was right."""
    plan, hasher = Plan(seed), ShapeHasher()
    store = Store(url, prefix=f"seen{seed}", clock=(1_772_000_000.0 + each for each in itertools.count()).__next__)
    objects = FileObjectStore(directory / f"seen{seed}")
    for run, messages in enumerate(plan.logs):
        write(store, f"run-{run}", messages, Status.FAILED if plan.failed(run) else Status.COMPLETED)
    archive(store, objects)
    app = ScanApp(store, ArchiveReader(objects, store.chunks.chunk), 65_536)
    shapes = [[hasher.shape(text) for text in messages] for messages in plan.logs]
    wrong: list[str] = []
    lines, verdicts = 0, 0
    planted = [*plan.notices, *(f"E       AssertionError: {name} got" for name in plan.failures)]
    for text in planted:
        run = max(each for each, messages in enumerate(plan.logs) if any(text in line for line in messages))
        number = next(at for at, line in enumerate(plan.logs[run], 1) if text in line)
        shape = shapes[run][number - 1]
        places = [(each, shapes[each].index(shape) + 1) for each in range(run, -1, -1) if shape in shapes[each]]
        (page,) = [found for _, found in answers(app, f"run-{run}", number, RUNS)]
        expected = dict.fromkeys(page["seen"], 0)
        for each, _ in places:
            expected["FAILED" if plan.failed(each) else "COMPLETED"] += 1
        links = [(place["id"], place["sequence_num"]) for place in (page["first"], *page["jobs"])]
        right = [(f"run-{each}", at) for each, at in (places[-1], *places[:20])]
        if page["seen"] != expected or links != right or sum(page["looked_at"].values()) != run + 1:
            wrong.append(f"seed {seed}: {text}: {page}")
        lines += 1
    for run in range(RUNS):
        if not plan.failed(run):
            continue
        scan = SummaryScan(workflow_id=WORKFLOW, job_id=f"run-{run}", asked_at=time.monotonic(), patience=60.0)
        summary = orjson.loads(app.read_summary(scan))
        test = next((name for name in plan.failed(run) if name in summary["cause"]["line"]["message"]), "")
        verdict = summary["verdict"]
        found = verdict and (verdict["kind"], verdict["id"] and int(verdict["id"][4:]))
        if not test or found != plan.verdict(run, test):
            wrong.append(f"seed {seed}: run {run}: {summary['cause']}: {verdict}")
        verdicts += 1
    print(f"seed {seed}: {lines} planted lines and {verdicts} verdicts, {len(wrong)} wrong", flush=True)
    store.close()
    return wrong


def serve_slowly(directory: str, ports: Any) -> None:
    """Serves the files below ``directory`` as S3 serves objects of the bucket ``b``."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Headers and body are sent at once: otherwise the second waits 40 ms for the acknowledgement of the first.
        wbufsize = 2**20

        def do_GET(self) -> None:
            time.sleep(S3_SECONDS)
            data = Path(directory, self.path.partition("?")[0].removeprefix("/b/")).read_bytes()
            span = self.headers.get("Range")
            if span is not None:
                first, last = map(int, span.removeprefix("bytes=").split("-"))
                data = data[first : last + 1]
            self.send_response(200 if span is None else 206)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    ports.put(server.server_port)
    server.serve_forever()


def measure(url: str, directory: Path, jobs: int, shapes: int) -> None:
    """Prints the times of one line's history: when nothing is cached, and again."""
    store = Store(url, prefix="cost", clock=(1_772_000_000.0 + each for each in itertools.count()).__next__)
    objects = FileObjectStore(directory / "cost")
    choice = random.Random(3)
    common = [choice.getrandbits(64) for _ in range(shapes)]
    for run in range(jobs):
        write(store, f"run-{run}", ["the line"], Status.FAILED if run % 3 == 0 else Status.COMPLETED)
    archive(store, objects)
    (shape,) = ShapeHasher().hashes(["the line"])
    found = ShapeSet()
    found.add([shape, *common[1:]], range(1, shapes + 1))
    name = ""
    for run in range(jobs):
        job = store.get_job(JobRef(WORKFLOW, f"run-{run}"))
        name = derived_names(job.ref, job.archive_sha256 or "")[0] if job else ""
        objects.put(name, found.to_bytes())
    print(f"{jobs} jobs of {shapes} shapes: {len(found.to_bytes()) / shapes:.2f} bytes a shape", flush=True)
    ports: Any = multiprocessing.Queue()
    server = multiprocessing.Process(target=serve_slowly, args=(str(directory / "cost"), ports), daemon=True)
    server.start()
    os.environ |= {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ["AWS_ENDPOINT_URL_S3"] = f"http://127.0.0.1:{ports.get()}"
    try:
        for looked_at in (200, 1_000):
            cold: list[float] = []
            again: list[float] = []
            slow = S3ObjectStore("b")
            # boto3 is imported by the first request of a process, and takes 0.2 s or more.
            slow.get(name)
            requests: list[float] = []
            for _ in range(10 if looked_at == 200 else 3):
                app = ScanApp(store, ArchiveReader(slow, store.chunks.chunk), 65_536)
                for times, count in ((cold, 1), (again, 20)):
                    for _ in range(count):
                        stamps, jobs_seen = [time.monotonic()], 0
                        for head, _ in answers(app, f"run-{jobs - 1}", 1, looked_at):
                            stamps.append(time.monotonic())
                            jobs_seen += head["looked_at"]
                        assert jobs_seen == min(looked_at, jobs)
                        times.append(1000 * (stamps[-1] - stamps[0]))
                        requests += [1000 * (end - begin) for begin, end in itertools.pairwise(stamps)]
            for when, times in (("at first", cold), ("again", again), ("each of all requests", requests)):
                times.sort()
                p99 = times[min(len(times) - 1, round(0.99 * len(times)))]
                print(
                    f"{looked_at} jobs, {when}: median {times[len(times) // 2]:.0f} ms, p99 {p99:.0f} ms, "
                    f"most {times[-1]:.0f} ms",
                    flush=True,
                )
    finally:
        server.terminate()
    store.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=1_000)
    parser.add_argument("--shapes", type=int, default=2_000)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    with contextlib.ExitStack() as undo:
        directory = Path(undo.enter_context(tempfile.TemporaryDirectory()))
        server = undo.enter_context(running(directory))
        wrong = [each for seed in range(args.seeds) for each in check(server.url, directory, seed)]
        print(*wrong, sep="\n")
        measure(server.url, directory, args.jobs, args.shapes)
        if wrong:
            raise SystemExit(1)


if __name__ == "__main__":
    main()
