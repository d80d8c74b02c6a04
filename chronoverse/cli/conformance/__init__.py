"""``chronoverse conformance``: tests a runner in any language against the publishing protocol.

cases    the input, faults and expected log of each case
trial    runs one case, and reads its log from the service
proxy    a proxy before the service, which loses, repeats and refuses requests
service  a temporary service for the tests

``docs/conformance.md`` describes the runner's arguments and environment.
"""

import contextlib
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import click

from chronoverse.cli import common
from chronoverse.joblog.terminal import counted, plain_text

if TYPE_CHECKING:
    from chronoverse.cli.conformance.service import Target
    from chronoverse.cli.conformance.trial import Case, Result


@contextlib.contextmanager
def results_of(cases: Sequence["Case"], command: Sequence[str], target: "Target") -> Iterator[Iterator["Result"]]:
    """Runs the cases, and yields their results, in order. Cancels the rest when the ``with`` block ends."""
    from chronoverse.cli.conformance.trial import try_case

    # Eight at once, because cases spend most of their time waiting.
    threads, stop = ThreadPoolExecutor(8), threading.Event()
    try:
        yield threads.map(partial(try_case, command=command, target=target, stop=stop), cases)
    finally:
        stop.set()
        threads.shutdown(cancel_futures=True)


def _known(context: click.Context, option: click.Parameter, names: tuple[str, ...]) -> tuple[str, ...]:
    from chronoverse.cli.conformance.cases import CASES

    if unknown := set(names) - {case.name for case in CASES}:
        raise click.BadParameter(f"unknown case {sorted(unknown)[0]!r}")
    return names


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("--only", multiple=True, metavar="CASE", callback=_known, help="Run this case only. Repeatable.")
@click.option(
    "--skip",
    multiple=True,
    metavar="CASE",
    callback=_known,
    help="Skip this case, which the runner does not support. Repeatable.",
)
@common.output_option
@click.argument("command", metavar="-- CMD...", nargs=-1, required=True, type=click.UNPROCESSED)
def conformance(only: tuple[str, ...], skip: tuple[str, ...], output: str, command: tuple[str, ...]) -> int:
    """Test a runner, in any language.

    Starts a temporary service and runs CMD once per case, with the command to publish appended. {workflow} and {job} in
    CMD's arguments are replaced by ids; an argument with {label} is repeated for each KEY=VALUE. CMD finds the service
    in CHRONOVERSE_URL and CHRONOVERSE_TOKEN. Exits with 0 if all cases hold, else with 1.
    """
    from chronoverse.cli.conformance.cases import CASES
    from chronoverse.cli.conformance.service import running_service

    if not any("{job}" in argument for argument in command):
        raise click.UsageError("CMD needs {workflow} and {job} in its arguments")
    if not shutil.which(command[0]):
        raise click.UsageError(f"program not found: {command[0]!r}")
    chosen = [case for case in CASES if not only or case.name in only]
    tried = [case for case in chosen if case.name not in skip]
    failed = 0
    # Exit normally, or the service would outlive this process.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with running_service() as target, results_of(tried, command, target) as results:
        for case in chosen:
            result = next(results) if case in tried else None
            failed += bool(result and result.problems)
            click.echo(_text(case.name, case.holds, result) if output == "text" else _json(case.name, result))
    if output == "text":
        held = counted(len(tried) - failed, "case holds", "cases hold")
        click.echo(f"{held}, {counted(failed, 'does not', 'do not')}, {len(chosen) - len(tried)} skipped")
    return 1 if failed else 0


def _text(name: str, holds: str, result: "Result | None") -> str:
    outcome = "skipped" if result is None else "FAILS" if result.problems else "holds"
    rows = [f"{outcome:8} {name:20} {holds}"]
    if result and result.problems:
        rows += [f"         {problem}" for problem in result.problems]
        rows += [f"         stderr: {line}" for line in result.stderr.splitlines()[-2:]]
    return "\n".join(map(plain_text, rows))


def _json(name: str, result: "Result | None") -> str:
    outcome = "skipped" if result is None else "fails" if result.problems else "holds"
    found = {"seconds": round(result.seconds, 1), "problems": result.problems} if result else {}
    said = {"stderr": result.stderr} if result and result.problems else {}
    return common.json_text({"case": name, "outcome": outcome, **found, **said})
