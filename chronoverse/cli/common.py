"""Shared by commands: values on the command line, options, messages, access to a store or a service."""

import contextlib
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import urlsplit

import click

from chronoverse import errors
from chronoverse.joblog.labels import MAX_LABELS, parse_choice, parse_label
from chronoverse.joblog.model import IDENTIFIER, STREAMS, Status, iso_timestamp, parse_number, read_time
from chronoverse.joblog.terminal import plain_text
from chronoverse.settings import Settings, no_color, unknown_names
from chronoverse.settings.parse import is_loopback
from chronoverse.settings.parse import service_url as parse_service_url

if TYPE_CHECKING:
    from chronoverse.archive.object_store import ObjectStore
    from chronoverse.client.client import Client
    from chronoverse.store import Store

_Value = TypeVar("_Value")

#: The key in click's ``Context.meta`` for the service's URL, taken from a page link.
LINKED_SERVICE: Final = "chronoverse.linked_service"


def identifier(text: str) -> str:
    if not IDENTIFIER.fullmatch(text):
        raise click.BadParameter("expected 1 to 128 of A-Z a-z 0-9 . _ - beginning with a letter or digit")
    return text


def duration(text: str) -> int:
    """Parses a duration, such as ``90s`` or ``1h30m``. Returns seconds."""
    is_duration = re.fullmatch("(?:[0-9]{1,9}[smhd]){1,4}|[0-9]{1,9}", text)
    parts = re.findall("([0-9]+)([smhd]?)", text) if is_duration else []
    units = {"": 1, "s": 1, "m": 60, "h": 3_600, "d": 86_400}
    seconds = sum(int(number) * units[unit] for number, unit in parts)
    if not 0 < seconds <= 315_360_000:
        raise click.BadParameter(f"{text!r}: expected a duration such as 90s, 1h, 1h30m or 7d, up to ten years")
    return seconds


def moment(text: str) -> str:
    """Parses an ISO 8601 time, or an age such as ``5m``. Returns the time in the format of :func:`read_time`."""
    if re.fullmatch("(?:[0-9]+[smhd])+", text):
        return iso_timestamp(time.time() - duration(text))
    found = read_time(text)
    if found is None:
        raise click.BadParameter(
            f"{text!r}: expected ISO 8601, such as 2026-03-03T10:00Z, or an age, such as 5m or 1h30m"
        )
    return found


def checked(parse: Callable[[str], _Value]) -> Callable[[str], _Value]:
    """Wraps ``parse`` for click, so that users see the text of its ValueError."""

    def read(text: str) -> _Value:
        try:
            return parse(text)
        except ValueError as error:
            raise click.BadParameter(str(error)) from error

    return read


label = checked(parse_label)
service_url = checked(parse_service_url)


def label_option(what: str, name: str = "--label", parse: Callable[[str], Any] = parse_label) -> Callable[[Any], Any]:
    """A repeatable option for labels, with the help text ``what``. Its value is a list of KEY=VALUE."""

    def texts(context: click.Context, option: click.Parameter, pairs: tuple[tuple[str, str], ...]) -> list[str]:
        if len(pairs) > MAX_LABELS:
            raise click.BadParameter(f"at most {MAX_LABELS}")
        return ["=".join(pair) or "*" for pair in pairs]

    return click.option(name, type=checked(parse), multiple=True, metavar="KEY=VALUE", help=what, callback=texts)


def output_option_of(formats: Iterable[str], what: str) -> Callable[[Any], Any]:
    """The option ``--output``, one of ``formats`` (text by default), with the help text ``what``."""
    return click.option("-o", "--output", type=click.Choice([*formats]), default="text", help=what)


def time_option(name: str, what: str) -> Callable[[Any], Any]:
    """An option for a time or an age (:func:`moment`), with the help text ``what``."""
    return click.option(name, type=moment, metavar="TIME", help=what)


class Integer(click.IntRange):
    """An integer within bounds. Rejects other text as an invalid integer."""

    name = "integer"


def integer_option(
    what: str, bounds: tuple[int, int], default: int, *names: str, metavar: str | None = None
) -> Callable[[Any], Any]:
    """An option for an integer within ``bounds``. Its help text is ``what``, followed by the default."""
    type = Integer(*bounds)
    return click.option(*names, type=type, default=default, show_default=True, metavar=metavar, help=what)


_OUTPUT: Final = "Output format; json and jsonl print one object per line"
output_option = output_option_of(("text", "json", "jsonl"), f"{_OUTPUT}.")
list_output_option = output_option_of(("text", "json", "jsonl", "name"), f"{_OUTPUT}, name prints ids.")
metrics_option = click.option(
    "--metrics", "address", metavar="HOST:PORT", help="Serve Prometheus metrics at this address."
)
while_stdin_option = click.option("--while-stdin", is_flag=True, hidden=True, help="Stop at end of standard input.")
jobs_label_option = label_option("Jobs with this label. Repeatable; all must match.")
against_label_option = label_option(
    "Compare with good runs that have this label; *: all good runs. Repeatable; all must match. Default: those of the"
    " job's branch, else of main.",
    "--against-label",
    parse_choice,
)
color_option = click.option(
    "--color",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    help="Keep the log's colors. auto: on a terminal, unless NO_COLOR is set.",
)
yes_option = click.option("-y", "--yes", is_flag=True, help="Skip the confirmation.")
raw_option = click.option("--raw", is_flag=True, help="Keep control sequences. Use only for trusted output.")
regex_option = click.option("--regex", is_flag=True, help="Treat Q as an RE2 regular expression.")
search_option = click.option("--search", metavar="Q", help="Lines that contain Q, case-insensitive.")
stream_option = click.option("--stream", type=click.Choice(STREAMS), help="Lines of this stream.")


def status_option(what: str, statuses: Iterable[Status] = Status) -> Callable[[Any], Any]:
    """The option ``--status``, one of ``statuses``, with the help text ``what``."""
    return click.option("--status", type=click.Choice(list(map(str, statuses)), case_sensitive=False), help=what)


def line_range(text: str) -> tuple[int, int | None]:
    found = re.fullmatch("([0-9]+)(-)?([0-9]+)?", text)
    first = parse_number(found[1]) if found else None
    last = parse_number(found[3]) if found and found[3] else None
    if not found or not first or (found[3] and not (found[2] and last)) or (last and last < first):
        raise click.BadParameter(f"{text!r}: expected a line or a range, such as 5, 5-9 or 5-")
    return first, last if found[2] else first


def keeps_colors(choice: str) -> bool:
    """Whether to print the log's colors to stdout. ``choice`` is the value of ``--color``."""
    return choice == "always" or (choice == "auto" and sys.stdout.isatty() and not no_color())


def read_settings() -> Settings:
    """The settings from the environment. Warns about unknown names on stderr. Raises :class:`SettingsError`."""
    for sentence in unknown_names():
        print_message(sentence)
    return Settings.from_env()


def print_message(text: str) -> None:
    """Prints a message to stderr. Removes control sequences, since ``text`` may quote the service."""
    click.echo(f"chronoverse: {plain_text(text)}", err=True)


def may_go_on(question: str, yes: bool) -> bool:
    """Whether the user agrees, with ``yes`` (``--yes``) or at the prompt. Raises UsageError if there is no terminal."""
    if yes:
        return True
    if not sys.stdin.isatty():
        raise click.UsageError("cannot ask for confirmation, not a terminal: pass --yes")
    return click.confirm(question, err=True)


@contextlib.contextmanager
def status_line() -> Iterator[Callable[[str], None]]:
    """Yields a function that shows progress on a terminal's stderr. An empty text clears the line."""
    is_terminal = sys.stderr.isatty()
    shown_at = 0.0

    def show(text: str) -> None:
        nonlocal shown_at
        if is_terminal and (time.monotonic() > shown_at + 0.1 if text else shown_at):
            shown_at = time.monotonic() if text else 0.0
            click.echo(f"\r\x1b[K{plain_text(text)}", err=True, nl=False)

    try:
        yield show
    finally:
        show("")


def json_text(value: dict[str, Any]) -> str:
    """``value`` as JSON in ASCII, so that nothing in it can control a terminal."""
    import json  # takes 10 ms, and few commands need it

    return json.dumps(value, separators=(",", ":"))


def item_text(output: str, text: Callable[[dict[str, Any]], str]) -> Callable[[dict[str, Any]], str]:
    """The function that formats a list item for the value of ``--output``."""
    if output == "name":
        return lambda item: plain_text(str(item["id"]))
    return json_text if output != "text" else lambda item: plain_text(text(item))


def print_found(found: dict[str, Any], output: str, text: Callable[[dict[str, Any]], Iterable[str]]) -> None:
    """Prints one object in the format ``output``. ``text`` formats it as lines of text."""
    for line in text(found) if output == "text" else [json_text(found)]:
        click.echo(line)


def spoken(seconds: float) -> str:
    """Formats a duration as commands accept it, with its two largest units.

    >>> spoken(5_400), spoken(7_776_000), spoken(0.4)
    ('1h30m', '90d', '0s')
    """
    left, words = int(seconds), list[str]()
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)):
        number, left = divmod(left, size)
        if number or (unit == "s" and not words):
            words.append(f"{number}{unit}")
        elif words:
            break
    return "".join(words[:2])


def took(seconds: float) -> str:
    """Formats a measured time, with three digits.

    >>> took(3.154), took(0.1), took(754.2)
    ('3.15 s', '0.1 s', '12m34s')
    """
    return f"{seconds:.3g} s" if seconds < 60 else spoken(seconds)


def usually(usual: dict[str, float] | None) -> str:
    """Formats the usual time, to append to a measured time. Empty if unknown.

    >>> usually({"least": 0.1, "most": 0.2}), usually({"least": 2, "most": 2}), usually(None)
    (', usually 0.1 s to 0.2 s', ', usually 2 s', '')
    """
    if usual is None:
        return ""
    least, most = took(usual["least"]), took(usual["most"])
    return f", usually {least if least == most else f'{least} to {most}'}"


def meant_service(settings: Settings, server: str | None = None) -> str | None:
    """The URL of the service that a command uses, or None if it uses the store of ``settings``.

    Precedence: ``server`` (``--server``), CHRONOVERSE_REDIS_URL, CHRONOVERSE_URL, the embedded store.
    """
    return server if server is not None or settings.redis_url is not None else settings.url


def require_store(settings: Settings) -> None:
    """Raises :class:`SettingsError` if the settings name a service but not its store."""
    if means_other_store(settings):
        raise errors.SettingsError(
            f"CHRONOVERSE_URL names the service at {settings.url}, but this command needs that service's store: set "
            "CHRONOVERSE_REDIS_URL, or unset CHRONOVERSE_URL to use the embedded store of this machine"
        )


def means_other_store(settings: Settings) -> bool:
    """Whether the settings name a service, but not the store that this service uses."""
    url = meant_service(settings)
    return url is not None and not _is_own_service(settings, url)


def _is_own_service(settings: Settings, url: str) -> bool:
    from chronoverse.embedded.listeners import is_service

    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    return bool(parts.hostname and is_loopback(parts.hostname) and is_service(settings.data_dir, parts.hostname, port))


@contextlib.contextmanager
def open_store(settings: Settings) -> Iterator["Store"]:
    """The store of ``settings``. Keeps an embedded server running until the ``with`` block ends."""
    from chronoverse.store import Store

    with contextlib.ExitStack() as stack:
        url, sync = settings.redis_url, None
        if url is None:
            from chronoverse.embedded.server import ServerLease

            lease = stack.enter_context(ServerLease(settings.data_dir))
            url, sync = lease.url, lease.sync
        store = stack.enter_context(contextlib.closing(Store.of(settings, url, sync)))
        store.check_files()
        yield store


def page_base(settings: Settings) -> str:
    """The base URL of pages: CHRONOVERSE_URL, else the local service that uses the embedded store."""
    from chronoverse.embedded.listeners import local_service_url

    return settings.url or local_service_url(settings.data_dir) or settings.service_url


def page_url(settings: Settings, workflow: str, job: str | None = None) -> str:
    return f"{page_base(settings)}/ui/workflows/{workflow}{f'/jobs/{job}' if job else ''}"


def open_archive(settings: Settings) -> "ObjectStore":
    """The object store of the archive. Raises :class:`SettingsError` if none is configured."""
    from chronoverse.archive.schemes import open_object_store

    if settings.archive_location is None:
        raise errors.SettingsError("no archive is configured: set CHRONOVERSE_ARCHIVE_URL, the same on every node")
    return open_object_store(settings.archive_location)


def _print_retry(text: str) -> None:
    """Prints a message. On a terminal, the message replaces the progress line."""
    if sys.stderr.isatty():
        click.echo("\r\x1b[K", err=True, nl=False)
    print_message(text)


@contextlib.contextmanager
def open_client(
    workflow: str, job: str | None = None, scope: str = "logs:read", *, of_line: bool = False
) -> Iterator["Client"]:
    """A client with ``scope`` for ``workflow``. Adds similar ids, or advice, to errors raised in the ``with`` block.

    ``of_line``: as for :func:`explain_not_found`.
    """
    settings = read_settings()
    context = click.get_current_context(silent=True)
    linked = context and context.meta.get(LINKED_SERVICE)
    # A link is untrusted, so its service must not get another service's token.
    if linked and linked != page_base(settings):
        raise errors.SettingsError(
            f"the link is for {linked}, but commands use {page_base(settings)}: set CHRONOVERSE_URL={linked}"
        )
    client = make_client(settings, workflow, scope, on_retry=_print_retry)
    try:
        with contextlib.closing(client), naming_near_ids(client, workflow, job, of_line=of_line):
            yield client
    except errors.Unauthorized as error:
        if settings.token is None:
            raise
        raise errors.Unauthorized(f"{error} (token from CHRONOVERSE_TOKEN)") from error
    except errors.Unreachable as error:
        if settings.url is not None:
            raise
        hint = "start one with `chronoverse serve`, or set CHRONOVERSE_URL"
        raise errors.Unreachable(f"{error}; {hint}") from error


@contextlib.contextmanager
def naming_near_ids(client: "Client", workflow: str, job: str | None, *, of_line: bool = False) -> Iterator[None]:
    """Adds similar ids to a :class:`JobNotFound` raised in the ``with`` block, which must only request this job."""
    from chronoverse.client.near import explain_not_found

    try:
        yield
    except errors.JobNotFound as error:
        if error.__cause__ is not None:  # The log's last event gave the reason, or the answer is a proxy's.
            raise
        raise errors.JobNotFound(explain_not_found(client, workflow, job, of_line=of_line)) from error


def require_jobs(client: "Client", workflow: str) -> None:
    """Raises :class:`JobNotFound` if the workflow has no jobs. The service returns an empty list for an unknown one."""
    if not client.read("/workflows/{}/jobs", workflow, limit=1).get("jobs"):
        raise errors.JobNotFound("no such workflow")


def make_client(settings: Settings, workflow: str, scope: str = "logs:read", **options: Any) -> "Client":
    """Returns the client for :func:`open_client`. ``options`` are further arguments of :class:`Client`."""
    from chronoverse.client.client import Client

    token = token_for(settings, settings.service_url, workflow, "cli", scope)
    return Client(settings.service_url, token, ca_file=settings.ca_file, **options)


def token_for(
    settings: Settings, url: str, workflow: str, subject: str, scope: str
) -> str | Callable[[], str | None] | None:
    """The token for the service at ``url``: the token in ``settings``, or a function that returns a token.

    The function reads the token file or the sign-in (``login``), or uses the local secret to sign a token with
    ``scope`` for ``workflow``. It returns None if our service is not listening at ``url``, because another user's
    program could be using the port.
    """
    from chronoverse.auth.token_file import configured_token

    if (token := configured_token(settings)) is not None:
        return token
    from chronoverse.client.login import LoginFile

    if (file := LoginFile(settings.data_dir, url, settings.ca_file)).exists:
        return file.token
    if not (settings.has_local_secret and is_loopback(urlsplit(url).hostname)):
        return None
    from chronoverse.auth.local_secret import local_secret
    from chronoverse.auth.minting import mint

    def make_token() -> str | None:
        if not _is_own_service(settings, url):
            return None
        # The token expires after a minute, because each connection gets a new one.
        return mint(local_secret(settings.data_dir), subject, [scope], [workflow], 60, time.time(), settings)

    return make_token
