"""Parses the URL of the store: one server, a master behind Sentinels, or a Cluster. No I/O.

    redis://[user:password@]host[:port][/db]           rediss:// uses TLS; unix:///path is a socket
    redis+sentinel://[user:password@]host[:port][,host[:port]…]/service[/db]
    redis+cluster://[user:password@]host[:port][,host[:port]…]

With ``rediss+sentinel://`` and ``rediss+cluster://``, all servers use TLS, including discovered ones. Options of
redis-py may follow after ``?``, and apply to every server. ``sentinel_username`` and ``sentinel_password`` are the
credentials for the Sentinels.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

Address = tuple[str, int]

_SENTINEL_OPTIONS: Final = ("sentinel_username", "sentinel_password")

# urllib's urlsplit refuses a list of IPv6 hosts.
_MANY_HOSTS = re.compile(
    r"(?P<scheme>[a-z+]+)://(?:(?P<user>[^/?#]*)@)?(?P<hosts>[^/?#@]*)/?(?P<path>[^?#]*)(?:\?(?P<query>[^#]*))?"
)
_HOST = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9._-]+))(?::(?P<port>[0-9]{1,5}))?", re.ASCII)

_DEFAULT_PORTS: Final = {"sentinel": 26379, "cluster": 6379}
_FORMS: Final = {
    "": "HOST[:PORT][/DB]",
    "sentinel": "HOST:PORT[,HOST:PORT…]/SERVICE[/DB]",
    "cluster": "HOST:PORT[,HOST:PORT…]",
}


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """A parsed URL. ``hosts`` are the Sentinels, or nodes of the Cluster. Empty for a single server."""

    text: str = field(repr=False)
    kind: str = ""
    hosts: tuple[Address, ...] = ()
    service: str = ""
    db: str = ""
    user: str = field(default="", repr=False)
    options: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls, text: str) -> "RedisUrl":
        """Parses ``text``. Raises ValueError with a message that begins with "must be"."""
        scheme = text.partition("://")[0]
        secure, plus, kind = scheme.partition("+")
        known = ("redis", "rediss", *(() if plus else ("unix",)))
        if secure not in known or kind not in ("", "sentinel", "cluster") or bool(plus) != bool(kind):
            raise ValueError(_expected_form(""))
        if re.search(r"\s", text):
            raise ValueError(_expected_form(scheme))
        try:
            if plus:
                return cls._parse_many_hosts(text, kind)
            parts = urlsplit(text)
            is_tcp = parts.hostname and parts.port != 0 and re.fullmatch("/?[0-9]{0,5}/?", parts.path)
            if not (parts.path if scheme == "unix" else is_tcp):
                raise ValueError
        except ValueError:
            raise ValueError(_expected_form(scheme)) from None
        return cls(text)

    @classmethod
    def _parse_many_hosts(cls, text: str, kind: str) -> "RedisUrl":
        found = _MANY_HOSTS.fullmatch(text)
        if found is None:
            raise ValueError
        hosts = tuple(_parse_host(each, _DEFAULT_PORTS[kind]) for each in found["hosts"].split(","))
        service, _, db = found["path"].partition("/")
        named = re.fullmatch(r"[A-Za-z0-9._-]+" if kind == "sentinel" else "", service)
        # At most 32 hosts: more would not make it more likely that one of them answers.
        if len(hosts) > 32 or not named or not re.fullmatch("[0-9]{0,5}", db):
            raise ValueError
        options = dict(parse_qsl(found["query"] or ""))
        return cls(text, kind, hosts, service, db, found["user"] or "", options)

    def server_url(self, address: Address) -> str:
        options = {name: value for name, value in self.options.items() if name not in _SENTINEL_OPTIONS}
        return self._url_of(self.user, address, self.db, options)

    def sentinel_url(self, address: Address) -> str:
        options = dict(self.options)
        user, password = (quote(options.pop(name, ""), safe="") for name in _SENTINEL_OPTIONS)
        options.pop("db", None)
        return self._url_of(f"{user}:{password}" if user or password else "", address, "", options)

    def _url_of(self, user: str, address: Address, db: str, options: dict[str, str]) -> str:
        host, port = address
        location = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        scheme = self.text.partition("+")[0]
        query = f"?{urlencode(options)}" if options else ""
        return f"{scheme}://{f'{user}@' if user else ''}{location}{f'/{db}' if db else ''}{query}"


def _parse_host(text: str, default: int) -> Address:
    found = _HOST.fullmatch(text)
    port = int(found["port"] or default) if found else 0
    if found is None or not 0 < port < 65_536:
        raise ValueError
    return found["v6"] or found["name"], port


def _expected_form(scheme: str) -> str:
    if scheme.startswith("redis"):
        form = _FORMS[scheme.partition("+")[2]]
        return f"must be {scheme}://[USER:PASSWORD@]{form}, with PASSWORD percent-encoded"
    return "must be a complete redis://, rediss://, unix://, redis+sentinel:// or redis+cluster:// URL"
