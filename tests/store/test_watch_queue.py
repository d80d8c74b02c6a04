"""The event queue of a watch: claims, retries and deletion."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import pytest

from chronoverse.joblog.entries import RawEntry
from chronoverse.joblog.model import JobRef
from chronoverse.joblog.watches import RETRY_SECONDS, Event, Watch
from chronoverse.store import watches
from chronoverse.store.changes import read_change
from chronoverse.store.watches import CLAIM_SECONDS, KeptWatch
from tests.support.bench import Bench
from tests.support.waiting import wait_until

WATCH: Final = Watch(workflow_id="wf_1", id="main", on="end", url="https://hooks.example/", secret="whsec_")
EVENTS: Final = [Event(f"ended.{number}", "job_1", 1, "FAILED", 1_000 * number) for number in range(3)]


def claimed(bench: Bench, *watches: Watch) -> list[str]:
    refs = [JobRef(each.workflow_id, each.id) for each in watches or (WATCH,)]
    return [event.name for _, event in bench.store.watches.claim(refs).values()]


def kept(bench: Bench) -> KeptWatch:
    (found,) = bench.store.watches.read("wf_1")
    return found


def test_events_are_delivered_in_order_and_once(bench: Bench) -> None:
    """During a delivery, nobody else can claim an event. An event that was queued before is not queued again."""
    watches, before = bench.store.watches, time.time()
    watches.put(WATCH)
    assert [watches.add(WATCH, each) for each in (*EVENTS[:2], EVENTS[0])] == [True, True, False]
    assert (kept(bench).waiting, claimed(bench), claimed(bench), kept(bench).waiting) == (2, ["ended.0"], [], 2)
    free_ms = float(bench.ask("ZSCORE", f"{watches.slot}:{{wf_1}}:main:queue", ""))
    assert before - 0.01 <= free_ms / 1000 - CLAIM_SECONDS <= time.time()
    watches.settle(KeptWatch(WATCH, delivered_ms=7), EVENTS[0])
    assert (kept(bench).waiting, kept(bench).delivered_ms) == (1, 7)
    assert claimed(bench) == ["ended.1"]
    watches.settle(KeptWatch(WATCH), EVENTS[1])
    assert (claimed(bench), kept(bench).waiting) == ([], 0)
    assert not watches.add(WATCH, EVENTS[1])
    # A week later, it is a new one.
    for days in (6, 8):
        told_ms = round(1000 * (before - 86_400 * days))
        bench.ask("ZADD", f"{watches.slot}:{{wf_1}}:told", told_ms, EVENTS[1].webhook_id(WATCH))
        assert watches.add(WATCH, EVENTS[1]) == (days > 7)


def test_only_the_same_event_of_the_same_attempt_is_a_repeat() -> None:
    """Receivers recognize a repeat by its id, which is independent of when and how the event was queued."""
    event, ids = EVENTS[0], [EVENTS[0].webhook_id(WATCH)]
    others = [event._replace(name="ended.9"), event._replace(job_id="job_2"), event._replace(attempt=2)]
    ids += [each.webhook_id(WATCH) for each in others]
    ids += [event.webhook_id(each) for each in (replace(WATCH, workflow_id="x"), replace(WATCH, id="x"))]
    assert len(set(ids)) == 6
    assert event._replace(queued_ms=9, before="b", status="LOST", last=3).webhook_id(WATCH) == ids[0]


@pytest.mark.parametrize(
    ("command", "key"), [(("HSET", "main", '{"newer":1}'), ""), (("ZADD", 1, '["x"]'), ":main:queue")]
)
def test_an_unreadable_watch_or_event_delays_no_others(bench: Bench, command: tuple[object, ...], key: str) -> None:
    """Such as one of a later version."""
    watches, other = bench.store.watches, replace(WATCH, workflow_id="wf_2")
    for watch in (WATCH, other):
        watches.put(watch)
        watches.add(watch, EVENTS[0])
    bench.ask(command[0], f"{watches.slot}:{{wf_1}}{key}", *command[1:])
    assert claimed(bench, WATCH, other) == ["ended.0"]


@pytest.mark.parametrize("how", ["retry", "put", "settle", "another"])
def test_a_failing_watch_resumes_when_it_is_due_or_retried(bench: Bench, how: str) -> None:
    """Or replaced, and not before. Other watches are not delayed meanwhile."""
    watches, other = bench.store.watches, replace(WATCH, id="other")
    for watch in (WATCH, other):
        watches.put(watch)
        for event in EVENTS[:2]:
            watches.add(watch, event)
    assert claimed(bench) == ["ended.0"]
    failing = KeptWatch(WATCH, 1, 1_000, "refused", waiting=2)
    watches.settle(failing, EVENTS[0], 3_600)
    assert claimed(bench) == []
    assert [each for each in watches.read("wf_1") if each.watch.id == "main"] == [failing]
    if how == "another":
        assert claimed(bench, WATCH, other) == ["ended.0"]
        return
    if how == "put":
        watches.put(WATCH)
        assert [each.failures for each in watches.read("wf_1")] == [0, 0]
    elif how == "retry":
        watches.retry(WATCH)
    else:
        watches.settle(failing, EVENTS[0], 0.01)
    if how != "settle":
        watches.add(WATCH, EVENTS[2])
    wait_until(lambda: claimed(bench) == ["ended.1"], 60, "the other event")
    watches.settle(KeptWatch(WATCH), EVENTS[1])
    if how != "settle":
        # The failed event follows those that are queued later, without another delay.
        assert claimed(bench) == ["ended.2"]
        watches.settle(KeptWatch(WATCH), EVENTS[2])
    assert claimed(bench) == ["ended.0"]


def test_a_deleted_watch_leaves_nothing(bench: Bench) -> None:
    """Neither events, nor anything that a concurrent delivery or change could restore."""
    watches = bench.store.watches
    watches.put(WATCH)
    assert watches.workflows() == ["wf_1"]
    watches.add(WATCH, EVENTS[0])
    assert claimed(bench) == ["ended.0"]
    watches.settle(KeptWatch(WATCH, 1), EVENTS[0], dropped=True)
    assert kept(bench).dropped == 1
    watches.add(WATCH, EVENTS[1])
    assert watches.delete("wf_1", "main")
    watches.settle(KeptWatch(WATCH, 1), EVENTS[1], 3_600, dropped=True)
    assert not watches.add(WATCH, EVENTS[2])
    assert not watches.delete("wf_1", "main")
    assert (watches.read("wf_1"), watches.workflows()) == ([], [])
    assert {key.rpartition(":")[2] for key in bench.snapshot()} <= {"told", "settings"}


def test_a_later_watch_gets_no_earlier_changes(bench: Bench) -> None:
    """Not even if a notifier has not yet noticed that the earlier watch was deleted."""
    watches, counts = bench.store.watches, list[int]()
    for change in (
        lambda: watches.put(WATCH),
        lambda: bench.store.open(JobRef("wf_1", "job_1"), "token"),
        lambda: watches.delete("wf_1", "main"),
        lambda: watches.put(WATCH),
        lambda: bench.store.open(JobRef("wf_1", "job_2"), "token"),
    ):
        change()
        ((_, entries, last),) = watches.changes(["wf_1"], {})
        counts.append(len(entries))
        assert last == 0
    assert counts == [0, 1, 0, 0, 1]


@pytest.mark.parametrize("step", range(1, 7))
@pytest.mark.parametrize("interrupted", ["put", "delete"])
def test_a_watch_added_beside_a_deletion(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, interrupted: str, step: int
) -> None:
    """Before each command of one request, the other is executed. The new watch gets only later changes."""
    ours, others = bench.store.watches, bench.new_store().watches
    ours.put(WATCH)
    bench.store.open(JobRef("wf_1", "job_1"), "token")
    ours.done("wf_1", ours.changes(["wf_1"], {})[0][1])
    actions = {
        "put": lambda each: each.put(replace(WATCH, id="new")),
        "delete": lambda each: each.delete("wf_1", "main"),
    }
    work, steps = ours._commands.work, list[str]()

    def after_other(workflow_id: str, *args: Any, **options: Any) -> Any:
        steps.append(workflow_id)
        if len(steps) == step:
            actions["put" if interrupted == "delete" else "delete"](others)
        return work(workflow_id, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(ours._commands, "work", after_other)
        actions[interrupted](ours)
    if len(steps) < step:
        return
    assert ([each.watch.id for each in ours.read("wf_1")], ours.workflows()) == (["new"], ["wf_1"])
    bench.store.open(JobRef("wf_1", "job_2"), "token")
    ((_, entries, _),) = ours.changes(["wf_1"], {})
    assert [read_change("wf_1", each)[1].ref.job_id for each in entries] == ["job_2"]


def test_changes_are_read_by_one_process_at_a_time(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one gets them if they are not done after some seconds."""
    bench.store.watches.put(WATCH)
    bench.store.open(JobRef("wf_1", "job_1"), "token")

    def read() -> Sequence[RawEntry]:
        ((_, entries, _),) = bench.store.watches.changes(["wf_1"], {})
        return entries

    first = read()
    assert (len(first), read()) == (1, [])
    monkeypatch.setattr(watches, "IDLE_SECONDS", 0.0)
    assert read() == first
    bench.store.watches.done("wf_1", first)
    assert read() == []


@pytest.mark.parametrize(
    ("state", "now", "word"),
    [
        ((0, 0, ""), 5.0, "ok"),
        ((1, 1_000, "no"), 1.0 + RETRY_SECONDS - 0.001, "retrying"),
        ((9, 1_000, "no"), 1.0 + RETRY_SECONDS, "failing"),
        ((0, 1_000, ""), 10.0**9, "ok"),
    ],
)
def test_the_state_of_deliveries(state: tuple[int, int, str], now: float, word: str) -> None:
    """A watch is failing after a day of retries. Its secret is not shown."""
    shown = KeptWatch(WATCH, *state, waiting=3, dropped=4).to_json(now)
    assert (shown["state"], shown["waiting"], shown["dropped"]) == (word, 3, 4)
    assert (shown["failing_since"] is None) == (not state[0])
    assert "whsec_" not in str(shown)
