"""Watches over HTTP: permissions, visible fields, and invalid requests."""

import contextlib
from typing import Any, Final

import httpx

from chronoverse.store import Store
from chronoverse.store.watches import MAX_WATCHES
from tests.support.servers import RedisServer
from tests.support.service import Service
from tests.web.routes.test_workflow_settings import recorded

SECRET: Final = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
URL: Final = "https://hooks.example/T0/B0?x=1"
BODY: Final = {"on": "end", "url": URL, "secret": SECRET}


def test_a_watch_is_created_changed_listed_and_deleted(admin: httpx.Client) -> None:
    """Its secret is never shown, except once if the service generated it."""
    path = "/workflows/watched.a/watches"
    assert admin.get(path).json() == {"workflow_id": "watched.a", "watches": []}
    made = admin.put(f"{path}/main", json={**BODY, "on": "change", "same": ["branch"], "label": {"branch": "main"}})
    expected = {
        "workflow_id": "watched.a",
        "id": "main",
        "on": "change",
        "status": ["COMPLETED", "FAILED", "LOST"],
        "label": {"branch": "main"},
        "same": ["branch"],
        "seconds": None,
        "url": URL,
        "state": "ok",
        "error": None,
        "failing_since": None,
        "delivered_at": None,
        "waiting": 0,
        "dropped": 0,
    }
    assert (made.status_code, made.json()) == (201, expected)
    assert admin.get(f"{path}/main").json() == expected
    changed = admin.put(f"{path}/main", json={"on": "silent", "seconds": 60, "url": "http://127.0.0.1:1/x"})
    other = {"on": "silent", "seconds": 60, "url": "http://127.0.0.1:1/x", "status": [], "same": [], "label": {}}
    assert (changed.status_code, changed.json()) == (200, {**expected, **other})
    generated = admin.put(f"{path}/other", json={"on": "end", "url": URL})
    assert generated.status_code == 201
    assert generated.json()["secret"].startswith("whsec_")
    assert generated.json()["status"] == ["FAILED", "LOST"]
    listed = admin.get(path)
    assert [each["id"] for each in listed.json()["watches"]] == ["main", "other"]
    assert "whsec" not in listed.text
    for status in (204, 404):
        assert admin.delete(f"{path}/main").status_code == status
        assert admin.get(f"{path}/main").status_code == 404
    assert recorded(admin, "watched.a") == [
        ("ada", "watch", "main: on change, to hooks.example"),
        ("ada", "watch", "main: on silent, to 127.0.0.1"),
        ("ada", "watch", "other: on end, to hooks.example"),
        ("ada", "watch", "main deleted"),
    ]


def test_a_watch_keeps_its_secret_until_another_is_given(admin: httpx.Client, redis_server: RedisServer) -> None:
    """Only a generated one is shown."""
    other = SECRET.replace("M", "N")
    with contextlib.closing(Store(redis_server.url)) as store:

        def put(**given: str) -> tuple[str | None, str]:
            answer = admin.put("/workflows/watched.s/watches/x", json={"on": "end", "url": URL, **given})
            ((watch, *_),) = store.watches.read("watched.s")
            return answer.json().get("secret"), watch.secret

        shown, generated = put()
        assert shown == generated
        answers = [put(), put(secret=SECRET), put(), put(secret=other)]
    assert answers == [(None, generated), (None, SECRET), (None, SECRET), (None, other)]


def test_a_change_that_cannot_be_recorded_is_not_made(admin: httpx.Client, redis_server: RedisServer) -> None:
    base = "/workflows/watched.r"
    changes: list[tuple[str, str, Any]] = [
        ("PUT", f"{base}/settings", {"job_bytes": 1}),
        ("PUT", f"{base}/watches/new", BODY),
        ("PUT", f"{base}/watches/main", {**BODY, "url": "http://127.0.0.1:1/x"}),
        ("DELETE", f"{base}/watches/main", None),
    ]
    admin.put(f"{base}/watches/main", json=BODY)
    before = [admin.get(path).text for _, path, _ in changes]
    redis_server.ask("RENAME", "chronoverse-audit", "kept")
    redis_server.ask("SET", "chronoverse-audit", "in the way")
    assert [admin.request(method, path, json=body).status_code for method, path, body in changes] == [409] * 4
    redis_server.ask("RENAME", "kept", "chronoverse-audit")
    assert [admin.get(path).text for _, path, _ in changes] == before


def test_only_administrators_of_the_workflow_can_read_and_create_watches(service: Service, admin: httpx.Client) -> None:
    """For the hosts in the settings."""
    path = "/workflows/watched.c/watches"
    publisher = {"Authorization": f"Bearer {service.token('watched.c')}"}
    assert admin.put(f"{path}/x", json=BODY).status_code == 201
    for method, route in (("GET", path), ("GET", f"{path}/x"), ("DELETE", f"{path}/x"), ("POST", f"{path}/x/test")):
        assert admin.request(method, route, headers=publisher).status_code == 403
        assert admin.request(method, route.replace("watched", "other")).status_code == 404
    assert admin.put(f"{path}/x", json=BODY, headers=publisher).status_code == 403
    for url in ("https://other.example/", "https://hooks.example.evil.example/"):
        refused = admin.put(f"{path}/y", json={**BODY, "url": url})
        assert (refused.status_code, "CHRONOVERSE_WEBHOOK_HOSTS" in refused.json()["detail"]) == (403, True)
    assert [each["id"] for each in admin.get(path).json()["watches"]] == ["x"]


def test_a_workflow_has_a_maximum_number_of_watches(admin: httpx.Client) -> None:
    """The audit trail has no refused ones."""
    path = "/workflows/watched.d/watches"
    for number in range(MAX_WATCHES):
        assert admin.put(f"{path}/w{number}", json=BODY).status_code == 201
    assert admin.put(f"{path}/more", json=BODY).json()["detail"] == "a workflow can have at most 20 watches"
    assert admin.put(f"{path}/w0", json=BODY).status_code == 200
    assert len(admin.get(path).json()["watches"]) == MAX_WATCHES
    entries = admin.get("/audit").json()["entries"]
    assert [each["what"][:4] for each in entries if each["workflow_id"] == "watched.d"][:2] == ["w0: ", "w19:"]


def test_a_test_is_queued_and_due_now(admin: httpx.Client, redis_server: RedisServer) -> None:
    path = "/workflows/watched.e/watches/x"
    assert admin.post(f"{path}/test").status_code == 404
    admin.put(path, json=BODY)
    # A retry delay, which the test ends.
    queue = "chronoverse-watches:{watched.e}:x:queue"
    redis_server.ask("ZADD", queue, 9e15, "")
    assert admin.post(f"{path}/test").status_code == 202
    assert (admin.get(path).json()["waiting"], redis_server.ask("ZSCORE", queue, "")) == (1, None)
