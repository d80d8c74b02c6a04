"""Scenarios with stored lines (replay, crowd, storm), and publishing without viewers."""

import subprocess
import sys
from dataclasses import asdict, replace
from typing import Final

from bench.load import Load, Report
from bench.machine import cpu_seconds, memory
from bench.measure import BUSY, Generator, Peak, Producer, closing, live, stored, watched
from bench.peers.naive import Naive
from bench.peers.nchan import Nchan
from bench.peers.ours import Ours
from bench.peers.starlette import SseStarlette
from bench.processes import ROOT
from bench.produce import Plan
from bench.scenario import Metric, Round, Scenario, Side, Target

#: Time limit for the delivery of all stored lines, in seconds.
PATIENCE_SECONDS: Final = 90.0
#: Time limit of viewers that replay, in seconds: no side can send them everything.
CROWD_SECONDS: Final = 25.0
#: Concurrent connects of a storm's viewers, below every server's backlog.
STORM_WINDOW: Final = 512
#: The time limit of the runner's own benchmark, in seconds. It publishes a million lines six times.
RUNNER_SECONDS: Final = 300.0


def replay(side: Side, quick: bool) -> Round:
    """1 viewer of 500,000 stored lines, which another viewer has already read."""
    lines = 20_000 if quick else side.lines or 500_000
    with side.peer() as peer:
        stored(peer, Plan(lines))
        load = Load([peer.target(0)], peer.grammar, 1, lines, PATIENCE_SECONDS, timed=False, lead=True)
        found = watched(peer, load)
        return found | {"lines_per_s": found["deliveries"] / found["caught_up_seconds"], "versions": peer.versions()}


def storm(side: Side, quick: bool) -> Round:
    """5,000 viewers reconnect to a live job, each with its own token and ten lines to catch up on."""
    viewers, lines, missed = (500 if quick else 5000), 1000, 10
    with side.peer() as peer:
        stored(peer, Plan(lines, end=False))
        returning = peer.resume(lines - missed)
        if isinstance(peer, Ours):
            returning = [f"{returning[0]}Authorization: Bearer {peer.token(f'v{who}')}\r\n" for who in range(viewers)]
        load = Load(
            [replace(peer.target(0), headers="")],
            peer.grammar,
            viewers,
            lines,
            PATIENCE_SECONDS,
            after=lines - missed,
            timed=False,
            window=STORM_WINDOW,
            headers=returning,
        )
        found = watched(peer, load)
        found["connects_per_s"] = found["complete"] / found["caught_up_seconds"]
        return found | {"turned_away": found["refused"] + found["cut"], "versions": peer.versions()}


def crowd(side: Side, quick: bool) -> Round:
    """1,000 viewers read a long job from line 0, and 100 live viewers another job."""
    viewers, lines, live_viewers = (100, 20_000, 20) if quick else (1000, 200_000, 100)
    lines, live_lines = (lines, 100) if quick else (side.lines or lines, 350)
    with side.peer() as peer:
        stored(peer, Plan(lines))

        def parts(job: int) -> tuple[Load, Plan]:
            load = Load(
                [peer.target(job)], peer.grammar, live_viewers, live_lines, PATIENCE_SECONDS, warm=50, first_job=job
            )
            return load, Plan(live_lines, rate=50, batch=50, first_job=job)

        quiet = live(peer, *parts(1))
        load, plan = parts(2)
        replays = Load([peer.target(0)], peer.grammar, viewers, lines, CROWD_SECONDS, timed=False, lead=True)
        producer, watching = Producer(peer, plan), Generator(load)
        with closing(producer, watching):
            watching.wait("ready")
            base = memory(peer.pids.workers)
            replaying = Generator(replays)
            with closing(replaying), Peak(peer.pids.workers) as peak:
                replaying.wait("begun")
                producer.go()
                busy: Report = watching.wait("report")
                outlived = not replaying.has_sent("done")
                report: Report = replaying.wait("report")
        return asdict(busy) | {
            "quiet_p99_ms": quiet["p99_ms"],
            "p99_times_quiet": busy.p99_ms / quiet["p99_ms"],
            "grown_mb": (peak.rss - base.rss) / 1024,
            "anon_grown_mb": (peak.anon - base.anon) / 1024,
            "crowd_lines_per_s": report.deliveries / report.span_seconds,
            "crowd_outlived": outlived,
            "crowd": asdict(report),
            "wrong": busy.wrong + report.wrong,
            "refused": busy.refused + report.refused,
            "cut": busy.cut + report.cut,
            "stories": busy.stories + report.stories,
            "generator_bound": report.share > BUSY,
            "share": report.share,
            "versions": peer.versions(),
        }


def publish(side: Side, quick: bool) -> Round:
    """200,000 lines without viewers, and for our side the cost of ``run`` for a job."""
    lines = side.lines or (20_000 if quick else 200_000)
    with side.peer() as peer:
        pids = [*peer.pids.workers, *peer.pids.store]
        cpu = cpu_seconds(pids)
        took = stored(peer, Plan(lines))
        cpu = cpu_seconds(pids) - cpu
        found: Round = {"lines_per_s": lines / took, "cpu_us_per_line": 1e6 * cpu / lines, "versions": peer.versions()}
    return found


def runner_says() -> list[str]:
    """The results of the runner's own benchmark: a job under ``run``, compared with the same job writing to a file."""
    argv = [sys.executable, "-m", "bench.runner", "flat", "start"]
    try:
        result = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False, timeout=RUNNER_SECONDS)
    except subprocess.TimeoutExpired:
        return [f"the runner's benchmark was not done after {RUNNER_SECONDS:g} s"]
    return result.stdout.splitlines() or [f"the runner's benchmark failed: {result.stderr[-500:]}"]


SCENARIOS: Final = (
    Scenario(
        "replay",
        "Replay",
        "1 viewer, 500,000 stored lines; its bytes are compared with those of an earlier viewer",
        (Side(Ours), Side(Nchan, lines=50_000), Side(SseStarlette), Side(Naive)),
        (
            Metric("lines_per_s", "lines received", "per second", more=True),
            Metric("grown_mb", "growth of the worker's memory (RSS)", "MB", compared=False),
        ),
        replay,
        (
            Target("at least 500,000 lines/s", "lines_per_s", 500_000, True),
            Target("at least 7 times sse-starlette", "lines_per_s", 7, True, "sse-starlette"),
            Target("memory of the worker flat (grows by 16 MB at most)", "grown_mb", 16),
        ),
        ("nchan gets 50,000 lines: it accepts at most 32,767 per channel and second.",),
    ),
    Scenario(
        "crowd",
        "Replay crowd",
        "1,000 viewers from line 0 of a 200,000-line job, and 100 live viewers of another job (50 lines/s)",
        (Side(Ours), Side(Nchan, lines=20_000), Side(SseStarlette), Side(Naive)),
        (
            Metric("p99_ms", "live delay during the crowd, 99th percentile", "ms"),
            Metric("p99_times_quiet", "the same, relative to quiet", "times"),
            Metric("crowd_lines_per_s", "lines delivered to the crowd", "per second", more=True),
            Metric("grown_mb", "growth of the worker's memory (RSS)", "MB", compared=False),
        ),
        crowd,
        (
            Target("live p99 at most twice its quiet value", "p99_times_quiet", 2),
            Target("worker's memory grows by 64 MB at most", "grown_mb", 64),
        ),
        (
            f"The crowd is cut off after {CROWD_SECONDS:g} s. Everything that it received until then is checked.",
            "nchan's crowd gets 20,000 lines, because no viewer received all 200,000 within 80 s.",
        ),
    ),
    Scenario(
        "storm",
        "Connect storm",
        "5,000 viewers reconnect to a live job with Last-Event-ID (ours with a token each). Each missed ten lines",
        (Side(Ours), Side(Nchan), Side(SseStarlette), Side(Naive)),
        (
            Metric("connects_per_s", "viewers connected and caught up", "per second", more=True),
            Metric("first_byte_p99_ms", "first byte, 99th percentile", "ms"),
            Metric("turned_away", "viewers refused or cut off", ""),
        ),
        storm,
        (
            Target("at least 0.4 of nchan's", "connects_per_s", 0.4, True, other="nchan"),
            Target("first byte at most 2.5 times nchan's", "first_byte_p99_ms", 2.5, other="nchan"),
            Target("none refused", "turned_away", 0),
        ),
    ),
    Scenario(
        "publish",
        "Publish",
        "200,000 lines of one job flat out, nobody watching",
        (Side(Ours), Side(Nchan, lines=20_000)),
        (
            Metric("lines_per_s", "lines published", "per second", more=True),
            Metric("cpu_us_per_line", "CPU per line, service and store", "µs"),
        ),
        publish,
        (),
        (
            "nchan gets 20,000 lines: it accepts at most 32,767 per channel and second.",
            "sse-starlette and the naive variant read the same store.",
        ),
        runner_says,
    ),
)
