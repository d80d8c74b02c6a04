"""All faults together, under load: each line once, in order, or in a gap; each end once, after the last line."""

import contextlib
import itertools
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any, Final

import pytest

from chronoverse.joblog.model import Gap
from tests.collect.apiserver import ApiServer
from tests.collect.node import SOON, Agent, ContainerWriter, Jobs, cri_line, ended, pod, rotate, with_state
from tests.collect.test_faults import short_lease
from tests.support.faultproxy import FaultProxy
from tests.support.service import Service
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.long, pytest.mark.timeout(240), short_lease]

#: Containers with 500 lines/s each, and one with 50,000.
SLOW: Final = 20
SECONDS: Final = 18.0
FAST_SECONDS: Final = 5.0
TICK_SECONDS: Final = 0.02
#: Time until everything printed is published, on a busy machine, in seconds.
CATCH_UP_SECONDS: Final = 90.0


class Container:
    """A container that prints numbered lines. ``count`` is the next one's number."""

    def __init__(self, pods: Path, name: str, lines: int, restart: int = 0) -> None:
        self.lines, self.count = lines, 0
        self.pod = pod(name, spec={"restartPolicy": "OnFailure"})
        self.workflow, self.job = f"shop.{name}", f"{name}.main{'.1' if restart else ''}"
        self.writer = ContainerWriter(pods, self.pod, restart=restart)

    def print(self, now: float) -> None:
        """Prints the lines of a tick, every 50th in two parts."""
        begin = cri_line("", at=now)[:-1]
        piece = begin.replace(b" F ", b" P ")
        numbers = range(self.count, self.count + self.lines)
        self.writer.write(
            *(
                b"%bli\n%bne %d\n" % (piece, begin, number) if number % 50 == 0 else b"%bline %d\n" % (begin, number)
                for number in numbers
            )
        )
        self.count += self.lines


class Load:
    """Prints and rotates in its own thread. Midway, its clock goes back by an hour."""

    def __init__(self, pods: Path) -> None:
        self.slow = [Container(pods, f"p{number}", round(500 * TICK_SECONDS)) for number in range(SLOW)]
        self.fast = Container(pods, "fast", round(50_000 * TICK_SECONDS))
        self.printing = [*self.slow, self.fast]
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Load":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def clock(self) -> float:
        return time.time() - (3_600 if time.monotonic() - self._began > SECONDS / 2 else 0)

    def end(self, container: Container, *lasts: bytes) -> None:
        """Ends it with these bytes, each in another file.

        Their names have the correct time. With a clock that went back, as on a slow machine, they would be removed
        first.
        """
        with self._lock:
            self.printing.remove(container)
            for number, last in enumerate(lasts, 1):
                container.writer.write(last)
                rotate(container.writer, now=time.time() + number)

    def begin(self, container: Container) -> None:
        with self._lock:
            self.printing.append(container)

    def _run(self) -> None:
        began = self._began
        rotated_at = began + 2  # no log is rotated before its start is noticed
        pause = threading.Event()
        for tick in itertools.count(1):
            passed = time.monotonic() - began
            if passed > SECONDS:
                return
            now = self.clock()
            with self._lock:
                for each in self.printing:
                    if each is not self.fast or passed < FAST_SECONDS:
                        each.print(now)
                if time.monotonic() - rotated_at > 1:
                    rotated_at = time.monotonic()
                    for each in self.printing:
                        rotate(each.writer, now=now)
            pause.wait(max(0.0, began + tick * TICK_SECONDS - time.monotonic()))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """The agent's ``--state``, on its own file system."""
    state = tmp_path / "state"
    state.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", state], capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    yield state
    subprocess.run(["umount", "--lazy", state], check=True)


def fill(path: Path) -> None:
    """Writes until the disk is full."""
    with contextlib.suppress(OSError), path.open("ab", buffering=0) as file:
        while True:
            file.write(b"x" * 512)


def test_nothing_is_lost_unreported(
    small_disk: Path, agent: Callable[..., Agent], api: ApiServer, jobs: Jobs, service: Service
) -> None:
    """An agent that is killed repeatedly, while everything else fails too."""
    random, pause, kills = Random(49), threading.Event(), 0
    with FaultProxy((service.host, service.port)) as proxy, contextlib.ExitStack() as stack:
        node = agent(url=proxy.http_url)
        stack.callback(node.kill)
        load = Load(node.pods)
        cut, deleted, restarted = load.slow[-3:]
        again = Container(node.pods, "p19", restarted.lines, restart=1)
        for each in load.printing:
            api.apply(with_state(each.pod, running={}))

        killed = {"exitCode": 137, "reason": "OOMKilled"}

        def refuse() -> None:
            proxy.refuse()
            proxy.cut()

        def restart() -> None:
            load.end(restarted)
            load.begin(again)
            api.apply(with_state(again.pod, restarts=1, running={}, last=killed))

        def delete() -> None:
            load.end(deleted)
            shutil.rmtree(deleted.writer.path.parents[1])
            api.delete(ended(deleted.pod, 5))

        def lose_state() -> None:
            for path in small_disk.glob("*.json"):
                path.unlink()

        torn: list[bytes] = []

        def tear() -> None:
            # The power fails within a character, and within a stream's name.
            at = load.clock()
            torn.extend((cri_line("caf\u00e9", at=at)[:-2], cri_line("", at=at + 1)[:-6], cri_line("last", at=at + 2)))
            load.end(cut, *torn)

        faults: dict[int, Callable[[], object]] = {
            3: refuse,
            4: tear,
            5: proxy.heal,
            6: restart,
            7: lambda: fill(small_disk / "rubbish"),
            8: delete,
            9: (small_disk / "rubbish").unlink,
            10: lose_state,
        }
        with load:
            while load.is_alive or kills < 12:
                with node:
                    wait_for_starts(node, kills + 1)
                    pause.wait(random.uniform(0, 1))
                    faults.get(kills, lambda: None)()
                    pause.wait(random.uniform(0, 0.3))
                kills += 1
        for number, each in enumerate(load.printing):
            code = number % 3
            done = {"exitCode": code, "reason": "Error" if code else "Completed"}
            api.apply(
                with_state(each.pod, restarts=1, terminated=done, last=killed)
                if each is again
                else ended(each.pod, code)
            )
        api.apply(ended(cut.pod, 9))
        with node:
            for number, each in enumerate(load.printing):
                check(jobs, each, number % 3, "Error" if number % 3 else "Completed")
            check(jobs, restarted, 137, "OOMKilled")
            check(jobs, cut, 9, "Error", ["caf\ufffd", torn[1].decode(), "last"])
            check(jobs, deleted, None, None)


def wait_for_starts(node: Agent, count: int) -> None:
    wait_until(lambda: node.log.read_text().count("collecting the logs") == count, SOON, f"{count} starts")


def check(jobs: Jobs, container: Container, code: int | None, reason: str | None, lasts: Sequence[str] = ()) -> None:
    """Each line is present once and in order, or in a gap, and the outcome is the container's."""

    def chain() -> list[dict[str, Any]]:
        """The container's job, and those that continue it where it was LOST."""
        found = jobs.client.read("/workflows/{}/jobs", container.workflow)["jobs"]
        name = re.compile(rf"{re.escape(container.job)}(?:-from-([0-9]+))?")
        parts = [(int(match[1] or 0), each) for each in found if (match := name.fullmatch(each["id"]))]
        return [each for _, each in sorted(parts, key=lambda part: part[0])]

    def has_ended() -> bool:
        found = chain()
        return bool(found) and bool(found[-1]["finished_at"]) and (code is None or found[-1]["status"] != "LOST")

    wait_until(has_ended, CATCH_UP_SECONDS, f"{container.job} ends", 1.0)
    *earlier, last = chain()
    assert all(each["status"] == "LOST" for each in earlier)
    if code is not None:
        status = "FAILED" if code else "COMPLETED"
        assert (last["status"], last["exit_code"], last["labels"]["reason"]) == (status, code, reason)
    found = [entry for each in chain() for entry in jobs.entries(container.workflow, each["id"])]
    texts = [each if isinstance(each, Gap) else each.message for each in found]
    if lasts:
        # A gap between them is allowed: on a slow machine, the clock goes back before they are printed.
        assert [each for each in texts if not isinstance(each, Gap)][-len(lasts) :] == lasts
        del texts[texts.index(lasts[0]) :]
    expected, has_gap = 0, False
    for at, text in enumerate(texts):
        if isinstance(text, Gap):
            has_gap = True
        elif text != "li":  # a line whose rest is in a gap
            number = int(text.removeprefix("li").removeprefix("ne "))
            assert number == expected or (has_gap and number > expected), (
                container.job,
                texts[max(0, at - 5) : at + 5],
            )
            expected, has_gap = number + 1, False
    is_cut = has_gap or last["status"] == "LOST"
    assert expected == container.count or is_cut, (container.job, expected, container.count)
