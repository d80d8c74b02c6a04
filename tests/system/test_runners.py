"""Two runners of one job, a frozen runner and a killed runner: what is in the log, and what viewers receive."""

import secrets
import signal
import sys
import threading
from typing import Any

import httpx
import pytest
import redis

from chronoverse.joblog.model import JobRef
from chronoverse.joblog.sse import Decoder, ServerSentEvent
from chronoverse.store import Store
from tests.support.commands import PATIENCE_SECONDS, call_main, environ, run_chronoverse, start_chronoverse
from tests.support.service import Service
from tests.support.waiting import wait_until

pytestmark = pytest.mark.long

#: A command that prints a line at once, and then one every 0.2 s. If a test fails to end it, it ends after 60 s.
TICKING = (sys.executable, "-uc", "import time\nfor i in range(300): print('tick', i); time.sleep(0.2)")
#: What makes ``run`` write to the embedded store itself, and not through the service.
DIRECTLY: dict[str, Any] = {"CHRONOVERSE_URL": ""}


def events(service: Service, job: JobRef) -> list[ServerSentEvent]:
    """All events of a job's stream, until the server closes it."""
    url = f"{service.url}/workflows/{job.workflow_id}/jobs/{job.job_id}/events?wait=20"
    headers = {"Authorization": f"Bearer {service.token()}"}
    return list(Decoder().feed(httpx.get(url, headers=headers, timeout=60).content))


def entries(service: Service, job: JobRef) -> list[Any]:
    """All entries of a job's Redis stream."""
    with redis.Redis(unix_socket_path=f"{service.data_dir}/server.sock") as client:
        found: Any = client.xrange(f"chronoverse:{{{job.workflow_id}}}:{job.job_id}:log")
        return list(found)


def test_of_two_runners_of_one_job_one_publishes(embedded_service: Service) -> None:
    """The first runner holds the lease. The second reports that, and nothing of its command is published.

    Its command runs all the same, unless its log is required.
    """
    # Each run of the test has its own job, so that it can be repeated.
    job = JobRef("runners", f"two-{secrets.token_hex(4)}")
    # Its lease does not expire while the machine is busy.
    settings = {**DIRECTLY, "CHRONOVERSE_LEASE_SECONDS": "60"}
    named = ("--workflow", job.workflow_id, "--job", job.job_id, "--")
    first = start_chronoverse(embedded_service, "run", *named, *TICKING, **settings)
    wait_until(lambda: bool(entries(embedded_service, job)), PATIENCE_SECONDS, "the first runner publishes")
    second, required = (
        run_chronoverse(embedded_service, "run", *options, *named, "echo", "second", **DIRECTLY)
        for options in ((), ("--require-log",))
    )
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=20)

    assert (second.returncode, second.stdout) == (0, b"second\n")
    assert (required.returncode, required.stdout) == (75, b"")
    assert all(b"another live runner" in each.stderr for each in (second, required))
    assert first.returncode == 128 + signal.SIGTERM
    assert not any(b"second" in fields.get(b"message", b"") for _, fields in entries(embedded_service, job))


def test_a_runner_frozen_for_twice_its_lease_is_lost_and_fenced(embedded_service: Service) -> None:
    """A viewer's worker declares the job LOST. When the runner continues, it adds nothing after the terminal entry."""
    job = JobRef("runners", "frozen")
    runner = start_chronoverse(
        embedded_service,
        *("run", "--workflow", job.workflow_id, "--job", job.job_id, "--"),
        *TICKING,
        CHRONOVERSE_LEASE_SECONDS="2",
        **DIRECTLY,
    )
    wait_until(lambda: bool(entries(embedded_service, job)), PATIENCE_SECONDS, "the runner publishes")
    seen: list[ServerSentEvent] = []
    viewer = threading.Thread(target=lambda: seen.extend(events(embedded_service, job)))
    viewer.start()
    runner.send_signal(signal.SIGSTOP)
    viewer.join(20)
    at_the_end = entries(embedded_service, job)
    runner.send_signal(signal.SIGCONT)
    messages: list[bytes] = []
    reader = threading.Thread(target=lambda: messages.extend(runner.stderr or ()))
    reader.start()
    wait_until(
        lambda: any(b"publishing stopped" in line for line in messages),
        PATIENCE_SECONDS,
        "the runner reports it is fenced",
    )
    runner.send_signal(signal.SIGTERM)
    runner.wait(20)
    reader.join()
    for pipe in (runner.stdout, runner.stderr):
        assert pipe is not None
        pipe.close()

    assert [event.event for event in seen][-2:] == ["job", "error"]
    assert seen[-1].data == "runner lost: nothing heard from it for 2 s"
    assert '"status":"LOST"' in seen[-2].data
    assert at_the_end[-1][1][b"status"] == b"LOST"
    assert entries(embedded_service, job) == at_the_end


def test_a_killed_runner_leaves_all_its_lines_and_a_lost_job(embedded_service: Service, embedded_store: Store) -> None:
    """Reading its status declares the job LOST. Its lines stay, and ``logs -f`` exits with 74."""
    job = JobRef("runners", "killed")
    runner = start_chronoverse(
        embedded_service,
        *("run", "--workflow", job.workflow_id, "--job", job.job_id, "--"),
        *TICKING,
        CHRONOVERSE_LEASE_SECONDS="2",
        **DIRECTLY,
    )
    wait_until(lambda: len(entries(embedded_service, job)) >= 3, PATIENCE_SECONDS, "the runner publishes")
    before = entries(embedded_service, job)
    runner.kill()
    runner.communicate()
    wait_until(
        lambda: bool((found := embedded_store.get_job(job)) and found.end), PATIENCE_SECONDS, "the job is declared LOST"
    )
    followed = run_chronoverse(embedded_service, "logs", "-f", job.workflow_id, job.job_id)

    assert entries(embedded_service, job)[: len(before)] == before
    assert followed.returncode == 74
    assert followed.stdout.startswith(b"tick 0\ntick 1\ntick 2\n")


def test_no_token_is_needed_for_a_service_with_the_same_data_directory(embedded_service: Service) -> None:
    """The token is made with the secret in the data directory, to publish over HTTP and to read."""
    job = JobRef("runners", f"no-token-{secrets.token_hex(4)}")
    ours = environ(embedded_service)
    run = ("run", "--server", embedded_service.url, "--workflow", job.workflow_id, "--job", job.job_id, "--")
    done = call_main(*run, "echo", "hello", environ=ours)
    assert done.returncode == 0
    page = f"{embedded_service.url}/ui/workflows/{job.workflow_id}/jobs/{job.job_id}"
    link, *others = done.stderr.splitlines()
    assert link == f"chronoverse: job {job.job_id} of workflow {job.workflow_id} is at {page}"
    # Other tests of this service have left lines.
    assert all("left undelivered lines" in each for each in others), others
    assert call_main("logs", *job, environ=ours).stdout == "hello\n"
