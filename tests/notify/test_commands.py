"""From a service with its embedded store to a delivered message, as a new user does it: with commands alone."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.certificates import Authority
from tests.support.commands import call_main, environ
from tests.support.receiver import Receiver
from tests.support.service import Service
from tests.support.waiting import wait_until


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The receiver's private authority."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[Service]:
    """With its own notifier."""
    hosts, path = "127.0.0.1+private", authority.path
    with Service(tmp_path_factory.mktemp("serve"), webhook_hosts=hosts, ca_file=path) as service:
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
    assert said == "chronoverse: 127.0.0.1 answered 404\n"
    text, _ = call(service, "watches", "shop")
    assert text == f"bad\tend FAILED\t{receiver.url}\tretrying\t1 waiting, 0 dropped\t127.0.0.1 answered 404\n"
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
    _, said = call(service, "watch", "shop", "x", "--on", "silent", "--url", "http://127.0.0.1/", code=65)
    assert "seconds: required with `silent`" in said
    _, said = call(service, "watch", "shop", "nothing", "--delete", code=66)


@pytest.mark.long
def test_a_service_exports_its_notifiers_metrics(service: Service, receiver: Receiver) -> None:
    call(service, "watch", "shop", "m", "--on", "end", "--url", receiver.url)
    before = service.metric('chronoverse_notify_deliveries_total{outcome="delivered"}')
    call(service, "watch", "shop", "m", "--test")
    assert service.metric('chronoverse_notify_deliveries_total{outcome="delivered"}') == before + 1
    assert service.metric("chronoverse_notify_last_step_timestamp_seconds") > 0
    assert service.metric("chronoverse_webhooks_configured") == 1
