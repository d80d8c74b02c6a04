"""Options that several commands have."""

import click

from chronoverse.joblog.model import Status

output_option = click.option(
    "-o", "--output", type=click.Choice(["text", "json"]), default="text", help="How it is printed."
)
list_output_option = click.option(
    "-o",
    "--output",
    type=click.Choice(["text", "json", "jsonl", "name"]),
    default="text",
    help="How it is printed. json and jsonl: one object a line. name: only the ids.",
)
regex_option = click.option("--regex", is_flag=True, help="Q is a regular expression, in RE2's syntax.")
search_option = click.option("--search", metavar="Q", help="Only lines that contain Q, in any case of letters.")
status_option = click.option(
    "--status",
    type=click.Choice(list(map(str, Status)), case_sensitive=False),
    help="Only jobs that stand so.",
)
stream_option = click.option("--stream", type=click.Choice(["stdout", "stderr"]), help="Only this stream's lines.")
