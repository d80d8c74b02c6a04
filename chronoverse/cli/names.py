"""Job arguments of commands: ids, page links, or names such as ``@latest``."""

import contextlib
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import click

from chronoverse.cli import common
from chronoverse.client.client import read_items
from chronoverse.errors import ChronoverseError, JobNotFound
from chronoverse.joblog.model import IDENTIFIER
from chronoverse.settings import Settings

_NEWEST: Final[Mapping[str, str | None]] = {"@latest": None, "@failed": "FAILED", "@good": "COMPLETED"}

#: A link to the page of a workflow or job, perhaps to lines of the job.
_PAGE: Final = re.compile(
    r"(?P<base>https?://[^?#\s]+?)/ui/workflows/(?P<workflow>[^/?#\s]+)(?:/jobs/(?P<job>[^/?#\s]+))?/?(?:\?[^#\s]*)?"
    r"(?:#L(?P<first>[0-9]{1,15})(?:-L?(?P<last>[0-9]{1,15}))?)?"
)


def expand_link(context: click.Context, command: click.Command, args: list[str]) -> list[str]:
    """Replaces the first page link in ``args`` with its ids, and stores its service in ``context``.

    Line numbers in the link become ``--lines``, or the argument ``line``, if the command has one of them.
    """
    takes_value = {name for each in command.params if not getattr(each, "is_flag", True) for name in each.opts}
    names = [each.name for each in command.params if isinstance(each, click.Argument)]
    options = {name for each in command.params for name in each.opts}
    for index, text in enumerate(args if names[:1] == ["workflow"] else ()):
        if text == "--":
            break
        link = _PAGE.fullmatch(text)
        if link is None or (index and args[index - 1] in takes_value):
            continue
        context.meta[common.LINKED_SERVICE], workflow, job, first, last = link.groups()
        ids = [workflow]
        if job is not None and "job" in names:
            ids.append(job)
            if first is not None and "line" in names:
                ids.append(first)
            elif first is not None and "--lines" in options and not any(each.startswith("--lines") for each in args):
                ids += ["--lines", f"{first}-{last or first}"]
        return [*args[:index], *ids, *args[index + 1 :]]
    return args


def job_arguments(command: Callable[..., Any], *, required: bool = True) -> Callable[..., Any]:
    """The arguments WORKFLOW and JOB. JOB may also be one of :data:`_NEWEST`."""
    job = click.argument("job", type=_job, required=required, callback=_find_newest, shell_complete=_complete_job)
    return workflow_argument(job(command))


def _job(text: str) -> str:
    return text if text in _NEWEST else common.identifier(text)


def _find_newest(context: click.Context, _parameter: click.Parameter, job: str | None) -> str | None:
    """Resolves a name in :data:`_NEWEST` to a job id. Returns other ids unchanged. Raises :class:`JobNotFound`."""
    if job is None or job not in _NEWEST or context.resilient_parsing:
        return job
    workflow, status = context.params["workflow"], _NEWEST[job]
    with common.open_client(workflow) as client:
        for page in client.pages("/workflows/{}/jobs", workflow, limit=1, status=status):
            for job_id in read_items(page, "jobs", _id):
                return job_id
    raise JobNotFound(f"no {status} job in {workflow}" if status else f"no job in {workflow}")


def _complete_workflow(_context: click.Context, _parameter: click.Parameter, start: str) -> list[str]:
    return _ids("*", "/workflows", "workflows", start)


def _complete_job(context: click.Context, _parameter: click.Parameter, start: str) -> list[str]:
    if start.startswith("@"):
        return [name for name in _NEWEST if name.startswith(start)]
    workflow = context.params["workflow"]
    return _ids(workflow, "/workflows/{}/jobs", "jobs", start, workflow)


def _ids(allowed: str, route: str, name: str, start: str, *path: str) -> list[str]:
    """The newest ids that begin with ``start``, for shell completion. Empty if the service does not answer."""
    try:
        with contextlib.closing(common.make_client(Settings.from_env(), allowed, max_attempts=1)) as client:
            found = client.read(route, *path, limit=1_000)
        return [each for each in read_items(found, name, _id) if each.startswith(start)]
    except ChronoverseError:
        return []


def _id(item: dict[str, Any]) -> str:
    """A job's or workflow's id from the service. Raises ValueError if it is invalid, as it could control a terminal."""
    if not IDENTIFIER.fullmatch(item["id"]):
        raise ValueError
    return str(item["id"])


workflow_argument = click.argument("workflow", type=common.identifier, shell_complete=_complete_workflow)
