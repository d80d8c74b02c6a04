"""Whatever happens to archivers and to the archive, in any order: every line is had once, in order, from both tiers."""

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from chronoverse.archive.files import FileObjects
from chronoverse.archive.objects import Objects, Stored
from chronoverse.archive.packing import entries_in, unpack
from chronoverse.entries import read_entries
from chronoverse.errors import ArchiveUnavailable
from chronoverse.joblog import Line, Status
from chronoverse.sealing import overall
from chronoverse.store import Store
from tests.support.archivers import STEPS, archive, everything, numbers
from tests.support.bench import JOB, NOW
from tests.support.servers import RedisServer

#: So small that every running log is too large.
HOT_BYTES: Final = 1
#: What may go wrong with the archive: at which call, whether before or behind what it does.
Fault = tuple[Literal["put", "get", "delete", "list"], Literal["before", "behind"]]
FAULTS: Final[list[Fault]] = [
    (call, when) for call in ("put", "get", "delete", "list") for when in ("before", "behind")
]


class Killed(BaseException):
    """Ends an archiver where it stands."""


class Faulty:
    """``objects``, of whose calls the one that ``fault`` names fails, each time."""

    def __init__(self, objects: Objects, fault: Fault | None) -> None:
        self._objects = objects
        self._fault = fault

    def _call(self, name: str, *args: Any) -> Any:
        if self._fault == (name, "before"):
            raise ArchiveUnavailable("the archive is away")
        answer = getattr(self._objects, name)(*args)
        if self._fault == (name, "behind"):
            raise ArchiveUnavailable("the archive's answer was lost")
        return answer

    def put(self, name: str, data: bytes) -> None:
        """See :class:`Objects`, as with all of these."""
        self._call("put", name, data)

    def get(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        answer: bytes = self._call("get", name, start, stop)
        return answer

    def delete(self, name: str) -> None:
        self._call("delete", name)

    def list(self, prefix: str) -> Iterator[Stored]:
        yield from self._call("list", prefix)


class Archiving(RuleBasedStateMachine):
    """One job, its runner, and one archiver after the other."""

    def __init__(self, server: RedisServer, directory: Path) -> None:
        super().__init__()
        self.prefix = f"m{secrets.token_hex(6)}"
        self.store = Store(server.url, prefix=self.prefix, retention_seconds=86_400)
        self.server = server
        self.objects = FileObjects(directory / self.prefix)
        self.said: list[str] = []
        self.ended = False
        self.lost = 0

    @initialize()
    def begin(self) -> None:
        """The runner opens the job."""
        self.attempt = self.store.open(JOB, "token")

    @precondition(lambda self: not self.ended)
    @rule(texts=st.lists(st.text(max_size=20), min_size=1, max_size=12))
    def write(self, texts: list[str]) -> None:
        """It appends some lines, of which no two are alike over the losses of a log."""
        first = len(self.said) + 1
        texts = [f"{self.lost} {text}".replace("\ud800", "") for text in texts]
        lines = [Line(first + at, NOW, text, "stdout") for at, text in enumerate(texts)]
        assert self.store.append(self.attempt, lines) == first + len(lines)
        self.said += texts

    @precondition(lambda self: not self.ended)
    @rule()
    def finish(self) -> None:
        """It ends."""
        self.store.finish(self.attempt, Status.COMPLETED, 0, 0, len(self.said) + 1)
        self.ended = True

    @rule(
        step=st.sampled_from([None, *STEPS]),
        fault=st.sampled_from([None, *FAULTS]),
        meanwhile=st.sampled_from(["nothing", "write", "lose"]),
    )
    def archive(self, step: str | None, fault: Fault | None, meanwhile: str) -> None:
        """An archiver does what is due, as far as it comes; the log may grow, or be lost, before it seals."""
        waits = [] if self.ended else [meanwhile]

        def at(name: str) -> None:
            if name == "read back" and waits:
                if waits.pop() == "lose":
                    self.lose()
                if meanwhile != "nothing":
                    self.write(["meanwhile"] * 3)
            if name == step:
                raise Killed

        with contextlib.suppress(Killed, ArchiveUnavailable):
            archive(self.store, Faulty(self.objects, fault), at=at, hot_bytes=HOT_BYTES)

    @precondition(lambda self: not self.ended)
    @rule()
    def lose(self) -> None:
        """The log's key is deleted: what is not archived is gone, and will be written anew, differently."""
        self.server.ask("DEL", f"{self.prefix}:{{{JOB.workflow_id}}}:{JOB.job_id}:log")
        del self.said[self.store.inventory.survey(JOB).archived :]
        self.lost += 1

    @precondition(lambda self: self.ended)
    @rule()
    def expire(self) -> None:
        """Of a job that is archived whole the log itself goes."""
        if self.store.inventory.survey(JOB).complete:
            self.server.ask("DEL", f"{self.prefix}:{{{JOB.workflow_id}}}:{JOB.job_id}:log")

    @invariant()
    def upwards(self) -> None:
        """Every line once, in order."""
        said = everything(self.store, self.objects, JOB)
        assert [entry.message for entry in said if isinstance(entry, Line)] == self.said
        assert numbers(said) == list(range(1, len(self.said) + 1))

    @invariant()
    def downwards(self) -> None:
        """And from the end."""
        chunks = self.store.archived.chunks(JOB)
        archived = chunks[-1].last if chunks else 0
        hot = list(read_entries(list(self.store.page(JOB, before=10**9, count=10**6))[::-1], 0, 10**9))
        said = [entry for entry in hot[::-1] if isinstance(entry, Line) and entry.sequence_num > archived]
        for chunk in reversed(chunks):
            data = self.objects.get(chunk.name)
            for frame in reversed(chunk.frames):
                entries = list(entries_in(unpack(frame, data[frame.offset : frame.offset + frame.size])))
                said += [entry for entry in entries[::-1] if isinstance(entry, Line)]
        assert [line.message for line in said] == self.said[::-1]

    def teardown(self) -> None:
        """In the end an archiver that nobody disturbs has all of it, and nothing else."""
        if not self.ended:
            self.finish()
        for _ in range(2):
            assert archive(self.store, self.objects) == 0
        if self.said:
            survey = self.store.inventory.survey(JOB)
            assert (survey.complete, survey.archived) == (True, len(self.said))
            self.expire()
            self.upwards()
            self.downwards()
            chunks = self.store.archived.chunks(JOB)
            key = f"{self.prefix}:{{{JOB.workflow_id}}}:{JOB.job_id}:job"
            assert self.server.ask("HGET", key, "archive_sha256").decode() == overall(chunks)
            names = {chunk.name for chunk in chunks} | {f"{JOB.workflow_id}/{JOB.job_id}/job.json"}
            assert {each.name for each in self.objects.list("")} == names
        self.store.close()


def test_whatever_happens(server: RedisServer, tmp_path: Path) -> None:
    """Random runs of all of it."""

    class Here(Archiving):
        def __init__(self) -> None:
            super().__init__(server, tmp_path)

    checks = list(HealthCheck)
    run_state_machine_as_test(
        Here, settings=settings(max_examples=80, stateful_step_count=20, deadline=None, suppress_health_check=checks)
    )
