"""A bearer token in a file that another program renews, such as Kubernetes or a secret store's agent."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from chronoverse.errors import StaleToken
from chronoverse.settings import Settings
from chronoverse.settings.parse import bearer_token


def configured_token(settings: Settings) -> str | Callable[[], str] | None:
    """The token in ``settings``, or a function that reads it from the token file."""
    return partial(read_token_file, settings.token_file) if settings.token_file else settings.token


def read_token_file(path: Path) -> str:
    """The file's current token. Raises :class:`StaleToken`, which never contains the file's content."""
    try:
        with path.open("rb") as file:
            # This is more than the longest token and the whitespace around it.
            return bearer_token(file.read(16_384).decode("ascii").strip())
    except OSError as error:
        raise StaleToken(f"the token file {path} cannot be read: {error.strerror}") from error
    except ValueError:
        raise StaleToken(f"the token file {path} has no bearer token") from None
