"""From a service with its embedded store to a delivered message, as a new user does it: with commands alone."""

import contextlib
import json
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from chronoverse import metrics  # noqa: F401
from chronoverse.joblog.model import iso_timestamp
from tests.support.certificates import Authority
from tests.support.commands import call_main, environ
from tests.support.receiver import Receiver
from tests.support.service import Service
from tests.support.waiting import wait_until
from tests.web.routes.wire import Stream


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The receiver's private authority."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[Service]:
    """With its own notifier and archiver."""
    settings: dict[str, Any] = {"webhook_hosts": "127.0.0.1+private", "ca_file": authority.path}
    settings |= {"archive_running_seconds": 1, "max_job_bytes": 2**30, "max_streams_per_token": 2, "lease_seconds": 600}
    with Service(tmp_path_factory.mktemp("serve"), **settings) as service:
        yield service


@pytest.fixture
def receiver(authority: Authority) -> Iterator[Receiver]:
    with Receiver(200, tls=authority.context("receiver")) as receiver:
        yield receiver


def call(service: Service, *arguments: str, code: int = 0) -> tuple[str, str]:
    done = call_main(*arguments, environ=environ(service))
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


def test_a_broken_main_branch_is_reported(service: Service, receiver: Receiver) -> None:
    url = ("--url", receiver.url)
    made = call(service, "watch", "shop", "main", "--on", "change", "--same", "branch", "--label", "branch=main", *url)
    assert made[0] == f"main\tchange COMPLETED FAILED LOST branch=main same branch\t{receiver.url}\tok\n"
    assert made[1].startswith("secret, printed once: whsec_")
    assert call(service, "watch", "shop", "main", "--test") == ("delivered\n", "")
    assert receiver.messages[0].json["text"].startswith("Test of the watch main: shop has no jobs http")
    assert receiver.messages[0].json["data"]["job"] is None

    run = ("run", "--workflow", "shop", "--label", "branch=main", "--job")
    call(service, *run, "build-1", "--", "true")
    call(service, *run, "build-2", "--", "sh", "-c", "echo 'Error: no route to host'; exit 3", code=3)
    wait_until(lambda: len(receiver.messages) == 2, 30, "the message")
    message = receiver.messages[1].json
    assert message["type"] == "job.changed"
    assert message["text"] == (
        "shop build-2 broke (branch=main, build-1 completed): Error: no route to host (line 1)"
        f" {service.url}/ui/workflows/shop/jobs/build-2#L1"
    )
    (line,) = call(service, "watches", "shop", "-o", "json")[0].splitlines()
    shown = json.loads(line)
    assert (shown["id"], shown["state"], shown["error"]) == ("main", "ok", None)
    assert "secret" not in shown
    assert call(service, "watch", "shop", "main", "--delete")[0] == "watch main of shop deleted\n"
    assert call(service, "watches", "shop")[0] == ""


def test_a_test_message_reports_the_error(service: Service, receiver: Receiver) -> None:
    receiver.status = 404
    call(service, "watch", "shop", "bad", "--on", "end", "--status", "failed", "--url", receiver.url)
    _, said = call(service, "watch", "shop", "bad", "--test", code=1)
    assert said == "chronoverse: 127.0.0.1 returned 404\n"
    text, _ = call(service, "watches", "shop")
    assert text == f"bad\tend FAILED\t{receiver.url}\tretrying\t1 waiting, 0 dropped\t127.0.0.1 returned 404\n"
    receiver.status = 204
    assert call(service, "watch", "shop", "bad", "--test")[0] == "delivered\n"
    receiver.status = 404  # the earlier delivery does not count
    assert call(service, "watch", "shop", "bad", "--test", code=1)[1] == said
    call(service, "watch", "shop", "bad", "--delete")


def test_a_rejected_watch_reports_the_reason(service: Service, tmp_path: Path) -> None:
    url = ("--url", "https://hooks.example/")
    _, said = call(service, "watch", "shop", "x", "--on", "end", *url, code=77)
    assert "hooks.example is not in CHRONOVERSE_WEBHOOK_HOSTS" in said
    for options in (
        ["--on", "end"],
        ["--test", "--delete"],
        [],
        ["--url", "x"],
        ["--on", "end", "--url", "x", "--test"],
    ):
        _, said = call(service, "watch", "shop", "x", *options, code=64)
        assert "pass --on and --url, --test, or --delete" in said
    for given, part in {
        ("silent", "--url", "http://127.0.0.1/"): "--for: required with `silent`",
        ("change", "--url", "ftp://x", "--same", "Branch"): "--same: 0: must match",
        ("change", "--url", "ftp://x"): "--url: expected https://",
    }.items():
        assert part in call(service, "watch", "shop", "x", "--on", *given, code=65)[1]
    for option in ("--delete", "--test"):
        _, said = call(service, "watch", "shop", "nothing", option, code=66)
        assert "watch nothing of shop: not found, or no access" in said


#: The metrics by their value in a service whose archiver, notifier, runners, viewers and readers have worked, without
#: ``chronoverse_``. A metric with labels is summed. None: more than 0; ...: any.
NAMES: Final[dict[object, str]] = {
    1: (
        "workers streams_refused_total delivery_delay_seconds_count scans_up archive_configured "
        "webhooks_configured notify_waiting"
    ),
    0: (
        "workers_draining streams_ended_total replay_rest_seconds_total viewers_behind store_away "
        "store_may_evict store_evicted_keys store_denied issuer_keys_age_seconds workflows_map_invalid "
        "archive_store_went_back archive_bucket_lost archive_damaged_reads_total archive_lag_seconds "
        "archive_waiting_jobs notify_late_total notify_failing_watches notify_lag_seconds"
    ),
    2: "streams_open streams_started_total jobs_watched",
    None: (
        "requests_refused_total changes_delivered_total bytes_delivered_total replay_reads_total "
        "tail_silence_seconds publish_answers_total lines_appended_total "
        "archiver_last_step_timestamp_seconds archive_chunks_total archive_lines_total archive_bytes_total "
        "archive_jobs_total archive_largest_log_bytes notify_last_step_timestamp_seconds "
        "notify_deliveries_total workflow_bytes_today"
    ),
    ...: "connections_cut_total store_errors_total archive_errors_total",
    8_000: "streams_limit",
    41: "lines_delivered_total",
}
VALUES: Final = {name: value for value, names in NAMES.items() for name in names.split()}


def test_each_metric_says_what_happened(service: Service, receiver: Receiver) -> None:
    """In all processes of the service, while streams are open and a message waits."""
    receiver.status = 404
    call(service, "watch", "seen", "bad", "--on", "end", "--url", receiver.url)
    call(service, "watch", "seen", "bad", "--test", code=1)
    call(service, "run", "--workflow", "shop", "--", "echo", "done")
    lines = [{"timestamp": iso_timestamp(time.time()), "message": "x" * 99, "stream": "stdout"}] * 40
    headers, path = {"Authorization": f"Bearer {service.token()}"}, "/workflows/seen/jobs/a"
    attempt = {"token": "ab" * 16, "attempt": 1}
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(httpx.Client(base_url=service.url, headers=headers, timeout=30))

        def follow(url: str) -> Stream:
            return stack.enter_context(contextlib.closing(Stream(service, url, headers)))

        def append(first: int, some: Sequence[object]) -> None:
            assert client.post(f"{path}/logs", json={**attempt, "first": first, "lines": some}).status_code == 200

        changes = follow("/workflows/seen/events").wait_for(b"id: 0\n\n")
        client.post(f"{path}/attempts", json={"token": attempt["token"]})
        changes.wait_for(b'"RUNNING"')
        append(1, lines)
        log = follow(f"{path}/events").wait_for(b"id: 40\n\n")
        append(41, lines[:1])
        log.wait_for(b"id: 41\n\n")
        assert client.get("/workflows/seen/events").status_code == 429
        assert client.get("/nowhere").status_code == 404

        def others() -> dict[str, float]:
            """The values that differ."""
            sums = defaultdict[str, float](float)
            for family in text_string_to_metric_families(client.get("/metrics").text):
                for name, _, value, *_ in family.samples:
                    sums[name] += value
            values = {name: sums[f"chronoverse_{name}"] for name in VALUES}
            return {name: value for name, value in values.items() if not is_right(value, VALUES[name])}

        def is_right(value: float, wanted: object) -> bool:
            return wanted is ... or (value > 0 if wanted is None else value == wanted)

        with contextlib.suppress(AssertionError):
            wait_until(lambda: not others(), 60, "all have their values", slowest=1)
        assert others() == {}
    exposed = {each.name.removeprefix("chronoverse_") for each in REGISTRY.collect() if "chronoverse" in each.name}
    assert {name.removesuffix("_total").removesuffix("_count") for name in VALUES} == exposed
