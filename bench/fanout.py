"""Fan-out, both sides in one run: the service, and the same server without a shared tail, in turns on one store.

    python -m bench.fanout [--viewers 500] [--rate 200] [--seconds 8] [--rounds 3]

One worker each. Every number at every viewer is checked. Prints a table, the ratios, and JSON on the last line.
"""

import argparse
import json
import multiprocessing
import os
import resource
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import psutil

from bench.viewers import Report, watch
from chronoverse import embedded
from chronoverse.auth import mint
from chronoverse.joblog import JobRef, Line, Status
from chronoverse.store import Store

ROOT: Final = Path(__file__).resolve().parents[1]
SECRET: Final = secrets.token_urlsafe(32)
TIMESTAMP: Final = "2026-03-03T10:00:05.123Z"
PORT: Final = 8731
#: Seconds beyond the publishing for a side to deliver what it still owes.
GRACE_SECONDS: Final = 20.0


def publish(url: str, job: JobRef, rate: float, lines: int, go: Any) -> None:
    """``lines`` lines at ``rate`` a second, each an append of its own that carries the time."""
    store = Store(url)
    attempt = store.open(job, "bench")
    go.wait(60)
    began = time.monotonic()
    for number in range(1, lines + 1):
        time.sleep(max(0.0, began + number / rate - time.monotonic()))
        message = f"T={time.monotonic_ns()} compiling module {number} of many, with some text behind it"
        store.append(attempt, [Line(number, TIMESTAMP, message, "stdout")])
    store.finish(attempt, Status.COMPLETED, 0, 0, lines + 1)


@contextmanager
def server(argv: list[str], **environ: str) -> Iterator[psutil.Process]:
    """gunicorn with one worker, once it listens; yields the worker."""
    command = [sys.executable, "-m", "gunicorn", *argv]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("CHRONOVERSE_")}
    process = subprocess.Popen(command, cwd=ROOT, env=inherited | environ, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    try:
        for line in process.stderr:
            if "Booting worker" in line:
                break
        time.sleep(1.5)
        yield psutil.Process(process.pid).children()[0]
    finally:
        process.terminate()
        process.communicate(timeout=40)


def measure(
    path: str, headers: str, url: str, job: JobRef, worker: psutil.Process, flags: argparse.Namespace
) -> dict[str, float]:
    """One side's round."""
    lines = int(flags.rate * flags.seconds)
    go = multiprocessing.Event()
    publisher = multiprocessing.Process(target=publish, args=(url, job, flags.rate, lines, go))
    publisher.start()
    before = worker.cpu_times()
    report: Report = watch(
        ("127.0.0.1", PORT), path, headers, flags.viewers, lines, flags.seconds + GRACE_SECONDS, go.set
    )
    after = worker.cpu_times()
    publisher.join(60)
    cpu = after.user + after.system - before.user - before.system
    return {
        "delivered": report.deliveries / (lines * flags.viewers),
        "wrong": report.wrong,
        "deliveries_per_s": report.deliveries / max(report.finished - report.started, 1e-9),
        "p50_ms": report.delay(0.5),
        "p99_ms": report.delay(0.99),
        "cpu_us_per_delivery": 1e6 * cpu / max(report.deliveries, 1),
    }


def rounds(flags: argparse.Namespace, url: str) -> dict[str, list[dict[str, float]]]:
    """Both sides in turns."""
    results: dict[str, list[dict[str, float]]] = {"shared tail": [], "one XREAD per viewer": []}
    token = mint(SECRET.encode(), "bench", ["logs:read"], ["*"], 3600, time.time())
    for number in range(flags.rounds):
        job = JobRef("bench", f"ours-{number}")
        with server(
            ["-c", str(ROOT / "gunicorn.conf.py")],
            CHRONOVERSE_REDIS_URL=url,
            CHRONOVERSE_JWT_SECRET=SECRET,
            CHRONOVERSE_BIND=f"127.0.0.1:{PORT}",
            WEB_CONCURRENCY="1",
        ) as worker:
            path = f"/workflows/bench/jobs/{job.job_id}/events?wait=60"
            headers = f"Authorization: Bearer {token}\r\n"
            results["shared tail"].append(measure(path, headers, url, job, worker, flags))
        job = JobRef("bench", f"naive-{number}")
        gunicorn = [
            "-c",
            os.devnull,
            "-k",
            "gevent",
            "--worker-connections",
            "20000",
            "-b",
            f"127.0.0.1:{PORT}",
            "--no-control-socket",
        ]
        with server([*gunicorn, "bench.naive:application"], NAIVE_REDIS_URL=url) as worker:
            path = f"/chronoverse:{{bench}}:{job.job_id}:log"
            results["one XREAD per viewer"].append(measure(path, "", url, job, worker, flags))
    return results


def main() -> None:
    """Runs, and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--viewers", type=int, default=500)
    parser.add_argument("--rate", type=float, default=200)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    flags = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, embedded.hold(folder) as hold:
        results = rounds(flags, hold.url)
    medians = {
        side: {name: statistics.median(each[name] for each in found) for name in found[0]}
        for side, found in results.items()
    }
    ours, naive = medians.values()
    for side, found in medians.items():
        print(side, {name: round(value, 3) for name, value in found.items()})
    print("ratios, naive to ours:", {name: round(naive[name] / ours[name], 1) for name in ours if ours[name]})
    print(json.dumps({"flags": vars(flags), "rounds": results, "medians": medians}))


if __name__ == "__main__":
    main()
