"""Settings: valid values, and the errors for all others."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import pytest

from chronoverse.errors import SettingsError
from chronoverse.settings import (
    Settings,
    all_settings,
    child_environ,
    default_data_dir,
    markdown_table,
    mask_forms_setting,
    unknown_names,
)
from chronoverse.settings.parse import archive_url, is_loopback
from chronoverse.settings.redis_url import RedisUrl

ROOT = Path(__file__).parents[2]
SECRET = "s" * 32
PEM = "-----BEGIN PUBLIC KEY-----\nMCow\n-----END PUBLIC KEY-----\n"


def read(**settings: str) -> Settings:
    """The settings for these variables and a home directory."""
    return Settings.from_env({"HOME": "/home/ada", **named(settings)})


def named(settings: Mapping[str, str]) -> dict[str, str]:
    return {name if name == "WEB_CONCURRENCY" else f"CHRONOVERSE_{name}": text for name, text in settings.items()}


def test_an_empty_environment_gives_the_documented_defaults() -> None:
    """No variable is required."""
    settings = read()

    assert settings.redis_url is None
    assert settings.is_embedded
    assert settings.has_local_secret
    assert settings.bind == "127.0.0.1:8000"
    assert (settings.heartbeat_seconds, settings.lease_seconds, settings.retention_seconds) == (15, 30, 604_800)
    assert (settings.max_line_bytes, settings.max_streams, settings.max_stream_seconds) == (65_536, 8_000, 3_600)
    assert (settings.log_level, settings.key_prefix) == ("info", "chronoverse")
    assert 1 <= settings.web_concurrency <= 4
    assert (settings.url, settings.service_url, settings.token) == (None, "http://127.0.0.1:8000", None)


def test_an_empty_variable_counts_as_not_set() -> None:
    """Compose files set omitted variables to an empty string."""
    assert read(REDIS_URL="", HEARTBEAT_SECONDS="", WEB_CONCURRENCY="") == read()


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("REDIS_URL", "redis://:pw@db:6379/1", "redis://:pw@db:6379/1"),
        ("REDIS_URL", "rediss://db", "rediss://db"),
        ("REDIS_URL", "unix:///run/redis.sock?db=2", "unix:///run/redis.sock?db=2"),
        ("REDIS_URL", "redis+sentinel://a,b:1/logs/2", "redis+sentinel://a,b:1/logs/2"),
        ("REDIS_URL", "rediss+cluster://[::1],[::2]:1", "rediss+cluster://[::1],[::2]:1"),
        ("KEY_PREFIX", "team-a:cv.1", "team-a:cv.1"),
        ("BIND", "0.0.0.0:80", "0.0.0.0:80"),
        ("BIND", "[::1]:8000", "[::1]:8000"),
        ("BIND", "unix:/run/chronoverse.sock", "unix:/run/chronoverse.sock"),
        ("JWT_SECRET", "é" * 16, ("é" * 16).encode()),
        ("JWT_PUBLIC_KEY", PEM, PEM),
        ("JWT_JWKS_URL", "https://id.example/jwks.json", "https://id.example/jwks.json"),
        ("JWT_JWKS_URL", "http://[::1]:80/jwks", "http://[::1]:80/jwks"),
        ("CORS_ORIGINS", "https://ci.example, http://[::1]:3000", ("https://ci.example", "http://[::1]:3000")),
        ("JWT_AUDIENCE", "https://logs.example/", "https://logs.example/"),
        ("JWT_ISSUER", "https://id.example/realms/main", "https://id.example/realms/main"),
        ("JWT_WORKFLOWS_CLAIM", "https://logs.example/workflows", "https://logs.example/workflows"),
        ("HEARTBEAT_SECONDS", "300", 300),
        ("MAX_LINE_BYTES", "256", 256),
        ("LOG_LEVEL", "WARNING", "warning"),
        ("WEB_CONCURRENCY", "3", 3),
        ("DATA_DIR", "/var/lib/chronoverse", Path("/var/lib/chronoverse")),
        ("URL", "https://logs.example/chronoverse/", "https://logs.example/chronoverse"),
        ("TOKEN", "a.b-c_d.e", "a.b-c_d.e"),
        ("MASK_FORMS", "ON", ()),
        ("MASK_FORMS", "off", None),
    ],
)
def test_a_valid_value_is_accepted(name: str, text: str, value: object) -> None:
    assert getattr(read(**{name: text}), name.lower()) == value


INVALID: Final[dict[str, list[str]]] = {
    "REDIS_URL": [
        "http://db",
        "redis://",
        "redis://db:notaport",
        "redis://db/logs",
        "redis://user:12/34@db",
        "unix://",
        "redis+sentinel://db",
        "redis+sentinel://db/my/master",
        "redis+sentinel://,db/mymaster",
        "redis+cluster://db/1",
        "redis+cluster://db:0",
        "redis+cluster://" + ",".join(["db"] * 33),
        "redis+other://db",
        "unix+cluster://db",
    ],
    "KEY_PREFIX": ["a{b}", "a" * 65, "a\n"],
    "BIND": ["8000", ":8000", "host:65536", "[1:2]:80", "::1:80", "unix:"],
    "JWT_SECRET": [
        "s" * 31,
        "s" * 32 + "," + "t" * 31,
        '{"kty":"oct","k":"c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0"}',
        ",".join("s" * 32 for _ in range(3)),
    ],
    "JWT_PUBLIC_KEY": [
        "/nowhere/key.pem",
        "-----BEGIN PRIVATE KEY-----\nMC4C\n-----END PRIVATE KEY-----",
        "-----BEGIN CERTIFICATE-----\nMC4C\n-----END CERTIFICATE-----",
    ],
    "JWT_JWKS_URL": ["http://id.example/jwks.json", "file:///etc/passwd"],
    "CORS_ORIGINS": [
        "*",
        "null",
        "https://*.example",
        "https://ci.example/",
        "ci.example",
        "https://ci.example:443",
        "ws://a",
    ],
    "JWT_AUDIENCE": ["two words"],
    "JWT_ISSUER": ["https://id.example/\n"],
    "OIDC_ISSUER": ["https://user@id.example", "https://id.example?x=1", "https://id.example#x"],
    "JWT_WORKFLOWS_CLAIM": ["sub", "my workflows"],
    "HEARTBEAT_SECONDS": ["0", "301", "1_5", " 15", "\N{FULLWIDTH DIGIT ONE}5", "1e1"],
    "LEASE_SECONDS": ["3601"],
    "RETENTION_SECONDS": ["-1"],
    "MAX_LINE_BYTES": ["255", "1048577"],
    "MAX_STREAMS": ["0"],
    "MAX_STREAM_SECONDS": ["9" * 400],
    "LOG_LEVEL": ["loud"],
    "WEB_CONCURRENCY": ["0"],
    "URL": ["127.0.0.1:8000", "http://user:pw@host", "http://host?x=1"],
    "TOKEN": ["two words"],
    "MASK_FORMS": ["yes", "/nowhere/forms.toml", __file__],
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in INVALID.items() for text in texts])
def test_an_invalid_value_is_named(name: str, text: str) -> None:
    with pytest.raises(SettingsError, match=rf"^{name if name == 'WEB_CONCURRENCY' else f'CHRONOVERSE_{name}'} must "):
        read(**{name: text})


def test_forms_of_secrets_are_a_table_of_a_file(tmp_path: Path) -> None:
    """Anything else in the file is an error."""
    path = tmp_path / "forms.toml"
    path.write_text("[forms]\nacme = 'acme_[a-z]{8}'\n")
    assert read(MASK_FORMS=str(path)).mask_forms == (("acme", "acme_[a-z]{8}"),)
    assert mask_forms_setting({"CHRONOVERSE_MASK_FORMS": str(path)}) == (("acme", "acme_[a-z]{8}"),)
    assert mask_forms_setting({}) == ()
    for text in ("forms = 3", "acme = 'x'", "[forms]\nacme = 3", "[forms"):
        path.write_text(text)
        with pytest.raises(SettingsError, match=r"^CHRONOVERSE_MASK_FORMS must be"):
            read(MASK_FORMS=str(path))


def test_all_invalid_values_are_named_at_once() -> None:
    """So that users need not correct them one by one."""
    with pytest.raises(SettingsError) as caught:
        read(
            BIND="x",
            MAX_STREAMS="many",
            WEB_CONCURRENCY="0",
            JWT_SECRET="short",
            JWT_JWKS_URL="ftp://x",
            TOKEN="a.b.c",
            TOKEN_FILE="/run/token",
        )

    message = str(caught.value)
    assert all(
        name in message for name in ("_BIND", "_MAX_STREAMS", "WEB_CONCURRENCY", "_JWT_SECRET must", "_JWKS_URL must")
    )
    for both in ("JWT_SECRET and CHRONOVERSE_JWT_JWKS_URL", "TOKEN and CHRONOVERSE_TOKEN_FILE"):
        assert f"CHRONOVERSE_{both} cannot be combined" in message


def test_a_url_of_several_hosts_gives_the_url_of_each() -> None:
    """The user applies to the servers. The options apply to all, except those of the Sentinels."""
    url = RedisUrl.parse(
        "rediss+sentinel://u:p%2F@a,[::1]:7/logs/2?sentinel_password=s%2F%40&ssl_ca_certs=/ca.pem&db=3"
    )

    assert (url.kind, url.service, url.hosts) == ("sentinel", "logs", (("a", 26379), ("::1", 7)))
    assert url.server_url(("b", 6379)) == "rediss://u:p%2F@b:6379/2?ssl_ca_certs=%2Fca.pem&db=3"
    assert url.sentinel_url(("::1", 7)) == "rediss://:s%2F%40@[::1]:7?ssl_ca_certs=%2Fca.pem"
    assert RedisUrl.parse("redis+cluster://a:1,b").hosts == (("a", 1), ("b", 6379))


def test_secrets_are_in_no_message_and_no_repr() -> None:
    """Both can appear in logs."""
    with pytest.raises(SettingsError) as caught:
        read(REDIS_URL="redis+sentinel://:hunter2@host:port/logs", JWT_SECRET="hunter2", TOKEN="hunter2 hunter2")
    settings = read(REDIS_URL="redis://:hunter2@host", JWT_SECRET="hunter2" * 5, TOKEN="hunter2")

    assert "hunter2" not in str(caught.value) + repr(settings)


def test_a_public_key_may_be_the_path_of_its_file(tmp_path: Path) -> None:
    """In containers, keys are usually mounted as files."""
    (tmp_path / "key.pem").write_text(PEM)

    assert read(JWT_PUBLIC_KEY=str(tmp_path / "key.pem")).jwt_public_key == PEM


@pytest.mark.parametrize(
    ("environ", "platform", "path"),
    [
        ({"HOME": "/home/ada"}, "linux", "/home/ada/.local/state/chronoverse"),
        ({"HOME": "/home/ada", "XDG_STATE_HOME": "/state"}, "linux", "/state/chronoverse"),
        ({"HOME": "/home/ada", "XDG_STATE_HOME": "state"}, "linux", "/home/ada/.local/state/chronoverse"),
        ({"HOME": "/Users/ada"}, "darwin", "/Users/ada/Library/Application Support/chronoverse"),
    ],
)
def test_the_default_data_directory_is_the_platforms(environ: dict[str, str], platform: str, path: str) -> None:
    """By the XDG base directory specification, and its counterpart on macOS."""
    assert default_data_dir(environ, platform) == Path(path)


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("http://127.0.0.1:8000", True),
        ("http://localhost", True),
        ("http://[::1]:8000", True),
        ("http://127.0.0.1.example.com", False),
        ("http://0.0.0.0:8000", False),
        ("https://logs.example", False),
    ],
)
def test_only_loopback_counts_as_this_machine(url: str, local: bool) -> None:
    """Tokens signed with the local secret must not leave the machine."""
    assert is_loopback(urlsplit(url).hostname) is local


@pytest.mark.parametrize("settings", [{"REDIS_URL": "redis://db"}, {"JWT_SECRET": SECRET}, {"JWT_PUBLIC_KEY": PEM}])
def test_the_local_secret_is_for_the_embedded_server_only(settings: dict[str, str]) -> None:
    """With another key or a shared store, somebody else decides who can read."""
    assert not read(**settings).has_local_secret


def test_a_child_process_finds_our_package_first() -> None:
    """Other variables are kept."""
    environ = child_environ({"PYTHONPATH": "/ours", "A": "2"}, {"PYTHONPATH": "/theirs", "A": "1", "B": "3"})

    assert environ == {"PYTHONPATH": "/ours:/theirs", "A": "2", "B": "3"}


def test_the_documentation_is_up_to_date() -> None:
    """docs/settings.md contains the table printed by the code. Each setting has a unit and a description."""
    assert all(knob.unit and knob.description.endswith(".") for _, _, knob in all_settings())
    printed = subprocess.run(
        [sys.executable, "-m", "chronoverse.settings"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout

    assert printed == markdown_table()
    assert f"\n{printed}\n" in (ROOT / "docs" / "settings.md").read_text("utf-8")


def test_unknown_names_are_reported() -> None:
    """A typo would otherwise go unnoticed. The likely name is suggested.

    Pods get other variables for the Services ``chronoverse`` and ``chronoverse-redis``.
    """
    links = [f"SERVICE_{each}" for each in ("HOST", "PORT", "PORT_HTTP")]
    links += [f"PORT_80_TCP{each}" for each in ("", "_PROTO", "_PORT", "_ADDR")]
    environ = {
        **{f"CHRONOVERSE_{service}{each}": "80" for service in ("", "REDIS_") for each in links},
        "CHRONOVERSE_REDIS_PORT": "tcp://10.0.0.1:80",
        "CHRONOVERSE_REDIS_URI": "redis://db",
        "CHRONOVERSE_FLUX": "1",
        "CHRONOVERSE_PORT": "9000",
        "CHRONOVERSE_WEB_CONCURRENCY": "2",
        "CHRONOVERSE_BIND": "x",
        "HOME": "/",
    }

    assert list(unknown_names(environ)) == [
        "CHRONOVERSE_FLUX is not a setting, and is ignored",
        "CHRONOVERSE_PORT is not a setting, and is ignored",
        "CHRONOVERSE_REDIS_URI is not a setting: did you mean CHRONOVERSE_REDIS_URL?",
        "CHRONOVERSE_WEB_CONCURRENCY is not a setting, and is ignored",
    ]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        *((each, "") for each in ("none", "file:///var/logs", "s3://logs", "s3://my.logs-1/some/prefix")),
        *(
            (each, "must be file:///DIRECTORY, s3://BUCKET/PREFIX or none")
            for each in ("s3://", "s3:///prefix", "s3://logs/prefix?x=1", "/var/logs", "file://host/logs")
        ),
        *(
            (f"s3://{each}/prefix", "must have a valid S3 bucket name: 3 to 63 lowercase letters")
            for each in ("b", "ab", "Logs", "my_logs", "-logs", "logs.", "x" * 64)
        ),
    ],
)
def test_an_archive_url_is_accepted_or_refused(text: str, error: str) -> None:
    """The error lists the valid formats, or is about the bucket if the format is valid."""
    if not error:
        assert archive_url(text) == text
        return
    with pytest.raises(ValueError, match=error):
        archive_url(text)
