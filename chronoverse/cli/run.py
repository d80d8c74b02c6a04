"""``chronoverse run`` publishes a command's output as a job. ``chronoverse deliver`` publishes a spool file."""

import contextlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from chronoverse.cli import common
from chronoverse.errors import SpoolError
from chronoverse.joblog.labels import MAX_LABELS, check_labels
from chronoverse.joblog.model import JobRef
from chronoverse.joblog.secret_forms import SecretForms
from chronoverse.joblog.terminal import LineRenderer, counted
from chronoverse.settings import Settings

if TYPE_CHECKING:
    from chronoverse.runner.publisher import LogWriter
    from chronoverse.runner.readback import Compare

_server_option = click.option(
    "--server",
    metavar="URL",
    type=common.service_url,
    help="Service to publish through. Default: CHRONOVERSE_REDIS_URL, else CHRONOVERSE_URL.",
)


def _timeout_option(what: str) -> Callable[[Any], Any]:
    options: dict[str, Any] = {"type": common.duration, "metavar": "TIME", "default": "60s", "show_default": True}
    return click.option("--deliver-timeout", "seconds", help=what, **options)


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("--workflow", required=True, type=common.identifier, metavar="ID", help="Workflow of the job.")
@click.option("--job", type=common.identifier, metavar="ID", help="Job id. Generated and printed if omitted.")
@_server_option
@_timeout_option("How long to keep delivering after CMD ends.")
@click.option("--require-log", is_flag=True, help="Start CMD only if its log can be published.")
@click.option("--retry", is_flag=True, help="Publish as the first free JOB.2, JOB.3, ... if the id is taken.")
@click.option("--continue", "continues", is_flag=True, help="Add CMD to a log that several commands share.")
@click.option("--last", is_flag=True, help="With --continue: CMD is the last; end the job with the highest exit code.")
@click.option("--pty", is_flag=True, help="Allocate a terminal for CMD; stderr becomes stdout.")
@click.option(
    "--label",
    "labels",
    multiple=True,
    type=common.label,
    metavar="KEY=VALUE",
    help="Label, such as branch=main. Repeatable.",
)
@click.option("--no-ci-labels", is_flag=True, help="Omit the CI system's commit, branch and url.")
@click.option(
    "--mask-env", "names", multiple=True, metavar="NAME", help="Mask this variable's value as ***. Repeatable."
)
@click.option(
    "--mask-file", "files", multiple=True, type=Path, metavar="F", help="Mask this file's content. Repeatable."
)
@click.option(
    "--mask",
    "values",
    multiple=True,
    metavar="VALUE",
    help="Mask VALUE. Repeatable. Visible in `ps`; prefer --mask-env or --mask-file.",
)
@click.argument("command", metavar="-- CMD...", nargs=-1, required=True, type=click.UNPROCESSED)
def run(
    workflow: str,
    job: str | None,
    server: str | None,
    seconds: int,
    require_log: bool,
    retry: bool,
    continues: bool,
    last: bool,
    pty: bool,
    labels: tuple[tuple[str, str], ...],
    no_ci_labels: bool,
    command: tuple[str, ...],
    **masks_given: Any,
) -> int:
    """Run CMD as a job, publish every line, and exit with its code.

    CMD runs even if the store or the service is unavailable. Lines that cannot be published are kept in a file, and a
    message explains how to deliver it.

    Masked values are replaced by *** in the published log, but not in the output of this command.
    """
    from chronoverse.runner import run as runner
    from chronoverse.runner.capture import masking
    from chronoverse.runner.ci_labels import add_ci_labels
    from chronoverse.runner.spool.spool_file import SpoolRoom

    if last and not continues:
        raise click.UsageError("--last requires --continue")
    if continues and (retry or job is None):
        raise click.UsageError(
            "--continue requires the same --job for all commands, and cannot be combined with --retry"
        )
    if len(given := dict(labels)) > MAX_LABELS:
        raise click.UsageError(f"a job can have at most {MAX_LABELS} labels")
    settings = common.read_settings()
    masks = masking.load_masks(**masks_given, environ=os.environ, forms=SecretForms(settings.mask_forms))
    server = common.meant_service(settings, server)
    ref = JobRef(workflow, job or f"job-{os.urandom(6).hex()}")
    base = server or common.page_base(settings)
    with contextlib.ExitStack() as stack:
        return runner.run(
            command,
            partial(_open_log_writer, settings, server, stack, workflow),
            ref,
            max_line_bytes=settings.max_line_bytes,
            room=SpoolRoom(settings.data_dir / "spool", file_bytes=settings.spool_max_bytes),
            lease_seconds=settings.lease_seconds,
            # 10 s is long enough for a service to restart.
            open_seconds=10.0 if require_log else runner.OPEN_SECONDS,
            deliver_seconds=seconds,
            masks=masks,
            pty=pty,
            require_log=require_log,
            retry=retry,
            more_follow=not last if continues else None,
            labels=check_labels(given if no_ci_labels else add_ci_labels(given, os.environ)),
            service_url=server,
            page=lambda job: (
                f"job {job.job_id} of workflow {job.workflow_id} is at "
                f"{base}/ui/workflows/{job.workflow_id}/jobs/{job.job_id}"
            ),
        )


@click.command()
@_timeout_option("How long to try.")
@_server_option
@click.option("--as", "job_id", type=common.identifier, metavar="JOB", help="Publish as this new job of the workflow.")
@click.option("--retry", is_flag=True, help="Publish under the first free id: JOB, JOB.2, JOB.3, ...")
@click.option("--print", "only_print", is_flag=True, help="Print the lines; do not deliver.")
@click.option("--raw", is_flag=True, help="With --print: keep control sequences. Use only for trusted output.")
@click.argument("file", type=Path)
def deliver(file: Path, server: str | None, only_print: bool, raw: bool, **delivery: Any) -> int:
    """Deliver the lines that a runner spooled to FILE.

    Also delivers the end of the job. FILE is removed once all lines are verified in the store.
    """
    if raw and not only_print:
        raise click.UsageError("--raw requires --print")
    if only_print and (server or delivery["job_id"] or delivery["retry"]):
        raise click.UsageError("--print cannot be combined with --server, --as or --retry")
    if only_print:
        _print_spool(file, raw)
        return 0
    from chronoverse.runner.command import Tee, open_standard
    from chronoverse.runner.resend import resend_spool

    settings = common.read_settings()
    server = common.meant_service(settings, server)
    err = Tee(open_standard(2), os.isatty(2))
    with contextlib.ExitStack() as stack:
        stack.callback(err.clear_status)
        done = resend_spool(
            file,
            partial(_open_log_writer, settings, server, stack),
            err.say,
            show=err.show_status if os.isatty(2) else lambda text: None,
            comparer_for=partial(_line_comparer, settings),
            lease_seconds=settings.lease_seconds,
            service_url=server,
            **delivery,
        )
        return 0 if done else os.EX_UNAVAILABLE


def _open_log_writer(settings: Settings, server: str | None, stack: contextlib.ExitStack, workflow: str) -> "LogWriter":
    """Returns a runner's writer, for the service at ``server`` or for the store. ``stack`` closes it."""
    if server is not None:
        from chronoverse.runner.http_log_writer import HttpLogWriter

        token = common.token_for(settings, server, workflow, "run", "logs:write")
        writer = HttpLogWriter(server, token, ca_file=settings.ca_file, durable=settings.durability != "acked")
        stack.callback(writer.close)
        return writer
    return stack.enter_context(common.open_store(settings))


def _line_comparer(settings: Settings, writer: "LogWriter") -> "Compare":
    """Returns the function that compares a spool's lines with published lines, including archived ones."""
    from chronoverse.archive.reader import ArchiveReader
    from chronoverse.runner.readback import comparer_for
    from chronoverse.store import Store

    if isinstance(writer, Store) and settings.archive_location is not None:
        return comparer_for(writer, ArchiveReader(common.open_archive(settings), writer.chunks.chunk))
    return comparer_for(writer)


def _print_spool(file: Path, raw: bool) -> None:
    from chronoverse.cli.logs import print_log
    from chronoverse.runner.spool.salvage import recover_whole

    spool, damage = recover_whole(file, in_place=False)
    renderer = LineRenderer(colour=common.keeps_colors("auto"), raw=raw)
    print_log(spool.entries(spool.state.get("base", 1)), renderer)
    spool.preserve()
    if spool.dropped:
        common.print_message(f"{counted(spool.dropped, 'line was', 'lines were')} dropped: the spool was full")
    if damage:
        raise SpoolError(damage)
