"""What a simulation does, and what came of it. Each runs in a process of its own, without gevent here."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

_ROOT: Final = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Plan:
    """What a simulation does. Everything else follows from ``seed``."""

    seed: int
    hours: float = 1.0
    nodes: int = 3
    jobs: int = 10
    viewers: int = 30
    #: Virtual seconds of one round: jobs begin, and faults happen. Then all must come to rest.
    round: float = 600.0
    #: Of the faults of the seed's schedule only these, by their numbers; None for all.
    only: tuple[int, ...] | None = None
    story: bool = False

    def __str__(self) -> str:
        numbers = {name: value for name, value in asdict(self).items() if type(value) in (int, float)}
        parts = [f"{name} {round(value, 3)}" for name, value in numbers.items()]
        only = [] if self.only is None else [f"only {','.join(map(str, self.only)) or 'none'}"]
        return " ".join(f"--{each}" for each in parts + only)


@dataclass
class Result:
    """What came of a plan. ``digest`` is that of its trace; ``cpu`` is in seconds."""

    digest: str = ""
    violations: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    story: list[tuple[float, str, str]] = field(default_factory=list)
    #: The numbers of the faults that happened, and the virtual hours.
    faults: list[int] = field(default_factory=list)
    hours: float = 0.0
    cpu: float = 0.0
    trace: str = ""


def simulate(plan: Plan, seconds: float = 600.0, *, tree: Path = _ROOT, python: str = sys.executable) -> Result:
    """Runs ``plan`` with the code below ``tree``. One that takes more than ``seconds`` of the machine's has failed."""
    # Sets are iterated in the order of hashes.
    environ: Mapping[str, str] = {**os.environ, "PYTHONHASHSEED": "0"}
    command = [python, "-m", "tests.simulation.run", json.dumps(asdict(plan))]
    try:
        done = subprocess.run(
            command, cwd=tree, env=environ, capture_output=True, timeout=seconds, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        return Result(violations=[f"the simulation has taken more than {seconds:g} s"])
    try:
        return Result(**json.loads(done.stdout.splitlines()[-1]))
    except (IndexError, ValueError):
        return Result(violations=["the simulation has died"], trace=done.stderr.decode()[-4000:])
