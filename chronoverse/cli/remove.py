"""``chronoverse redact`` and ``chronoverse delete``: redact lines, or delete jobs."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import click

from chronoverse.cli import common, names
from chronoverse.client.client import read_items
from chronoverse.errors import ChronoverseError, JobNotFound
from chronoverse.joblog.model import JobRef
from chronoverse.joblog.terminal import counted

if TYPE_CHECKING:
    from chronoverse.client.client import Client

_SCOPES = "logs:admin logs:read"


@click.command()
@names.job_arguments
@click.option(
    "--lines", type=common.line_range, metavar="N[-M]", help="Line range; with --search, only matching lines in it."
)
@common.search_option
@common.regex_option
@click.option("--reason", metavar="TEXT", help="Reason, stored and logged: must not contain the secret.")
@common.yes_option
def redact(
    workflow: str,
    job: str,
    lines: tuple[int, int | None] | None,
    search: str | None,
    regex: bool,
    reason: str | None,
    yes: bool,
) -> int:
    """Replace lines of JOB with [redacted], permanently.

    Requires a token with logs:admin. To see first what will be redacted:
    chronoverse logs WORKFLOW JOB --search Q
    """
    if regex and search is None:
        raise click.UsageError("--regex requires --search")
    if search is None and (lines is None or lines[1] is None):
        raise click.UsageError("pass --search, or --lines with an end")
    first, last = lines or (None, None)
    what = "lines" if lines is None else f"line {first}" if first == last else f"lines {first} to {last or 'the end'}"
    if search is not None:
        what += f" that match {search!r}"
    if not common.may_go_on(f"Redact {what} of {workflow}/{job}? This cannot be undone.", yes):
        return 1
    query = {"from": first, "to": last, "q": search, "regex": regex or None, "reason": reason}
    with common.open_client(workflow, job, _SCOPES) as client:
        count, pending = client.redact(JobRef(workflow, job), **query)
    click.echo(f"{counted(count)} redacted")
    if pending:
        common.print_message("a copy of the old text may still exist: repeat the command later")
        return os.EX_TEMPFAIL
    return 0


@click.command()
@partial(names.job_arguments, required=False)
@click.option("--all", "all_jobs", is_flag=True, help="All current jobs of WORKFLOW.")
@common.yes_option
def delete(workflow: str, job: str | None, all_jobs: bool, yes: bool) -> int:
    """Delete JOB and its log permanently.

    Requires a token with logs:admin. Jobs with a live runner are not deleted.
    """
    if all_jobs == (job is not None):
        raise click.UsageError("pass either JOB or --all")
    if job is not None:
        if not common.may_go_on(f"Delete {workflow}/{job} and its log? This cannot be undone.", yes):
            return 1
        with common.open_client(workflow, job, _SCOPES) as client:
            client.delete(JobRef(workflow, job))
        click.echo(f"{workflow}/{job} deleted")
        return 0
    with common.open_client(workflow, None, _SCOPES) as client:
        return _delete_all(client, workflow, yes)


def _delete_all(client: "Client", workflow: str, yes: bool) -> int:
    count, newest = 0, ""
    for page in _pages(client, workflow):
        count, newest = count + len(page), max([newest, *(job["created_at"] or "" for job in page)])
    if not count:
        raise JobNotFound("no such workflow")
    jobs = "the only job" if count == 1 else f"all {count:,} jobs"
    if not common.may_go_on(f"Delete {jobs} of {workflow}, with their logs? This cannot be undone.", yes):
        return 1
    deleted, kept = 0, 0
    # Deletes eight at once: each deletion takes up to a second, as the service waits for the store's disk.
    pool = ThreadPoolExecutor(8)
    try:
        with common.status_line() as show:
            for page in _pages(client, workflow):
                wanted = [JobRef(workflow, job["id"]) for job in page if (job["created_at"] or "") <= newest]
                for job, error in zip(wanted, pool.map(partial(_delete, client), wanted), strict=True):
                    if error is None:
                        deleted += 1
                    elif isinstance(error, JobNotFound):
                        count -= 1  # the job expired or was deleted meanwhile
                    else:
                        kept += 1
                        show("")
                        common.print_message(f"{workflow}/{job.job_id} not deleted: {error}")
                    show(f"deleted {deleted:,} of {count:,} jobs")
    finally:
        pool.shutdown(cancel_futures=True)
    click.echo(f"{counted(deleted, 'job', 'jobs')} of {workflow} deleted")
    return os.EX_TEMPFAIL if kept else 0


def _delete(client: "Client", job: JobRef) -> ChronoverseError | None:
    """Deletes ``job``. Returns the error if the job is already gone, or cannot be deleted; raises other errors."""
    try:
        client.delete(job)
    except ChronoverseError as error:
        if not isinstance(error, JobNotFound) and error.status != HTTPStatus.CONFLICT:
            raise
        return error
    return None


def _pages(client: "Client", workflow: str) -> Iterator[list[dict[str, Any]]]:
    for page in client.pages("/workflows/{}/jobs", workflow, limit=1_000):
        yield read_items(page, "jobs", dict)
