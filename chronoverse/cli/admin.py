"""Commands for operators: the archiver, how long logs are kept, tokens."""

import contextlib
import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import click

from chronoverse import errors
from chronoverse.cli.options import duration, identifier
from chronoverse.client.terminal import plain_text
from chronoverse.settings import Settings

if TYPE_CHECKING:
    from chronoverse.archive.archiver import Archiver
    from chronoverse.archive.object_store import ObjectStore
    from chronoverse.store import Store

#: What ``archive --once`` exits with when there is a log that it could not archive: BSD's EX_DATAERR.
EX_DATAERR: Final = 65
#: Objects made before Python looks for garbage: a page of entries is thousands, all of them gone by counting.
GC_THRESHOLD: Final = 100_000


@contextlib.contextmanager
def opened(settings: Settings) -> Iterator["Store"]:
    """The store of ``settings``; the embedded server is held for as long."""
    from chronoverse.embedded import server as embedded
    from chronoverse.store import Store

    with contextlib.ExitStack() as stack:
        url = settings.redis_url or stack.enter_context(embedded.lease_server(settings.data_dir)).url
        lease, retention = settings.lease_seconds, settings.retention_seconds
        store = Store(url, prefix=settings.key_prefix, lease_seconds=lease, retention_seconds=retention)
        stack.callback(store.close)
        yield store


def objects_of(settings: Settings) -> "ObjectStore":
    """The archive of ``settings``. Raises :class:`SettingsError` when there is none."""
    from chronoverse.archive.connect import open_object_store

    if settings.archive_location is None:
        raise errors.SettingsError("there is no archive: set CHRONOVERSE_ARCHIVE_URL, the same for every node")
    return open_object_store(settings.archive_location)


def archiver_of(settings: Settings, store: "Store", stop: threading.Event) -> "Archiver":
    """The archiver that ``settings`` ask for."""
    from chronoverse.archive.archiver import Archiver, ArchiverLimits

    limits = ArchiverLimits(settings.hot_bytes, settings.hot_seconds, settings.retention_seconds)
    return Archiver(store, objects_of(settings), limits, stop=stop)


@click.command()
@click.option("--once", is_flag=True, help="Do all that is due now, and exit.")
@click.option("--orphans", is_flag=True, help="Only list what is in the archive and unknown to the store.")
@click.option("--delete", is_flag=True, help="With --orphans: delete it. After a restore of the store, list it first.")
@click.option("--metrics", "address", metavar="HOST:PORT", help="Show Prometheus metrics there.")
@click.option("--while-stdin", is_flag=True, hidden=True, help="Go when standard input ends.")
def archive(once: bool, orphans: bool, delete: bool, address: str | None, while_stdin: bool) -> int:
    """Move logs into the archive, and delete those whose time is over, until told to go."""
    from chronoverse import metrics

    if delete and not orphans:
        raise click.UsageError("--delete goes with --orphans")
    settings = Settings.from_env()
    stop = threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stop.set())
    if while_stdin:
        metrics.name_process(metrics.SUPERVISED)
        threading.Thread(target=_until_stdin_ends, args=(stop,), daemon=True).start()
    _log(settings)
    if address:
        _show_metrics(address)
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)
    with opened(settings) as store:
        if orphans:
            return _orphans(store, objects_of(settings), delete)
        _warn(store)
        archiver = archiver_of(settings, store, stop)
        if once:
            return EX_DATAERR if _once(archiver) else 0
        logging.getLogger(__name__).info("archiver up", extra={"fields": {"archive": settings.archive_location}})
        archiver.run()
        logging.getLogger(__name__).info("archiver gone")
    return 0


def _warn(store: "Store") -> None:
    """Logs where the store's settings endanger logs. A store that is away is told of by the archiver's first step."""
    with contextlib.suppress(errors.StoreError):
        for warning in store.warnings():
            logging.getLogger(__name__).warning("%s", warning)


def _once(archiver: "Archiver") -> int:
    """Shows on a terminal how far it is, in lines."""
    if not sys.stderr.isatty():
        return archiver.once()
    with click.progressbar(length=1, label="archiving", file=sys.stderr) as bar:

        def progress(done: int, total: int) -> None:
            bar.length = max(1, total)
            bar.update(done - bar.pos)

        return archiver.once(progress)


def _orphans(store: "Store", objects: "ObjectStore", delete: bool) -> int:
    from chronoverse.archive.retention import orphans

    for found in orphans(store, objects, time.time()):
        click.echo(plain_text(f"{found.stored.name}\t{found.stored.size}\t{found.why}"))
        if delete:
            objects.delete(found.stored.name)
    return 0


def _until_stdin_ends(stop: threading.Event) -> None:
    # Not sys.stdin, which the interpreter must lock at its end.
    while os.read(0, 4_096):
        pass
    stop.set()


def _log(settings: Settings) -> None:
    """As the service logs, to stderr."""
    from chronoverse.web.http.logging import Console, Json

    handler = logging.StreamHandler()
    handler.setFormatter(Json() if settings.log_format == "json" else Console())
    ours = logging.getLogger("chronoverse")
    ours.handlers, ours.propagate = [handler], False
    ours.setLevel(settings.log_level.upper())


def _show_metrics(address: str) -> None:
    from prometheus_client import start_http_server

    host, _, port = address.rpartition(":")
    try:
        start_http_server(int(port), host.strip("[]") or "127.0.0.1")
    except (ValueError, OSError, OverflowError) as error:
        raise click.BadParameter(f"--metrics {address}: {error}") from error


@click.command()
@click.argument("workflow", type=identifier)
@click.argument("time_kept", metavar="[TIME|default]", required=False)
def retention(workflow: str, time_kept: str | None) -> None:
    """Show or set for how long jobs of WORKFLOW are kept after their end: such as 90d."""
    from chronoverse.archive.retention import set_retention

    settings = Settings.from_env()
    seconds = None if time_kept in (None, "default") else duration(time_kept)
    with opened(settings) as store:
        if time_kept is not None:
            store.catalog.set_retention(workflow, seconds)
            set_retention(store, workflow, seconds, settings.retention_seconds)
        own = store.catalog.retention(workflow)
    click.echo(f"{settings.retention_seconds if own is None else own} s{' (the default)' if own is None else ''}")


@click.command()
@click.option("--workflow", "workflows", multiple=True, type=identifier, help="May see this one. Default: all.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(["logs:read", "logs:write", "logs:admin"]),
    default=["logs:read"],
    show_default=True,
    help="May do this.",
)
@click.option("--ttl", type=duration, default="1h", show_default=True, help="Is good for so long.")
@click.option("--subject", default="cli", show_default=True, help="Whose it is.")
def token(workflows: tuple[str, ...], scopes: tuple[str, ...], ttl: int, subject: str) -> None:
    """Print a token."""
    from chronoverse.auth.tokens import EVERY_WORKFLOW, mint, signing_secret

    secret = signing_secret(Settings.from_env())
    click.echo(mint(secret, subject, scopes, workflows or [EVERY_WORKFLOW], ttl, time.time()))
