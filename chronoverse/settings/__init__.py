"""The settings, read once from the environment into one frozen value. No other module reads settings from it.

``Settings``  all settings. ``Settings.from_env`` reads and checks them
``Setting``   how one setting is read, its unit, and its description. Each field of ``Settings`` is annotated with one
``parse``     the module with a parser for each kind of value
``redis_url`` the module for the forms of CHRONOVERSE_REDIS_URL

``python -m chronoverse.settings`` prints the table in ``docs/settings.md``.
"""

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple, get_type_hints

from chronoverse.errors import SettingsError
from chronoverse.settings import parse

#: What the name of every variable starts with, except WEB_CONCURRENCY, which is gunicorn's.
PREFIX: Final = "CHRONOVERSE_"

#: The variables that Kubernetes sets for a Service. The second kind has a URL.
#: https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
_SERVICE_NAME: Final = re.compile(r"\w+_SERVICE_(HOST|PORT(_\w+)?)|\w+_PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?")
_SERVICE_LINK: Final = re.compile(r"\w+_PORT")
#: How similar a name must be to a setting's to be taken for it, from 0 to 1.
_SIMILARITY: Final = 0.8

_TOKEN_KEY_NAMES: Final = ("CHRONOVERSE_JWT_SECRET", "CHRONOVERSE_JWT_PUBLIC_KEY", "CHRONOVERSE_JWT_JWKS_URL")
_DURABILITIES: Final = ("acked", "fsynced", "replicated")
_LOG_FORMATS: Final = ("console", "json")
_LOG_LEVELS: Final = ("debug", "info", "warning", "error", "critical")


def _default_workers() -> int:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    # The most workers by default: one for each core, but no more than a laptop can spare.
    return min(4, usable or 1)


class Setting(NamedTuple):
    """How the text of a setting is read, its unit, and a description of what it does."""

    parse: Callable[[str], Any]
    unit: str
    description: str
    #: The default in words, if its value would not explain it.
    default: str = ""
    prefix: str = PREFIX


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings, checked. :meth:`from_env` reads them from the environment; tests may pass values instead."""

    redis_url: Annotated[
        str | None,
        Setting(
            parse.redis_url,
            "URL",
            "The store: `redis://`, `rediss://`, `unix://`, `redis+sentinel://` or `redis+cluster://`"
            " ([all forms](redis.md)).",
            "an embedded server",
        ),
    ] = field(default=None, repr=False)
    key_prefix: Annotated[
        str,
        Setting(
            parse.matching("[A-Za-z0-9._:-]{1,64}", "1 to 64 of A-Z a-z 0-9 . _ : -"),
            "text",
            "What every key in the store starts with.",
        ),
    ] = "chronoverse"
    data_dir: Annotated[
        Path,
        Setting(
            parse.directory,
            "path",
            "Where the embedded server, its token secret, an issuer's published keys and undelivered lines are kept.",
            "`$XDG_STATE_HOME/chronoverse`, else `~/.local/state/chronoverse`;"
            " on macOS `~/Library/Application Support/chronoverse`",
        ),
    ]
    bind: Annotated[
        str, Setting(parse.bind, "address", "Where the service listens: `HOST:PORT`, `[IPV6]:PORT` or `unix:PATH`.")
    ] = "127.0.0.1:8000"
    jwt_secret: Annotated[
        bytes | None,
        Setting(
            parse.secret, "text", "The tokens' HS256 key, 32 bytes at least.", "with the embedded server, made once"
        ),
    ] = field(default=None, repr=False)
    jwt_public_key: Annotated[
        str | None, Setting(parse.public_key, "PEM or path", "The tokens' RSA, EC or Ed25519 public key.")
    ] = None
    jwt_jwks_url: Annotated[
        str | None, Setting(parse.jwks_url, "URL", "Where the tokens' public keys are published, as JWKS.")
    ] = None
    jwt_audience: Annotated[
        str | None,
        Setting(
            parse.matching("[!-~]{1,512}", "1 to 512 printable ASCII characters without spaces"),
            "text",
            "What a token's `aud` must be or contain ([more](tokens.md)).",
            "a token that names an audience is refused",
        ),
    ] = None
    jwt_issuer: Annotated[
        str | None,
        Setting(
            parse.matching("[!-~]{1,512}", "1 to 512 printable ASCII characters without spaces"),
            "text",
            "What a token's `iss` must be, letter by letter.",
            "`iss` is not looked at",
        ),
    ] = None
    jwt_workflows_claim: Annotated[
        str, Setting(parse.claim_name, "text", "The claim with the list of workflows that a token is for.")
    ] = "workflows"
    heartbeat_seconds: Annotated[
        int, Setting(parse.WholeNumber(1, 300), "seconds", "Silence after which a stream sends a heartbeat.")
    ] = 15
    lease_seconds: Annotated[
        int,
        Setting(parse.WholeNumber(1, 3_600), "seconds", "Silence after which a runner is given up and its job LOST."),
    ] = 30
    retention_seconds: Annotated[
        int, Setting(parse.WholeNumber(1, 315_360_000), "seconds", "How long a log is kept after its job has ended.")
    ] = 604_800
    hot_seconds: Annotated[
        int,
        Setting(
            parse.WholeNumber(0, 315_360_000),
            "seconds",
            "How long the store keeps a log after its job has ended and all of it is archived.",
        ),
    ] = 3_600
    hot_bytes: Annotated[
        int,
        Setting(
            parse.WholeNumber(1_048_576, 1_099_511_627_776),
            "bytes",
            "What one job's log may take in the store. Beyond it, its oldest lines move to the archive.",
        ),
    ] = 67_108_864
    archive_url: Annotated[
        str | None,
        Setting(
            parse.archive_url,
            "URL",
            "Where logs are archived: `file:///DIRECTORY`, `s3://BUCKET/PREFIX` (with the extra `s3`; its endpoint and"
            " credentials as boto3 takes them) or `none`.",
            "`archive` in the data directory with the embedded server, else none",
        ),
    ] = None
    max_line_bytes: Annotated[
        int, Setting(parse.WholeNumber(256, 1_048_576), "bytes", "A longer line is cut into `partial` pieces.")
    ] = 65_536
    max_body_bytes: Annotated[
        int,
        Setting(
            parse.WholeNumber(65_536, 33_554_432),
            "bytes",
            "A longer request body, as sent or as inflated, is refused with 413.",
        ),
    ] = 8_388_608
    durability: Annotated[
        str,
        Setting(
            parse.one_of(*_DURABILITIES),
            "word",
            "When a runner forgets a line: once the store has it, has it on its disk, or has it on a replica."
            " For runners over HTTP the service's counts.",
        ),
    ] = "fsynced"
    spool_max_bytes: Annotated[
        int,
        Setting(
            parse.WholeNumber(16_777_216, 1_099_511_627_776),
            "bytes",
            "What a runner keeps on disk while the store is away. Beyond it, the oldest lines are dropped.",
        ),
    ] = 1_073_741_824
    max_streams: Annotated[
        int, Setting(parse.WholeNumber(1, 1_000_000), "streams per worker", "Those beyond it are refused with 503.")
    ] = 8_000
    max_streams_per_token: Annotated[
        int | None,
        Setting(
            parse.WholeNumber(1, 1_000_000),
            "streams per worker",
            "Those beyond it of tokens with the same `sub` are refused with 429.",
            "as many as the worker takes",
        ),
    ] = None
    max_streams_per_address: Annotated[
        int | None,
        Setting(
            parse.WholeNumber(1, 1_000_000),
            "streams per worker",
            "Those beyond it of the same client address (IPv6: the same /64) are refused with 429. A proxy's word for"
            " the address counts when gunicorn's `FORWARDED_ALLOW_IPS` names the proxy.",
            "as many as the worker takes",
        ),
    ] = None
    max_publish_rate_per_token: Annotated[
        int | None,
        Setting(
            parse.WholeNumber(65_536, 1_099_511_627_776),
            "bytes a second per worker",
            "What runners may publish over HTTP with tokens of the same `sub`, ten seconds of it at once; a line counts"
            " 48 bytes beside its message. Appends beyond it are refused with 429 until it is made up for.",
            "as many as the worker takes",
        ),
    ] = None
    max_replay_rate: Annotated[
        int,
        Setting(
            parse.WholeNumber(1_000_000, 1_099_511_627_776),
            "bytes a second per worker",
            "How fast all replays of stored lines together are sent, when eight or more run at once; fewer are never"
            " slowed down. With a higher rate many replays are faster, and live lines come later.",
        ),
    ] = 50_000_000
    max_stream_seconds: Annotated[
        int,
        Setting(
            parse.WholeNumber(1, 86_400),
            "seconds",
            "Age at which a stream is ended, up to a tenth earlier, for its client to resume.",
        ),
    ] = 3_600
    drain_seconds: Annotated[
        int,
        Setting(
            parse.WholeNumber(0, 600),
            "seconds",
            "Over how long a worker that was told to go spreads the ends of its streams. It has gone 5 s later.",
        ),
    ] = 10
    cors_origins: Annotated[
        tuple[str, ...],
        Setting(
            parse.origins,
            "origins",
            "Whose pages may read the service's answers in a browser: exact origins such as `https://ci.example`,"
            " separated by spaces ([more](operations.md#pages-of-other-origins)).",
            "no other origin's",
        ),
    ] = ()
    log_format: Annotated[
        str,
        Setting(
            parse.one_of(*_LOG_FORMATS), "word", "How the service logs: `console` lines, or a `json` object a line."
        ),
    ] = "console"
    log_level: Annotated[
        str, Setting(parse.one_of(*_LOG_LEVELS), "level", f"How much the service logs: {', '.join(_LOG_LEVELS)}.")
    ] = "info"
    traces: Annotated[
        bool,
        Setting(
            parse.traces,
            "word",
            "`true` sends an OpenTelemetry span for each request and stream (with the extra `otel`), to where"
            " `OTEL_EXPORTER_OTLP_ENDPOINT` and its like say ([more](operations.md#traces)).",
            "`false`",
        ),
    ] = False
    web_concurrency: Annotated[
        int, Setting(parse.WholeNumber(1, 256), "processes", "The service's workers.", "one per core, 4 at most", "")
    ] = field(default_factory=_default_workers)
    url: Annotated[
        str | None,
        Setting(
            parse.service_url,
            "URL",
            "The service that commands mean which read, redact or delete; without `CHRONOVERSE_REDIS_URL` also `run`"
            " and `deliver` ([the rule](cli.md#which-service-which-store)).",
            "`http://` and `CHRONOVERSE_BIND`, for commands that cannot use a store",
        ),
    ] = None
    token: Annotated[
        str | None,
        Setting(
            parse.bearer_token,
            "token",
            "What `chronoverse logs` and `run --server` show to the service.",
            "beside an embedded server, made on the spot",
        ),
    ] = field(default=None, repr=False)
    token_file: Annotated[
        Path | None,
        Setting(
            parse.directory,
            "path",
            "A file with that token, instead of `CHRONOVERSE_TOKEN`. It is read for each request, so that somebody may"
            " renew it ([more](runner.md#the-token)).",
        ),
    ] = None
    ca_file: Annotated[
        Path | None,
        Setting(
            parse.ca_file,
            "path",
            "PEM certificates of authorities that are trusted beside those of the system: by `chronoverse logs`,"
            " `run --server` and `chronoverse.api` for a service, and by a service for `CHRONOVERSE_JWT_JWKS_URL`.",
        ),
    ] = None

    @property
    def is_embedded(self) -> bool:
        """Whether the store is the embedded server, which keeps its data in the data directory."""
        return self.redis_url is None

    @property
    def service_url(self) -> str:
        """The URL of the service that the commands ask which cannot use a store: by default that of this machine."""
        host, _, port = self.bind.rpartition(":")
        if self.url or host == "unix":
            return self.url or "http://127.0.0.1:8000"
        reached = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)
        return f"http://{reached}:{port}"

    @property
    def archive_location(self) -> str | None:
        """The URL of the archive, or None if there is none."""
        if self.archive_url is not None:
            return None if self.archive_url == "none" else self.archive_url
        return (self.data_dir.absolute() / "archive").as_uri() if self.is_embedded else None

    @property
    def has_local_secret(self) -> bool:
        """Whether tokens are signed with the secret in the data directory."""
        return self.is_embedded and not (self.jwt_secret or self.jwt_public_key or self.jwt_jwks_url)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> "Settings":
        """Reads the settings in ``environ``. An empty variable counts as one that is not set.

        Raises :class:`SettingsError`, which names every setting that is not valid.
        """
        values: dict[str, Any] = {}
        problems: list[str] = []
        for attribute, name, setting in all_settings():
            try:
                if text := environ.get(name):
                    values[attribute] = setting.parse(text)
                elif attribute == "data_dir":
                    values[attribute] = default_data_dir(environ)
            except ValueError as error:
                problems.append(f"{name} {error}")
        keys = [name for name in _TOKEN_KEY_NAMES if environ.get(name)]
        if len(keys) > 1:
            problems.append(f"{' and '.join(keys)} exclude each other")
        if environ.get("CHRONOVERSE_TOKEN") and environ.get("CHRONOVERSE_TOKEN_FILE"):
            problems.append("CHRONOVERSE_TOKEN and CHRONOVERSE_TOKEN_FILE exclude each other")
        if problems:
            raise SettingsError("; ".join(problems))
        return cls(**values)


def all_settings() -> Iterator[tuple[str, str, Setting]]:
    """Every setting: the name of its attribute, the name of its variable, and its :class:`Setting`."""
    hints = get_type_hints(Settings, include_extras=True)
    for each in fields(Settings):
        (setting,) = hints[each.name].__metadata__
        yield each.name, setting.prefix + each.name.upper(), setting


def ca_file_from_env(environ: Mapping[str, str] = os.environ) -> Path | None:
    """CHRONOVERSE_CA_FILE alone, for programs that use no other setting. Raises :class:`SettingsError`."""
    try:
        return parse.ca_file(text) if (text := environ.get("CHRONOVERSE_CA_FILE")) else None
    except ValueError as error:
        raise SettingsError(f"CHRONOVERSE_CA_FILE {error}") from None


def no_color() -> bool:
    """Whether the user wants no colours from any program: https://no-color.org"""
    return bool(os.environ.get("NO_COLOR"))


def unknown_names(environ: Mapping[str, str] = os.environ) -> Iterator[str]:
    """A sentence about each variable in ``environ`` that is named like a setting and is none, such as a typo.

    Kubernetes sets variables with such names for a Service that is called chronoverse. They do not count.
    """
    known = [name.removeprefix(PREFIX) for _, name, _ in all_settings() if name.startswith(PREFIX)]
    for name, text in sorted(environ.items()):
        short = name.removeprefix(PREFIX)
        if short == name or short in known:
            continue
        if _SERVICE_NAME.fullmatch(name) or (_SERVICE_LINK.fullmatch(name) and "://" in text):
            continue
        from difflib import get_close_matches  # which takes 3 ms, and most environments have no such name

        similar = get_close_matches(short, known, 1, _SIMILARITY)
        yield f"{name} is not a setting{f': did you mean {PREFIX}{similar[0]}?' if similar else ', and is ignored'}"


def default_data_dir(environ: Mapping[str, str], platform: str = sys.platform) -> Path:
    """The directory for the user's state. https://specifications.freedesktop.org/basedir-spec/latest/

    Raises ValueError when there is no home directory.
    """
    state = environ.get("XDG_STATE_HOME", "")
    if state.startswith("/"):  # the specification says that relative paths must be ignored
        return Path(state, "chronoverse")
    home = parse.directory(environ.get("HOME") or "~")
    if platform == "darwin":
        return home / "Library" / "Application Support" / "chronoverse"
    return home / ".local" / "state" / "chronoverse"


def child_environ(changes: Mapping[str, str], environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment for a process of ours: ``environ`` with ``changes``. A new PYTHONPATH goes before the old one."""
    merged = {**environ, **changes}
    if "PYTHONPATH" in changes and environ.get("PYTHONPATH"):
        merged["PYTHONPATH"] = changes["PYTHONPATH"] + os.pathsep + environ["PYTHONPATH"]
    return merged


def job_environ() -> dict[str, str]:
    """The environment for a job's command: ours without our settings.

    The job's output is published, so it must not be able to print our token.
    """
    return {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}


def markdown_table() -> str:
    """The table of all settings in ``docs/settings.md``."""
    rows = ["| name | default | unit | what it does |", "|---|---|---|---|"]
    defaults = {each.name: each.default for each in fields(Settings)}
    for attribute, name, setting in all_settings():
        value = defaults[attribute]
        default = setting.default or ("none" if value is None else f"`{value}`")
        limits = (
            f", {setting.parse.low} to {setting.parse.high}" if isinstance(setting.parse, parse.WholeNumber) else ""
        )
        rows.append(f"| `{name}` | {default} | {setting.unit}{limits} | {setting.description} |")
    return "\n".join(rows) + "\n"
