"""``chronoverse open``: shows a page in the browser."""

import os
import sys
from functools import partial

import click

from chronoverse.cli import common, names


@click.command()
@partial(names.job_arguments, required=False)
def open(workflow: str, job: str | None) -> None:
    """Open the page of JOB or WORKFLOW in a browser.

    Also prints its link.
    """
    url = common.page_url(common.read_settings(), workflow, job)
    click.echo(url)
    has_browser = sys.platform == "darwin" or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")))
    if sys.stdout.isatty() and has_browser:
        click.launch(url)
