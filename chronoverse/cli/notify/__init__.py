"""``chronoverse notify``: delivers the messages of watches. Optional: everything else works without this folder.

notifier  reads changes, queues events and delivers messages
messages  the text and data of a message
sending   posts a message to an untrusted receiver
"""

import ssl
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click
import orjson

from chronoverse.cli import common
from chronoverse.cli.admin import begin
from chronoverse.errors import AtCapacity
from chronoverse.fair_lock import FairLock
from chronoverse.joblog.model import JobRef

if TYPE_CHECKING:
    from chronoverse.history.scans.app import ScanApp

#: Seconds that a message can wait for its summary. After that, it is sent without a summary.
_PATIENCE = 9.0


@click.command()
@common.metrics_option
@common.while_stdin_option
def notify(address: str | None, while_stdin: bool) -> None:
    """Deliver the messages of watches. Runs until stopped."""
    from chronoverse.archive.reader import ArchiveReader
    from chronoverse.auth.tls import tls_context
    from chronoverse.cli.notify.notifier import Notifier
    from chronoverse.history.scans.app import ScanApp

    settings, stop = begin("notify", address, while_stdin)
    with common.open_store(settings) as store:
        objects = common.open_archive(settings) if settings.archive_location else None
        app = ScanApp(store, ArchiveReader(objects, store.chunks.chunk), settings.max_line_bytes)
        summarize = summarizer(app, FairLock(_PATIENCE, AtCapacity))
        context = tls_context(settings.ca_file) or ssl.create_default_context()
        Notifier(store, summarize, dict(settings.webhook_hosts), settings.service_url, context, stop).run()


def summarizer(app: "ScanApp", lock: FairLock) -> Callable[[JobRef], Mapping[str, Any]]:
    """Returns a function that summarizes a job. The app answers one scan at a time, so workflows take turns."""
    from chronoverse.history.scans.scan import SummaryScan

    def summarize(ref: JobRef) -> Mapping[str, Any]:
        # Scans as much of a very long log as 3 s allow. The comparison and the errors get ``seconds`` each.
        scan = SummaryScan(**ref._asdict(), asked_at=time.monotonic(), patience=_PATIENCE, seconds=1.5)
        with lock.hold(ref.workflow_id):
            return dict(orjson.loads(app.read_summary(scan)))

    return summarize
