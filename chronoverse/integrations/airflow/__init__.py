"""Publishes each try of an Airflow task as a job, and shows its log in Airflow.

    from chronoverse.integrations.airflow import RemoteTaskLogs

    REMOTE_TASK_LOG = RemoteTaskLogs()

logs     ``RemoteTaskLogs`` publishes what tasks say while they run, and reads it again for Airflow's page
tries    the job of a try of a task, and back
records  Airflow's log records as lines, and back
plugin   tells ``RemoteTaskLogs`` how a task ended. Airflow finds it by the entry point ``airflow.plugins``

Only ``plugin`` imports Airflow. ``docs/airflow.md`` says how it is set up.
"""

from chronoverse.integrations.airflow.logs import RemoteTaskLogs

__all__ = ["RemoteTaskLogs"]
