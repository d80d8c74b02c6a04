"""Where did the time go, and when will it be done: ``python -m bench.pauses`` prints a table.

Makes 30 good runs of five kinds of jobs, whose steps take up to 30 % more or less time in each run. Compares with
five good runs each time:

- Runs with a planted delay of 10 to 20 % of the run. Is its pause the first one in ``slower``?
- Good runs. Is ``slower`` empty?
- Moments of good runs, as of a job that still runs. Is the time that is left in the range that is said? Is its
  median nearer to the truth than the usual time of a whole run minus the time so far?
"""

import argparse
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from chronoverse.joblog.model import iso_timestamp
from chronoverse.joblog.shapes import ShapeHasher
from chronoverse.joblog.timelines import Timeline, TimelineBuilder, compare, progress

GOOD_RUNS: Final = 30
COMPARED: Final = 5
DELAYS: Final = 10
MOMENTS: Final = 20
BEGIN: Final = 1_772_000_000.0
_SYLLABLES: Final = ("ba", "de", "fi", "go", "lu", "ma", "ne", "pi", "ro", "su", "ta", "ve", "zo")

#: Lines of a run: seconds since its beginning, and text.
Lines = list[tuple[float, str]]


class Delay(NamedTuple):
    """A planted delay of ``seconds``. ``place``, from 0 to 1, chooses the step that takes so much longer."""

    place: float
    seconds: float


class Run(NamedTuple):
    """A run, and when its delayed step began and ended."""

    lines: Lines
    delayed: tuple[float, float]


def word(number: int) -> str:
    """A word of its own for each number, without digits: digits are no part of a shape."""
    return "".join(_SYLLABLES[number // 13**place % 13] for place in range(3))


class Clock:
    """The time of a run, and the noise of its steps. The step with the number ``delayed`` takes longer."""

    def __init__(self, choice: random.Random, pace: float = 1.0) -> None:
        self.choice = choice
        self.now = 0.0
        self.pace, self.noise = pace, 0.3
        self.lines: Lines = []
        self.steps = 0
        self.delayed_step = -1
        self.delay = 0.0
        self.delayed = (0.0, 0.0)

    def noisy(self, seconds: float) -> float:
        return seconds * self.pace * self.choice.uniform(1 - self.noise, 1 + self.noise)

    def work(self, seconds: float) -> None:
        """A step. Every run of a kind has the same steps."""
        began = self.now
        self.now += self.noisy(seconds)
        if self.steps == self.delayed_step:
            self.now += self.delay
            self.delayed = (began, self.now)
        self.steps += 1

    def say(self, text: str) -> None:
        """A line now."""
        self.now += self.choice.uniform(0, 0.002)
        self.lines.append((self.now, text))


#: A kind of job: runs all its steps on a clock. The second argument chooses what is the same in each run.
Kind = Callable[[Clock, random.Random], None]


def tests(clock: Clock, same: random.Random) -> None:
    """A test run, whose tests take very different times."""
    clock.say("============ test session starts ============")
    clock.say("platform linux -- Python 3.11.2, pytest-8.3.3, pluggy-1.5.0")
    clock.work(4)
    clock.say("collected 180 items")
    for number in range(180):
        clock.work(min(30.0, same.lognormvariate(-0.7, 1.2)))
        clock.say(f"tests/test_{word(number // 9)}.py::test_{word(200 + number)} PASSED [{number * 100 // 180:3}%]")
    clock.work(1)
    clock.say(f"===== 180 passed, 3 warnings in {clock.now:.2f}s =====")


def install(clock: Clock, same: random.Random) -> None:
    """A package install: downloads, some of which are cached, and a long silent step."""
    for number in range(60):
        clock.work(0.3)
        clock.say(f"Collecting {word(number)}>={same.randrange(9)}.{same.randrange(9)}")
        size = same.lognormvariate(6, 1.5)
        if number % 5 and clock.choice.random() < 0.1:
            clock.say(f"  Using cached {word(number)}-2.{number}-py3-none-any.whl ({size:.0f} kB)")
            clock.work(0)
        else:
            clock.say(f"  Downloading {word(number)}-2.{number}-py3-none-any.whl ({size:.0f} kB)")
            clock.work(min(12.0, size / 700))
            clock.say(f"     ---------------------------------------- {size:.1f}/{size:.1f} kB 1.2 MB/s eta 0:00:00")
    clock.say("Building wheels for collected packages: " + ", ".join(map(word, range(4))))
    for number in range(4):
        clock.say(f"  Building wheel for {word(number)} (pyproject.toml): started")
        clock.work(8)
        clock.say(f"  Building wheel for {word(number)} (pyproject.toml): finished with status 'done'")
    clock.say("Installing collected packages: " + ", ".join(map(word, range(60))))
    clock.work(25)
    clock.say("Successfully installed " + " ".join(f"{word(number)}-2.{number}" for number in range(60)))


def build(clock: Clock, same: random.Random) -> None:
    """A compile: each line is printed before its work."""
    clock.say("-- The C compiler identification is GNU 12.2.0")
    clock.work(3)
    clock.say("-- Configuring done")
    for number in range(220):
        clock.say(f"[{number * 100 // 220:3}%] Building C object src/CMakeFiles/app.dir/{word(number)}.c.o")
        clock.work(min(20.0, same.lognormvariate(0.3, 0.8)))
        if clock.choice.random() < 0.02:
            clock.say(f"src/{word(number)}.c:{clock.choice.randrange(900)}:9: warning: unused variable")
    clock.say("[100%] Linking C executable app")
    clock.work(12)
    clock.say("[100%] Built target app")


def data(clock: Clock, same: random.Random, parts: int = 4) -> None:
    """A data job: four workers, which wait for each other after every batch of so many parts for each."""
    for phase in ("load", "join", "write"):
        clock.work(4)
        clock.say(f"phase {phase}: 4 workers, 96 parts")
        for batch in range(24 // parts):
            begin, lines = clock.now, []
            for worker in range(4):
                clock.now = begin
                for part in range(parts):
                    clock.work(1.5)
                    name = f"{phase} {word(worker)} part {batch * parts + part}"
                    lines.append((clock.now, f"{name} rows={clock.choice.randrange(10**6)}"))
            clock.lines += sorted(lines)
            clock.now = max(lines)[0]
            clock.say(f"phase {phase}: committed {4 * parts} parts")
    clock.work(5)
    clock.say("done")


def free_workers(clock: Clock, same: random.Random) -> None:
    """The same data job, but the workers wait for each other only at the end of each phase."""
    data(clock, same, 24)


def noisy(clock: Clock, same: random.Random) -> None:
    """A deployment on machines of different speed, with retries, warnings, and a line every 10 s while it waits."""
    clock.pace, clock.noise = clock.choice.uniform(0.85, 1.15), 0.15
    for number in range(40):
        name = word(number)
        clock.say(f"==> {name}: applying")
        began = clock.now
        if clock.choice.random() < 0.15:
            clock.say(f"WARN {name}: connection reset by peer, retrying in 1 s")
            clock.now += 1
        clock.work(same.expovariate(1 / 6))
        until, clock.now = clock.now, began
        while clock.now + 10 < until:
            clock.now += 10
            clock.say(f"{name}: still creating... [{clock.now - began:.0f}s elapsed]")
        clock.now = until
        if clock.choice.random() < 0.2:
            clock.say(f"debug: cache miss for {clock.choice.getrandbits(64):016x}")
        clock.say(f"{name}: ready after {clock.now - began:.1f}s")


KINDS: Final[dict[str, Kind]] = {
    "a test run": tests,
    "a package install": install,
    "a compile": build,
    "parallel workers": data,
    "a noisy deployment": noisy,
    # This one shows a limit: while one worker is delayed, the others go on printing.
    "free workers": free_workers,
}


def make(kind: Kind, seed: int, run: int, delay: Delay | None = None) -> Run:
    """A run of a kind. The same numbers make the same run."""
    clock = Clock(random.Random(f"{seed} {run}"))
    if delay:
        clock.delayed_step = int(delay.place * steps(kind, seed))
        clock.delay = delay.seconds
    kind(clock, random.Random(seed))
    return Run(clock.lines, clock.delayed)


def steps(kind: Kind, seed: int) -> int:
    """Steps of a kind of job that every run has."""
    clock = Clock(random.Random())
    kind(clock, random.Random(seed))
    return clock.steps


def timeline(lines: Sequence[tuple[float, str]], hasher: ShapeHasher) -> Timeline:
    """The timeline of these lines."""
    builder = TimelineBuilder()
    hashes = hasher.hashes([text for _, text in lines])
    builder.add(hashes, range(1, len(lines) + 1), [iso_timestamp(BEGIN + seconds) for seconds, _ in lines])
    return builder.timeline()


class Score(NamedTuple):
    """How often it was right, out of how many; and the errors of the seconds that are left, in parts of the run."""

    found: int
    delays: int
    alarms: int
    good: int
    inside: int
    answered: int
    moments: int
    error: float
    elapsed_error: float


def judge(
    kind: Kind, seed: int, good_runs: int = GOOD_RUNS, delays: int = DELAYS, moments_each: int = MOMENTS
) -> Score:
    """The score of one kind of job."""
    hasher, choice = ShapeHasher(), random.Random(seed)
    runs = [make(kind, seed, run).lines for run in range(good_runs)]
    timelines = [timeline(lines, hasher) for lines in runs]
    found = alarms = inside = answered = moments = 0
    error = elapsed_error = 0.0
    usual = sorted(each.total for each in timelines)[good_runs // 2] / 1000
    for number in range(delays):
        delay = Delay(choice.random(), usual * choice.uniform(0.1, 0.2))
        lines, (begin, end) = make(kind, seed, 1000 + number, delay)
        slower = compare(timeline(lines, hasher), choice.sample(timelines, COMPARED)).slower
        if slower:
            after, before = lines[slower[0].number - 2][0], lines[slower[0].number - 1][0]
            overlap = min(before, end) - max(after, begin)
            found += overlap >= (before - after) / 2
    for run, lines in enumerate(runs):
        others = choice.sample([*timelines[:run], *timelines[run + 1 :]], COMPARED)
        alarms += bool(compare(timelines[run], others).slower)
        total = lines[-1][0]
        medians = sorted(each.total for each in others)[COMPARED // 2] / 1000
        for _ in range(moments_each):
            now = choice.uniform(lines[0][0], total)
            so_far = [line for line in lines if line[0] <= now]
            left = progress(timeline(so_far, hasher), others, round(1000 * (now - so_far[-1][0]))).left
            moments += 1
            if left:
                answered += 1
                inside += left.least <= 1000 * (total - now) + 1 and 1000 * (total - now) - 1 <= left.most
                error += abs(left.median / 1000 - (total - now)) / total
                elapsed_error += abs(max(0.0, medians - now) - (total - now)) / total
    return Score(
        found, delays, alarms, good_runs, inside, answered, moments, error / answered, elapsed_error / answered
    )


def rows(seeds: Sequence[int]) -> Iterator[str]:
    """The table, one kind in each row."""
    yield "| job | delays found | good runs with an alarm | in the range | error of its median | of elapsed only |"
    yield "|---|---|---|---|---|---|"
    for name, kind in KINDS.items():
        scores = [judge(kind, seed) for seed in seeds]
        sums = Score(*map(sum, zip(*scores, strict=True)))
        yield (
            f"| {name} | {sums.found} of {sums.delays} | {sums.alarms} of {sums.good} "
            f"| {100 * sums.inside / sums.answered:.0f} % ({sums.moments - sums.answered} not said) "
            f"| {100 * sums.error / len(seeds):.1f} % of the run | {100 * sums.elapsed_error / len(seeds):.1f} % |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    # The rule was made with the seeds 0 to 2.
    for row in rows(range(10, 10 + parser.parse_args().seeds)):
        print(row, flush=True)


if __name__ == "__main__":
    main()
