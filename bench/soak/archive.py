"""A job that prints as fast as it can, and an archiver that keeps its log small. Measures size and time.

    python -m bench.soak.archive [--lines 10000000] [--hot-bytes 67108864] [--replays 0]

The server, ``chronoverse run`` and ``chronoverse archive`` are real processes. At the end every line in the archive is
compared. With ``--replays`` so many viewers read the whole log from the service, one after the other, and their lines
are compared, too.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from bench.soak.replaying import digest, replay
from chronoverse.archive.codec import decode_entry, frame_text
from chronoverse.archive.object_store import FileObjectStore
from chronoverse.joblog.chunk import folder
from chronoverse.joblog.model import JobRef, Line
from chronoverse.store import Store
from tests.support.servers import RedisServer
from tests.support.service import ROOT, serving
from tests.support.waiting import wait_until

JOB: Final = JobRef("wf_1", "job_1")
#: Seconds between two measurements of the log's size.
MEASURE_SECONDS: Final = 0.02
#: Seconds in which the archiver must move the remaining lines after the job has ended.
REMAINING_SECONDS: Final = 600.0
#: The time limit for publishing, in seconds, since the program prints faster than lines can be published.
WAIT = ("--deliver-timeout", "10m")
#: Output similar to a build's: 100 bytes a line, most of it repeated.
PROGRAM: Final = """
import hashlib, sys
lines, out = int(sys.argv[1]), sys.stdout.buffer
for start in range(0, lines, 1000):
    out.write(b"".join(line(n) for n in range(start, min(start + 1000, lines))))
"""
LINE: Final = """
def line(n):
    name = hashlib.blake2b(b"%d" % n, digest_size=4).hexdigest().encode()
    head = b"[%d/10000000] Building CXX object src/module_%d/CMakeFiles/target.dir/unit_%s.cc.o" % (n + 1, n % 97, name)
    return (head + 9 * b" -O2 -Wall")[:99] + b"\\n"
"""


def expected(lines: int) -> Iterator[bytes]:
    """What the program prints, line by line, without newlines."""
    names: dict[str, object] = {"hashlib": hashlib}
    exec(LINE, names)
    line = names["line"]
    assert callable(line)
    return (line(number)[:-1] for number in range(lines))


class Watch(threading.Thread):
    """Measures the log's size over time. ``peak`` is its maximum."""

    def __init__(self, server: RedisServer) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self.over = threading.Event()
        self._store = Store(server.url)

    def run(self) -> None:
        """Measures until it is stopped."""
        while not self.over.wait(MEASURE_SECONDS):
            self.peak = max(self.peak, self._store.catalog.sizes([JOB]).get(JOB, 0))


def main() -> None:
    """Runs it and prints the measurements."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=10_000_000)
    parser.add_argument("--hot-bytes", type=int, default=67_108_864)
    parser.add_argument("--replays", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, RedisServer(Path(directory) / "server", None) as server:
        measure(server, Path(directory), asked.lines, asked.hot_bytes)
        if asked.replays:
            replays(server, Path(directory), asked.lines, asked.replays)


def measure(server: RedisServer, directory: Path, lines: int, hot_bytes: int) -> None:
    """Runs one job to its end."""
    ours = {
        "CHRONOVERSE_REDIS_URL": server.url,
        "CHRONOVERSE_ARCHIVE_URL": (directory / "archive").as_uri(),
        "CHRONOVERSE_DATA_DIR": str(directory / "data"),
        "CHRONOVERSE_HOT_BYTES": str(hot_bytes),
        "CHRONOVERSE_DURABILITY": "acked",
        "PYTHONPATH": str(ROOT),
    }
    environ, python = {**os.environ, **ours}, [sys.executable, "-m", "chronoverse"]
    store, watch = Store(server.url), Watch(server)
    output = directory / "archiver.log"
    with output.open("wb") as log:
        archiver = subprocess.Popen([*python, "archive"], env=environ, stdin=subprocess.DEVNULL, stderr=log)
    try:
        wait_until(lambda: b"archiver up" in output.read_bytes(), REMAINING_SECONDS, "the archiver is up")
        watch.start()
        began = time.monotonic()
        program = [sys.executable, "-c", f"import hashlib{LINE}{PROGRAM}", str(lines)]
        run = [*python, "run", "--workflow", JOB.workflow_id, "--job", JOB.job_id, *WAIT, "--", *program]
        subprocess.run(run, env=environ, check=True, stdout=subprocess.DEVNULL)
        published = time.monotonic() - began
        print(f"published  {lines:,} lines in {published:.1f} s, {lines / published:,.0f} lines/s", flush=True)
        while (
            not store.catalog.archive_state(JOB).complete and time.monotonic() - began < published + REMAINING_SECONDS
        ):
            time.sleep(MEASURE_SECONDS)
        done = time.monotonic() - began
        watch.over.set()
        archived = sum(each.size for each in FileObjectStore(directory / "archive").list(folder(JOB)))
        raw = 100 * lines
        print(
            f"archived   all {done - published:.1f} s after the end, {archived:,} bytes: 1/{raw / archived:.1f} of it"
        )
        print(f"in Redis   {watch.peak:,} bytes at most, {watch.peak / hot_bytes:.2f} of HOT_BYTES")
    finally:
        archiver.terminate()
        used = os.wait4(archiver.pid, 0)[2]
        seconds = used.ru_utime + used.ru_stime
        print(f"archiver   {seconds:.1f} s of CPU, {lines / seconds:,.0f} lines each; {used.ru_maxrss // 1024} MB")
    print(
        "compared  ", compare(store, FileObjectStore(directory / "archive"), lines), "lines, all as they were printed"
    )


def replays(server: RedisServer, directory: Path, lines: int, viewers: int) -> None:
    """Reads the whole log through ``/events``, with one viewer after the other."""
    wanted = digest(expected(lines))
    archive_url = (directory / "archive").as_uri()
    with serving(directory / "service", server.url, archive_url=archive_url) as service:
        for _ in range(viewers):
            seconds, before, least, most = replay(service, JOB, wanted)
            memory = ", ".join(f"{size / 2**20:.1f}" for size in (before, least, most))
            print(f"replayed   {lines:,} lines in {seconds:.1f} s, {lines / seconds:,.0f} lines/s,", end=" ")
            print(f"all as they were printed; the worker before, least, most: {memory} MB", flush=True)


def compare(store: Store, objects: FileObjectStore, lines: int) -> int:
    """Compares every line in the archive. Returns how many there are."""
    numbered = enumerate(expected(lines), 1)
    count = 0
    for chunk in store.chunks.chunks(JOB):
        data = objects.get(chunk.name)
        for frame in chunk.frames:
            for entry in map(decode_entry, frame_text(frame, data).splitlines()):
                assert isinstance(entry, Line), entry
                assert (entry.sequence_num, entry.message.encode()) == next(numbered), entry
                count += 1
    assert count == lines, count
    return count


if __name__ == "__main__":
    main()
