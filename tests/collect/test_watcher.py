"""The watcher of pods, with an API server that repeats, reorders and forgets events, or is away."""

from typing import Any

import orjson
import pytest

from chronoverse.client.service_connection import ServiceConnection
from chronoverse.collect.watcher import PodWatcher
from tests.collect.node import ended, pod, with_state
from tests.support.scripted import Request, ScriptedService, answer, problem


def versioned(data: dict[str, Any], version: int | str) -> dict[str, Any]:
    return {**data, "metadata": {**data["metadata"], "resourceVersion": str(version)}}


def listing(version: int | str, *pods: dict[str, Any]) -> bytes:
    return answer("200 OK", orjson.dumps({"metadata": {"resourceVersion": str(version)}, "items": pods}))


def events(*found: tuple[str, dict[str, Any]], torn: bytes = b"") -> bytes:
    """A watch that ends after these events."""
    return answer(
        "200 OK", b"".join(orjson.dumps({"type": kind, "object": each}) + b"\n" for kind, each in found) + torn
    )


def bookmark(version: int | str) -> tuple[str, dict[str, Any]]:
    return "BOOKMARK", {"kind": "Pod", "metadata": {"resourceVersion": str(version)}}


def watch(*answers: bytes | None, failures: int = 0) -> tuple[PodWatcher, list[Request]]:
    """A watcher after these answers, and its requests. Reports this many failures, and the end of the answers."""
    said = list[str]()

    def say(text: str) -> None:
        said.append(text)
        if len(said) > failures:
            raise SystemExit

    with ScriptedService(*answers) as service:
        url = service.url
        connection = ServiceConnection(url, None, ca_file=None, connect_seconds=20, read_seconds=20)
        watcher = PodWatcher(connection, "node-1", "team=a", say)
        with pytest.raises(SystemExit):
            watcher.run()
        connection.close()
    assert [text.partition(":")[0] for text in said] == ["cannot read pods from the API server, retrying"] * len(said)
    assert len(service.requests) == len(answers)
    return watcher, service.requests


def ends(watcher: PodWatcher) -> dict[str, tuple[bool, int | None]]:
    """Whether each pod is gone, and its container's exit code."""
    found = {each.name: (each, each.end("main", 0)) for each in watcher.pods.values()}
    return {name: (each.is_gone, end and end.exit_code) for name, (each, end) in found.items()}


ONE, TWO = pod("one"), pod("two")


@pytest.mark.parametrize(
    ("changes", "known"),
    [
        ([("ADDED", TWO, 12), ("MODIFIED", ended(TWO, 3), 13)], {"one": (False, None), "two": (False, 3)}),
        # Events can arrive again, out of order.
        ([("MODIFIED", ended(ONE, 3), 13), ("MODIFIED", with_state(ONE, running={}), 12)], {"one": (False, 3)}),
        ([("DELETED", ended(ONE, 3), 13), ("MODIFIED", with_state(ONE, running={}), 12)], {"one": (True, 3)}),
        # Not all servers have numbers.
        ([("MODIFIED", ended(ONE, 3), "x"), ("MODIFIED", ended(ONE, 4), "y")], {"one": (False, 4)}),
    ],
    ids=["changes", "order", "deletion", "no numbers"],
)
def test_pods_are_listed_and_then_changed(changes: list[Any], known: dict[str, Any]) -> None:
    is_numbered = isinstance(changes[0][2], int)
    first = versioned(ONE, 10 if is_numbered else "w")
    found = [(kind, versioned(data, version)) for kind, data, version in changes]
    watcher, (listed, watched) = watch(listing(11, first), events(*found))
    assert (ends(watcher), watcher.is_synced) == (known, True)
    selected = {"fieldSelector": "spec.nodeName=node-1", "labelSelector": "team=a"}
    assert (listed.path, listed.query) == ("/api/v1/pods", selected)
    more = {"watch": "true", "allowWatchBookmarks": "true", "timeoutSeconds": "60", "resourceVersion": "11"}
    assert watched.query == selected | more


@pytest.mark.parametrize(
    ("broken", "versions"),
    [
        # The server only ended the watch, or the connection was lost: nothing has to be listed.
        ([events(bookmark(20))], ["20"]),
        ([events(bookmark(20)), None], ["20", "20"]),
        ([events(bookmark(20)), problem("503 Service Unavailable", "away")], ["20", "20"]),
        ([events(bookmark(20)), events(("ERROR", {"code": 410, "message": "too old"}))], ["20", None]),
        ([events(bookmark(20)), problem("410 Gone", "too old")], ["20", None]),
        ([events(bookmark(20), torn=b"{")], [None]),
    ],
    ids=["end", "lost", "away", "expired", "gone", "torn"],
)
def test_a_watch_continues_where_it_ended(broken: list[bytes | None], versions: list[str | None]) -> None:
    """If the server no longer knows that version, pods are listed: those that are missing are gone."""
    is_listed = versions[-1] is None
    again = [listing(30, versioned(TWO, 29))] if is_listed else []
    failures = len(broken) - (versions == ["20"]) - (versions != [None] and len(broken) > 1)
    last = events(("MODIFIED", versioned(ended(TWO, 5), 31)))
    first = listing(11, versioned(ONE, 10), versioned(TWO, 9))
    watcher, requests = watch(first, *broken, *again, last, failures=failures)
    assert [each.query.get("resourceVersion") for each in requests[2:]] == [*versions, *["30"] * is_listed]
    assert ends(watcher) == {"one": (is_listed, None), "two": (False, 5)}


def test_a_pod_that_is_gone_is_not_reported_again() -> None:
    """The agent removes it meanwhile."""
    gone = events(("DELETED", versioned(ended(ONE, 3), 12)))
    watcher, _ = watch(listing(11, versioned(ONE, 10)), gone, problem("410 Gone", "too old"), listing(20), failures=1)
    assert ends(watcher) == {"one": (True, 3)}


def test_nothing_is_synced_before_the_first_listing() -> None:
    watcher, _ = watch(answer("200 OK", b"<html>"), answer("200 OK", b'{"items":[{}],"metadata":{}}'), failures=1)
    assert (watcher.pods, watcher.is_synced) == ({}, False)
