"""What a simulation does, and its result. Each runs in its own process, without gevent here."""

import json
import math
import os
import random
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

_ROOT: Final = Path(__file__).resolve().parents[2]
#: Average number of faults of each kind in an hour of a plain world.
RATES: Final = {
    "cut": 30, "refuse": 12, "stall": 20, "late": 12, "half_open": 8, "freeze": 20, "slow": 12, "kill_node": 3,
    "kill_archiver": 6, "kill_runner": 6, "crash_store": 4, "cut_power": 4, "no_memory": 6, "busy_disk": 6,
    "objects_away": 6, "objects_slow": 6, "jump_clock": 4, "redact": 30, "delete": 4, "lose_reports": 20,
    "lose_store": 4, "import_beside": 4, "fail_over": 8, "lag": 8, "fail_tail": 6, "drain_node": 4,
    "drift_clock": 4, "fill_disk": 8, "full_disk": 4,
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What a simulation does. Everything else follows from ``seed``: see :func:`shape_of`."""

    seed: int
    hours: float = 0.1
    nodes: int = 3
    jobs: int = 10
    viewers: int = 30
    #: Virtual duration of a round in seconds: jobs start, and faults happen. Then everything must come to rest.
    round: float = 600.0
    #: The workflow's quota in bytes per job; 0: none.
    quota: int = 0
    #: Only these faults of the seed's schedule, by number; None for all.
    only: tuple[int, ...] | None = None
    #: A world with every fault and every feature, unlike any seed's.
    plain: bool = False
    story: bool = False

    def __str__(self) -> str:
        numbers = {name: value for name, value in asdict(self).items() if type(value) in (int, float)}
        parts = [f"{name} {round(value, 3)}" for name, value in numbers.items()]
        only = [] if self.only is None else [f"only {','.join(map(str, self.only)) or 'none'}"]
        return " ".join(f"--{each}" for each in [*parts, *only, *["plain"] * self.plain])


class Shape(NamedTuple):
    """A world's properties besides its plan. In seconds, bytes, and shares of 1."""

    has_sentinel: bool = False
    #: Whether tokens are signed with an issuer's published keys.
    has_issuer: bool = False
    lease: int = 30
    #: Seconds until a dead archiver's archive lock expires.
    lock: float = 10.0
    #: When the archiver moves lines, and how often it looks for jobs.
    hot_bytes: int = 100_000
    hot_seconds: float = 60.0
    running_seconds: float = 300.0
    archiver_seconds: float = 15.0
    #: Seconds between a node's checks of a job (in reality 1), and an archiver's measurements of its size (0.1).
    check: float = 5.0
    #: Seconds between two readings of redacted lines, and the average duration of a workflow viewer's connections.
    probes: float = 1.0
    connected: float = 60.0
    #: Minimum and maximum size of a job's ring in bytes.
    ring: tuple[int, int] = (64 * 2**10, 8 * 2**20)
    #: Seconds between two of a job's bursts, and the lines of the largest. Real jobs are silent for minutes.
    #: ``outlasts``: whether some jobs still print after the last fault.
    pauses: tuple[float, ...] = (5.0, 60.0, 300.0)
    burst: int = 20
    outlasts: bool = True
    #: Share of the viewers that have a filter, that disconnect and return, and that read slowly.
    filtered: float = 0.3
    restless: float = 0.0
    sluggish: float = 0.0
    #: Share of every process's steps, and of the messages on every link, that are late.
    slow: float = 0.0
    late: float = 0.002
    #: Share of the store's change notifications that are always lost.
    lost_reports: float = 0.0
    #: Number of faults of each kind per hour.
    rates: dict[str, float] = RATES  # type: ignore[assignment]


def small(seed: int) -> Plan:
    """The plan of a small world, which takes a few seconds. Many of these find more than a large one."""
    pick = random.Random(f"plan {seed}").choice
    sizes = pick((1, 2, 2, 3)), pick((1, 2, 3, 4)), pick((3, 6, 9))
    return Plan(seed, 0.01, *sizes, pick((45.0, 75.0, 105.0)), pick((*[0] * 6, 500, 3_000, 20_000)))


def shape_of(plan: Plan) -> Shape:
    """The shape of the plan's world. Each seed omits most faults and features, and has more of the others.

    Faults and features mask one another: see Groce et al., Swarm testing, 2012.
    """
    if plan.plain:
        return Shape(has_sentinel=plan.seed % 4 == 0)
    chance = random.Random(f"shape {plan.seed}")
    pick = chance.choice
    share = pick((0.15, 0.3, 0.6))
    kinds = {kind: rate**0.5 * pick((1, 1, 5)) for kind, rate in RATES.items() if chance.random() < share}
    # Average seconds between two faults. From Python 3.12 on, sum() of floats has another result.
    pace = pick((1.5, 4.0, 12.0)) * math.fsum(kinds.values()) / 3600
    rates = {kind: rate / pace for kind, rate in kinds.items()}
    # Redactions need the most coincidences: lines that follow, readers, and a scan or archiving in between.
    if chance.random() < 0.4:
        rates["redact"] = pick((200.0, 1200.0))
    if chance.random() < 0.3:
        rates["lose_store"] = 240.0
    pauses = pick(((0.3,), (1.0, 5.0), (1.0, 5.0, 20.0)))
    shape = Shape(
        has_sentinel=chance.random() < 0.2, lease=pick((6, 12, 30)), hot_bytes=pick((4_000, 20_000, 100_000)),
        hot_seconds=pick((1.0, 10.0, 60.0)), running_seconds=pick((2.0, 10.0, 60.0)),
        archiver_seconds=pick((0.3, 2.0, 5.0)), ring=pick(((500, 2_000), (64 * 2**10, 8 * 2**20))), pauses=pauses,
        burst=pick((1, 20, 20, 200)) if pauses[0] > 0.5 else pick((1, 4, 10)), filtered=pick((0.0, 0.3, 0.8)),
        restless=pick((0.0, 0.3, 0.8)), sluggish=pick((0.0, 0.0, 0.3)), slow=pick((0.0, 0.0, 0.02, 0.2)),
        late=pick((0.002, 0.05, 0.3)), lost_reports=pick((0.0, 0.0, 0.3)), lock=pick((1.5, 10.0)),
        check=pick((0.5, 1.0, 3.0)), outlasts=chance.random() < 0.25, has_issuer=chance.random() < 0.2, rates=rates,
        probes=0.2, connected=10.0,
    )  # fmt: skip
    if "lose_store" in rates:
        # An import of running jobs needs their chunks, and a lease longer than itself.
        shape = shape._replace(running_seconds=2.0, archiver_seconds=0.3, lease=max(shape.lease, 12))
    if shape.has_sentinel:
        rates["fail_over"] = 60.0
    if shape.has_issuer:
        rates["issuer_away"] = pick((20.0, 200.0))
    return shape


@dataclass
class Result:
    """The result of a plan. ``digest`` is that of its trace; ``cpu`` is in seconds."""

    digest: str = ""
    violations: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    story: list[tuple[float, str, str]] = field(default_factory=list)
    #: The numbers of the faults that happened, and the virtual hours.
    faults: list[int] = field(default_factory=list)
    hours: float = 0.0
    cpu: float = 0.0
    trace: str = ""


class Simulator:
    """Runs plans with the code below ``tree``, one after the other, each in its own forked process."""

    def __init__(self, tree: Path = _ROOT, python: str = sys.executable) -> None:
        # Sets are iterated in the order of hashes.
        environ = {**os.environ, "PYTHONHASHSEED": "0"}
        self._directory = tempfile.TemporaryDirectory(prefix="simulator-")
        clock, source = f"{self._directory.name}/clock.so", Path(__file__).with_name("clock.c")
        subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-nostdlib", "-o", clock, source], check=True)
        command = [python, "-m", "tests.simulation.run", clock]
        self._server = subprocess.Popen(
            command, cwd=tree, env=environ, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def __enter__(self) -> "Simulator":
        return self

    def __exit__(self, *_: object) -> None:
        self._server.communicate()
        self._directory.cleanup()

    def run(self, plan: Plan) -> Result:
        """The result of ``plan``. A plan that takes more than ten minutes of CPU per hour has failed."""
        assert self._server.stdin
        assert self._server.stdout
        self._server.stdin.write(f"{json.dumps(asdict(plan))}\n")
        self._server.stdin.flush()
        return Result(**json.loads(self._server.stdout.readline() or '{"violations": ["the simulator has died"]}'))
