"""Random histories of a workflow's jobs: operations by our runners, foreign runners and administrators."""

import contextlib
import random
from collections.abc import Callable, Sequence
from typing import Any

from chronoverse.archive.importing import import_jobs
from chronoverse.archive.object_store import FileObjectStore
from chronoverse.archive.redaction import Redaction, RedactionRequest
from chronoverse.archive.retention import delete_job
from chronoverse.errors import ChronoverseError
from chronoverse.joblog.labels import check_labels
from chronoverse.joblog.model import Attempt, Job, JobRef, Status
from chronoverse.store import Store
from chronoverse.store.changes import Change, read_change
from tests.support.archivers import archive
from tests.support.bench import NOW, make_lines

#: Maximum number of jobs.
JOBS = 12


class Histories:
    """Operations on a workflow's jobs, any of which can be refused.

    ``ask`` runs a command. ``judge``: a store whose leases expire immediately. Without ``objects`` there is no archive.
    """

    def __init__(
        self,
        ask: Callable[..., Any],
        store: Store,
        judge: Store,
        workflow: str = "wf_1",
        *,
        prefix: str = "chronoverse",
        objects: FileObjectStore | None = None,
        seed: int,
    ) -> None:
        self.ask = ask
        self.store = store
        self.judge = judge
        self.workflow = workflow
        self.prefix = prefix
        self.objects = objects
        self.random = random.Random(seed)
        self.attempts: dict[str, Attempt] = {}
        self.lines: dict[str, int] = {}
        self.operations: list[Callable[[JobRef], object]] = [
            self.register, self.open, self.append, self.finish, self.lose, self.write_foreign, self.end_foreign,
            self.label, self.delete, self.drop, self.read,
        ]  # fmt: skip
        if objects is not None:
            self.operations += [self.redact, self.archive_or_import]

    @property
    def refs(self) -> list[JobRef]:
        return [JobRef(self.workflow, f"job_{number}") for number in range(JOBS)]

    def key(self, kind: str, job: JobRef | None = None) -> str:
        return f"{self.prefix}:{{{self.workflow}}}:{f'{job.job_id}:' if job else ''}{kind}"

    def step(self) -> None:
        """Runs a random operation; a refusal is ignored."""
        with contextlib.suppress(ChronoverseError):
            self.random.choice(self.operations)(self.random.choice(self.refs))

    def changes(self) -> list[Change]:
        """All changes of the workflow."""
        return [read_change(self.workflow, entry) for entry in self.ask("XRANGE", self.key("changes"), "-", "+")]

    def labels(self) -> Any:
        count = self.random.choice((0, 0, 1, 2))
        return check_labels({f"k{self.random.randrange(3)}": self.random.choice("ab") for _ in range(count)})

    def register(self, job: JobRef) -> None:
        self.store.register(job, self.labels())

    def open(self, job: JobRef) -> None:
        if job.job_id in self.attempts and self.random.random() < 0.5:
            attempt = self.attempts[job.job_id]
            self.store.finish(attempt, Status.PENDING, 1, 0, self.lines.get(job.job_id, attempt.next))
        attempt = self.store.open(job, f"token-{self.random.random()}", labels=self.labels())
        self.attempts[job.job_id] = attempt
        self.lines[job.job_id] = attempt.next

    def append(self, job: JobRef) -> None:
        if job.job_id in self.attempts:
            next_number = self.lines[job.job_id]
            self.lines[job.job_id] = self.store.append(self.attempts[job.job_id], make_lines(next_number, 2))

    def finish(self, job: JobRef) -> None:
        if job.job_id in self.attempts:
            status = self.random.choice((Status.COMPLETED, Status.FAILED, Status.CANCELED))
            code = self.random.choice((None, 0, 3))
            self.store.finish(self.attempts[job.job_id], status, code, 0, self.lines[job.job_id])

    def lose(self, job: JobRef) -> None:
        self.ask("DEL", self.key("lease", job))
        for _ in range(3):
            self.judge.get_job(job)

    def write_foreign(self, job: JobRef) -> None:
        last = self.ask("XREVRANGE", self.key("log", job), "+", "-", "COUNT", 1)
        number = int(last[0][0].partition(b"-")[0]) if last else 0
        if self.ask("EXISTS", self.key("lease", job)) == 0 and number < 20:
            self._xadd(job, f"{number + 1}-0", "message", "a", "timestamp", NOW)

    def end_foreign(self, job: JobRef) -> None:
        if self.ask("XLEN", self.key("log", job)) and not self.ask("EXISTS", self.key("lease", job)):
            self._xadd(job, "*", "event", "end", "status", self.random.choice(("COMPLETED", "FAILED", "nonsense")))

    def label(self, job: JobRef) -> None:
        if self.ask("EXISTS", self.key("log", job)) and not self.ask("HEXISTS", self.key("job", job), "attempt"):
            self.ask("HSET", self.key("job", job), f"label:k{self.random.randrange(3)}", "a")

    def delete(self, job: JobRef) -> None:
        delete_job(self.store, self.objects, job, tombstone_ms=self.random.choice((0, 0, 0, 20)))

    def drop(self, job: JobRef) -> None:
        """Deletes the keys of a job that is not running, as if they had expired."""
        (found,) = self.store.get_jobs([job])
        if isinstance(found, Job) and found.status is not Status.RUNNING and not found.archived:
            for kind in ("log", "job"):
                self.ask("DEL", self.key(kind, job))

    def read(self, job: JobRef) -> None:
        self.store.get_job(job)

    def redact(self, job: JobRef) -> None:
        assert self.objects is not None
        audit = {"at": NOW, "subject": "ada", "request_id": None, "reason": None}
        Redaction(self.store, self.objects, job, RedactionRequest(1, 2, lambda line: True, audit, exact=False)).run()

    def archive_or_import(self, job: JobRef) -> None:
        """Archives ended jobs or, if this job is archived, removes it from the store and imports it."""
        assert self.objects is not None
        (found,) = self.store.get_jobs([job])
        if not (isinstance(found, Job) and found.archive_sha256):
            archive(self.store, self.objects)
        else:
            for kind in ("job", "log", "archive"):
                self.ask("DEL", self.key(kind, job))
            list(import_jobs(self.store, self.objects, 30))

    def _xadd(self, job: JobRef, *fields: str) -> None:
        self.ask("XADD", self.key("log", job), *fields)


def alive(changes: Sequence[Change]) -> dict[JobRef, Any]:
    """The remaining jobs, according to the changes."""
    newest = {each.job.ref: each for each in changes}
    return {ref: said(each.job) for ref, each in newest.items() if not each.deleted}


def said(job: Job) -> Any:
    """The parts of a job whose changes are recorded."""
    return job.ref, job.status, job.attempt, job.exit_code, job.labels
