"""The settings, read once from the environment into one frozen value. No other module reads settings from it.

``Settings``  all settings. ``Settings.from_env`` reads and checks them
``Setting``   how one setting is read, its unit, and its description. Each field of ``Settings`` has one as metadata
``parse``     the module with a parser for each kind of value
``redis_url`` the module for the forms of CHRONOVERSE_REDIS_URL

``python -m chronoverse.settings`` prints the table in ``docs/settings.md``.
"""

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, NamedTuple

from chronoverse.errors import SettingsError
from chronoverse.settings import parse

#: What the name of every variable starts with, except WEB_CONCURRENCY, which is gunicorn's.
PREFIX: Final = "CHRONOVERSE_"

#: The variables that Kubernetes sets for a Service. The second kind has a URL.
#: https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
_SERVICE_NAME: Final = re.compile(r"\w+_SERVICE_(HOST|PORT(_\w+)?)|\w+_PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?")
_SERVICE_LINK: Final = re.compile(r"\w+_PORT")
#: Variables of which at most one may be set.
_EXCLUSIVE: Final = (
    ("CHRONOVERSE_JWT_SECRET", "CHRONOVERSE_JWT_PUBLIC_KEY", "CHRONOVERSE_JWT_JWKS_URL"),
    ("CHRONOVERSE_TOKEN", "CHRONOVERSE_TOKEN_FILE"),
)
_LOG_LEVELS: Final = ("debug", "info", "warning", "error", "critical")


#: One worker for each usable core, but no more than a laptop can spare.
_WORKERS: Final = min(4, (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()) or 1)


class Setting(NamedTuple):
    parse: Callable[[str], Any]
    unit: str
    description: str
    default: str = ""


def _setting(parse: Callable[[str], Any], *texts: str, default: Any = None, repr: bool = True) -> Any:
    return field(default=default, repr=repr, metadata={"setting": Setting(parse, *texts)})


def _number(bounds: tuple[int, int], *texts: str, default: int | None = None) -> Any:
    return _setting(parse.WholeNumber(*bounds), *texts, default=default)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings, checked. :meth:`from_env` reads them from the environment; tests may pass values instead."""

    redis_url: str | None = _setting(
        parse.redis_url,
        "URL",
        "The store: `redis://`, `rediss://`, `unix://`, `redis+sentinel://` or `redis+cluster://`"
        " ([all forms](redis.md)).",
        "an embedded server",
        repr=False,
    )
    key_prefix: str = _setting(
        parse.matching("[A-Za-z0-9._:-]{1,64}", "1 to 64 of A-Z a-z 0-9 . _ : -"),
        "text",
        "Prefix of every key in the store.",
        default="chronoverse",
    )
    data_dir: Path = _setting(
        parse.absolute_path,
        "path",
        "Where the embedded server, its token secret, an issuer's published keys, sign-ins and undelivered lines are"
        " kept.",
        "`$XDG_STATE_HOME/chronoverse`, else `~/.local/state/chronoverse`;"
        " on macOS `~/Library/Application Support/chronoverse`",
        default=MISSING,
    )
    bind: str = _setting(
        parse.bind, "address", "Listening address: `HOST:PORT`, `[IPV6]:PORT` or `unix:PATH`.", default="127.0.0.1:8000"
    )
    jwt_secret: bytes | None = _setting(
        parse.secret,
        "text",
        "The tokens' HS256 key, 32 bytes at least, or two separated by a comma ([rotation](tokens.md#a-secret-hs256)).",
        "with the embedded server, made once",
        repr=False,
    )
    jwt_public_key: str | None = _setting(
        parse.public_key, "PEM or path", "RSA, EC or Ed25519 public key of the tokens."
    )
    jwt_jwks_url: str | None = _setting(parse.jwks_url, "URL", "URL of the issuer's JSON Web Key Set.")
    jwt_audience: str | None = _setting(
        parse.printable, "text", "Required `aud` of tokens ([more](tokens.md)).", "tokens with an audience are refused"
    )
    jwt_issuer: str | None = _setting(
        parse.printable, "text", "Required `iss` of tokens, compared exactly.", "`iss` is not checked"
    )
    jwt_workflows_claim: str = _setting(
        parse.claim_name, "text", "Claim that lists a token's workflows.", default="workflows"
    )
    jwt_workflows_map: Path | None = _setting(
        parse.absolute_path,
        "path",
        "TOML file with the workflows and scopes of groups, reread on change ([more](tokens.md#rights-of-groups)).",
        "the claim lists workflows",
    )
    trust_file: Path | None = _setting(
        parse.absolute_path,
        "path",
        "TOML file with issuers and what the claims of their tokens allow, reread on change"
        " ([more](tokens.md#several-issuers)).",
    )
    oidc_issuer: str | None = _setting(
        parse.issuer,
        "URL",
        "OpenID Connect issuer of the page and `chronoverse login` ([more](tokens.md#signing-in)).",
        "readers paste tokens",
    )
    oidc_client_id: str | None = _setting(
        parse.printable, "text", "Public client id of the page and `chronoverse login`."
    )
    oidc_scopes: str = _setting(parse.scopes, "words", "Requested scopes.", default="openid offline_access logs:read")
    heartbeat_seconds: int = _number(
        (1, 300),
        "seconds",
        "Silence after which a stream sends a heartbeat. Our clients reconnect after 45 s without a byte.",
        default=15,
    )
    lease_seconds: int = _number(
        (1, 3_600), "seconds", "Silence after which a runner is lost and its job LOST.", default=30
    )
    retention_seconds: int = _number(
        (1, 315_360_000), "seconds", "Retention of a log after its job's end.", default=604_800
    )
    hot_seconds: int = _number(
        (0, 315_360_000), "seconds", "How long the store keeps an ended, archived log.", default=3_600
    )
    hot_bytes: int = _number(
        (1_048_576, 1_099_511_627_776),
        "bytes",
        "Size of a running log in the store; older lines move to the archive.",
        default=67_108_864,
    )
    archive_running_seconds: int = _number(
        (1, 604_800), "seconds", "Age at which lines of a running job are in the archive at the latest.", default=300
    )
    archive_url: str | None = _setting(
        parse.archive_url,
        "URL",
        "Archive: `file:///DIRECTORY`, `s3://BUCKET/PREFIX` (extra `s3`, configured as boto3), `none`.",
        "`archive` in the data directory with the embedded server, else none",
    )
    max_line_bytes: int = _number(
        (256, 1_048_576), "bytes", "Longer lines are split into `partial` pieces.", default=65_536
    )
    mask_forms: tuple[tuple[str, str], ...] | None = _setting(
        parse.mask_forms,
        "word or path",
        "Mask secrets known by their form: `on`, `off`, or a TOML file with more forms ([more](runner.md#masking)).",
        "`on`",
        default=(),
    )
    max_job_bytes: int = _number(
        (0, 999_999_999_999_999),
        "bytes",
        "Stored bytes of a job's messages; 0 is no bound. Further lines are a `gap` ([more](operations.md#quotas)).",
        default=0,
    )
    max_workflow_bytes_per_day: int = _number(
        (0, 999_999_999_999_999), "bytes", "The same for all jobs of a workflow per UTC day.", default=0
    )
    max_body_bytes: int = _number(
        (65_536, 33_554_432), "bytes", "Larger request bodies, as sent or inflated, get 413.", default=8_388_608
    )
    durability: str = _setting(
        parse.one_of("acked", "fsynced", "replicated"),
        "word",
        "When a line is safe: in the store, on its disk, or on a replica. Over HTTP the service's applies.",
        default="fsynced",
    )
    spool_max_bytes: int = _number(
        (16_777_216, 1_099_511_627_776),
        "bytes",
        "Size of a runner's spool; beyond it the oldest lines are dropped.",
        default=1_073_741_824,
    )
    max_streams: int = _number((1, 1_000_000), "streams per worker", "Further ones get 503.", default=8_000)
    max_streams_per_token: int | None = _number(
        (1, 1_000_000), "streams per worker", "Further ones of a `sub` get 429.", "the worker's limit"
    )
    max_streams_per_address: int | None = _number(
        (1, 1_000_000),
        "streams per worker",
        "Further ones of a client address (IPv6: /64) get 429. Proxies: gunicorn's `FORWARDED_ALLOW_IPS`.",
        "the worker's limit",
    )
    max_publish_rate_per_token: int | None = _number(
        (65_536, 1_099_511_627_776),
        "bytes a second per worker",
        "Publish rate over HTTP of a `sub`, with a burst of ten seconds; a line counts 48 bytes more. Beyond it: 429.",
        "the worker's limit",
    )
    max_replay_rate: int = _number(
        (1_000_000, 1_099_511_627_776),
        "bytes a second per worker",
        "Rate of all replays together, from eight on. Higher: faster replays, later live lines.",
        default=50_000_000,
    )
    max_stream_seconds: int = _number(
        (1, 86_400), "seconds", "Age at which a stream ends, up to a tenth earlier; its client resumes.", default=3_600
    )
    drain_seconds: int = _number(
        (0, 600),
        "seconds",
        "Time over which a worker that shuts down ends its streams; it exits 5 s later.",
        default=10,
    )
    cors_origins: tuple[str, ...] = _setting(
        parse.origins,
        "origins",
        "Exact origins whose pages may read answers ([more](operations.md#pages-of-other-origins)).",
        "no other origin",
        default=(),
    )
    webhook_hosts: tuple[tuple[str, bool], ...] = _setting(
        parse.webhook_hosts,
        "hosts",
        "Hosts that [watches](watches.md) may call. `HOST+private` also allows private addresses and plain HTTP.",
        "no host",
        default=(),
    )
    log_format: str = _setting(
        parse.one_of("console", "json"),
        "word",
        "Log format: `console` lines, or one `json` object per line.",
        default="console",
    )
    log_level: str = _setting(
        parse.one_of(*_LOG_LEVELS), "level", f"Log level: {', '.join(_LOG_LEVELS)}.", default="info"
    )
    audit_reads: bool = _setting(
        parse.boolean, "word", "`true` logs each read of a log's text ([more](operations.md#audit)).", default=False
    )
    otlp_workflow_attributes: tuple[str, ...] = _setting(
        parse.attribute_names,
        "names",
        "Attributes of a log record or resource that name the workflow, by precedence ([more](opentelemetry.md)).",
        default=parse.attribute_names(
            "chronoverse.workflow cicd.pipeline.name buildkite.pipeline.slug k8s.namespace.name service.name"
        ),
    )
    otlp_job_attributes: tuple[str, ...] = _setting(
        parse.attribute_names,
        "names",
        "The same, for the job.",
        default=parse.attribute_names(
            "chronoverse.job cicd.pipeline.task.run.id cicd.pipeline.run.id buildkite.job.id k8s.pod.uid"
            " service.instance.id"
        ),
    )
    otlp_idle_seconds: int = _number(
        (0, 31_536_000), "seconds", "Silence after which a job of log records is LOST; 0 is never.", default=604_800
    )
    traces: bool = _setting(
        parse.traces,
        "word",
        "`true` sends OpenTelemetry spans of requests and streams (extra `otel`; [more](operations.md#traces)).",
        default=False,
    )
    web_concurrency: int = _setting(
        parse.WholeNumber(1, 256), "processes", "The service's workers.", "one per core, 4 at most", default=_WORKERS
    )
    url: str | None = _setting(
        parse.service_url,
        "URL",
        "Service of the client commands; without `CHRONOVERSE_REDIS_URL` also of `run` and `deliver`"
        " ([rule](cli.md#which-service-which-store)).",
        "`http://` and `CHRONOVERSE_BIND`, for commands that cannot use a store",
    )
    token: str | None = _setting(
        parse.bearer_token,
        "token",
        "Bearer token of the client commands.",
        "made automatically beside an embedded server",
        repr=False,
    )
    token_file: Path | None = _setting(
        parse.absolute_path, "path", "File with that token, read for each request ([more](runner.md#the-token))."
    )
    ca_file: Path | None = _setting(
        parse.ca_file, "path", "PEM certificates of private authorities, trusted besides the system's."
    )

    @property
    def is_embedded(self) -> bool:
        return self.redis_url is None

    @property
    def service_url(self) -> str:
        """The URL of the service that the commands ask which cannot use a store: by default that of this machine."""
        host, _, port = self.bind.rpartition(":")
        if self.url or host == "unix":
            return self.url or "http://127.0.0.1:8000"
        return reached_at(f"http://{host}:{port}")

    @property
    def archive_location(self) -> str | None:
        if self.archive_url is not None:
            return None if self.archive_url == "none" else self.archive_url
        return (self.data_dir.absolute() / "archive").as_uri() if self.is_embedded else None

    @property
    def sign_in(self) -> Mapping[str, str | None]:
        """What the page and commands need for a sign-in at the issuer. Without one, ``issuer`` is None."""
        return {
            "issuer": self.oidc_issuer,
            "client_id": self.oidc_client_id,
            "scopes": self.oidc_scopes,
            "audience": self.jwt_audience,
        }

    @property
    def has_local_secret(self) -> bool:
        """Whether tokens are signed with the secret in the data directory."""
        keys = self.jwt_secret or self.jwt_public_key or self.jwt_jwks_url or self.trust_file
        return self.is_embedded and not keys

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
        for names in _EXCLUSIVE:
            if len(given := [name for name in names if environ.get(name)]) > 1:
                problems.append(f"{' and '.join(given)} cannot be combined")
        if bool(environ.get("CHRONOVERSE_OIDC_ISSUER")) != bool(environ.get("CHRONOVERSE_OIDC_CLIENT_ID")):
            problems.append("CHRONOVERSE_OIDC_ISSUER and CHRONOVERSE_OIDC_CLIENT_ID go together")
        if problems:
            raise SettingsError("; ".join(problems))
        return cls(**values)


def reached_at(url: str) -> str:
    """The URL at which this machine reaches a service: one that is bound to all addresses has no URL of its own."""
    return url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")


def all_settings() -> Iterator[tuple[str, str, Setting]]:
    """Every setting: the name of its attribute, the name of its variable, and its :class:`Setting`."""
    for each in fields(Settings):
        prefix = "" if each.name == "web_concurrency" else PREFIX
        yield each.name, prefix + each.name.upper(), each.metadata["setting"]


def ca_file_or_setting(given: Path | str | None, environ: Mapping[str, str] = os.environ) -> Path | None:
    """``given``, or else CHRONOVERSE_CA_FILE. Raises ValueError or :class:`SettingsError` without certificates."""
    if given:
        return parse.ca_file(str(given))
    try:
        return parse.ca_file(text) if (text := environ.get("CHRONOVERSE_CA_FILE")) else None
    except ValueError as error:
        raise SettingsError(f"CHRONOVERSE_CA_FILE {error}") from None


def mask_forms_setting(environ: Mapping[str, str] = os.environ) -> tuple[tuple[str, str], ...] | None:
    """CHRONOVERSE_MASK_FORMS, for programs that use no other setting. Raises :class:`SettingsError`."""
    try:
        return parse.mask_forms(environ.get("CHRONOVERSE_MASK_FORMS") or "on")
    except ValueError as error:
        raise SettingsError(f"CHRONOVERSE_MASK_FORMS {error}") from None


def no_color() -> bool:
    return bool(os.environ.get("NO_COLOR"))


def unknown_names(environ: Mapping[str, str] = os.environ) -> Iterator[str]:
    """A sentence about each variable in ``environ`` that is named like a setting, such as a typo; not Kubernetes'."""
    known = [name.removeprefix(PREFIX) for _, name, _ in all_settings() if name.startswith(PREFIX)]
    for name, text in sorted(environ.items()):
        short = name.removeprefix(PREFIX)
        if short == name or short in known:
            continue
        if _SERVICE_NAME.fullmatch(name) or (_SERVICE_LINK.fullmatch(name) and "://" in text):
            continue
        from difflib import get_close_matches  # which takes 3 ms, and most environments have no such name

        similar = get_close_matches(short, known, 1, 0.8)
        yield f"{name} is not a setting{f': did you mean {PREFIX}{similar[0]}?' if similar else ', and is ignored'}"


def default_data_dir(environ: Mapping[str, str], platform: str = sys.platform) -> Path:
    """The directory for the user's state (XDG Base Directory). Raises ValueError without a home directory."""
    state = environ.get("XDG_STATE_HOME", "")
    if state.startswith("/"):  # the specification says that relative paths must be ignored
        return Path(state, "chronoverse")
    home = parse.absolute_path(environ.get("HOME") or "~")
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
    """The environment for a job's command, without our settings: its output must not print our token."""
    return {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}


def markdown_table() -> str:
    rows = ["| name | default | unit | what it does |", "|---|---|---|---|"]
    defaults = {each.name: each.default for each in fields(Settings)}
    for attribute, name, setting in all_settings():
        value = defaults[attribute]
        # As the variable would have it.
        value = " ".join(value) if isinstance(value, tuple) else str(value).lower() if type(value) is bool else value
        default = setting.default or ("none" if value is None else f"`{value}`")
        parser = setting.parse
        limits = f", {parser.low} to {parser.high}" if isinstance(parser, parse.WholeNumber) else ""
        rows.append(f"| `{name}` | {default} | {setting.unit}{limits} | {setting.description} |")
    return "\n".join(rows) + "\n"
