"""The DAGs of ``real_airflow.py``, run by Airflow in an environment without the tests' packages."""

import logging
import os
import sys
import time
from datetime import timedelta
from typing import Any

from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger
from airflow.sdk import BaseOperator, dag, task


class Deferred(BaseOperator):
    """Makes the triggerer wait for some seconds."""

    def execute(self, context: Any) -> None:
        print("before")
        self.defer(trigger=TimeDeltaTrigger(timedelta(seconds=3)), method_name="resume")

    def resume(self, context: Any, event: Any = None) -> None:
        print("after")


@dag(schedule=None, catchup=False)
def shop() -> None:
    """One task of each kind."""

    @task
    def talk(number: int) -> None:
        """Prints in every way that a task can."""
        print("printed", number)
        print("to stderr", file=sys.stderr)
        print('a tab\t{"and": "JSON"}')
        logging.getLogger("shop").warning("a warning %s", number)
        logging.getLogger("shop").info("two\nlines")

    @task(retries=1, retry_delay=timedelta(seconds=1))
    def flaky(ti: Any = None) -> None:
        print("try", ti.try_number)
        if ti.try_number == 1:
            try:
                raise OSError("first")
            except OSError as error:
                raise ValueError("bad luck") from error

    @task
    def fails() -> None:
        raise ValueError("always")

    @task
    def killed() -> None:
        """Prints a lot, and is killed."""
        for number in range(1000):
            print("line", number)
        os.kill(os.getpid(), 9)

    talk.expand(number=[1, 2, 3])
    flaky()
    fails()
    killed()
    Deferred(task_id="deferred")


@dag(schedule=None, catchup=False)
def slow() -> None:
    """Prints the time."""

    @task
    def clock(seconds: int) -> None:
        for _ in range(5 * seconds):
            print("now", time.time())
            time.sleep(0.2)

    clock(20)


@dag(schedule=None, catchup=False)
def orphan() -> None:
    """A task whose worker is killed with it."""

    @task
    def wait() -> None:
        print("worker", os.getppid(), "task", os.getpid())
        time.sleep(600)

    wait()


shop()
slow()
orphan()
