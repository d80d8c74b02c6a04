"""Suggests ids for a job or workflow that was not found."""

from collections.abc import Iterable
from difflib import SequenceMatcher
from operator import itemgetter

from chronoverse.client.client import Client, read_items
from chronoverse.client.service_connection import path_hint
from chronoverse.errors import ChronoverseError, JobNotFound


def near_ids(wanted: str, ids: Iterable[str]) -> list[str]:
    """Up to three of ``ids`` similar to ``wanted``, most similar first; ties keep their order.

    >>> near_ids("buidl-105", ["test-7", "build-105"])
    ['build-105']
    """

    near = []
    for each in ids:
        one, other = sorted((wanted.lower(), each.lower()), key=len)
        nearness = SequenceMatcher(None, one, other).ratio()
        if each != wanted and (nearness >= 0.6 or (len(one) > 2 and one in other)):
            near.append((nearness, each))
    return [each for _, each in sorted(near, key=itemgetter(0), reverse=True)][:3]


def explain_not_found(client: Client, workflow_id: str, job_id: str | None = None, *, of_line: bool = False) -> str:
    """A sentence about what was not found, with similar ids among the newest 200 that the token can read. Never raises.

    ``of_line``: the request was for a line of the job.
    """
    jobs = _ids(client, "jobs", "/workflows/{}/jobs", workflow_id)
    if job_id in (jobs or ()):
        return f"{job_id} of {workflow_id} {'has no such line' if of_line else 'has only just appeared: try again'}"
    if job_id is not None and jobs:
        text, near = f"no job {job_id} in {workflow_id}", near_ids(job_id, jobs)
    elif jobs is None:
        return f"{workflow_id if job_id is None else f'{workflow_id}/{job_id}'}: not found, or no access"
    else:
        text = f"workflow {workflow_id}: not found, or no access"
        near = near_ids(workflow_id, _ids(client, "workflows", "/workflows") or ())
    *others, last = near or [""]
    choice = f"{', '.join(others)} or {last}" if others else last
    return f"{text}: did you mean {choice}?" if near else f"{text}{'' if jobs else path_hint(client.url)}"


def _ids(client: Client, key: str, route: str, *ids: str) -> list[str] | None:
    try:
        return read_items(client.read(route, *ids, limit=200), key, lambda item: str(item["id"]))
    except JobNotFound:
        return []
    except ChronoverseError:
        return None
