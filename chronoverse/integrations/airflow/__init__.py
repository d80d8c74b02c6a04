"""Publishes each try of an Airflow task as a job, and shows its log in Airflow.

    from chronoverse.integrations.airflow import RemoteTaskLogs

    REMOTE_TASK_LOG = RemoteTaskLogs()

logs     ``RemoteTaskLogs`` publishes the output of running tasks, and reads it for Airflow's page
tries    maps tries of tasks to jobs
records  converts Airflow's log records to lines, and back
plugin   reports to ``RemoteTaskLogs`` how a task ended. Airflow loads it by the entry point ``airflow.plugins``

Only ``plugin`` imports Airflow. ``docs/airflow.md`` describes the setup.
"""

from chronoverse.integrations.airflow.logs import RemoteTaskLogs

__all__ = ["RemoteTaskLogs"]
