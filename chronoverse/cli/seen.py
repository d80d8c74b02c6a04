"""``chronoverse seen``: lists the runs of a workflow in which a line was seen before."""

from collections.abc import Iterator
from typing import Any

import click

from chronoverse.cli import common, names
from chronoverse.client.client import reading
from chronoverse.joblog.terminal import counted, plain_text


@click.command()
@names.job_arguments
@click.argument("line", type=common.Integer(1, 10**15 - 1), metavar="N")
@common.integer_option("How many ended jobs to search, backwards from JOB.", (1, 1_000), 200, "--jobs")
@common.jobs_label_option
@common.output_option
def seen(workflow: str, job: str, line: int, jobs: int, label: list[str], output: str) -> None:
    """List the runs that printed a line like line N of JOB.

    Numbers, times, hashes, temporary paths and the like are ignored in the comparison.
    """
    with common.open_client(workflow, job, of_line=True) as client, common.status_line() as show:
        found: dict[str, Any] = {}
        route, query = "/workflows/{}/jobs/{}/logs/{}/history", {"jobs": jobs, "label": label}
        for page in client.pages(route, workflow, job, str(line), **query):
            with reading("history"):
                found = _joined(found, page) if found else page
                show(f"scanned {sum(found['looked_at'].values()):,} jobs")
    common.print_found(found, output, _text)


def _joined(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    for name in ("looked_at", "seen"):
        first[name] = {key: value + second[name][key] for key, value in first[name].items()}
    return {
        **first,
        "first": second["first"] or first["first"],
        "last": first["last"] or second["last"],
        "jobs": (first["jobs"] + second["jobs"])[:20],
        "cursor": second["cursor"],
    }


def _text(found: dict[str, Any]) -> Iterator[str]:
    with reading("history"):
        total, missing = sum(found["seen"].values()), found["looked_at"]["without_shapes"]
        ends = ", ".join(f"{count} {status}" for status, count in found["seen"].items() if count)
        scanned = sum(found["looked_at"].values()) - missing
        looked_at = counted(scanned, "run", "runs")
        is_new = scanned > 1 and [run["id"] for run in found["jobs"]] == [found["id"]]
        before = f"not seen in the previous {'run' if scanned == 2 else f'{scanned - 1:,} runs'}"
        what = before if is_new else f"seen in {total} of {looked_at}: {ends}"
        yield plain_text(f"Line {found['sequence_num']} of {found['id']} was {what}.")
        if missing:
            yield f"{counted(missing, 'more run', 'more runs')} could not be read."
        if is_new:
            return
        if first := found["first"]:
            yield plain_text(f"First in {_run_text(first)}")
        for run in found["jobs"]:
            yield plain_text(f"  {_run_text(run)}")


def _run_text(run: dict[str, Any]) -> str:
    number = "" if run["sequence_num"] is None else f":{run['sequence_num']}"
    return f"{run['id']}{number}  {run['status']}  {run['started_at'] or ''}".rstrip()
