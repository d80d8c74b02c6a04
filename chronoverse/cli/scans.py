"""``chronoverse scans``: the scan server. The service starts it for itself, so the command is hidden."""

import contextlib
from functools import partial
from typing import TYPE_CHECKING

import click

from chronoverse.cli.common import open_archive, open_store
from chronoverse.settings import Settings

if TYPE_CHECKING:
    from chronoverse.history.scans.app import ScanApp


@click.command(hidden=True)
def scans() -> None:
    """Answer the workers' scans at the Unix socket with the descriptor 3, until standard input ends."""
    # These modules are imported before the processes are forked, which then share them.
    from chronoverse.archive.reader import ArchiveReader
    from chronoverse.history.scans.app import ScanApp
    from chronoverse.history.scans.server import ScanServer
    from chronoverse.history.scans.summary_scan import SummaryProgress
    from chronoverse.live.replay_cache import ReplayCache, read_frames

    settings = Settings.from_env()
    progress = SummaryProgress()

    def make_app() -> "ScanApp":
        # The store is closed when the process ends.
        store = contextlib.ExitStack().enter_context(open_store(settings))
        archive = ArchiveReader(open_archive(settings) if settings.archive_location else None, store.chunks)
        replay_cache = ReplayCache(store, archive, max_line_bytes=settings.max_line_bytes)
        return ScanApp(
            store,
            archive,
            settings.max_line_bytes,
            read_replay=partial(read_frames, replay_cache),
            progress=progress,
        )

    # gunicorn's own news about its processes would look as if they were the service's.
    log_level = settings.log_level if settings.log_level in ("error", "critical") else "warning"
    logger_class = f"chronoverse.web.http.logging.{settings.log_format.capitalize()}Logger"
    ScanServer(make_app, workers=settings.web_concurrency, logger_class=logger_class, log_level=log_level).run()
