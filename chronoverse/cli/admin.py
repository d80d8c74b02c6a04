"""Commands for operators: ``archive``, ``retention``, ``limits``, ``audit`` and ``token``."""

import contextlib
import gc
import getpass
import logging
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

from chronoverse import errors
from chronoverse.cli import common
from chronoverse.client.client import read_items
from chronoverse.embedded.supervised_process import on_owner_end
from chronoverse.joblog.terminal import counted, plain_text
from chronoverse.settings import Settings
from chronoverse.settings.parse import is_loopback

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from chronoverse.archive.object_store import ObjectStore
    from chronoverse.joblog.model import JobRef
    from chronoverse.store import Store

log = logging.getLogger(__name__)


@click.command()
@click.option("--once", is_flag=True, help="Archive everything that is due, then exit.")
@click.option("--orphans", is_flag=True, help="List archived objects unknown to the store.")
@click.option("--delete", is_flag=True, help="With --orphans: delete them. If the store was restored, list them first.")
@click.option("--import", "imports", is_flag=True, help="Restore jobs that the store has lost.")
@click.option("--verify", is_flag=True, help="List archived objects that are missing or damaged. Exit code 1 if any.")
@click.option(
    "--confirm-store", is_flag=True, help="Let archivers resume deleting after a loss of the store or archive."
)
@common.metrics_option
@common.list_output_option
@common.while_stdin_option
def archive(
    once: bool,
    orphans: bool,
    delete: bool,
    imports: bool,
    verify: bool,
    confirm_store: bool,
    address: str | None,
    output: str,
    while_stdin: bool,
) -> int:
    """Archive logs, and delete jobs whose retention is over.

    Runs until stopped.
    """
    from chronoverse.archive.archiver import Archiver
    from chronoverse.archive.retention import RetentionPolicy
    from chronoverse.archive.store_history import StoreHistory

    if delete and not orphans:
        raise click.UsageError("--delete requires --orphans")
    if once + orphans + imports + verify + confirm_store > 1:
        raise click.UsageError("--once, --orphans, --import, --verify and --confirm-store cannot be combined")
    if output != "text" and not (orphans or verify):
        raise click.UsageError("--output requires --orphans or --verify")
    # --import and --verify can be interrupted at any time, so they need no signal handlers.
    settings, stop = begin("archive", address, while_stdin, catch_signals=not (imports or verify))
    gc.freeze()
    # Reference counting frees the thousands of objects of a page of entries, so the collector rarely finds anything.
    gc.set_threshold(100_000)
    with common.open_store(settings) as store:
        objects = common.open_archive(settings)
        history = StoreHistory(store, objects)
        if orphans:
            if history.went_back() and delete:
                return os.EX_DATAERR
            return _print_orphans(store, objects, settings, delete, output)
        if imports or verify:
            problems = _import(store, objects, settings) if imports else _verify(store, objects, output)
            # Logs what an operator has to confirm: the store was rolled back, or the archive belongs to another store.
            history.went_back()
            return (os.EX_DATAERR if imports else 1) if problems or history.bucket_lost else 0
        if confirm_store:
            history.confirm()
            click.echo("confirmed: within a minute, archivers resume deleting expired jobs and garbage")
            return 0
        # Ignored here: the archiver's first step reports an unreachable store.
        with contextlib.suppress(errors.StoreUnavailable):
            for warning in store.warnings():
                log.warning("%s", warning)
        limits = RetentionPolicy(
            settings.hot_bytes, settings.hot_seconds, settings.retention_seconds, settings.archive_running_seconds
        )
        archiver = Archiver(store, objects, limits, stop=stop)
        if once:
            with common.status_line() as show:
                failures = archiver.run_once(lambda done, total: show(f"archived {done:,} of {total:,} lines"))
            return os.EX_DATAERR if failures else 0
        log.info("archiver started", extra={"fields": {"archive": settings.archive_location}})
        archiver.run()
        log.info("archiver stopped")
    return 0


def begin(
    program: str, address: str | None, while_stdin: bool, *, catch_signals: bool = True
) -> tuple[Settings, threading.Event]:
    """Sets up ``archive`` or ``notify``: logging, and metrics at ``address``. Returns the settings and a stop event.

    SIGTERM and SIGINT set the event; with ``while_stdin``, the end of standard input sets it, too. Without
    ``while_stdin``, raises :class:`SettingsError` if the settings name a service but not its store.
    """
    from chronoverse import metrics

    settings = Settings.from_env() if while_stdin else common.read_settings()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT) if catch_signals else ():
        signal.signal(number, lambda *_: stop.set())
    if while_stdin:
        metrics.name_process(metrics.SUPERVISED[program])
        on_owner_end(stop.set)
    else:
        common.require_store(settings)
    configure_logging(settings)
    if address:
        serve_metrics(address, metrics.registry_of(f"chronoverse_{program}"))
    return settings, stop


def _print_orphans(store: "Store", objects: "ObjectStore", settings: Settings, delete: bool, output: str) -> int:
    from chronoverse.archive.retention import job_of, orphans

    show = common.item_text(output, lambda item: "\t".join(map(str, item.values())))
    recorded: JobRef | None = None
    for (name, size, *_), reason in orphans(store, objects, time.time(), settings.retention_seconds):
        click.echo(show({"id": name, "size": size, "reason": reason}))
        if delete:
            if (job := job_of(name)) and job != recorded:
                _record(store, "delete", *job, "objects unknown to the store")
                recorded = job
            objects.delete(name)
    return 0


def _record(store: "Store", did: str, workflow_id: str, job_id: str | None, what: str) -> None:
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # in a container, the user may have no name
        user = str(os.getuid())
    store.audit_trail.record(f"os:{user}@{socket.gethostname()}", did, workflow_id, job_id, what)


def _import(store: "Store", objects: "ObjectStore", settings: Settings) -> int:
    """Returns the number of problems."""
    from chronoverse.archive.importing import import_jobs, wait_for_ends

    made, known, settings_made, problems, waiting = 0, 0, 0, 0, []
    recorded: str | None = None
    with common.status_line() as show:
        for found in import_jobs(store, objects, settings.lease_seconds):
            if found.problem:
                problems += 1
                click.echo(f"{plain_text(found.name)}: {plain_text(found.problem)}", err=True)
            elif found.known:
                known += found.job is not None
            elif found.job is None:
                settings_made += 1
            else:
                made += 1
                if found.job.workflow_id != recorded:
                    recorded = found.job.workflow_id
                    _record(store, "import", recorded, None, "jobs unknown to the store")
            if found.waits and found.job:
                waiting.append(found.job)
            show(f"{made:,} jobs imported, {known:,} known")
        if waiting:
            show(f"waiting for the runners of {len(waiting):,} unfinished jobs")
        # Waits for two leases, because no job is declared LOST before the server has been up for one.
        lost = wait_for_ends(store, waiting, 2 * settings.lease_seconds + 5)
    of_workflows = f"settings of {settings_made} workflows; " if settings_made else ""
    of_jobs = f"{counted(made, 'job', 'jobs')} imported, {lost} of them LOST; {known} already known"
    click.echo(f"{of_jobs}; {of_workflows}{counted(problems, 'problem', 'problems')}")
    return problems


def _verify(store: "Store", objects: "ObjectStore", output: str) -> int:
    """Returns the number of problems."""
    from chronoverse.archive.verifying import verify

    show = common.item_text(output, lambda item: "\t".join(map(str, item.values())))
    whole = problems = 0
    with common.status_line() as progress:
        for name, problem in verify(store, objects):
            if problem:
                problems += 1
                click.echo(show({"id": name, "problem": problem}))
            else:
                whole += 1
            progress(f"{whole:,} objects are intact, {problems:,} are missing or damaged")
    click.echo(f"{whole} objects are intact, {problems} are missing or damaged", err=True)
    return problems


def configure_logging(settings: Settings) -> None:
    """Logs to stderr, in the service's format."""
    from chronoverse.web.http.logging import Console, Json

    handler = logging.StreamHandler()
    handler.setFormatter(Json() if settings.log_format == "json" else Console())
    logger = logging.getLogger("chronoverse")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(settings.log_level.upper())


def serve_metrics(address: str, registry: "CollectorRegistry") -> None:
    from prometheus_client import start_http_server

    host, _, port = address.rpartition(":")
    try:
        start_http_server(int(port), host.strip("[]") or "127.0.0.1", registry)
    except (ValueError, OSError, OverflowError) as error:
        raise click.BadParameter(f"--metrics {address}: {error}") from error


@click.command()
@click.argument("workflow", type=common.identifier)
@click.argument("time_text", metavar="[TIME|default]", required=False)
def retention(workflow: str, time_text: str | None) -> None:
    """Show or set the retention of WORKFLOW, such as 90d.

    Jobs are kept for this time after their end."""
    settings = common.read_settings()
    seconds = None if time_text in (None, "default") else common.duration(time_text)
    changes = {} if time_text is None else {"retention_seconds": seconds}
    own, _ = _workflow_settings(settings, workflow, changes)
    kept = own["retention_seconds"]
    if kept is None and common.means_other_store(settings):
        click.echo("default")
        return
    shown = settings.retention_seconds if kept is None else kept
    text = common.spoken(shown) if sys.stdout.isatty() else f"{shown} s"
    click.echo(f"{text}{' (default)' if kept is None else ''}")


def _workflow_settings(
    settings: Settings, workflow: str, changes: Mapping[str, int | None]
) -> tuple[dict[str, int | None], list[int] | None]:
    """Applies ``changes``. Returns the workflow's settings, and the default quotas (None from a service)."""
    if common.means_other_store(settings):
        with common.open_client(workflow, scope="logs:admin") as client:
            return client.workflow_settings(workflow, changes), None
    from chronoverse.archive.workflow_settings import change_settings

    with common.open_store(settings) as store:
        if changes:
            configure_logging(settings)

        def record(did: str, what: str) -> None:
            _record(store, did, workflow, None, what)

        change_settings(store, workflow, changes, settings.retention_seconds, record)
        return store.catalog.settings_of(workflow).own, store.catalog.common_bounds() or [0, 0]


def _bound(_: click.Context, __: click.Parameter, text: str | None) -> int | str | None:
    if text is not None and text != "default" and not re.fullmatch("[0-9]{1,15}", text):
        raise click.BadParameter("expected a number of bytes (0 for no limit) or `default`")
    return int(text) if text not in (None, "default") else text


@click.command()
@click.argument("workflow", type=common.identifier)
@click.option("--job-bytes", metavar="N|default", callback=_bound, help="Maximum bytes stored of one job's messages.")
@click.option("--day-bytes", metavar="N|default", callback=_bound, help="Maximum bytes stored of all jobs per UTC day.")
def limits(workflow: str, job_bytes: int | str | None, day_bytes: int | str | None) -> None:
    """Show or set the quotas of WORKFLOW, in bytes.

    0 is unlimited. Changes also apply to running jobs.
    """
    given = {"job_bytes": job_bytes, "day_bytes": day_bytes}
    changes = {name: None if value == "default" else int(value) for name, value in given.items() if value is not None}
    own, others = _workflow_settings(common.read_settings(), workflow, changes)
    for name, bound, default in zip(
        ("per job", "per day"), (own["job_bytes"], own["day_bytes"]), others or (None, None), strict=True
    ):
        size = default if bound is None else bound
        text = "default" if size is None else f"{size} bytes" if size else "no limit"
        click.echo(f"{name}: {text}{' (default)' if bound is None and size is not None else ''}")


@click.command()
@common.time_option("--since", "Actions since this time or age, such as 1h or 2d.")
@common.time_option("--until", "Actions at or before this time.")
def audit(since: str | None, until: str | None) -> None:
    """Print the audit trail: who deleted, redacted and changed what.

    Prints JSON Lines, newest first. Requires a token with logs:admin.
    """
    with common.open_client("*", scope="logs:admin") as client:
        for page in client.pages("/audit", limit=1_000, since=since, until=until):
            for entry in read_items(page, "entries", dict):
                click.echo(common.json_text(entry))


def _workflow_entry(text: str) -> str:
    from chronoverse.auth.rights import entry_problem

    if problem := entry_problem(text):
        raise click.BadParameter(problem)
    return text


@click.command()
@click.option(
    "--workflow",
    "workflows",
    multiple=True,
    type=_workflow_entry,
    metavar="ID",
    help="Workflow to grant, or PREFIX*. Repeatable. Default: all.",
)
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(["logs:read", "logs:write", "logs:admin"]),
    default=["logs:read"],
    show_default=True,
    help="Scope to grant. Repeatable.",
)
@click.option("--ttl", type=common.duration, metavar="TIME", default="1h", show_default=True, help="Validity.")
@click.option("--subject", default="cli", show_default=True, help="Subject.")
def token(workflows: tuple[str, ...], scopes: tuple[str, ...], ttl: int, subject: str) -> None:
    """Print a token, signed with the service's secret."""
    from chronoverse.auth.local_secret import secret_path
    from chronoverse.auth.minting import EVERY_WORKFLOW, mint
    from chronoverse.auth.tokens import secrets

    settings = common.read_settings()
    host = urlsplit(settings.service_url).hostname
    if settings.has_local_secret and not is_loopback(host):
        # The service's secret is on another machine. The service would refuse tokens signed with a new secret.
        raise errors.SettingsError(
            f"the service at {settings.service_url} runs elsewhere: ask its administrator for a token"
        )
    if settings.has_local_secret and not secret_path(settings.data_dir).exists():
        raise errors.SettingsError(
            f"no secret in {settings.data_dir} yet: start the service first, or set CHRONOVERSE_DATA_DIR or "
            "CHRONOVERSE_JWT_SECRET as for the service"
        )
    click.echo(mint(secrets(settings)[0], subject, scopes, workflows or [EVERY_WORKFLOW], ttl, time.time(), settings))
