"""The program: its commands, and how it exits.

Exit codes are those of BSD's sysexits.h; each error in :mod:`chronoverse.errors` knows its own. A command that runs or
follows a job exits with the job's own code instead.
"""

import os
import sys
from collections.abc import Sequence
from typing import Final

import click

from chronoverse import __version__
from chronoverse.cli import admin, download, jobs, logs, remove, run, scans, search, serve, summary, wait, workflows
from chronoverse.cli.common import print_message
from chronoverse.cli.mcp import command as mcp
from chronoverse.errors import ChronoverseError

#: What a shell reports of a program that SIGINT or SIGPIPE has ended.
EXIT_BY_SIGINT: Final = 130
EXIT_BY_SIGPIPE: Final = 141


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="chronoverse", message="%(prog)s %(version)s")
def commands() -> None:
    """Stream job logs: run a job, and watch it from anywhere."""


for _command in (
    serve.serve,
    run.run,
    run.deliver,
    logs.logs,
    jobs.jobs,
    workflows.workflows,
    search.search,
    summary.summary,
    wait.wait,
    download.download,
    mcp.mcp,
    remove.redact,
    remove.delete,
    admin.archive,
    admin.token,
    admin.retention,
    scans.scans,
):
    commands.add_command(_command)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command in ``argv``, by default the program's own arguments. Returns the exit code."""
    try:
        with commands.make_context("chronoverse", list(sys.argv[1:] if argv is None else argv)) as context:
            code = commands.invoke(context)
            sys.stdout.flush()
            return code if isinstance(code, int) else 0
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as error:
        error.show()
        return os.EX_USAGE
    except ChronoverseError as error:
        print_message(str(error))
        return error.exit_code
    except BrokenPipeError:
        # Whoever reads our output has closed it. Python flushes stdout when it exits, and that must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BY_SIGPIPE
    except (KeyboardInterrupt, click.Abort):
        return EXIT_BY_SIGINT
