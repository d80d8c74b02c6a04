"""A notifier with a real store and receiver: which messages it sends, when, and how it handles bad receivers."""

import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from typing import Any
from unittest.mock import Mock

import pytest
from prometheus_client import REGISTRY

from chronoverse.archive.retention import delete_job
from chronoverse.cli.notify import notifier
from chronoverse.cli.notify.notifier import Notifier
from chronoverse.cli.notify.sending import signed_headers
from chronoverse.errors import StoreUnavailable
from chronoverse.joblog.model import JobRef, Line, Status, iso_timestamp
from chronoverse.joblog.watches import RETRY_SECONDS, Event, Watch
from chronoverse.store import Store
from chronoverse.store.watches import KeptWatch
from tests.notify.conftest import URL, WORKFLOW, Site
from tests.support.bench import Bench
from tests.support.fleets import Cluster
from tests.support.receiver import Message, Receiver
from tests.support.waiting import NoDelay, deadline, wait_until

#: Time limit of a message on a busy machine, in seconds.
PATIENCE_SECONDS = 60.0


def wait_for(site: Site, count: int) -> list[Message]:
    """The messages, once there are at least ``count``."""
    wait_until(lambda: len(site.receiver.messages) >= count, PATIENCE_SECONDS, f"{count} messages: {site.told()}")
    return list(site.receiver.messages)


def kept(site: Site, watch_id: str = "main") -> KeptWatch:
    (found,) = [each for each in site.store.watches.read(WORKFLOW) if each.watch.id == watch_id]
    return found


def settle(site: Site) -> None:
    """Waits until all pending messages are delivered, by sending a test message after them."""
    other = next((each.watch for each in site.store.watches.read(WORKFLOW)), None)
    assert other is not None
    before = len(site.receiver.messages)
    site.store.watches.add(other, Event(f"test.{time.time()}", "", 0, "", round(1000 * (time.time() + site.now))))
    wait_until(lambda: len(site.receiver.messages) > before, PATIENCE_SECONDS, "the test")
    wait_until(lambda: not kept(site, other.id).waiting, PATIENCE_SECONDS, "nothing waits")
    tests = [each for each in site.receiver.messages if each.json["text"].startswith("Test of")]
    for each in tests:
        site.receiver.messages.remove(each)


def test_a_failed_job_is_reported_with_its_cause(site: Site) -> None:
    """Signed, with a link to the line, and with a text for chats."""
    watch = site.watch(label={"branch": "main"})
    site.start()
    site.run("build-1", Status.FAILED, "fine", labels={"branch": "other"})
    site.run("build-2", Status.COMPLETED, labels={"branch": "main"})
    ref = site.run(
        "build-3",
        Status.FAILED,
        "ok",
        "E   Error: <3>&, @Channel, @here_\x1b[2J![a](http://b)",
        labels={"branch": "main"},
    )
    (message,) = wait_for(site, 1)
    job = site.store.get_job(ref)
    assert job
    data = message.json["data"]
    assert message.json["type"] == "job.ended"
    assert (data["watch"], data["job"], data["before"]) == ("main", job.to_json(), None)
    assert (data["cause"]["line"]["sequence_num"], data["cause"]["kind"]) == (2, "error")
    assert data["verdict"] == {"kind": "new", "id": None}
    assert data["url"] == f"{URL}/ui/workflows/nightly/jobs/build-3#L2"
    assert message.json["text"] == (
        "nightly build-3 failed: E   Error: &lt;3&gt;&amp;, @\u200bChannel, @\u200bhere_![a]\u200b(http://b) (line 2) "
        + data["url"]
    )
    at = int(message.headers["webhook-timestamp"])
    assert abs(at - time.time()) < 60
    assert message.headers.items() >= signed_headers(watch.secret, message.webhook_id, at, message.body).items()
    wait_until(lambda: kept(site).delivered_ms, PATIENCE_SECONDS, "the delivery is noted")


def test_an_end_is_reported_by_its_status(site: Site) -> None:
    """Once, even if the job is deleted before or after that: without its log. Or if a new attempt has begun."""
    watch, again = site.watch("bad"), site.run("again", Status.RUNNING)
    attempt = site.store.open(again, "token-again")
    site.store.finish(attempt, Status.PENDING, 1, 0, attempt.next)
    site.store.open(again, "another token")
    site.store.watches.add(watch, Event("ended.LOST", "again", 1, "LOST", round(1000 * time.time())))
    site.watch("canceled", status=("CANCELED",))
    delete_job(site.store, None, site.run("gone", Status.FAILED, "Error: a password"))
    site.start()
    for status in (Status.COMPLETED, Status.FAILED, Status.CANCELED):
        site.run(status.lower(), status)
    wait_for(site, 4)
    delete_job(site.store, None, JobRef(WORKFLOW, "failed"))
    settle(site)
    told = {(each.json["data"]["watch"], each.json["data"]["job"]["id"]): each for each in site.receiver.messages}
    assert [*sorted(told)] == [("bad", "again"), ("bad", "failed"), ("bad", "gone"), ("canceled", "canceled")]
    assert len(site.receiver.messages) == 4
    for job_id, end in (("gone", "FAILED"), ("again", "LOST")):
        job = told["bad", job_id].json["data"]["job"]
        assert (job["status"], job["attempt"]) == (end, 1)
    assert b"password" not in told["bad", "gone"].body


@pytest.mark.long
def test_a_job_is_reported_again_if_its_id_is_reused(site: Site, bench: Bench) -> None:
    """Its retention was shorter than the time for which reported ends are remembered."""
    site.watch()
    site.start()
    for count in (1, 2):
        ref = site.run("backup", Status.FAILED)
        wait_for(site, count)
        settle(site)
        bench.ask("DEL", *(bench.key(kind, ref) for kind in ("log", "job", "lease")))
    assert site.told() == [("job.ended", "backup")] * 2


def test_a_change_is_reported_once(site: Site) -> None:
    """Broken and fixed, by branch. Ignores canceled jobs, and those with other labels. A first job is not a change."""
    site.watch(on="change", same=("branch",), label={"kind": "ci"})
    site.start()
    for number, (branch, status) in enumerate(
        [
            ("main", Status.COMPLETED),
            ("other", Status.FAILED),
            ("main", Status.FAILED),
            ("other", Status.FAILED),
            ("main", Status.FAILED),
            ("main", Status.CANCELED),
            ("main", Status.COMPLETED),
            ("main", Status.COMPLETED),
            ("other", Status.COMPLETED),
        ],
        1,
    ):
        site.run(f"b{number}", status, "Error: no", labels={"branch": branch, "kind": "ci"})
        site.run(f"other-{number}", Status(("COMPLETED", "FAILED")[number % 2]), labels={"branch": branch})
    wait_for(site, 3)
    # Without b3, b5 would be a change.
    for job_id in ("b3", "b5"):
        delete_job(site.store, None, JobRef(WORKFLOW, job_id))
    settle(site)
    found = [(each.json["data"]["job"]["id"], each.json["data"]["before"]["id"]) for each in site.receiver.messages]
    assert sorted(found) == [("b3", "b1"), ("b7", "b5"), ("b9", "b4")]
    texts = {each.json["data"]["job"]["id"]: each.json["text"] for each in site.receiver.messages}
    page = f"{URL}/ui/workflows/nightly/jobs"
    assert texts["b3"] == f"nightly b3 broke (branch=main, b1 completed): Error: no (line 1) {page}/b3#L1"
    assert texts["b7"] == f"nightly b7 is fixed (branch=main, b5 failed) {page}/b7"


def test_watches_for_changes_share_one_read_of_older_jobs(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty watches that find nothing to compare would otherwise read 10,000 jobs for each end."""
    read = Mock(wraps=site.judge.newest_jobs)
    monkeypatch.setattr(site.judge, "newest_jobs", read)
    site.run("good", Status.COMPLETED)
    for label in ("a", "b", "c"):
        site.watch(label, "change", same=(label,))
    site.run("bad", Status.FAILED, labels={"a": "another"})
    site.notifier().step()
    for label, waiting in (("a", 0), ("b", 1), ("c", 1)):
        wait_until(partial(lambda *of: kept(site, of[0]).waiting == of[1], label, waiting), PATIENCE_SECONDS, label)
    assert read.call_count == 1


def test_ends_without_their_changes_are_reported(site: Site, bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """The changes were trimmed unread. The listing's jobs are reported once, if they ended after the watch began."""
    old = site.store.get_job(site.run("old", Status.FAILED, labels={"branch": "main"}))
    assert old
    # The runners' clock may be ahead.
    wait_until(lambda: iso_timestamp(time.time()) > str(old.finished_at), PATIENCE_SECONDS, "the end is over")
    site.watch(status=("FAILED", "LOST"))
    site.watch("change", "change", same=("branch",))
    for job_id, status in (("good", Status.COMPLETED), ("bad", Status.FAILED), ("worse", Status.FAILED)):
        site.run(job_id, status, labels={"branch": "main"})
    site.run("runs", Status.RUNNING, labels={"branch": "main"})
    # The change of a deleted job has its final status.
    delete_job(site.store, None, site.run("deleted", Status.FAILED, labels={"branch": "main"}))
    bench.ask("XTRIM", bench.key("changes", JobRef(WORKFLOW, "")), "MAXLEN", 1)
    before = late()
    for _ in range(2):
        site.start()
        wait_for(site, 5)
        settle(site)
        site.stop()
    found = sorted((each.json["data"]["watch"], each.json["data"]["job"]["id"]) for each in site.receiver.messages)
    assert found == [("change", "bad"), ("change", "good"), *(("main", name) for name in ("bad", "deleted", "worse"))]
    assert late() - before == 4
    site.run("ancient", Status.FAILED)
    site.run("newest", Status.RUNNING)
    bench.ask("XTRIM", bench.key("changes", JobRef(WORKFLOW, "")), "MAXLEN", 1)
    site.now = notifier.CATCH_UP_SECONDS + 60
    site.start()
    site.run("fresh", Status.FAILED)
    wait_for(site, 6)
    wait_until(lambda: not kept(site).waiting, PATIENCE_SECONDS, "nothing waits")
    assert [job for _, job in site.told()[5:]] == ["fresh"]
    assert f"{WORKFLOW}: 4 messages are late: the changes were not read in time" in caplog.messages


@pytest.mark.parametrize("are_gone", [False, True])
def test_an_end_that_cannot_be_queued_is_queued_later(
    are_gone: bool, site: Site, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store fails after the changes were read, or while the listing is read because changes were trimmed; and again
    while the message is created.
    """
    failures = list[object]()

    def fail_once(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def fail(*args: Any) -> Any:
            if name not in failures:
                failures.append(name)
                raise StoreUnavailable(name)
            return call(*args)

        return fail

    monkeypatch.setattr(site.judge.watches, "add", fail_once("add", site.judge.watches.add))
    monkeypatch.setattr(site.judge, "get_job", fail_once("get_job", site.judge.get_job))
    monkeypatch.setattr("chronoverse.store.watches.CLAIM_SECONDS", 0.5)
    monkeypatch.setattr("chronoverse.store.watches.IDLE_SECONDS", 0.0)
    monkeypatch.setattr(notifier, "LOOK_SECONDS", 0.0)
    site.run("before", Status.COMPLETED)
    site.watch()
    site.run("build-1", Status.FAILED)
    site.run("build-2", Status.COMPLETED)
    if are_gone:
        bench.ask("XTRIM", bench.key("changes", JobRef(WORKFLOW, "")), "MAXLEN", 1)
    site.start()
    wait_for(site, 1)
    assert (site.told(), failures) == ([("job.ended", "build-1")], ["add", "get_job"])


def test_changes_that_were_read_and_trimmed(site: Site, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A notifier died while processing them. Another reports the loss until everything is done."""
    monkeypatch.setattr("chronoverse.store.watches.IDLE_SECONDS", 0)
    site.run("old", Status.FAILED)
    site.watch()
    watches, key = site.store.watches, bench.key("changes", JobRef(WORKFLOW, ""))
    for number in range(3):
        site.run(f"job-{number}", Status.FAILED)
    ((_, entries, last),) = watches.changes([WORKFLOW], {})
    assert (len(entries), last) == (6, 0)
    bench.ask("XTRIM", key, "MAXLEN", 2)
    newest = int(entries[-1][0].partition(b"-")[0])
    for _ in range(2):
        assert list(watches.changes([WORKFLOW], {})) == [(WORKFLOW, [], newest)]
    # Others are trimmed meanwhile.
    site.run("job-4", Status.FAILED)
    bench.ask("XTRIM", key, "MAXLEN", 3)
    ((_, again, last),) = watches.changes([WORKFLOW], {WORKFLOW: newest})
    assert (again, last) == (entries[-1:], 0)
    watches.done(WORKFLOW, again)
    ((_, again, _),) = watches.changes([WORKFLOW], {})
    watches.done(WORKFLOW, again)
    assert (len(again), list(watches.changes([WORKFLOW], {}))) == (2, [(WORKFLOW, [], 0)])
    site.run("job-5", Status.FAILED)
    bench.ask("XTRIM", key, "MAXLEN", 2)
    ((_, again, last),) = watches.changes([WORKFLOW], {})
    assert (len(again), last) == (2, 0), "all that is gone was read"
    watches.done(WORKFLOW, again)
    site.run("job-6", Status.FAILED)
    bench.ask("XTRIM", key, "MAXLEN", 1)
    ((_, again, last),) = watches.changes([WORKFLOW], {})
    assert ([*again], last) == ([], newest + 6), "one is gone"
    bench.ask("XTRIM", key, "MAXLEN", 0)
    assert list(watches.changes([WORKFLOW], {})) == [(WORKFLOW, [], 0)]


def late() -> float:
    return REGISTRY.get_sample_value("chronoverse_notify_late_total") or 0.0


def test_silence_is_reported_once(site: Site) -> None:
    """Not before, and again after the job has printed another line and is silent again. Its end is not reported.

    A line whose time is in the future is silence from now on; one that has just come is new, whatever its time. A job
    that has just begun is not silent, even if its lines have older times.
    """
    site.watch(on="silent", seconds=6_000, label={"kind": "long"}, status=("FAILED",))
    quiet = site.run("quiet", Status.RUNNING, "one", "two", labels={"kind": "long"}, seconds_ago=4_000)
    site.run("other", Status.RUNNING, seconds_ago=6_100)
    site.run("failed", Status.FAILED, labels={"kind": "long"})
    notifier = site.notifier()
    site.run("ahead", Status.RUNNING, labels={"kind": "long"}, seconds_behind=-9_000)
    behind = site.run("behind", Status.RUNNING, labels={"kind": "long"}, seconds_behind=9_000)
    for site.now, sent in (
        (0.0, 0),
        (1_900.0, 0),
        (2_001.0, 1),
        (4_000.0, 1),
        (5_900.0, 1),
        (6_100.0, 2),
        (10_100.0, 3),
    ):
        if site.now == 4_000.0:
            line = Line(3, iso_timestamp(time.time() - 90_000), "three", "stdout")
            site.store.append(site.store.open(quiet, "token-quiet"), [line])
            site.store.finish(site.store.open(behind, "token-behind"), Status.CANCELED, None, 0, 2)
        notifier._look_at = 0.0
        notifier.step()
        wait_until(lambda: not kept(site).waiting and not notifier._busy, PATIENCE_SECONDS, "it is told")
        assert len(site.receiver.messages) == sent
    first, ahead, second = site.receiver.messages
    url = f"{URL}/ui/workflows/nightly/jobs/quiet"
    assert ahead.json["data"]["job"]["id"] == "ahead"
    assert first.json["text"] == f"nightly quiet has printed nothing for 6000 s (line 2) {url}#L2"
    assert (first.json["type"], first.json["data"]["cause"]) == ("job.silent", None)
    assert second.json["data"]["url"] == f"{url}#L3"
    assert first.webhook_id != second.webhook_id


def test_many_running_jobs_delay_no_others(site: Site) -> None:
    """A look reads some of them. In the end, each is read."""
    site.watch(on="silent", seconds=60)
    for number in range(5):
        site.run(f"quiet-{number}", Status.RUNNING, seconds_ago=100)
    notifier = site.notifier()
    notifier.jobs_per_look = 2
    notifier._look()
    assert kept(site).waiting == 2
    in_time = deadline(PATIENCE_SECONDS, "all are read")
    while kept(site).waiting < 5 and in_time():
        notifier._look()


@pytest.mark.long
def test_a_lost_job_is_reported(site: Site, bench: Bench) -> None:
    """Even if nothing else reads it."""
    site.watch()
    ref = site.run("gone", Status.RUNNING, "a line")
    bench.expire_lease(ref)
    site.judge = bench.new_store(clock=time.time, lease_seconds=1)
    site.start()
    (message,) = wait_for(site, 1)
    assert message.json["data"]["job"]["status"] == "LOST"
    assert "nightly gone was lost" in message.json["text"]


def test_a_failed_delivery_is_retried_with_its_id(site: Site) -> None:
    site.receiver.answers = [500, None]
    site.watch()
    site.start()
    site.run("build-1", Status.FAILED)
    wait_until(lambda: kept(site).failures, PATIENCE_SECONDS, "it fails")
    site.now = 100.0
    messages = wait_for(site, 2)
    wait_until(lambda: kept(site).failures != 1, PATIENCE_SECONDS, "it fails again")
    assert kept(site).failing_since_ms < 1000 * (time.time() + 50)
    state = kept(site).to_json(time.time())
    assert (state["state"], state["waiting"]) == ("retrying", 1)
    assert state["error"]
    messages = wait_for(site, 3)
    assert {each.webhook_id for each in messages} == {messages[0].webhook_id}
    wait_until(lambda: kept(site).failures == 0, PATIENCE_SECONDS, "it succeeds")
    assert (kept(site).to_json(time.time())["error"], kept(site).waiting) == (None, 0)


def test_a_watch_fails_after_a_day_and_drops_old_messages(site: Site) -> None:
    """New messages are delivered once the receiver is back."""
    site.watch()
    site.receiver.stop()
    site.start()
    site.run("old", Status.FAILED)
    wait_until(lambda: kept(site).failures, PATIENCE_SECONDS, "it fails")
    assert kept(site).to_json(time.time())["state"] == "retrying"
    site.now = RETRY_SECONDS + 60.0
    shown = kept(site).to_json(time.time() + site.now)
    assert (shown["state"], "refused" in shown["error"]) == ("failing", True)
    wait_until(lambda: kept(site).dropped == 1, PATIENCE_SECONDS, "it is dropped")
    site.run("new", Status.FAILED)
    site.receiver.start()
    site.store.watches.retry(kept(site).watch)
    wait_for(site, 1)
    wait_until(lambda: not kept(site).waiting, PATIENCE_SECONDS, "nothing waits")
    assert site.told() == [("job.ended", "new")]
    assert kept(site).failures == 0


def test_failing_and_busy_watches_delay_no_others(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Working receivers share one thread here, one message each in turn. One that failed before, and a new one, never
    answer. The former's messages do not count as late.
    """
    monkeypatch.setattr(notifier, "THREADS", 1)
    monkeypatch.setattr(notifier, "CLAIM_SECONDS", 0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        bad = site.watch("bad", url=f"http://127.0.0.1:{silent.getsockname()[1]}/")
        waiting = Event("test.1", "", 0, "", round(1000 * time.time()) - 3_600_000)
        site.store.watches.add(bad, waiting)
        site.store.watches.settle(KeptWatch(bad, 1), waiting, 0)
        new, one, two = site.watch("new", url=bad.url), site.watch("one"), site.watch("two")
        for working in (one, two):
            site.store.watches.settle(KeptWatch(working, delivered_ms=1), waiting)
        for watch in (bad, new, one, two):
            for number in range(2, 5):
                site.store.watches.add(
                    watch, waiting._replace(name=f"test.{number}", queued_ms=round(1000 * time.time()))
                )
        site.start()
        assert {each.json["data"]["watch"] for each in wait_for(site, 2)[:2]} == {"one", "two"}
        assert (kept(site, "bad").failures, kept(site, "bad").waiting) == (1, 4)
        assert (REGISTRY.get_sample_value("chronoverse_notify_lag_seconds") or 0.0) < 3_600


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [("40", 40), ("1000000", 3_600), ("Thu, 31 Dec 2099 23:59:59 GMT", 3_600)],
    ids=["seconds", "days", "date"],
)
def test_a_receiver_sets_the_time_of_the_next_attempt(asked: str, seconds: int, site: Site, bench: Bench) -> None:
    """At most an hour later, so that a recovered receiver is noticed."""
    site.receiver.status, site.receiver.headers = 429, {"Retry-After": asked}
    site.watch()
    site.run("build-1", Status.FAILED)
    before = time.time()
    site.start()
    wait_until(lambda: kept(site).failures, PATIENCE_SECONDS, "it is refused")
    due = float(bench.ask("ZSCORE", f"{bench.store.watches.slot}:{{{WORKFLOW}}}:main:queue", "")) / 1000
    assert before + seconds - 0.01 <= due <= time.time() + seconds


def test_a_rejected_message_delays_no_others(site: Site) -> None:
    """These are the messages of a workflow's first changes, which are not late."""
    site.receiver.answers = [400]
    before = late()
    site.watch()
    for number in range(1, 4):
        site.run(f"build-{number}", Status.FAILED)
    site.start()
    found = [each.webhook_id for each in wait_for(site, 4)]
    assert len(set(found)) == 3
    assert (found.count(found[0]), found[-1], late()) == (2, found[0], before)


def test_an_unreadable_job_delays_no_others(site: Site, bench: Bench) -> None:
    log = bench.key("log", site.run("build-1", Status.FAILED))
    bench.ask("DEL", log)
    bench.ask("SET", log, "no log")
    site.watch()
    for number in (1, 2):
        event = Event("ended.FAILED", f"build-{number}", 1, "FAILED", round(1000 * time.time()))
        site.store.watches.add(kept(site).watch, event)
    site.start()
    assert [each.json["data"]["job"]["id"] for each in wait_for(site, 1)] == ["build-2"]
    wait_until(lambda: "build-1" in kept(site).error, PATIENCE_SECONDS, "the error is shown")


def test_an_old_message_that_is_rejected_is_dropped(site: Site) -> None:
    """Even if the receiver accepts others, so that the watch never fails for a day."""
    site.receiver.answers = [None, None]
    watch, queued = site.watch(), time.time() - notifier.CATCH_UP_SECONDS
    site.store.watches.add(watch, Event("test.old", "", 0, "", round(1000 * queued)))
    site.start()
    wait_until(lambda: kept(site).dropped == 1, PATIENCE_SECONDS, "it is dropped")
    assert (len(site.receiver.messages), kept(site).waiting) == (1, 0)


def test_a_later_watch_does_not_report_earlier_jobs(site: Site, bench: Bench) -> None:
    """Not even if such a job is imported from the archive."""
    before = site.run("before", Status.FAILED)
    site.watch()
    bench.ask("HSET", bench.key("job", before), "archive_sha256", "0" * 64, "told", "")
    assert site.store.get_job(before)
    site.start()
    site.run("after", Status.FAILED)
    wait_for(site, 1)
    site.store.watches.delete(WORKFLOW, "main")
    site.run("between", Status.FAILED)
    site.watch()
    site.run("again", Status.FAILED)
    wait_for(site, 2)
    settle(site)
    assert [job for _, job in site.told()] == ["after", "again"]


def test_a_server_without_memory_delays_no_others(
    cluster: Cluster, prefix: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each server of a Cluster has some of the workflows, and one has the index of those with watches."""
    monkeypatch.setattr("chronoverse.store.watches.IDLE_SECONDS", 0.0)
    monkeypatch.setattr(notifier, "LOOK_SECONDS", 0.0)
    stop, masters, before = threading.Event(), cluster.masters(), late()
    rest = {"id": "main", "on": "end", "url": receiver.url, "secret": "whsec_" + "a" * 32, "status": ["FAILED"]}
    with closing(Store(cluster.url, prefix=prefix)) as store, ExitStack() as stack:
        workflows = [cluster.workflow(master, prefix) for master in masters]
        for workflow_id in workflows:
            # Creates changes, after which the watch begins.
            attempt = store.open(JobRef(workflow_id, "job"), "token")
            store.watches.put(Watch(workflow_id=workflow_id, **rest))  # type: ignore[arg-type]
            store.finish(attempt, Status.FAILED, 1, 0, 1)
        full = cluster.servers[masters[0]]
        stack.callback(full.ask, "CONFIG", "SET", "maxmemory", "0")
        full.ask("CONFIG", "SET", "maxmemory", "1")
        service = Notifier(store, lambda _: {}, {"127.0.0.1": True}, URL, ssl.create_default_context(), stop)
        thread = threading.Thread(target=service.run)
        thread.start()
        stack.callback(thread.join, 30)
        stack.callback(stop.set)

        def told() -> list[str]:
            return sorted(each.json["data"]["job"]["workflow_id"] for each in list(receiver.messages))

        wait_until(lambda: told() == sorted(workflows[1:]), 60, "the others are told")
        full.ask("CONFIG", "SET", "maxmemory", "0")
        wait_until(lambda: told() == sorted(workflows), 60, "the message of each")
        assert late() == before
        assert store.watches.workflows() == sorted(workflows)
        for workflow_id in workflows:
            assert store.watches.delete(workflow_id, "main")
        assert store.watches.workflows() == []


def test_an_outage_of_the_store_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with closing(Store("redis://127.0.0.1:1")) as store:
        Notifier(store, lambda _: {}, {}, URL, ssl.create_default_context(), NoDelay(limit=4)).run()

    assert caplog.text.count("the notifier waits: the store is unreachable") == 1
