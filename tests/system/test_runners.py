"""A runner with the data directory of a running service."""

import secrets

import pytest

from chronoverse.joblog.model import JobRef
from tests.support.commands import call_main, environ
from tests.support.service import Service

pytestmark = pytest.mark.long


def test_no_token_is_needed_for_a_service_with_the_same_data_directory(embedded_service: Service) -> None:
    """The token is created with the secret in the data directory, for publishing over HTTP and reading."""
    job = JobRef("runners", f"no-token-{secrets.token_hex(4)}")
    ours = environ(embedded_service)
    run = ("run", "--server", embedded_service.url, "--workflow", job.workflow_id, "--job", job.job_id, "--")
    done = call_main(*run, "echo", "hello", environ=ours)
    assert done.returncode == 0
    page = f"{embedded_service.url}/ui/workflows/{job.workflow_id}/jobs/{job.job_id}"
    link, *others = done.stderr.splitlines()
    assert link == f"chronoverse: job {job.job_id} of workflow {job.workflow_id} is at {page}"
    # Other tests have left lines in this service.
    assert all("left undelivered lines" in each for each in others), others
    assert call_main("logs", *job, environ=ours).stdout == "hello\n"
