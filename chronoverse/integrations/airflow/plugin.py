"""Reports how a task ends, from the task's process. Airflow loads it by an entry point.

The process that supervises the task receives the task's records in order; this module adds the last one. If the last
record is missing, the task's process was killed.
"""

from typing import Any

import structlog
from airflow.listeners import hookimpl
from airflow.plugins_manager import AirflowPlugin

from chronoverse.integrations.airflow.logs import END_FIELD, RemoteTaskLogs
from chronoverse.joblog.model import Status


class _Listener:
    """Airflow calls these methods in all processes. A task's process runs only one task."""

    def __init__(self) -> None:
        self._has_ended = False

    @hookimpl
    def on_task_instance_success(self, task_instance: Any) -> None:
        self._say_end(task_instance, Status.COMPLETED)

    @hookimpl
    def on_task_instance_skipped(self, task_instance: Any) -> None:
        self._say_end(task_instance, Status.COMPLETED)

    @hookimpl
    def on_task_instance_failed(self, task_instance: Any) -> None:
        self._say_end(task_instance, Status.FAILED)

    @hookimpl
    def before_stopping(self, component: Any) -> None:
        if type(component).__name__ == "TaskRunnerMarker" and not self._has_ended:
            self._say_end(component, Status.PENDING)

    def _say_end(self, source: Any, status: Status) -> None:
        from airflow.sdk.log import load_remote_log_handler

        if type(source).__name__ in ("RuntimeTaskInstance", "TaskRunnerMarker") and isinstance(
            load_remote_log_handler(), RemoteTaskLogs
        ):
            self._has_ended = True
            # Uses the highest level, so that no log level omits the record.
            structlog.get_logger("chronoverse").critical("the task has ended", **{END_FIELD: status.value})


class ChronoversePlugin(AirflowPlugin):
    name = "chronoverse"
    listeners = [_Listener()]  # noqa: RUF012
