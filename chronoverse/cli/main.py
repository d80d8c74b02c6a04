"""The command line. Each command imports what it needs when it is called: ``run`` must not wait for a web framework.

Exit codes are those of BSD's sysexits.h, but where the job has one of its own.
"""

import contextlib
import os
import secrets
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import click

from chronoverse import errors
from chronoverse.cli import admin as upkeep
from chronoverse.cli.options import duration, identifier
from chronoverse.client.terminal import plain_text
from chronoverse.joblog.values import JobRef, Status, parse_number
from chronoverse.settings import Settings, child_environ
from chronoverse.settings.parse import is_loopback, service_url

if TYPE_CHECKING:
    from chronoverse.client.client import Client
    from chronoverse.runner.log_writer import LineComparer, LogWriter

#: The first that an error is one of says how the program exits; 70 (EX_SOFTWARE) for any other.
EXIT_CODES: Final[Mapping[type[Exception], int]] = {
    errors.SettingsError: 78,  # EX_CONFIG
    errors.Unauthorized: 77,  # EX_NOPERM
    errors.Forbidden: 77,
    errors.Held: 75,  # EX_TEMPFAIL
    errors.AtCapacity: 75,
    errors.StoreRefused: 75,
    errors.SpoolNotInLog: 76,  # EX_PROTOCOL
    errors.Closed: 73,  # EX_CANTCREAT
    errors.Deleted: 73,
    errors.StoreUnavailable: 69,  # EX_UNAVAILABLE
    errors.EmbeddedError: 69,
    errors.Unreachable: 69,
    errors.JobNotFound: 66,  # EX_NOINPUT
    errors.BadRequest: 65,  # EX_DATAERR
    errors.NotALog: 65,
    errors.CorruptLog: 65,
    errors.SpoolError: 65,
    errors.InvalidMask: 64,  # EX_USAGE
}
EX_USAGE: Final = 64
EX_SOFTWARE: Final = 70
#: As a shell reports a program that SIGINT or SIGPIPE has ended.
BY_SIGINT: Final = 130
BY_SIGPIPE: Final = 141

#: Seconds for which a token made on the spot is good. Each connection gets a new one, so it need not last.
_OWN_TOKEN_SECONDS: Final = 60
#: The port of a URL that names none.
_PORTS: Final = {"http": 80, "https": 443}
#: Seconds that ``--wait`` takes at most: a day.
_MAX_WAIT: Final = 86_400


def _offset(text: str) -> int | str:
    number = parse_number(text)
    if number is None and text != "latest":
        raise click.BadParameter("give a line's number, or 'latest'")
    return text if number is None else number


def _service_url(text: str) -> str:
    try:
        return service_url(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


_server = click.option(
    "--server", metavar="URL", type=_service_url, help="Publish through the service at URL, which has the store."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def commands() -> None:
    """Stream job logs: run a job, and watch it from anywhere."""


@commands.command()
@click.option("--bind", metavar="HOST:PORT", help="Where to listen; CHRONOVERSE_BIND otherwise.")
@click.option("--workers", metavar="N", help="How many processes; WEB_CONCURRENCY otherwise.")
def serve(bind: str | None, workers: str | None) -> None:
    """Serve the logs over HTTP."""
    argv, environ = serve_command(bind, workers)
    os.execve(argv[0], argv, environ)


def serve_command(bind: str | None, workers: str | None) -> tuple[list[str], dict[str, str]]:
    """What ``serve`` becomes: gunicorn's arguments and environment. Raises :class:`SettingsError`."""
    package = Path(__file__).parents[1]
    flags = {"CHRONOVERSE_BIND": bind, "WEB_CONCURRENCY": workers, "PYTHONPATH": str(package.parent)}
    environ = child_environ({name: value for name, value in flags.items() if value is not None})
    Settings.from_env(environ)
    for config in (package / "gunicorn.conf.py", package.parent / "gunicorn.conf.py"):
        if config.is_file():
            return [sys.executable, "-m", "gunicorn", "-c", str(config), "chronoverse.web.app:create_app()"], environ
    raise errors.SettingsError("gunicorn.conf.py is neither in the package nor beside it: install chronoverse again")


@commands.command(context_settings={"allow_interspersed_args": False})
@click.option("--workflow", required=True, type=identifier, help="The workflow that the job belongs to.")
@click.option("--job", type=identifier, help="The job's id; one is made and told when it is not given.")
@_server
@click.option(
    "--deliver-timeout", type=duration, default="60s", show_default=True, help="Deliver so long after CMD has ended."
)
@click.option("--pty", is_flag=True, help="Give CMD a terminal; its stderr then counts as stdout.")
@click.option("--mask-env", "names", multiple=True, metavar="NAME", help="Publish *** for this variable's value.")
@click.option("--mask-file", "files", multiple=True, type=Path, metavar="F", help="... for what this file holds.")
@click.option(
    "--mask",
    "values",
    multiple=True,
    metavar="VALUE",
    help="... for VALUE, which ps shows: prefer the others.",
)
@click.argument("command", metavar="-- CMD...", nargs=-1, required=True, type=click.UNPROCESSED)
def run(
    workflow: str,
    job: str | None,
    server: str | None,
    deliver_timeout: int,
    pty: bool,
    command: tuple[str, ...],
    **secrets_of: Any,
) -> int:
    """Run CMD as a job: show its output as it is, publish every line, and exit as it does.

    Masked values are published as ***, line by line if they have several. What is shown here stays as it is.
    """
    from chronoverse.runner import run as runner
    from chronoverse.runner.capture import masking
    from chronoverse.runner.spool.spool_file import SpoolRoom

    masks = masking.gather(**secrets_of, environ=os.environ)
    settings = Settings.from_env()
    ref = JobRef(workflow, job or f"job-{secrets.token_hex(6)}")
    if job is None:
        _say(f"job {ref.job_id} of workflow {ref.workflow_id}")
    room = SpoolRoom(settings.data_dir / "spool", file_bytes=settings.spool_max_bytes)
    limits = runner.RunLimits(settings.max_line_bytes, room, settings.lease_seconds, deliver_seconds=deliver_timeout)
    with contextlib.ExitStack() as stack:
        return runner.run(
            command,
            partial(_ledger, settings, server, stack, workflow),
            ref,
            limits=limits,
            masks=masks,
            pty=pty,
            through=server,
        )


def _ledger(settings: Settings, server: str | None, stack: contextlib.ExitStack, workflow: str) -> "LogWriter":
    """What a runner of ``workflow`` publishes to until ``stack`` ends: the store, or the service at ``server``."""
    if server is not None:
        from chronoverse.runner.http_log_writer import HttpLogWriter

        token = _bearer(settings, server, workflow, "run", "logs:write")
        through = HttpLogWriter(server, token, durable=settings.durability != "acked")
        stack.callback(through.close)
        return through
    from chronoverse.store import Durability, Store

    url, sync = settings.redis_url, None
    if url is None:
        from chronoverse.embedded import server as embedded

        hold = stack.enter_context(embedded.lease_server(settings.data_dir))
        url, sync = hold.url, hold.sync
    store = Store(
        url,
        prefix=settings.key_prefix,
        lease_seconds=settings.lease_seconds,
        retention_seconds=settings.retention_seconds,
        durability=Durability(settings.durability),
        sync=sync,
    )
    stack.callback(store.close)
    return store


@commands.command()
@click.option("--deliver-timeout", type=duration, default="60s", show_default=True, help="Try for so long.")
@_server
@click.option("--as", "job", type=identifier, metavar="JOB", help="Publish them as this new job of their workflow.")
@click.option("--print", "only_print", is_flag=True, help="Only print the lines, and leave FILE as it is.")
@click.option("--raw", is_flag=True, help="With --print: leave control sequences in, only for output you trust.")
@click.argument("file", type=Path)
def deliver(file: Path, server: str | None, deliver_timeout: int, job: str | None, only_print: bool, raw: bool) -> int:
    """Deliver the lines that a runner left behind in FILE, and how its job ended.

    FILE is removed when the store has given all of its lines back.
    """
    if raw and not only_print:
        raise click.UsageError("--raw goes with --print")
    if only_print and (server or job):
        raise click.UsageError("--print excludes --server and --as")
    if only_print:
        _print_file(file, raw)
        return 0
    from chronoverse.runner.resend import resend_spool as deliver_file

    settings = Settings.from_env()
    with contextlib.ExitStack() as stack:
        done = deliver_file(
            file,
            partial(_ledger, settings, server, stack),
            _say,
            reader=partial(_reader, settings),
            job_id=job,
            lease_seconds=settings.lease_seconds,
            seconds=deliver_timeout,
            through=server,
        )
        return 0 if done else EXIT_CODES[errors.StoreUnavailable]


def _reader(settings: Settings, ledger: "LogWriter") -> "LineComparer":
    """Who reads back what was published to ``ledger``."""
    from chronoverse.archive.reader import ArchiveReader
    from chronoverse.runner.readback import reader_of
    from chronoverse.store import Store

    if isinstance(ledger, Store) and settings.archive_location is not None:
        return reader_of(ledger, ArchiveReader(upkeep.objects_of(settings), ledger.chunks))
    return reader_of(ledger)


def _print_file(file: Path, raw: bool) -> None:
    from chronoverse.cli.printer import Printer
    from chronoverse.runner.spool.spool import Spool

    spool = Spool.recover(file, keep_all=True)
    printer = Printer(sys.stdout.buffer, note=partial(click.echo, err=True), say=_say, raw=raw)
    printer.print(spool.lines())
    spool.preserve()
    if spool.dropped:
        _say(f"{spool.dropped} lines were dropped: there was no room to keep them")


@commands.command()
@click.argument("workflow", type=identifier)
@click.argument("job", type=identifier)
@click.option("-f", "--follow", is_flag=True, help="Go on until the job ends, and exit with its code.")
@click.option("--offset", type=_offset, help="Start after this line.")
@click.option("--tail", type=click.IntRange(0, 999_999_999_999_999), metavar="N", help="Start with the last N lines.")
@click.option("--stream", type=click.Choice(["stdout", "stderr"]), help="Only this stream's lines.")
@click.option("--wait", type=click.IntRange(0, _MAX_WAIT), metavar="SECONDS", help="With -f: the job may still come.")
@click.option("-t", "--timestamps", is_flag=True, help="Show when each line was written.")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="How lines are printed.")
@click.option("--search", metavar="Q", help="Only lines that contain Q, in any case of letters.")
@click.option("--regex", is_flag=True, help="Q is a regular expression, in RE2's syntax.")
@click.option(
    "--since", metavar="TIME", help="Only lines not before this time: ISO 8601, UTC unless it says otherwise."
)
@click.option("--until", metavar="TIME", help="... not after it.")
@click.option("--context", type=click.IntRange(0, 50), default=0, metavar="N", help="Also N lines before and after.")
@click.option("--raw", is_flag=True, help="Leave control sequences in: only for output you trust.")
def logs(workflow: str, job: str, follow: bool, **options: Any) -> int:
    """Print the log of JOB in WORKFLOW, or what is found in it: exits with 1 when that is nothing."""
    searching = {name: options.pop(name) for name in ("search", "regex", "since", "until", "context")}
    if options["offset"] is not None and options["tail"] is not None:
        raise click.UsageError("--offset and --tail exclude each other")
    if not follow and (options["wait"] or options["offset"] == "latest"):
        raise click.UsageError("--wait and --offset latest make sense with -f only")
    if searching["search"] is None and any(searching.values()):
        raise click.UsageError("--regex, --since, --until and --context go with --search")
    if searching["search"] is not None and (follow or options["tail"] is not None):
        raise click.UsageError("--search excludes --follow and --tail")
    from chronoverse.cli.printer import EXIT_NO_MATCH, Printer, exit_code, search_results, stored_lines

    ref, client = JobRef(workflow, job), _client(Settings.from_env(), workflow)
    look = {name: options[name] for name in ("timestamps", "output", "raw")}
    printer = Printer(sys.stdout.buffer, note=partial(click.echo, err=True), say=_say, **look)
    start = {name: options[name] for name in ("offset", "tail", "stream")}
    with contextlib.closing(client):
        if searching["search"] is not None:
            look_through = {"stream": options["stream"], "offset": options["offset"]}
            shown = search_results(
                client, ref, bar=sys.stderr.isatty() and not sys.stdout.isatty(), **look_through, **searching
            )
            printer.print(shown)
            return 0 if printer.lines else EXIT_NO_MATCH
        if not follow:
            printer.print(stored_lines(client, ref, **start))
            return 0
        state = printer.print(client.follow(ref, **start, wait=options["wait"] or 0), flush=True)
        return exit_code(state or client.job(ref))


@commands.command()
@click.argument("workflow", type=identifier)
@click.option("--status", type=click.Choice([status.value for status in Status]), help="Only jobs that stand so.")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="How jobs are printed.")
def jobs(workflow: str, status: str | None, output: str) -> None:
    """List the jobs of WORKFLOW, newest first."""
    from chronoverse.cli.printer import jobs_table, json_text

    with contextlib.closing(_client(Settings.from_env(), workflow)) as client:
        listed = client.jobs(workflow, status)
        for text in map(json_text, listed) if output == "json" else jobs_table(listed):
            click.echo(text)


def _client(settings: Settings, workflow: str) -> "Client":
    """A client that reads ``workflow``; beside an embedded server it makes its own tokens, and needs no settings."""
    from chronoverse.client.client import Client

    return Client(settings.url, _bearer(settings, settings.url, workflow, "logs", "logs:read"))


def _bearer(
    settings: Settings, url: str, workflow: str, subject: str, scope: str
) -> str | Callable[[], str | None] | None:
    """What is shown to the service at ``url``: the token that was given, or beside an embedded server our own.

    Our own is for ``workflow`` only. It is made for each connection, and only when the service of our data directory
    is what listens there: another user's program may listen on the port while the service does not.
    """
    host, port = urlsplit(url).hostname, urlsplit(url).port
    if settings.token is not None or not (settings.has_local_secret and host and is_loopback(host)):
        return settings.token
    from chronoverse.auth.tokens import local_secret, mint
    from chronoverse.embedded.listeners import is_service

    secret = local_secret(settings.data_dir)

    def make() -> str | None:
        if not is_service(settings.data_dir, host, port or _PORTS[urlsplit(url).scheme]):
            return None
        return mint(secret, subject, [scope], [workflow], _OWN_TOKEN_SECONDS, time.time())

    return make


commands.add_command(upkeep.archive)
commands.add_command(upkeep.token)
commands.add_command(upkeep.retention)


def _say(text: str) -> None:
    """To stderr, and marked as ours. Some of it is what the service has said."""
    click.echo(f"chronoverse: {plain_text(text)}", err=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``argv``, by default the program's own arguments, and returns the exit code."""
    try:
        with commands.make_context("chronoverse", list(sys.argv[1:] if argv is None else argv)) as context:
            code = commands.invoke(context)
            sys.stdout.flush()
            return code if isinstance(code, int) else 0
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as error:
        error.show()
        return EX_USAGE
    except errors.ChronoverseError as error:
        _say(str(error))
        return next((code for kind, code in EXIT_CODES.items() if isinstance(error, kind)), EX_SOFTWARE)
    except BrokenPipeError:
        # The reader has had enough. Nothing that is still buffered may fail again when Python flushes it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BY_SIGPIPE
    except (KeyboardInterrupt, click.Abort):
        return BY_SIGINT
