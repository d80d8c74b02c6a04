"""``chronoverse wait``: waits for a line, or for the end of a job."""

import time
from typing import Any

import click

from chronoverse.cli import common, names
from chronoverse.cli.logs import exit_code, print_log
from chronoverse.client.client import reading
from chronoverse.client.follower import JobState, read_line
from chronoverse.errors import JobNotFound
from chronoverse.joblog.model import MAX_NUMBER, Gap, JobRef
from chronoverse.joblog.terminal import LineRenderer


@click.command()
@names.job_arguments
@click.option("--for", "q", metavar="TEXT", help="Wait for a line that contains TEXT, case-insensitive.")
@click.option("--regex", is_flag=True, help="Treat TEXT as an RE2 regular expression.")
@common.stream_option
@click.option("--offset", type=common.Integer(0, MAX_NUMBER), metavar="N", help="Only lines after line N.")
@click.option(
    "--timeout", type=common.duration, metavar="TIME", help="How long to wait, such as 10m. Default: no limit."
)
@common.output_option
def wait(workflow: str, job: str, output: str, timeout: int | None, **query: Any) -> int:
    """Wait until JOB prints a line, or ends.

    With --for, prints the line and exits with 0, or with 1 if the job ends without it. Otherwise exits with the job's
    code. Exits with 124 at the timeout, even if JOB has not appeared.
    """
    if query["q"] is None and (query["regex"] or query["stream"] or query["offset"] is not None):
        raise click.UsageError("--regex, --stream and --offset require --for")

    began = time.monotonic()
    try:
        with common.open_client(workflow, job) as client:
            answer = client.wait(JobRef(workflow, job), seconds=timeout, **query)
    except JobNotFound as missing:
        if timeout is None or time.monotonic() < began + timeout:  # the job was deleted, so the wait ended early
            raise
        return _time_out(str(missing))
    with reading("answer"):
        outcome, line, state = answer["outcome"], answer["log"], JobState.from_json(answer["job"])
        gaps = [Gap(gap["from"], gap["to"], str(gap["reason"])) for gap in answer.get("gaps", [])]
        lines = [] if line is None else [read_line(line)]
    print_log([*gaps, *lines], LineRenderer(colour=common.keeps_colors("auto")), output=output)
    if outcome == "timeout":
        return _time_out(f"the job is {state.status}")
    if query["q"] is not None:
        if line is None:
            common.print_message(f"the job ended without a match: {state.status}")
        return 0 if line is not None else 1
    return exit_code(state)


def _time_out(why: str) -> int:
    common.print_message(f"timed out: {why}")
    return 124  # as ``timeout`` exits
