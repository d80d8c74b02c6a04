"""The archive alone: ``python -m bench.search [lines] [--rounds 3]``.

Archives so many lines of a build's output in files. Prints the compressed size, the speed of searches (in turns with
``zstd -dc | rg -i -c`` over the same objects), the speed of conversion to SSE frames, and the time for a page of which
nothing is cached.
"""

import argparse
import os
import random
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Final, NamedTuple

from bench.processes import folder
from chronoverse.archive.codec import ChunkBuilder
from chronoverse.archive.object_store import FileObjectStore
from chronoverse.archive.prefilter import matching_lines
from chronoverse.archive.reader import ArchiveReader
from chronoverse.joblog.chunk import CHUNK_BYTES, Chunk
from chronoverse.joblog.entries import RawEntry
from chronoverse.joblog.events import LOG_FRAME
from chronoverse.joblog.matcher import Matcher
from chronoverse.joblog.model import JobRef, iso_timestamp

JOB: Final = JobRef("wf_1", "job_1")
#: The queries: a rare text, the date of each line, a word of each line's JSON, expressions.
QUERIES: Final = (
    ("undefined reference", False),
    ("unused variable", False),
    ("2026-03-0", False),
    ("sequence", False),
    (r"error:.*expected \d+", True),
    (r"took 4\d{3} ms", True),
)
#: Names of the parts of the program that is built.
PARTS: Final = ("core", "net", "http", "json", "auth", "store", "cache", "codec", "index", "query", "parse", "event")
#: Pages that are opened, each by a reader with empty caches.
PAGES: Final = 200


class Cost(NamedTuple):
    """Seconds by the clock, and of CPU time."""

    wall: float
    cpu: float


class Log:
    """The records of one job's chunks, in memory."""

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []

    def chunk(self, job: JobRef, number: int) -> Chunk | None:
        """The chunks, as the store returns them."""
        return next((each for each in self.chunks if job == JOB and each.last >= number), None)


def build_output(seed: int = 7) -> Iterator[str]:
    """Endless output of a compiler, a linker, a test runner and a downloader: some 90 characters a line."""
    chance = random.Random(seed)
    flags = "-DNDEBUG -O2 -g -Wall -Wextra -std=c++20 -fPIC"
    for step in count(1):
        part, file = chance.choice(PARTS), f"{chance.choice(PARTS)}_{chance.choice(PARTS)}"
        kind = chance.random()
        if kind < 0.7:
            yield f"[{step % 4000}/4000] Building CXX object src/{part}/CMakeFiles/{part}.dir/{file}.cpp.o"
            yield f"/usr/bin/c++ -I/build/include -I/build/{part} {flags} -o {file}.cpp.o -c /build/{part}/{file}.cpp"
            for _ in range(chance.choice((0, 0, 0, 1, 3))):
                at = f"{chance.randrange(1, 900)}:{chance.randrange(1, 80)}"
                yield f"/build/{part}/{file}.cpp:{at}: warning: unused variable '{file}' [-Wunused-variable]"
        elif kind < 0.85:
            for case in range(chance.randrange(1, 9)):
                yield f"test {part}::{file}::case_{case} ... ok (took {chance.randrange(5000)} ms)"
        elif kind < 0.95:
            yield f"Downloaded {file} v{chance.randrange(9)}.{chance.randrange(30)}.{chance.randrange(9)} (registry)"
        else:
            yield f"\x1b[32m   Finished\x1b[0m {part} sha256:{chance.getrandbits(128):032x}"


def archived(directory: Path, lines: int) -> tuple[Log, int]:
    """Archives so many lines, with a few for each millisecond. Returns the archive and the bytes of their text."""
    log, objects, text, size = Log(), FileObjectStore(directory), build_output(), 0
    packer = ChunkBuilder(JOB, 1)
    for first in range(1, lines + 1, 500):
        batch: list[RawEntry] = []
        for number in range(first, min(first + 500, lines + 1)):
            message = next(text).encode()
            stamp = iso_timestamp(1772532000 + number // 7 / 1000).encode()
            batch.append((b"%d-0" % number, [b"timestamp", stamp, b"message", message, b"stream", b"stdout"]))
            size += len(message) + 1
        packer.add(batch)
        if packer.text_size >= CHUNK_BYTES or packer.last == lines:
            chunk, data = packer.finish()
            objects.put(chunk.name, data)
            log.chunks.append(chunk)
            packer = ChunkBuilder(JOB, packer.last + 1)
    return log, size


def timed(work: Callable[[], object]) -> Cost:
    """The cost of a call, including the processes that it starts."""

    def cpu() -> float:
        usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(usage.ru_utime + usage.ru_stime for usage in usages)

    began, used = time.perf_counter(), cpu()
    work()
    return Cost(time.perf_counter() - began, cpu() - used)


def compare(directory: Path, log: Log, lines: int, rounds: int) -> None:
    """Prints the medians for each query, with our search and theirs in turn."""
    objects = FileObjectStore(directory)
    files = " ".join(str(directory / chunk.name) for chunk in log.chunks)
    print(
        f"{'query':24} {'lines':>8} {'ours /s':>12} {'per CPU s':>12} {'zstd|rg /s':>12} {'per CPU s':>12} {'time':>6}"
    )
    for query, regex in QUERIES:
        matched = 0

        def ours(query: str = query, regex: bool = regex) -> None:
            nonlocal matched
            found = ArchiveReader(objects, log.chunk).search(
                JOB, partial(matching_lines, Matcher(query, regex=regex)), 0
            )
            matched = sum(len(each.lines) for each in found)

        def theirs(query: str = query, regex: bool = regex) -> None:
            how = "" if regex else "-F"
            command = f"zstd -dc {files} | rg {how} -i -c -e '{query}'"
            subprocess.run(command, shell=True, stdout=subprocess.DEVNULL, check=False)

        pairs = [(timed(ours), timed(theirs)) for _ in range(rounds)]
        own, other = (Cost(*map(statistics.median, zip(*side, strict=True))) for side in zip(*pairs, strict=True))
        ratio = statistics.median(mine.wall / other.wall for mine, other in pairs)
        rates = [lines / each for each in (own.wall, own.cpu, other.wall, other.cpu)]
        print(f"{query:24} {matched:8} {' '.join(f'{rate:12,.0f}' for rate in rates)} {ratio:6.2f}", flush=True)


def pages(directory: Path, log: Log, lines: int) -> list[float]:
    """Prints the milliseconds for a hundred lines from anywhere, each time for a reader with empty caches."""
    chance, took = random.Random(1), []
    for _ in range(PAGES):
        page = partial(ArchiveReader(FileObjectStore(directory), log.chunk).entries, JOB, chance.randrange(lines), 100)
        took.append(1000 * timed(page).wall)
    return sorted(took)


def replay(directory: Path, log: Log) -> None:
    """Reads the whole log as frames, in segments as a viewer does."""
    archive, cursor = ArchiveReader(FileObjectStore(directory), log.chunk), 0
    while lines := archive.json_lines(JOB, cursor, 512):
        b"".join([LOG_FRAME % (line, number) for number, line in enumerate(lines, cursor + 1)])
        cursor += len(lines)


def main() -> None:
    """Measures and prints everything."""
    parser = argparse.ArgumentParser(prog="python -m bench.search", description=__doc__)
    parser.add_argument("lines", nargs="?", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    flags = parser.parse_args()
    with folder() as directory:
        log, size = archived(directory, flags.lines)
        packed = sum(os.path.getsize(directory / chunk.name) for chunk in log.chunks)
        print(
            f"{flags.lines:,} lines, {size:,} bytes of text, archived in {packed:,}: 1/{size / packed:.1f}", flush=True
        )
        compare(directory, log, flags.lines, flags.rounds)
        print(f"replay: {flags.lines / timed(lambda: replay(directory, log)).wall:,.0f} lines/s as SSE frames")
        took = pages(directory, log, flags.lines)
        print(
            f"a page of 100 lines: median {took[PAGES // 2]:.2f} ms, 99th percentile {took[PAGES * 99 // 100]:.2f} ms"
        )


if __name__ == "__main__":
    main()
