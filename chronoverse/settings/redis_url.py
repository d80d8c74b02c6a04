"""Where the store is, as a URL says it: one server, the master that Sentinels name, or a Cluster. Pure.

    redis://[user:password@]host[:port][/db]           rediss:// speaks TLS; unix:///path is a socket
    redis+sentinel://[user:password@]host[:port][,host[:port]…]/service[/db]
    redis+cluster://[user:password@]host[:port][,host[:port]…]

With ``rediss+sentinel://`` and ``rediss+cluster://`` all servers named and found speak TLS. What follows a ``?`` are
the driver's options, the same for every server; the Sentinels' user is ``sentinel_username``, ``sentinel_password``.
"""

import re
from dataclasses import dataclass, field
from enum import Enum
from typing import Final
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

#: A server: host and port.
Address = tuple[str, int]

#: Nodes or Sentinels that a URL may name. More would only be asked in vain.
MAX_HOSTS: Final = 32
#: Options that are for the Sentinels alone.
_SENTINELS: Final = ("sentinel_username", "sentinel_password")

# Not urlsplit, to which two IPv6 hosts in a row are an error.
_MANY = re.compile(
    r"(?P<scheme>[a-z+]+)://(?:(?P<user>[^/?#]*)@)?(?P<hosts>[^/?#@]*)/?(?P<path>[^?#]*)(?:\?(?P<query>[^#]*))?"
)
_HOST = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9._-]+))(?::(?P<port>[0-9]{1,5}))?", re.ASCII)


class Form(Enum):
    """What a URL leads to; by the end of its scheme."""

    SERVER = ""
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


DEFAULT_PORTS: Final = {Form.SENTINEL: 26379, Form.CLUSTER: 6379}


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """A URL, read. ``hosts`` are the Sentinels, or some nodes of the Cluster; none for one server."""

    text: str = field(repr=False)
    form: Form
    hosts: tuple[Address, ...] = ()
    service: str = ""
    db: str = ""

    @classmethod
    def read(cls, text: str) -> "RedisUrl":
        """The URL ``text``. Raises ValueError that says "must be …"."""
        scheme = text.partition("://")[0]
        secure, plus, kind = scheme.partition("+")
        if secure not in ("redis", "rediss", *(() if plus else ("unix",))) or kind not in ("", "sentinel", "cluster"):
            raise ValueError(_expected(""))
        if bool(plus) != bool(kind) or re.search(r"\s", text):
            raise ValueError(_expected(scheme))
        try:
            if plus:
                return cls._of_many(text, Form(kind))
            parts = urlsplit(text)
            if not (parts.path if scheme == "unix" else parts.hostname and parts.port != 0):
                raise ValueError
        except ValueError:
            raise ValueError(_expected(scheme)) from None
        return cls(text, Form.SERVER)

    @classmethod
    def _of_many(cls, text: str, form: Form) -> "RedisUrl":
        found = _MANY.fullmatch(text)
        if found is None:
            raise ValueError
        hosts = tuple(_host(each, DEFAULT_PORTS[form]) for each in found["hosts"].split(","))
        service, _, db = found["path"].partition("/")
        named = re.fullmatch(r"[A-Za-z0-9._-]+" if form is Form.SENTINEL else "", service)
        if len(hosts) > MAX_HOSTS or not named or not re.fullmatch("[0-9]{0,5}", db):
            raise ValueError
        return cls(text, form, hosts, service, db)

    def server(self, address: Address) -> str:
        """The URL of the server at ``address``, one of those that this one leads to."""
        user, options = self._rest()
        return self._plain(user, address, self.db, {n: v for n, v in options.items() if n not in _SENTINELS})

    def sentinel(self, address: Address) -> str:
        """The URL of the Sentinel at ``address``."""
        options = self._rest()[1]
        user, password = (quote(options.pop(name, ""), safe="") for name in _SENTINELS)
        options.pop("db", None)
        return self._plain(f"{user}:{password}" if user or password else "", address, "", options)

    def _rest(self) -> tuple[str, dict[str, str]]:
        found = _MANY.fullmatch(self.text)
        return (found["user"] or "", dict(parse_qsl(found["query"] or ""))) if found else ("", {})

    def _plain(self, user: str, address: Address, db: str, options: dict[str, str]) -> str:
        host, port = address
        place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        scheme = self.text.partition("+")[0]
        query = f"?{urlencode(options)}" if options else ""
        return f"{scheme}://{f'{user}@' if user else ''}{place}{f'/{db}' if db else ''}{query}"


def _host(text: str, default: int) -> Address:
    found = _HOST.fullmatch(text)
    port = int(found["port"] or default) if found else 0
    if found is None or not 0 < port < 65_536:
        raise ValueError
    return found["v6"] or found["name"], port


def _expected(scheme: str) -> str:
    forms = {
        "sentinel": "HOST:PORT[,HOST:PORT…]/SERVICE[/DB]",
        "cluster": "HOST:PORT[,HOST:PORT…]",
    }
    kind = scheme.partition("+")[2]
    if kind in forms:
        return f"must be {scheme}://[USER:PASSWORD@]{forms[kind]}"
    return "must be a whole redis://, rediss://, unix://, redis+sentinel:// or redis+cluster:// URL"
