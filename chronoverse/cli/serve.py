"""``chronoverse serve``: the command becomes gunicorn, and gunicorn prints the banner when it is ready."""

import os
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import click

from chronoverse import __version__
from chronoverse.errors import SettingsError
from chronoverse.settings import Settings, child_environ, unknown_names

#: Seconds for which the printed token is valid: a working day. It is no longer because terminals keep what they print.
TOKEN_SECONDS: Final = 12 * 3600


@click.command()
@click.option("--bind", metavar="HOST:PORT", help="Where to listen; CHRONOVERSE_BIND otherwise.")
@click.option("--workers", metavar="N", help="How many processes; WEB_CONCURRENCY otherwise.")
def serve(bind: str | None, workers: str | None) -> None:
    """Serve the logs over HTTP."""
    argv, environ = serve_command(bind, workers)
    os.execve(argv[0], argv, environ)


def serve_command(bind: str | None, workers: str | None) -> tuple[list[str], dict[str, str]]:
    """The arguments and the environment of the gunicorn that ``serve`` becomes. Raises :class:`SettingsError`."""
    package = Path(__file__).parents[1]
    flags = {"CHRONOVERSE_BIND": bind, "WEB_CONCURRENCY": workers, "PYTHONPATH": str(package.parent)}
    environ = child_environ({name: value for name, value in flags.items() if value is not None})
    service_settings(environ)
    for config in (package / "gunicorn.conf.py", package.parent / "gunicorn.conf.py"):
        if config.is_file():
            return [sys.executable, "-m", "gunicorn", "-c", str(config), "chronoverse.web.app:create_app()"], environ
    raise SettingsError("gunicorn.conf.py is neither in the package nor beside it: install chronoverse again")


def service_settings(environ: Mapping[str, str]) -> Settings:
    """The settings of a service.

    Raises :class:`SettingsError` when they are not valid, when there is no usable key for tokens, or when a library
    that they need is not installed.
    """
    from chronoverse.archive.schemes import open_object_store
    from chronoverse.auth.tokens import Verifier

    try:
        settings = Settings.from_env(environ)
        Verifier.from_settings(settings)
        if settings.archive_location is not None:
            open_object_store(settings.archive_location)
    except SettingsError as error:
        # The reason may be a typo in a name.
        raise SettingsError("; ".join([str(error), *unknown_names(environ)])) from error
    return settings


def command_name() -> str:
    """How to call this installation's command from the current directory, as short as possible."""
    if shutil.which("chronoverse"):
        return "chronoverse"
    python = Path(sys.executable)
    if python.is_relative_to(Path.cwd()):
        python = python.relative_to(Path.cwd())
    script = python.with_name("chronoverse")
    return str(script) if script.exists() else f"{python} -m chronoverse"


def banner(settings: Settings, address: str, command: str) -> str:
    """What the service prints when it is ready: where it serves, and what to type next.

    ``address`` is where gunicorn listens, ``http://…`` or ``unix:…``. The text has a token only if tokens are signed
    with the local secret. In other set-ups it goes to a log that other people read.
    """
    store = (
        f"an embedded server in {settings.data_dir}" if settings.is_embedded else "the Redis in CHRONOVERSE_REDIS_URL"
    )
    headline = f"chronoverse {__version__} serves at {address}, on {store}\n"
    if not settings.has_local_secret or not address.startswith("http"):
        return headline
    from chronoverse.auth.local_secret import local_secret
    from chronoverse.auth.minting import ClaimRules, mint

    secret, rules = local_secret(settings.data_dir), ClaimRules.from_settings(settings)
    token = mint(secret, "serve", ("logs:read", "logs:write"), ("*",), TOKEN_SECONDS, time.time(), rules)
    return f"""{headline}
a token, good for {TOKEN_SECONDS // 3600} hours:
  export CHRONOVERSE_TOKEN={token}

the page, signed in by what is behind the #, which no server sees:
  {address}/ui/workflows/demo#token={token}

run a job, and watch it:
  {command} run --workflow demo --job job-1 -- sh -c 'for i in 1 2 3 4 5; do echo line $i; sleep 1; done'
  {command} logs -f demo job-1
  curl -N -H "Authorization: Bearer $CHRONOVERSE_TOKEN" {address}/workflows/demo/jobs/job-1/events
"""
