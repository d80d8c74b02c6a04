"""``chronoverse watches`` and ``chronoverse watch``: webhooks about a workflow's jobs."""

import contextlib
import re
import time
from collections.abc import Iterator
from typing import Any, Final

import click

from chronoverse import errors
from chronoverse.cli import common, names
from chronoverse.client.client import read_items, reading
from chronoverse.joblog.terminal import plain_text

_ROUTE: Final = "/workflows/{}/watches"
_OUTCOME: Final = ("delivered_at", "failing_since", "error")


@click.command()
@names.workflow_argument
@common.list_output_option
def watches(workflow: str, output: str) -> None:
    """List the watches of WORKFLOW and their deliveries.

    Requires a token with logs:admin.
    """
    show = common.item_text(output, _text)
    with common.open_client(workflow, scope="logs:admin") as client:
        for each in read_items(client.read(_ROUTE, workflow), "watches", dict):
            click.echo(show(each))


@contextlib.contextmanager
def _naming(name: str, workflow: str) -> Iterator[None]:
    try:
        yield
    except errors.JobNotFound as error:
        raise errors.JobNotFound(f"watch {name} of {workflow}: not found, or no access") from error
    except errors.BadRequest as error:
        # Names the option instead of the body's member.
        named = re.sub(r"\b(status|label|same|seconds|url|secret): ", r"--\1: ", str(error))
        raise errors.BadRequest(named.replace("--seconds", "--for")) from error


def _text(watch: dict[str, Any]) -> str:
    with reading("watch"):
        labels = ",".join(f"{key}={value}" for key, value in watch["label"].items())
        seconds = f"{watch['seconds']}s" if watch["seconds"] else ""
        same = f"same {','.join(watch['same'])}" if watch["same"] else ""
        what = " ".join(filter(None, [watch["on"], *watch["status"], seconds, labels, same]))
        counts = f"{watch['waiting']} waiting, {watch['dropped']} dropped"
        waiting = counts if watch["waiting"] or watch["dropped"] else ""
        return "\t".join(filter(None, (watch["id"], what, watch["url"], watch["state"], waiting, watch["error"])))


@click.command()
@names.workflow_argument
@click.argument("name", type=common.identifier)
@click.option("--on", type=click.Choice(["end", "change", "silent"]), help="Event to send.")
@click.option("--url", help="Webhook URL.")
@click.option(
    "--status",
    multiple=True,
    type=click.Choice(["COMPLETED", "FAILED", "CANCELED", "LOST"], case_sensitive=False),
    help="End status to send. Repeatable. Default: failed and lost; with --on change also completed.",
)
@common.jobs_label_option
@click.option(
    "--same",
    multiple=True,
    metavar="KEY",
    help="With --on change: compare jobs with the same value of this label. Repeatable.",
)
@click.option("--for", "seconds", type=common.duration, metavar="TIME", help="With --on silent: time without a line.")
@click.option("--secret", metavar="whsec_…", help="Secret that signs messages. Generated and printed if omitted.")
@click.option("--test", is_flag=True, help="Send a message now, and wait until it is delivered.")
@click.option("--delete", is_flag=True, help="Delete the watch.")
def watch(
    workflow: str, name: str, test: bool, delete: bool, status: tuple[str, ...], label: list[str], **settings: Any
) -> int:
    """Create, test or delete a webhook about jobs of WORKFLOW.

    Requires a token with logs:admin, and the webhook's host in CHRONOVERSE_WEBHOOK_HOSTS of the service.
    """
    is_new = settings["on"] is not None
    if is_new != (settings["url"] is not None) or is_new + test + delete != 1:
        raise click.UsageError("pass --on and --url, --test, or --delete")
    route = f"{_ROUTE}/{{}}"
    with common.open_client(workflow, scope="logs:admin") as client, _naming(name, workflow):
        if delete:
            client.send("DELETE", route, workflow, name)
            click.echo(f"watch {name} of {workflow} deleted")
            return 0
        if not test:
            settings |= {"status": status or None, "label": dict(each.split("=", 1) for each in label)}
            made = client.send("PUT", route, workflow, name, body=settings)
            if "secret" in made:
                click.echo(plain_text(f"secret, printed once: {made['secret']}"), err=True)
            click.echo(plain_text(_text(made)))
            return 0
        found = before = client.send("POST", f"{route}/test", workflow, name)
        deadline = time.monotonic() + 20
        with common.status_line() as show:
            while not any(found[name] != before[name] for name in _OUTCOME) and time.monotonic() < deadline:
                show("waiting for the delivery")
                time.sleep(0.25)
                found = client.read(route, workflow, name)
        if found["delivered_at"] != before["delivered_at"]:
            click.echo("delivered")
            return 0
        common.print_message(found["error"] or "not delivered within 20 s: is `chronoverse notify` running?")
        return 1
