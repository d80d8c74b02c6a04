"""A job's labels from its runner: rejected ones are reported once, and lines never wait for labels."""

from pathlib import Path

import pytest

from chronoverse.joblog.labels import check_labels
from chronoverse.joblog.model import Job, JobRef, Status
from chronoverse.runner.api import JobLog
from chronoverse.runner.resend import resend_spool
from chronoverse.runner.spool.spool_file import SpoolRoom, orphaned_spools
from chronoverse.store import Store
from tests.support.bench import JOB
from tests.support.scripted import ScriptedService, answer, problem
from tests.support.servers import running

BRANCH = check_labels({"branch": "main"})


def found(store: Store, job: JobRef = JOB) -> Job:
    job_found = store.get_job(job)
    assert job_found is not None
    return job_found


def test_labels_given_on_opening_are_stored(store: Store) -> None:
    with JobLog.open(store, *JOB, labels=dict(BRANCH)) as log:
        log.write("stdout", "a")
    job = found(store)
    assert (job.labels, job.lines, job.status) == (BRANCH, 1, Status.COMPLETED)
    with pytest.raises(ValueError, match="key is 1 to 63"):
        JobLog.open(store, "wf_1", "job_2", labels={"Branch": "main"})
    assert store.get_job(JobRef("wf_1", "job_2")) is None


def test_labels_of_a_job_that_could_not_be_opened_are_delivered_with_its_lines(tmp_path: Path) -> None:
    room = SpoolRoom(tmp_path / "spool")
    with running(tmp_path / "store") as away:
        url = away.url
        away.stop()
        with JobLog.open(url, *JOB, labels=dict(BRANCH), room=room, deliver_seconds=0, open_seconds=0) as log:
            log.write("stdout", "a")
        (path,) = orphaned_spools(tmp_path / "spool")
        away.start()
        store = Store(url)
        assert resend_spool(path, lambda workflow: store, lambda text: None, job_id="job_2")
        job = found(store, JobRef("wf_1", "job_2"))
        assert (job.labels, job.lines) == (BRANCH, 1)
        store.close()


def test_a_service_without_label_support_still_gets_the_lines() -> None:
    said: list[str] = []
    opened = answer("200 OK", b'{"attempt":1,"token":"a","next":1}')
    refused = problem("400 Bad Request", "labels: Unknown field.")
    answers = (refused, opened, answer("200 OK", b'{"next":2}'), answer("204 No Content"))
    with (
        ScriptedService(*answers) as service,
        JobLog.open(service.url, *JOB, token="t", labels=dict(BRANCH), say=said.append) as log,
    ):
        log.write("stdout", "a")
    assert [sentence.partition(":")[0] for sentence in said] == [
        "the service does not accept labels (an earlier version?)"
    ]
