"""Everything a service and its archive contain, to compare it before and after a restart of the store."""

import re
import time
from collections.abc import Sequence

import httpx

from chronoverse.archive.object_store import FileObjectStore
from chronoverse.joblog.model import JobRef, Status
from chronoverse.store import Store
from tests.support.bench import make_lines


def write(store: Store, job: JobRef) -> None:
    """Writes a job with three lines, and ends it."""
    attempt = store.open(job, "token")
    store.append(attempt, make_lines(1, 3))
    store.finish(attempt, Status.COMPLETED, 0, 0, 4)


def all_answers(client: httpx.Client, over: Sequence[JobRef], others: Sequence[JobRef]) -> dict[str, tuple[int, str]]:
    """The service's answers: the listing, each job, its page, and the events of jobs that are ``over``.

    Retries while the service answers with an error, as after a restart of the store.
    """
    answers: dict[str, tuple[int, str]] = {}
    paths = ["/jobs", *(f"/jobs/{job.job_id}/events" for job in over)]
    for job in (*over, *others):
        paths += [f"/jobs/{job.job_id}", f"/jobs/{job.job_id}/logs"]
    deadline = time.monotonic() + 20
    for path in paths:
        answer = client.get(path)
        while answer.status_code >= 500 and time.monotonic() < deadline:
            time.sleep(0.1)
            answer = client.get(path)
        # The reconnection time is random.
        answers[path] = (answer.status_code, re.sub(r"retry: \d+", "retry", answer.text))
    return answers


def all_objects(objects: FileObjectStore) -> dict[str, bytes]:
    """The objects of the archive's jobs, by name."""
    return {each.name: objects.get(each.name) for each in objects.list("") if each.name.count("/") == 2}
