"""``chronoverse search``: searches all jobs of a workflow, and prints matches as grep does."""

import sys
from typing import Any

import click

from chronoverse.cli import common, names
from chronoverse.client.follower import read_line
from chronoverse.joblog.terminal import LineRenderer, plain_text


@click.command()
@names.workflow_argument
@click.argument("text")
@click.option("--regex", is_flag=True, help="Treat TEXT as an RE2 regular expression.")
@common.stream_option
@common.status_option("Only jobs with this status.")
@common.jobs_label_option
@common.time_option("--since", "Jobs started since this time or age, such as 5m or 2d.")
@common.time_option("--until", "Jobs started at or before this time.")
@common.integer_option("Maximum lines per job.", (1, 100), 100, "-m", "--max-count")  # the service allows no more
@common.list_output_option
@common.color_option
@common.raw_option
def search(workflow: str, text: str, max_count: int, output: str, **filters: Any) -> int:
    """Search the logs of all jobs of WORKFLOW for TEXT.

    Prints matching lines as JOB:NUMBER:line, newest job first. Exits as grep does: 0 if a line matches, 1 if none does,
    2 if a job could not be searched.
    """
    from chronoverse.client.client import read_items

    printing = {"colour": common.keeps_colors(filters.pop("color")), "raw": filters.pop("raw")}
    query = {"q": text, "per_job": max_count, **filters}
    counts: dict[str, int] = {}
    failed = False

    def print_job(job: dict[str, Any]) -> None:
        """Prints matches in a job. Reports on stderr if there are more. Called again for further matches."""
        nonlocal failed
        job_id, lines = plain_text(str(job["id"])), read_items(job, "logs", read_line)
        if output == "name" and lines and job_id not in counts:
            click.echo(job_id)
        renderer = LineRenderer(**printing)
        for line in lines if output != "name" else ():
            shown = f"{job_id}:{line.sequence_num}:{renderer.render(line)}{renderer.close_line()}"
            if output != "text":
                shown = common.json_text({"id": job_id, **line.to_json()}) + "\n"
            sys.stdout.buffer.write(shown.encode("utf-8", "replace"))
        sys.stdout.flush()
        counts[job_id] = counts.get(job_id, 0) + len(lines)
        if job.get("error"):
            failed = True
            common.print_message(f"{job_id}: {job['error']}")
        elif job["more"] and counts[job_id] >= max_count:
            common.print_message(f"{job_id}: more than {max_count} matches")

    with common.open_client(workflow) as client, common.status_line() as show:
        for page in client.pages("/workflows/{}/logs/search", workflow, **query):
            show("")
            read_items(page, "jobs", print_job)
            if "searched_to" in page:
                show(f"searched up to job {page['searched_to']}")
        if not counts:
            common.require_jobs(client, workflow)
    return 2 if failed else 0 if counts else 1
