"""``chronoverse collect``: publishes the log files of other programs, without changing them.

files          reads a log file as a stream of bytes, across rotations
cri            parses these bytes into lines: the log format of container runtimes
checkpoints    stores how far each log was published
container_log  publishes one run of a container as a job
pods           parses pods of the API: the names of their jobs, the ends of their containers
watcher        lists and watches the pods of a node
agent          publishes all logs of a node, round-robin; provides metrics and a health check

The log files take the place of the spool: they keep lines until these are safe.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from chronoverse.cli import common
from chronoverse.joblog.labels import MAX_LABELS, check_labels
from chronoverse.joblog.model import MAX_NUMBER, JobRef, Line

if TYPE_CHECKING:
    from chronoverse.runner.publisher import LogWriter
    from chronoverse.settings import Settings


def _label_key(text: str) -> str:
    """A pod label's key, if a job's label can have it, too. Raises ValueError."""
    check_labels({text: "-"})
    return text


@click.group()
def collect() -> None:
    """Publish logs that other programs write to files."""


@collect.command()
@click.option("--node", required=True, envvar="NODE_NAME", metavar="NAME", help="Node of the pods. Default: NODE_NAME.")
@click.option("--state", type=Path, required=True, metavar="DIR", help="Directory for checkpoints; must persist.")
@click.option("--pods", default="/var/log/pods", show_default=True, metavar="DIR", help="Directory of pods' logs.")
@click.option("--namespace", "namespaces", multiple=True, metavar="NAME", help="Pods of this namespace. Repeatable.")
@click.option("--selector", metavar="SELECTOR", help="Pods with these labels, such as team=a,tier!=web.")
@click.option(
    *("--label", "labels"),
    multiple=True,
    type=common.checked(_label_key),
    metavar="KEY",
    help="Pod label to copy to its jobs. Repeatable.",
)
@click.option("--api", default="https://kubernetes.default.svc", show_default=True, metavar="URL", help="API server.")
@click.option("--metrics", "address", metavar="HOST:PORT", help="Serve /healthz and /metrics at this address.")
def kubernetes(
    node: str,
    state: Path,
    pods: str,
    namespaces: tuple[str, ...],
    selector: str | None,
    labels: tuple[str, ...],
    api: str,
    address: str | None,
) -> None:
    """Publish the logs of a node's pods, and how their containers ended.

    Each run of a container is a job. Collects pods with restartPolicy Never or OnFailure, and those with the annotation
    chronoverse/collect: "true". Runs until stopped.
    """
    from chronoverse import metrics
    from chronoverse.auth.token_file import read_token_file
    from chronoverse.cli.admin import serve_metrics
    from chronoverse.client.service_connection import ServiceConnection
    from chronoverse.collect.agent import Agent
    from chronoverse.collect.checkpoints import Checkpoints
    from chronoverse.collect.container_log import Surroundings
    from chronoverse.collect.watcher import SILENT_SECONDS, PodWatcher
    from chronoverse.joblog.secret_forms import SecretForms

    if len(labels) > MAX_LABELS - 7:  # the agent adds seven labels
        raise click.UsageError("--label can be given at most 9 times")
    settings = common.read_settings()
    # A hundred logs can have the same problem at once, so each message is printed at most once a minute.
    say_once = lru_cache(maxsize=1_000)(lambda text, minute: common.print_message(text))

    def say(text: str) -> None:
        say_once(text, time.monotonic() // 60)

    account = Path("/var/run/secrets/kubernetes.io/serviceaccount")  # where Kubernetes mounts a pod's account
    token_file, ca_file = (path if path.exists() else None for path in (account / "token", account / "ca.crt"))
    token = partial(read_token_file, token_file) if token_file else None
    bounds = {"connect_seconds": 5.0, "read_seconds": SILENT_SECONDS}
    watcher = PodWatcher(ServiceConnection(api, token, ca_file=ca_file, **bounds), node, selector, say)
    with contextlib.ExitStack() as stack:
        connect, read_end = _publishing(settings, common.meant_service(settings), stack)
        forms, stop = SecretForms(settings.mask_forms), threading.Event()
        around = Surroundings(connect, read_end, Checkpoints(state / "checkpoints.json", say), say, settings, forms)
        agent = Agent(Path(pods), watcher, around, stop, namespaces, labels)
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, lambda *_: stop.set())
        try:
            state.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise click.BadParameter(f"--state: {error}") from error
        if address:  # /healthz and /metrics have the same answers
            serve_metrics(address, metrics.registry_of("chronoverse_collect", agent))
        threading.Thread(target=watcher.run, name="chronoverse-pods", daemon=True).start()
        say(f"collecting the logs of node {node} in {pods}")
        agent.run()


def _publishing(
    settings: "Settings", server: str | None, stack: contextlib.ExitStack
) -> "tuple[Callable[[], LogWriter], Callable[[JobRef, int], tuple[str, Sequence[Line]]]]":
    """Returns two functions: one makes a writer, the other reads a job's status and the last lines of its log."""
    from chronoverse.client.client import Client, read_items
    from chronoverse.client.follower import read_line
    from chronoverse.joblog.entries import read_entries
    from chronoverse.runner.http_log_writer import HttpLogWriter

    if server is None:
        store = stack.enter_context(common.open_store(settings))

        def read_from_store(job: JobRef, count: int) -> tuple[str, Sequence[Line]]:
            entries = read_entries(store.page(job, before=MAX_NUMBER, count=count)[::-1], 0)
            return store.require_job(job).status, [each for each in entries if isinstance(each, Line)]

        return lambda: store, read_from_store
    token = common.token_for(settings, server, "*", "collect", "logs:write logs:read")
    client = stack.enter_context(contextlib.closing(Client(server, token, ca_file=settings.ca_file)))

    def read_from_service(job: JobRef, count: int) -> tuple[str, Sequence[Line]]:
        page = client.read("/workflows/{}/jobs/{}/logs", *job, order="desc", limit=count)
        return client.job(job)["status"], read_items(page, "logs", read_line)[::-1]

    writer = HttpLogWriter(server, token, ca_file=settings.ca_file, durable=settings.durability != "acked")
    return writer.twin, read_from_service
