"""A Celery app whose workers are started by tests. SHOP_BROKER is the URL of its broker and result backend."""

import gc
import logging
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from celery import Celery
from celery.exceptions import Ignore, Reject
from celery.utils.log import get_task_logger

from chronoverse.integrations.celery import install

app = Celery("shop", broker=os.environ["SHOP_BROKER"], backend=os.environ["SHOP_BROKER"])
app.conf.broker_connection_retry_on_startup = True
app.conf.worker_prefetch_multiplier = 1
install(app, os.environ.get("SHOP_WORKFLOW"))


@app.task
def talk(count: int) -> int:
    """Prints in every way that a task can."""
    print("printed")
    print("no", "newline", end=" ")
    print("until here")
    print("to stderr", file=sys.stderr)
    logging.getLogger("shop").warning("a warning")
    get_task_logger("shop.tasks").warning("of the task's logger")
    thread = threading.Thread(target=print, args=("in a thread",))
    thread.start()
    thread.join()
    print("not ended", end="")
    return count + 1


@app.task(bind=True, max_retries=3)
def flaky(self: Any, failures: int, countdown: float = 0.1) -> str:
    """Fails this many times before it succeeds."""
    print("attempt", self.request.retries + 1)
    if self.request.retries < failures:
        try:
            raise OSError("not yet")
        except OSError as error:
            raise self.retry(exc=error, countdown=countdown) from error
    return "done"


@app.task
def fail(how: str) -> None:
    """Ends without returning."""
    print("failing")
    raise {"error": ValueError("bad luck"), "ignore": Ignore(), "reject": Reject("no", requeue=False)}[how]


@app.task
def hang(seconds: float) -> None:
    """Prints its process id, and continues for a while."""
    print(os.getpid(), flush=True)
    time.sleep(seconds)


@app.task(acks_late=True, reject_on_worker_lost=True)
def die_once(marker: str) -> str:
    """Kills its process, and succeeds when the broker redelivers it."""
    print("here")
    if not Path(marker).exists():
        Path(marker).touch()
        time.sleep(0.3)
        os.kill(os.getpid(), 9)
    return "survived"


@app.task
def speak(text: str, seconds: float) -> None:
    """Prints the text before and after a while."""
    print(text)
    time.sleep(seconds)
    print(text, "again")


@app.task(name="celery.usage")  # tasks with such a name are not published
def usage() -> dict[str, int]:
    """The pool's process that runs the task, and how many blocks of memory it uses."""
    gc.collect()
    return {"process": os.getpid(), "blocks": sys.getallocatedblocks()}
