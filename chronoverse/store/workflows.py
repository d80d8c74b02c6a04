"""The list of all workflows: the number of jobs and running jobs, and when the newest job was created.

In a Cluster it is updated after the job's own script; :meth:`WorkflowList.read` repairs errors.
"""

import contextlib
import random
from collections.abc import Callable, Container, Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

from chronoverse.errors import StoreError
from chronoverse.joblog.model import IDENTIFIER, Job, JobRef, ListingPosition, Status
from chronoverse.store.commands import Commands
from chronoverse.store.listing import JobListing, newest_first
from chronoverse.store.topology import PoolKind

#: Oldest jobs per workflow that a read checks. Jobs expire roughly in order of creation.
CHECKED_OLDEST: Final = 3
#: Maximum jobs listed as running, of all workflows together, that a read checks. Each takes 0.1 ms.
_CHECKED_RUNNING: Final = 20


class Workflow(NamedTuple):
    """A workflow with jobs. ``last_job_ms``: creation time of its newest job (Unix ms; can be infinity).

    ``recent``: statuses of its newest jobs. ``last_job``: the newest job's id, or None if it cannot be read.
    """

    workflow_id: str
    jobs: int
    running: int
    last_job_ms: float
    last_job: str | None = None
    recent: Sequence[Status] = ()


class WorkflowList:
    """Reads and repairs the list of workflows. Raises the errors of :class:`Store`."""

    def __init__(
        self,
        commands: Commands,
        listing: JobListing,
        get_jobs: Callable[[Sequence[JobRef]], Sequence[Job | StoreError | None]],
    ) -> None:
        self._commands = commands
        self._keys = commands.keys
        self._listing = listing
        self._get_jobs = get_jobs
        #: The list's key. It selects the list's server, as a workflow's id selects its jobs' server.
        self.slot: Final = commands.keys.workflows

    def page(
        self, before: ListingPosition | None, count: int, wanted: Container[str] | None = None
    ) -> list[ListingPosition]:
        """The positions of up to ``count`` ``wanted`` workflows (None: all) below ``before``, newest job first."""
        return newest_first(partial(self._commands.run, self.slot), self.slot, before, count, wanted)

    def add(self, workflow_id: str, created_ms: float) -> None:
        """Adds a workflow whose newest job was created at ``created_ms``. Never raises, because :meth:`read` repairs
        the list.
        """
        with contextlib.suppress(StoreError):
            self._on_list("ZADD", "GT", created_ms, workflow_id, pool=PoolKind.HEALTH)

    def job_deleted(self, workflow_id: str) -> None:
        """Removes a workflow whose last job is gone. Never raises."""
        with contextlib.suppress(StoreError):
            self.read([workflow_id])

    def read(self, workflow_ids: Sequence[str]) -> list[Workflow | StoreError | None]:
        """The workflows: None for a workflow without jobs, an error for one that cannot be read. Repairs the list.

        Raises :class:`StoreUnavailable` if no server answers.
        """
        refs = [JobRef(workflow_id, "") for workflow_id in workflow_ids]
        found = self._commands.by_server(refs, self._read)
        # The list's server may be unreachable. The workflows were still read.
        with contextlib.suppress(StoreError):
            self._repair_list(
                {ref.workflow_id: each for ref, each in found.items() if not isinstance(each, StoreError)}
            )
        return [found[ref] for ref in refs]

    def _read(self, refs: Sequence[JobRef]) -> list[Workflow | StoreError | None]:
        workflow_ids = [ref.workflow_id for ref in refs]
        self.find_changes(workflow_ids)
        return self._count(workflow_ids)

    def find_changes(self, workflow_ids: Sequence[str]) -> None:
        """Reads each workflow's oldest jobs and some of its running jobs. The workflows must be on one server.

        This detects jobs that have expired, are lost, or were ended by foreign runners.
        """
        key = self._keys.of_workflow
        samples = self._commands.pipeline(
            workflow_ids[0],
            [
                *(("ZRANGE", key(each, "jobs"), 0, CHECKED_OLDEST - 1) for each in workflow_ids),
                *(("SRANDMEMBER", key(each, "running"), _CHECKED_RUNNING) for each in workflow_ids),
            ],
        )
        oldest, running = (_refs(workflow_ids, samples[at : at + len(workflow_ids)]) for at in (0, len(workflow_ids)))
        questions = [("EXISTS", self._keys.log(job), self._keys.of(job, "job")) for job in oldest]
        exist = self._commands.pipeline(workflow_ids[0], questions)
        gone = [job for job, count in zip(oldest, exist, strict=True) if count == 0]
        for workflow_id in {job.workflow_id for job in gone}:
            self._listing.unlist(workflow_id, [job.job_id for job in gone if job.workflow_id == workflow_id])
        checked = random.sample(running, min(_CHECKED_RUNNING, len(running)))
        for ref, job in zip(checked, self._get_jobs(checked) if checked else (), strict=True):
            if job is None:
                self._listing.unlist(ref.workflow_id, [ref.job_id])

    def _count(self, workflow_ids: Sequence[str]) -> list[Workflow | StoreError | None]:
        calls = [(each, [self._keys.of_workflow(each, "jobs")], [10]) for each in workflow_ids]
        answers = self._commands.scripts("workflow", calls)
        # The script returns the status of our runners' jobs. Foreign and pending jobs must be read.
        refs = _refs(workflow_ids, [answer[5:] if isinstance(answer, list) else answer for answer in answers])
        asked = dict(zip(refs, self._get_jobs(refs) if refs else (), strict=True))
        return [
            _workflow(workflow_id, answer, asked) if isinstance(answer, list) else answer
            for workflow_id, answer in zip(workflow_ids, answers, strict=True)
        ]

    def _repair_list(self, found: Mapping[str, Workflow | None]) -> None:
        scores = self._on_list("ZMSCORE", *found) if found else ()
        for (workflow_id, workflow), score in zip(found.items(), scores, strict=True):
            if workflow is not None and (score is None or float(score) != workflow.last_job_ms):
                self._on_list("ZADD", workflow.last_job_ms, workflow_id)
            elif workflow is None and score is not None:
                self._on_list("ZREM", workflow_id)
                # Restores the workflow if a job was listed meanwhile.
                (again,) = self._count([workflow_id])
                if isinstance(again, Workflow):
                    self.add(workflow_id, again.last_job_ms)

    def _on_list(self, command: str, *args: Any, pool: PoolKind | None = None) -> Any:
        return self._commands.run(self.slot, command, self.slot, *args, pool=pool)


def _refs(workflow_ids: Sequence[str], replies: Sequence[Any]) -> list[JobRef]:
    return [
        JobRef(workflow_id, job_id)
        for workflow_id, members in zip(workflow_ids, replies, strict=True)
        if isinstance(members, list | set)
        for member in members
        if IDENTIFIER.fullmatch(job_id := member.decode("ascii", "replace"))
    ]


def _workflow(workflow_id: str, answer: list[Any], asked: Mapping[JobRef, Job | StoreError | None]) -> Workflow:
    jobs, running, score, newest, statuses, *unknown = answer
    others = (asked.get(JobRef(workflow_id, job_id.decode("ascii", "replace"))) for job_id in unknown)
    found = [next(others) if each == b"?" else Status(each.decode()) for each in statuses.split()]
    stand = [each.status if isinstance(each, Job) else each for each in found]
    last_job = newest.decode() if isinstance(stand[0], Status) else None
    recent = tuple(each for each in stand if isinstance(each, Status))
    return Workflow(workflow_id, jobs, running, float(score), last_job, recent)
