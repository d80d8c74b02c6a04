"""Rolling restarts under load: no line lost or doubled, no refusal, and viewers that reconnect at different times.

    python -m bench.soak.rolling [--viewers 500] [--rate 500] [--reloads 5] [--drain 10] [--workers 2]
                                  [--direct]

Viewers connect through nginx as shipped, unless ``--direct``. Prints the results, and exits with 1 when one is out of
its bounds.
"""

import argparse
import contextlib
import json
import math
import multiprocessing
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from signal import SIGHUP
from typing import Any, Final

import psutil

from chronoverse.joblog.model import JobRef, Line, Status, iso_timestamp
from chronoverse.store import Store
from tests.support.nginx import nginx_for
from tests.support.servers import running
from tests.support.service import Service, serving
from tests.support.viewers import ReconnectingViewers

JOB: Final = JobRef("rolling", "job")
#: Lines of one append.
BATCH: Final = 5
#: Seconds after a drain in which its last viewers must be back: the longest ``retry``, and some more.
BACK_SECONDS: Final = 7.0
#: The reconnections of the busiest second, at most, as a multiple of the mean.
PEAK: Final = 3.0


def write(url: str, rate: int, stop: Any) -> None:
    """The job's runner: ``rate`` lines a second until ``stop`` is set, then the end."""
    store = Store(url)
    attempt = store.open(JOB, "rolling")
    number, started = 0, time.monotonic()
    while not stop.is_set():
        stamp = iso_timestamp(time.time())
        number += BATCH
        store.append(attempt, [Line(n, stamp, f"line {n}", "stdout") for n in range(number - BATCH + 1, number + 1)])
        time.sleep(max(0.0, started + number / rate - time.monotonic()))
    store.finish(attempt, Status.COMPLETED, 0, 0, number + 1)
    store.close()


class Reloads:
    """Sends SIGHUP once all viewers are connected, and again once the last reload is over. Called at each tick."""

    def __init__(self, service: Service, viewers: ReconnectingViewers, count: int, drain: float, stop: Any) -> None:
        self.at: list[float] = []
        self.gone: list[float] = []
        self._service = service
        self._viewers = viewers
        self._count = count
        self._seconds = drain + BACK_SECONDS
        self._stop = stop
        self._old: list[int] = []

    def __call__(self) -> bool:
        now = time.monotonic()
        if len(self.gone) < len(self.at) and not any(map(psutil.pid_exists, self._old)):
            self.gone.append(now - self.at[-1])
        waiting = self.at and (now - self.at[-1] < self._seconds or len(self.gone) < len(self.at))
        if waiting or self._viewers.connected < len(self._viewers.viewers) or self._stop.is_set():
            return False
        if len(self.at) == self._count:
            self._stop.set()
        else:
            self._old = self._service.worker_pids()
            self._service.signal(SIGHUP)
            self.at.append(now)
        return False


def peaks(reconnections: list[float], reloads: list[float]) -> list[float]:
    """For each reload, the reconnections of the busiest second as a multiple of the mean of seconds that had any."""
    found = []
    for start, stop in zip(reloads, [*reloads[1:], math.inf], strict=True):
        seconds = Counter(int(at - start) for at in reconnections if start <= at < stop)
        if seconds:
            mean = sum(seconds.values()) / (max(seconds) - min(seconds) + 1)
            found.append(round(max(seconds.values()) / mean, 2))
    return found


def main() -> int:
    """Runs everything, and prints the report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, default in (("viewers", 500), ("rate", 500), ("reloads", 5), ("drain", 10), ("workers", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--direct", action="store_true")
    asked = parser.parse_args()
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cv-")))
        store = stack.enter_context(running(directory / "store"))
        service = stack.enter_context(
            serving(directory, store.url, workers=asked.workers, drain_seconds=asked.drain, log_format="json")
        )
        stop = multiprocessing.Event()
        runner = multiprocessing.Process(target=write, args=(store.url, asked.rate, stop))
        runner.start()
        headers = f"Authorization: Bearer {service.token()}\r\n"
        path = f"/workflows/{JOB.workflow_id}/jobs/{JOB.job_id}/events?wait=30"
        endpoint = service if asked.direct else stack.enter_context(nginx_for(directory, service))
        viewers = ReconnectingViewers(endpoint, path, headers, asked.viewers)
        reloads = Reloads(service, viewers, asked.reloads, asked.drain, stop)
        viewers.run(reloads)
        runner.join()
        ended = [json.loads(line) for line in service.logs().splitlines() if '"stream ended"' in line]
        delays = (
            service.metric("chronoverse_delivery_delay_seconds_sum"),
            service.metric("chronoverse_delivery_delay_seconds_count"),
        )
        delivered = service.metric("chronoverse_lines_delivered_total")
    lines = {viewer.lines for viewer in viewers.viewers}
    report = {
        "viewers": asked.viewers,
        "numbers each (lines and the end)": sorted(lines),
        "lost, doubled or out of order": viewers.errors,
        "answers": dict(viewers.answers),
        "returns": len(viewers.reconnections),
        "peak second over mean, by reload": peaks(viewers.reconnections, reloads.at),
        "old workers gone after s": [round(seconds, 1) for seconds in reloads.gone],
        "ends by reason": dict(Counter(each["why"] for each in ended)),
        "lines delivered by the metrics": delivered,
        "mean delivery delay ms": round(1000 * delays[0] / max(delays[1], 1), 2),
    }
    print(json.dumps(report, indent=2))
    bad = [answer for answer in viewers.answers if answer not in ("200", "204", "whole")]
    spread = all(peak <= PEAK for peak in report["peak second over mean, by reload"])
    return int(bool(bad or viewers.errors or len(lines) != 1 or not spread))


if __name__ == "__main__":
    sys.exit(main())
