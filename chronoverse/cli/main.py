"""The program's commands and exit codes. It exits with an error's code (sysexits.h), or with a job's."""

import atexit
import errno
import gc
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Final

import click

from chronoverse.errors import ChronoverseError

#: The commands in the order of ``--help``, each with its module (imported on use) and examples.
_GROUPS: Final[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
    "Run": {
        "run": ("run", "run --workflow shop-ci --job build-7 -- make test", "run --workflow nightly -- ./backup.sh"),
        "deliver": ("run", "deliver build-7-0a1b2c3d.sqlite", "deliver build-7-0a1b2c3d.sqlite --as build-7b"),
        "collect": (
            "collect",
            "collect kubernetes --node node-1 --state /var/lib/chronoverse",
            "collect kubernetes --node node-1 --state /var/lib/chronoverse --namespace ci --label team",
        ),
        "end": ("end", "end shop-ci build-7 --exit-code 1", "end shop-ci build-7 --status canceled"),
    },
    "Read": {
        "logs": ("logs", "logs -f shop-ci build-7 --tail 100", "logs -n shop-ci @latest --lines 210-220"),
        "jobs": ("listing", "jobs shop-ci --status failed --since 1d", "jobs shop-ci -n 20 -o name"),
        "workflows": ("listing", "workflows", "workflows --status failed -o name"),
        "search": ("search", "search shop-ci 'connection refused' --since 2d", "search shop-ci 'E[0-9]{4}' --regex"),
        "wait": ("wait", "wait shop-ci build-7 --for 'listening on' --timeout 2m", "wait shop-ci @latest"),
        "download": ("download", "download shop-ci build-7", "download shop-ci @failed build.jsonl --format jsonl"),
        "open": ("open", "open shop-ci build-7", "open shop-ci @failed"),
    },
    "Understand": {
        "summary": ("summary", "summary shop-ci @failed", "summary shop-ci build-7 --full"),
        "profile": ("profile", "profile shop-ci build-7", "profile shop-ci @latest -o json"),
        "seen": ("seen", "seen shop-ci build-7 812", "seen shop-ci @failed 812 --label branch=main"),
        "watches": ("watches", "watches shop-ci", "watches shop-ci -o json"),
        "watch": (
            "watches",
            "watch shop-ci main --on change --same branch --url https://hooks.example.com/T0",
            "watch shop-ci main --test",
        ),
        "mcp": ("mcp", "mcp", "mcp --max-wait 60"),
    },
    "Serve": {
        "serve": ("serve", "serve", "serve --bind 0.0.0.0:8000 --workers 2"),
        "archive": ("admin", "archive", "archive --once"),
        "notify": ("notify", "notify", "notify --metrics 127.0.0.1:8003"),
        "scans": ("serve", "scans"),
        "token": ("admin", "token --workflow shop-ci --ttl 8h", "token --workflow 'shop-*' --scope logs:read"),
    },
    "Operate": {
        "login": ("login", "login", "login --issuer https://id.example.com --client-id logs"),
        "logout": ("login", "logout", "CHRONOVERSE_URL=https://logs.example.com chronoverse logout"),
        "redact": (
            "remove",
            "redact shop-ci build-7 --search hunter2 --reason 'a password'",
            "redact shop-ci build-7 --lines 118-120",
        ),
        "delete": ("remove", "delete shop-ci build-7", "delete shop-ci --all"),
        "retention": ("admin", "retention shop-ci", "retention shop-ci 90d"),
        "limits": ("admin", "limits shop-ci", "limits shop-ci --job-bytes 1000000000"),
        "audit": ("admin", "audit --since 1d", "audit --since 2026-03-01T00:00Z --until 2026-03-02T00:00Z"),
        "conformance": (
            "conformance",
            "conformance -- ./runner {workflow} {job}",
            "conformance --only gap -- ./runner {workflow} {job} '--label={label}'",
        ),
        "completion": ("completion", "completion bash", "completion zsh"),
    },
}
_COMMANDS: Final = {name: found for commands in _GROUPS.values() for name, found in commands.items()}


def _module_of(name: str) -> str | None:
    module = _COMMANDS.get(name, ("",))[0]
    found = (f"chronoverse.{package}{module}" for package in ("cli.", "") if module)
    return next((each for each in found if find_spec(each)), None)


class _CommandGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        # The folder of an optional package, such as cli.mcp or collect, may be deleted.
        return list(filter(_module_of, _COMMANDS))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        known = self.list_commands(ctx)
        for title, group in _GROUPS.items():
            with formatter.section(title):
                names = [name for name in group if name in known]
                found = [(name, command) for name in names if (command := self.get_command(ctx, name))]
                formatter.write_dl([(name, each.get_short_help_str(62)) for name, each in found if not each.hidden])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if not (module := _module_of(cmd_name)):
            return None
        command: click.Command = getattr(importlib.import_module(module), cmd_name)
        examples = (
            example if example.startswith("CHRONOVERSE_") else f"chronoverse {example}"
            for example in _COMMANDS[cmd_name][1:]
        )
        command.epilog = "\n  ".join(["\b\nExamples:", *examples])
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        if command is not None and any("://" in each for each in rest):
            from chronoverse.cli.names import expand_link

            rest = expand_link(ctx, command, rest)
        return name, command, rest


def _print_version(context: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        from chronoverse.cli.version import build_version

        click.echo(f"chronoverse {build_version()}")
        context.exit()


@click.group(cls=_CommandGroup, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_print_version,
    help="Show the version and exit.",
)
@click.pass_context
def commands(context: click.Context) -> None:
    """Stream job logs: run a job, and watch it from anywhere.

    WORKFLOW and JOB are ids, or a link to the job's page instead of both. JOB can also be @latest, @failed or @good:
    the newest job, the newest FAILED job, or the newest COMPLETED job.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


# click suggests similar names from this mapping. The commands themselves are imported on use.
commands.commands = dict.fromkeys(_COMMANDS, commands)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command in ``argv`` (by default the program's arguments). Returns the exit code."""
    if argv is None:
        # Opens closed standard streams: otherwise the next file or socket would get their numbers.
        for name in ("stdin", "stdout", "stderr"):
            if getattr(sys, name) is None:
                setattr(sys, name, open(os.devnull, "r+"))  # noqa: SIM115
        # Prevents redis-py from importing OpenTelemetry's SDK, which takes a third of its import time.
        sys.modules.setdefault("opentelemetry.sdk.metrics", None)  # type: ignore[arg-type]
        # Skips the garbage collection at exit, which takes 10 ms. The kernel frees the memory anyway.
        atexit.register(gc.freeze)
    if instruction := os.environ.get("_CHRONOVERSE_COMPLETE"):
        from chronoverse.cli.completion import answer

        return answer(commands, instruction)
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
        from chronoverse.cli.common import print_message

        print_message(str(error))
        return error.exit_code
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        # Python flushes stdout at exit. With /dev/null, this cannot fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno == errno.EPIPE:
            return 141  # as shells report a program killed by SIGPIPE
        from chronoverse.cli.common import print_message

        print_message(f"the output cannot be written: {error.strerror}")
        return os.EX_CANTCREAT
    except (KeyboardInterrupt, click.Abort):
        return 130  # SIGINT
    except RuntimeError as error:
        # A wait fails if SIGINT arrives while its lock is free: https://github.com/python/cpython/issues/118433
        if isinstance(error.__context__, KeyboardInterrupt):
            return 130
        raise
