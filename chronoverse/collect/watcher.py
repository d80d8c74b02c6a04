"""Keeps the list of a node's pods current: fetches it, then watches for changes. Fetches it again if needed.

https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes
"""

import time
from collections.abc import Callable
from typing import Any, Final

import orjson

from chronoverse.backoff import Backoff, RetryPolicy
from chronoverse.client.service_connection import ServiceConnection
from chronoverse.collect.pods import Pod
from chronoverse.errors import ChronoverseError, Unreachable

#: Seconds without a byte after which the connection is considered lost. The server ends a watch after 60 s.
SILENT_SECONDS: Final = 90.0


class PodWatcher:
    """Lists and watches the pods of ``node`` that match the label ``selector``. Call :meth:`run` in a thread."""

    def __init__(
        self, connection: ServiceConnection, node: str, selector: str | None, say: Callable[[str], None]
    ) -> None:
        self._connection = connection
        self._query = {"fieldSelector": f"spec.nodeName={node}", "labelSelector": selector}
        self._say = say
        #: The pods by UID, as last reported. Other threads copy this dict and remove pods, as dicts are thread-safe.
        self.pods: dict[str, Pod] = {}
        #: The resourceVersion from which the watch continues. Empty if the pods must be listed.
        self._version = ""
        #: Whether the pods have been listed.
        self.is_synced = False
        self._backoff = Backoff(RetryPolicy(first=0.2, longest=15.0))

    def run(self) -> None:
        while True:
            try:
                if not self._version:
                    self._list()
                self._watch()
                time.sleep(0.1)
            except Exception as error:
                # If this is not just a lost connection, the server may no longer know the version.
                self._version = self._version if isinstance(error, Unreachable) else ""
                self._say(f"cannot read pods from the API server, retrying: {error}")
                self._backoff.record_failure()
                time.sleep(self._backoff.delay())

    def _list(self) -> None:
        answer = orjson.loads(self._connection.request("GET", "/api/v1/pods", self._query, {})[0])
        found = {pod.uid: pod for pod in map(Pod, answer["items"])}
        known = dict(self.pods).items()
        # Skips pods that are already gone, because another thread may be removing them.
        gone = {uid: Pod(pod.data, is_gone=True) for uid, pod in known if not (pod.is_gone or uid in found)}
        self.pods.update({**gone, **found})
        self._version = str(answer["metadata"]["resourceVersion"])
        self.is_synced = True

    def _watch(self) -> None:
        """Applies changes until the server ends the watch."""
        more = {"watch": "true", "allowWatchBookmarks": "true", "timeoutSeconds": 60}
        query = {**self._query, **more, "resourceVersion": self._version}
        with self._connection.stream("GET", "/api/v1/pods", query, {}) as response:
            while line := response.readline():
                self._take(orjson.loads(line))
                self._backoff.record_success()

    def _take(self, event: dict[str, Any]) -> None:
        kind, told = event["type"], event["object"]
        if kind == "ERROR":  # for example 410: the version to continue from is too old
            raise ChronoverseError(str(told.get("message")))
        if kind != "BOOKMARK":
            pod = Pod(told, is_gone=kind == "DELETED")
            known = self.pods.get(pod.uid)
            # Events may arrive twice, or out of order.
            if not known or known.version <= pod.version:
                self.pods[pod.uid] = pod
        self._version = str(told["metadata"]["resourceVersion"])
