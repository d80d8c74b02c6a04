"""Publishes each try of an Airflow task as a job, and shows its log in Airflow. ``docs/airflow.md`` has the setup.

logs     ``RemoteTaskLogs`` publishes the output of running tasks, and reads it for Airflow's page
tries    maps tries of tasks to jobs
records  converts Airflow's log records to lines, and back
plugin   reports to ``RemoteTaskLogs`` how a task ended. Only this module imports Airflow
"""

from chronoverse.integrations.airflow.logs import RemoteTaskLogs

__all__ = ["RemoteTaskLogs"]
