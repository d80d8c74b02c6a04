"""``chronoverse serve``: replaces itself with gunicorn, which prints the banner when it is ready.

The hidden command ``chronoverse scans`` is the scan server. The service starts it.
"""

import contextlib
import errno
import os
import shutil
import socket
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from chronoverse import __version__
from chronoverse.cli.common import open_archive, open_store
from chronoverse.errors import SettingsError
from chronoverse.settings import Settings, child_environ, reached_at, unknown_names

if TYPE_CHECKING:
    from chronoverse.history.scans.app import ScanApp

#: Hours for which the printed token is valid: a working day. No longer, because terminals keep their output.
_TOKEN_HOURS: Final = 12


@click.command()
@click.option("--bind", metavar="HOST:PORT", help="Address to listen on. Default: CHRONOVERSE_BIND.")
@click.option("--workers", metavar="N", help="Number of workers. Default: WEB_CONCURRENCY.")
def serve(bind: str | None, workers: str | None) -> None:
    """Serve logs over HTTP."""
    argv, environ = serve_command(bind, workers)
    check_address(Settings.from_env(environ).bind)
    os.execve(argv[0], argv, environ)


def serve_command(
    bind: str | None, workers: str | None, base: Mapping[str, str] | None = None
) -> tuple[list[str], dict[str, str]]:
    """gunicorn's arguments and its environment, based on ``base``. Raises :class:`SettingsError`."""
    package = Path(__file__).parents[1]
    flags = {"CHRONOVERSE_BIND": bind, "WEB_CONCURRENCY": workers, "PYTHONPATH": str(package.parent)}
    changes = {name: value for name, value in flags.items() if value is not None}
    environ = child_environ(changes) if base is None else child_environ(changes, base)
    service_settings(environ)
    for config in (package / "gunicorn.conf.py", package.parent / "gunicorn.conf.py"):
        if config.is_file():
            return [sys.executable, "-m", "gunicorn", "-c", str(config), "chronoverse.web.app:create_app()"], environ
    raise SettingsError("gunicorn.conf.py not found: reinstall chronoverse")


def check_address(bind: str, seconds: float = 5.0) -> None:
    """Raises :class:`SettingsError` if the address stays in use. A killed service's workers take a second to end."""
    if bind.startswith("unix:"):
        return _check_socket(bind.removeprefix("unix:").removeprefix("//"))
    host, _, port = bind.rpartition(":")
    family, ends_at = socket.AF_INET6 if host.startswith("[") else socket.AF_INET, time.monotonic() + seconds
    while True:
        with socket.socket(family) as probe:
            # gunicorn does this, too, because connections of an earlier service may still be closing.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                return probe.bind((host.strip("[]"), int(port)))
            except OSError as error:
                if time.monotonic() >= ends_at:
                    advice = "choose another address with --bind HOST:PORT"
                    raise SettingsError(f"cannot listen at {bind}: {error.strerror}; {advice}") from error
        time.sleep(0.25)


def _check_socket(path: str) -> None:
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.bind(path)
        os.unlink(path)
    except OSError as error:
        # gunicorn replaces the socket of an earlier service.
        if error.errno != errno.EADDRINUSE or not Path(path).is_socket():
            raise SettingsError(f"cannot listen at unix:{path}: {error.strerror or error}") from error


def service_settings(environ: Mapping[str, str]) -> Settings:
    """A service's settings. Raises :class:`SettingsError` if they are invalid, or a key, library or file is missing."""
    from chronoverse.archive.schemes import open_object_store
    from chronoverse.auth.tokens import Verifier
    from chronoverse.joblog.secret_forms import SecretForms
    from chronoverse.store import Store

    try:
        settings = Settings.from_env(environ)
        verifier = Verifier(settings)
        for file in verifier.files():
            file.read()
        if verifier.groups and settings.has_local_secret:
            # Commands on this machine sign tokens with the local secret. Such tokens name workflows, not groups.
            raise SettingsError("CHRONOVERSE_JWT_WORKFLOWS_MAP needs the key of an issuer whose tokens have groups")
        if settings.archive_location is not None:
            open_object_store(settings.archive_location)
        if settings.mask_forms:
            SecretForms(settings.mask_forms)
        if settings.redis_url is not None:
            with contextlib.closing(Store.of(settings, settings.redis_url)) as store:
                store.check_files()
    except SettingsError as error:
        # A typo in a setting's name may be the reason.
        raise SettingsError("; ".join([str(error), *unknown_names(environ)])) from error
    return settings


def command_name() -> str:
    """The shortest way to run this installation's command from the current directory."""
    if shutil.which("chronoverse"):
        return "chronoverse"
    python = Path(sys.executable)
    if python.is_relative_to(Path.cwd()):
        python = python.relative_to(Path.cwd())
    script = python.with_name("chronoverse")
    return str(script) if script.exists() else f"{python} -m chronoverse"


def banner(settings: Settings, address: str, command: str) -> str:
    """The banner of a ready service: its address, a local token, and commands to try."""
    store = (
        f"an embedded server in {settings.data_dir}" if settings.is_embedded else "the Redis in CHRONOVERSE_REDIS_URL"
    )
    headline = f"chronoverse {__version__} serves at {address}, on {store}\n"
    if not settings.has_local_secret or not address.startswith("http"):
        return headline
    from chronoverse.auth.local_secret import local_secret
    from chronoverse.auth.minting import mint

    secret = local_secret(settings.data_dir)
    url = reached_at(address)
    token = mint(secret, "serve", ("logs:read", "logs:write"), ("*",), _TOKEN_HOURS * 3_600, time.time(), settings)
    return f"""{headline}
Token, valid for {_TOKEN_HOURS} hours:
  export CHRONOVERSE_TOKEN={token}

Page (the link signs you in):
  {url}/ui/workflows/demo#token={token}

Run a job and follow it:
  {command} run --workflow demo --job job-1 -- sh -c 'for i in 1 2 3 4 5; do echo line $i; sleep 1; done'
  {command} logs -f demo job-1
  curl -N -H "Authorization: Bearer $CHRONOVERSE_TOKEN" {url}/workflows/demo/jobs/job-1/events
"""


@click.command(hidden=True)
def scans() -> None:
    """Answer the workers' scans on the Unix socket with file descriptor 3, until standard input ends."""
    # Imported before the processes fork, so that they share these modules.
    from chronoverse.archive.reader import ArchiveReader
    from chronoverse.history.scans.app import ScanApp
    from chronoverse.history.scans.server import ScanServer
    from chronoverse.history.scans.summary_scan import SummaryProgress
    from chronoverse.live.replay_cache import ReplayCache, read_frames

    settings = Settings.from_env()
    progress = SummaryProgress()

    def make_app() -> "ScanApp":
        # The store is closed when the process ends.
        store = contextlib.ExitStack().enter_context(open_store(settings))
        archive = ArchiveReader(open_archive(settings) if settings.archive_location else None, store.chunks.chunk)
        # Caches nothing, because the workers cache the answers. A second cache would show redacted lines twice as long.
        replay_cache = ReplayCache(store, archive, max_line_bytes=settings.max_line_bytes, most_bytes=0)
        read_replay = partial(read_frames, replay_cache)
        return ScanApp(store, archive, settings.max_line_bytes, read_replay=read_replay, progress=progress)

    # gunicorn's messages about its processes would look like the service's.
    log_level = settings.log_level if settings.log_level in ("error", "critical") else "warning"
    logger_class = f"chronoverse.web.http.logging.{settings.log_format.capitalize()}Logger"
    ScanServer(make_app, workers=settings.web_concurrency, logger_class=logger_class, log_level=log_level).run()
