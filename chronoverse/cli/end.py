"""``chronoverse end``: ends a job that no runner holds."""

import click

from chronoverse.cli import common, names
from chronoverse.client.client import reading
from chronoverse.joblog.model import JobRef, Status
from chronoverse.joblog.terminal import plain_text


@click.command()
@names.job_arguments
@click.option("--exit-code", type=int, metavar="N", help="COMPLETED if 0, else FAILED.")
@common.status_option("Status, if there is no exit code.", [each for each in Status if each.terminal])
def end(workflow: str, job: str, exit_code: int | None, status: str | None) -> int:
    """End a job that has no runner.

    For jobs written with XADD or as log records, and jobs that wait for a runner. Requires a token with logs:write.
    Ending a job again with the same result has no effect.
    """
    if (exit_code is None) == (status is None):
        raise click.UsageError("pass either --exit-code or --status")
    status = status or (Status.FAILED if exit_code else Status.COMPLETED)
    with common.open_client(workflow, job, "logs:write logs:read") as client:
        ended = client.end(JobRef(workflow, job), status, exit_code)
    with reading("job"):
        click.echo(plain_text(f"{workflow}/{job} {ended['status']}"))
    return 0
