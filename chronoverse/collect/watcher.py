"""Keeps a node's pods up to date: lists them, then watches changes. Lists again if needed.

https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes
"""

import threading
from collections.abc import Callable, Collection
from typing import Any, Final

import orjson

from chronoverse.backoff import Backoff, RetryPolicy
from chronoverse.client.service_connection import ServiceConnection
from chronoverse.collect.pods import Pod
from chronoverse.errors import ChronoverseError, Unreachable

#: Seconds after which the server ends a watch, and seconds without a byte after which the connection counts as lost.
WATCH_SECONDS: Final = 60
SILENT_SECONDS: Final = 90.0
RETRY: Final = RetryPolicy(first=0.2, longest=15.0)


class PodWatcher:
    """Lists and watches the pods of ``node`` that match the label ``selector``, in a daemon thread."""

    def __init__(
        self, connection: ServiceConnection, node: str, selector: str | None, say: Callable[[str], None]
    ) -> None:
        self._connection = connection
        self._query = {"fieldSelector": f"spec.nodeName={node}", "labelSelector": selector}
        self._say = say
        self._lock = threading.Lock()
        self._pods: dict[str, Pod] = {}
        #: The resourceVersion from which the watch continues. Empty if the pods must be listed.
        self._version = ""
        #: Whether the pods have been listed.
        self.is_synced = False
        self._backoff = Backoff(RETRY)

    def start(self) -> None:
        threading.Thread(target=self._run, name="chronoverse-pods", daemon=True).start()

    def pods(self) -> dict[str, Pod]:
        """The pods by UID, as last reported. Includes deleted ones until :meth:`forget`."""
        with self._lock:
            return dict(self._pods)

    def forget(self, uids: Collection[str]) -> None:
        """Removes the deleted pods in ``uids``."""
        with self._lock:
            self._pods = {uid: pod for uid, pod in self._pods.items() if not (pod.is_gone and uid in uids)}

    def _run(self) -> None:
        pause = threading.Event()
        while True:
            try:
                if not self._version:
                    self._list()
                self._watch()
                pause.wait(0.1)
            except Exception as error:
                # Unless only the connection was lost, the server may no longer know the version.
                self._version = self._version if isinstance(error, Unreachable) else ""
                if not self._backoff.failures:
                    self._say(f"cannot read pods from the API server, retrying: {error}")
                self._backoff.record_failure()
                pause.wait(self._backoff.delay())

    def _list(self) -> None:
        answer = orjson.loads(self._connection.request("GET", "/api/v1/pods", self._query, {})[0])
        found = {pod.uid: pod for pod in map(Pod, answer["items"])}
        with self._lock:
            gone = {uid: Pod(pod.data, is_gone=True) for uid, pod in self._pods.items() if uid not in found}
            self._pods = {**gone, **found}
        self._version = str(answer["metadata"]["resourceVersion"])
        self.is_synced = True

    def _watch(self) -> None:
        """Applies changes until the server ends the watch, or no longer knows the version to continue from."""
        more = {"watch": "true", "allowWatchBookmarks": "true", "timeoutSeconds": WATCH_SECONDS}
        query = {**self._query, **more, "resourceVersion": self._version}
        with self._connection.stream("GET", "/api/v1/pods", query, {}) as response:
            while self._version and (line := response.readline()):
                self._take(orjson.loads(line))
                self._backoff.record_success()

    def _take(self, event: dict[str, Any]) -> None:
        kind, told = event["type"], event["object"]
        if kind == "ERROR":
            self._version = ""
            if told.get("code") != 410:
                raise ChronoverseError(str(told.get("message")))
            return
        if kind != "BOOKMARK":
            pod = Pod(told, is_gone=kind == "DELETED")
            with self._lock:
                known = self._pods.get(pod.uid)
                # Events may arrive again, out of order.
                if not known or known.version <= pod.version:
                    self._pods[pod.uid] = pod
        self._version = str(told["metadata"]["resourceVersion"])
