"""Scenarios with viewers that wait for lines: burst, paced, idle, many, delay."""

from typing import Final

from bench.load import Load
from bench.measure import live
from bench.peers.floor import Floor
from bench.peers.naive import Naive
from bench.peers.nchan import Nchan
from bench.peers.ours import Ours
from bench.peers.starlette import SseStarlette
from bench.produce import Plan
from bench.scenario import Metric, Round, Scenario, Side, Target

#: Time limit in which all viewers must connect and a slow peer must deliver everything, in seconds.
PATIENCE_SECONDS: Final = 60.0

RATE: Final = Metric("deliveries_per_s", "lines delivered", "per second", more=True)
P50: Final = Metric("p50_ms", "delay, median", "ms")
P99: Final = Metric("p99_ms", "delay, 99th percentile", "ms")
CPU: Final = Metric("all_cpu_us_per_delivery", "CPU per delivered line, service and store", "µs")
MEMORY: Final = Metric("anon_kb_per_viewer", "memory per viewer (RssAnon)", "KB")
PEAK: Final = Metric("rss_mb", "memory of the workers at the end (RSS)", "MB")

EVERYBODY: Final = (Side(Ours), Side(Nchan), Side(SseStarlette), Side(Naive), Side(Floor))


def run(side: Side, viewers: int, plan: Plan, warm: int = 0, window: int = 64) -> Round:
    """Runs one round, with ``viewers`` spread over the plan's jobs."""
    with side.peer() as peer:
        load = Load(
            [peer.target(job) for job in range(plan.jobs)],
            peer.grammar,
            viewers,
            plan.last,
            PATIENCE_SECONDS + (plan.last / plan.rate if plan.rate else 0),
            warm=warm,
            timed=plan.rate is not None,
            window=window,
        )
        return live(peer, load, plan) | {"versions": peer.versions()}


def burst(side: Side, quick: bool) -> Round:
    """1 job, 1,000 viewers, lines as fast as possible."""
    lines = side.lines // 10 if quick else side.lines
    return run(side, 200 if quick else 1000, Plan(lines))


def paced(side: Side, quick: bool) -> Round:
    """1 job, 500 viewers, 200 lines a second."""
    return run(side, 100 if quick else 500, Plan(600 if quick else 2000, rate=200, batch=50), warm=200)


def idle(side: Side, quick: bool) -> Round:
    """1 job, 8,000 viewers, 2 lines a second."""
    return run(side, 1000 if quick else 8000, Plan(8 if quick else 24, rate=2, batch=5), warm=4, window=256)


def many(side: Side, quick: bool) -> Round:
    """4,000 jobs, each with a viewer and 1 line a second."""
    jobs, lines = (500, 4) if quick else (4000, 10)
    return run(side, jobs, Plan(lines, jobs, rate=1, batch=2000, tick=0.005), warm=2, window=256)


def delay(side: Side, quick: bool) -> Round:
    """1 viewer, 50 lines a second."""
    return run(side, 1, Plan(150 if quick else 550, rate=50, batch=50), warm=50)


#: Lines of a burst. nchan, and peers with one reader per viewer, would take minutes for all 20,000.
_BURST: Final = {"chronoverse": 20_000, "floor": 20_000, "nchan": 1_000}
_FEW: Final = 300

SCENARIOS: Final = (
    Scenario(
        "burst",
        "Fan-out, flat out",
        "1 job, 1,000 viewers, 20,000 lines as fast as they can be published, 1 worker",
        tuple(Side(side.peer, lines=_BURST.get(side.name, _FEW)) for side in EVERYBODY),
        (RATE, CPU, PEAK),
        burst,
        (
            Target("at least 50 times nchan's deliveries a second", "deliveries_per_s", 50, True, "nchan"),
            Target("at least 90 % of the floor", "deliveries_per_s", 0.9, True, "floor"),
        ),
        (f"nchan gets {_BURST['nchan']:,} lines, peers with a reader per viewer get {_FEW}: more would take minutes.",),
    ),
    Scenario(
        "paced",
        "Fan-out, paced",
        "1 job, 500 viewers, 200 lines/s: 100,000 deliveries a second are offered",
        EVERYBODY,
        (P50, P99, CPU, RATE),
        paced,
        (
            Target("p99 at most 1.25 times nchan's", "p99_ms", 1.25, other="nchan"),
            Target("CPU per delivery at most nchan's", "all_cpu_us_per_delivery", 1, other="nchan"),
        ),
    ),
    Scenario(
        "idle",
        "Idle crowd",
        "1 job, 8,000 viewers, 2 lines/s, 1 worker",
        EVERYBODY,
        (P50, P99, CPU, MEMORY),
        idle,
        (
            Target("p50 at most nchan's", "p50_ms", 1, other="nchan"),
            Target("p99 at most nchan's", "p99_ms", 1, other="nchan"),
            Target("CPU per delivery at most nchan's", "all_cpu_us_per_delivery", 1, other="nchan"),
            Target("memory (RSS) per viewer at most 16 KB", "rss_kb_per_viewer", 16),
        ),
    ),
    Scenario(
        "many",
        "Many jobs",
        "4,000 jobs, a viewer each, 1 line/s each",
        (Side(Ours), Side(Nchan), Side(SseStarlette), Side(Naive)),
        (P50, P99, CPU, Metric("store_connections", "connections to the store", "")),
        many,
        (
            Target("at most 8 connections to the store", "store_connections", 8),
            Target("CPU at most half of one XREAD per viewer", "all_cpu_us_per_delivery", 0.5, other="naive"),
            Target("p50 at most 6 ms", "p50_ms", 6),
            Target("p99 at most 20 ms", "p99_ms", 20),
        ),
    ),
    Scenario(
        "delay",
        "Delay, end to end",
        "1 viewer, quiet: 50 lines/s, from before the append to having it",
        EVERYBODY,
        (P50, P99),
        delay,
        (Target("p50 at most 1 ms", "p50_ms", 1), Target("p99 at most 4 ms", "p99_ms", 4)),
    ),
)
