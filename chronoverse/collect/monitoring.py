"""The agent's Prometheus metrics."""

import time
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from chronoverse.collect.agent import Agent


class _Lags(Collector):
    """How far the agent is behind the log files.

    Raises RuntimeError if the agent has had no turn for 30 s: ``/metrics`` then answers 500.
    """

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def collect(self) -> Iterable[Metric]:
        if time.monotonic() - self._agent.turned_at > 30:
            raise RuntimeError("the agent hangs")
        names = ["namespace", "pod", "container"]
        in_bytes = GaugeMetricFamily("chronoverse_collect_lag_bytes", "Bytes not safe in the store.", labels=names)
        what = "Age of the oldest line that was read but is not safe in the store."
        in_seconds = GaugeMetricFamily("chronoverse_collect_lag_seconds", what, labels=names)
        logs = [(log.lag_bytes, log.lag_seconds, dict(log.labels)) for log in self._agent.active()]
        # At most 500 containers, those with the longest lag first.
        for size, seconds, labels in sorted(logs, key=lambda each: each[:2], reverse=True)[:500]:
            values = [labels.get(name, "") for name in names]
            in_bytes.add_metric(values, size)
            in_seconds.add_metric(values, seconds)
        return in_bytes, in_seconds


def registry_of(agent: Agent) -> CollectorRegistry:
    """Returns the metrics of the agent and its process."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    registry.register(_Lags(agent))
    return registry
