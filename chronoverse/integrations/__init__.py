"""Runners for other frameworks. Each module needs the extra of the same name.

celery   each Celery task is a job: its output, its log records, its retries and its state
airflow  each try of an Airflow task is a job, and Airflow's page shows its log
"""
