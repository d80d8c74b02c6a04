"""What ``serve`` says when it is ready: where, and what to type next."""

import shutil
import sys
import time
from pathlib import Path
from typing import Final

from chronoverse.auth.tokens import local_secret, mint
from chronoverse.settings import Settings

#: Seconds the printed token is good for: a working day, and no more since it stands in a scrollback.
TOKEN_SECONDS: Final = 12 * 3600


def command() -> str:
    """How this installation's command is called from the current directory: as short as works when pasted."""
    if shutil.which("chronoverse"):
        return "chronoverse"
    python = Path(sys.executable)
    if python.is_relative_to(Path.cwd()):
        python = python.relative_to(Path.cwd())
    script = python.with_name("chronoverse")
    return str(script) if script.exists() else f"{python} -m chronoverse"


def banner(settings: Settings, address: str, command: str) -> str:
    """The text for the terminal. ``address`` is where gunicorn really listens, ``http://…`` or ``unix:…``.

    It holds a token only where the secret is ours: elsewhere the text goes to a log that others read.
    """
    store = (
        f"an embedded server in {settings.data_dir}" if settings.is_embedded else "the Redis in CHRONOVERSE_REDIS_URL"
    )
    said = f"chronoverse serves at {address}, on {store}\n"
    if not settings.has_local_secret or not address.startswith("http"):
        return said
    token = mint(
        local_secret(settings.data_dir), "serve", ("logs:read", "logs:write"), ("*",), TOKEN_SECONDS, time.time()
    )
    return f"""{said}
a token, good for {TOKEN_SECONDS // 3600} hours:
  export CHRONOVERSE_TOKEN={token}

the page, signed in by what is behind the #, which no server sees:
  {address}/?workflow=demo#token={token}

run a job, and watch it:
  {command} run --workflow demo --job job-1 -- sh -c 'for i in 1 2 3 4 5; do echo line $i; sleep 1; done'
  {command} logs -f demo job-1
  curl -N -H "Authorization: Bearer $CHRONOVERSE_TOKEN" {address}/workflows/demo/jobs/job-1/events
"""
