"""The pods of a node, kept current: one list, and then one watch, as often as it takes.

https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes
"""

import threading
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any, Final

import orjson

from chronoverse.backoff import Backoff, RetryPolicy
from chronoverse.client.service_connection import ServiceConnection
from chronoverse.collect.pods import Pod
from chronoverse.errors import ChronoverseError, Unreachable

#: Seconds after which the server ends a watch, and for which it may be silent before the connection counts as dead.
WATCH_SECONDS: Final = 60
SILENT_SECONDS: Final = 90.0
_JSON: Final = {"Accept": "application/json"}
RETRY: Final = RetryPolicy(first=0.2, longest=15.0)


class PodWatcher:
    """Lists and watches the pods of ``node`` that match the label ``selector``, in a thread, until :meth:`stop`."""

    def __init__(
        self, connection: ServiceConnection, node: str, selector: str | None, say: Callable[[str], None]
    ) -> None:
        self._connection = connection
        self._query = {"fieldSelector": f"spec.nodeName={node}", "labelSelector": selector}
        self._node = node
        self._say = say
        self._lock = threading.Lock()
        self._pods: dict[str, Pod] = {}
        #: The version after which a watch continues. Empty when the pods must be listed.
        self._version = ""
        #: Whether the pods were listed once.
        self.is_synced = False
        self._backoff = Backoff(RETRY)
        self._stop = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._run, name="chronoverse-pods", daemon=True).start()

    def stop(self) -> None:
        self._stop.set()

    def pods(self) -> dict[str, Pod]:
        """The pods by their UID, as last heard, those included that are gone and were not forgotten."""
        with self._lock:
            return dict(self._pods)

    def forget(self, uids: Collection[str]) -> None:
        """Drops those of the pods that are gone."""
        with self._lock:
            self._pods = {uid: pod for uid, pod in self._pods.items() if not (pod.is_gone and uid in uids)}

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                if not self._version:
                    self._list()
                self._watch()
            except Unreachable as error:
                self._wait_after(error)
            except _Expired:
                self._version = ""
            except Exception as error:
                # Perhaps the version is one that the server does not know.
                self._version = ""
                self._wait_after(error)
            self._stop.wait(0.1)

    def _wait_after(self, error: Exception) -> None:
        if not self._backoff.failures:
            self._say(f"the API server does not tell of pods, retrying: {error}")
        self._backoff.record_failure()
        self._stop.wait(self._backoff.delay())

    def _list(self) -> None:
        answer = orjson.loads(self._connection.request("GET", "/api/v1/pods", self._query, _JSON)[0])
        found = {pod.uid: pod for each in answer["items"] if (pod := self._read(each))}
        with self._lock:
            gone = {uid: replace(pod, is_gone=True) for uid, pod in self._pods.items() if uid not in found}
            self._pods = {**gone, **found}
        self._version = str(answer["metadata"]["resourceVersion"])
        self.is_synced = True

    def _watch(self) -> None:
        """Takes in changes until the server ends the watch. Raises when it has to be asked in another way."""
        more = {"watch": "true", "allowWatchBookmarks": "true", "resourceVersion": self._version}
        query = {**self._query, **more, "timeoutSeconds": WATCH_SECONDS}
        with self._connection.stream("GET", "/api/v1/pods", query, _JSON) as response:
            while not self._stop.is_set() and (line := response.readline()):
                self._take(orjson.loads(line))
                self._backoff.record_success()

    def _take(self, event: dict[str, Any]) -> None:
        kind, told = event["type"], event["object"]
        if kind == "ERROR":
            raise (_Expired if told.get("code") == 410 else ChronoverseError)(str(told.get("message")))
        if kind != "BOOKMARK" and (pod := self._read(told)):
            with self._lock:
                known = self._pods.get(pod.uid)
                if not known or known.version <= pod.version:
                    self._pods[pod.uid] = replace(pod, is_gone=True) if kind == "DELETED" else pod
        self._version = str(told["metadata"]["resourceVersion"])

    def _read(self, data: dict[str, Any]) -> Pod | None:
        """A pod of ours. A server may be asked for the pods of a node, and answer with others."""
        pod = Pod.from_json(data)
        return pod if pod.node in (self._node, None) else None


class _Expired(ChronoverseError):
    """Raised when the server does not remember the version after which a watch should continue."""
