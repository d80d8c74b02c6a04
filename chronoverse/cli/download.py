"""``chronoverse download``: saves a log as a file."""

import os
import secrets
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import click

from chronoverse.cli import common, names
from chronoverse.joblog.model import JobRef


@click.command()
@names.job_arguments
@click.argument("file", required=False)
@click.option("--format", "form", type=click.Choice(["txt", "json", "jsonl"]), default="txt", show_default=True)
@common.stream_option
@common.search_option
@common.regex_option
@click.option("--raw", is_flag=True, help="Keep colors and control sequences. Use only for trusted output.")
def download(workflow: str, job: str, file: str | None, form: str, **options: Any) -> int:
    """Save the log of JOB as FILE.

    The default FILE is WORKFLOW-JOB.txt; - is standard output. FILE is written once the log is complete.
    """
    if options["regex"] and options["search"] is None:
        raise click.UsageError("--regex requires --search")
    if options["raw"] and form != "txt":
        raise click.UsageError("--raw requires --format txt; JSON is always complete")
    query = {
        "format": form,
        "stream": options["stream"],
        "q": options["search"],
        "regex": options["regex"],
        "control_sequences": options["raw"],
    }
    with common.open_client(workflow, job) as client, common.status_line() as show:
        pieces = client.download(JobRef(workflow, job), **query)
        if file == "-":
            _write(sys.stdout.buffer, pieces, lambda text: None if sys.stdout.isatty() else show(text))
            return 0
        path = Path(file or f"{workflow}-{job}.{form}")
        # A file must not replace a device, a pipe or a symbolic link.
        is_regular, target = path.is_file() or not path.exists(), path.resolve()
        part = target.with_name(f".{path.name}.{secrets.token_hex(4)}") if is_regular else path
        try:
            with part.open("xb" if is_regular else "wb") as out:
                size = _write(out, pieces, show)
            if is_regular:
                part.replace(target)
        except OSError as error:
            common.print_message(f"{path}: {error.strerror}")
            return os.EX_CANTCREAT
        finally:
            if is_regular:
                part.unlink(missing_ok=True)
    common.print_message(f"saved {path} ({size:,} bytes)")
    return 0


def _write(out: BinaryIO, pieces: Iterable[bytes], show: Callable[[str], None]) -> int:
    size = 0
    for piece in pieces:
        size += out.write(piece)
        show(f"{size:,} bytes")
    return size
