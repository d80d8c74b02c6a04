"""``chronoverse profile``: prints where the time of a job went."""

from collections.abc import Iterator
from typing import Any

import click

from chronoverse.cli import common, names
from chronoverse.cli.summary import numbered
from chronoverse.client.client import reading
from chronoverse.joblog.terminal import counted, plain_text


@click.command()
@names.job_arguments
@common.against_label_option
@common.output_option
def profile(workflow: str, job: str, against_label: list[str], output: str) -> None:
    """Print where JOB spent its time.

    Lists pauses that were longer than in the good runs before it, and the longest pauses. For a running job, also
    prints how long it has been silent, the usual pause there, and the time left, estimated from the good runs.
    """
    route = "/workflows/{}/jobs/{}/profile"
    with common.open_client(workflow, job) as client, common.status_line() as show:
        query: dict[str, Any] = {"seconds": 120, "against_label": against_label}
        found = client.read_complete(route, workflow, job, show=lambda found: show(_scanned(found)), **query)
    common.print_found(found, output, profile_text)


def _scanned(profile: dict[str, Any]) -> str:
    return f"scanned {counted(profile['scanned_to'])}"


def profile_text(profile: dict[str, Any]) -> Iterator[str]:
    """A job's profile as text. Raises :class:`ChronoverseError`."""
    with reading("profile"):
        job, compared_with, usual = profile["job"], profile["compared_with"], profile["usual"]
        yield plain_text(f"{job['id']} of {job['workflow_id']}: {job['status']}")
        runs = f" in {', '.join(map(str, compared_with))}" if compared_with else ""
        duration = "Time until the last line" if profile["running"] else "Duration"
        yield plain_text(f"{duration}: {common.took(profile['seconds'])}{common.usually(usual)}{runs}.")
        slower, pauses = profile["slower"], profile["pauses"]
        if compared_with is None:
            yield "No earlier job has COMPLETED: nothing to compare with."
        elif usual:
            yield ("Slower than in any of these runs:" if slower else "Nothing was slower than usual.")
            yield from (text for pause in slower for text in _pause_text(pause))
        # As on the page, only pauses of at least 1 % of the duration are shown.
        others = [pause for pause in pauses if pause not in slower and pause["seconds"] >= profile["seconds"] / 100]
        if others:
            yield "Other long pauses:" if slower else "The longest pauses:"
        elif not pauses:
            yield "No pauses."
        yield from (text for pause in others[:5] for text in _pause_text(pause))
        if running := profile["running"]:
            yield from _running_text(running)
    if profile.get("complete") is False:
        yield "Not all lines are scanned yet: repeat the command to continue."


def _pause_text(pause: dict[str, Any]) -> Iterator[str]:
    yield f"{common.took(pause['seconds'])}{common.usually(pause['usual'])}, between these lines:"
    yield from (numbered(pause[side]) for side in ("after", "before") if pause[side])


def _running_text(running: dict[str, Any]) -> Iterator[str]:
    if running["silent_seconds"] is not None:
        yield f"Silent for {common.took(running['silent_seconds'])}{common.usually(running['usual'])}."
    if left := running["seconds_left"]:
        yield f"Estimated time left: {common.took(left['least'])} to {common.took(left['most'])}."
    else:
        yield "Time left is unknown: fewer than three good runs have its last lines."
