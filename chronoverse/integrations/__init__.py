"""Runners inside other frameworks. Each module needs the extra of its name.

celery   each Celery task is a job: its output, its log records, its retries and its state
airflow  each try of an Airflow task is a job, and Airflow's own page shows its log
"""
