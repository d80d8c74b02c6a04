"""Finds the client's address: the connection's peer, or X-Forwarded-For if a trusted proxy sent it."""

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network


def join_forwarded_for(headers: Iterable[tuple[str, str]]) -> str:
    """The values of all X-Forwarded-For headers, joined as WSGI joins them. Names in ``headers`` are uppercase."""
    return ",".join(value for name, value in headers if name == "X-FORWARDED-FOR")


class TrustedProxies:
    """The proxies whose X-Forwarded-For is trusted: none until :meth:`trust` is called."""

    def __init__(self) -> None:
        self._networks: list[IPv4Network | IPv6Network] = []
        self._any = False
        # Most requests come from a few addresses, and parsing one takes 10 µs.
        self.client = lru_cache(1024)(self._client)

    def trust(self, proxies: Iterable[str]) -> None:
        """Adds addresses and networks, or ``*`` for all, in the format of gunicorn's FORWARDED_ALLOW_IPS."""
        for proxy in proxies:
            if proxy == "*":
                self._any = True
            else:
                self._networks.append(ip_network(proxy, strict=False))
        self.client.cache_clear()

    def _client(self, peer: str, forwarded_for: str | None) -> str:
        """The client's address, or its /64 for IPv6. ``unknown`` if invalid, so clients cannot invent identities.

        ``peer`` is the connection's other end; it is empty on a Unix socket, which is trusted. If the peer is trusted,
        the client is the last address in ``forwarded_for`` that is not a trusted proxy. Others before it can be forged.
        """
        client = peer
        for hop in reversed((forwarded_for or "").split(",")):
            if not self._is_trusted(client) or not (hop := hop.strip()):
                break
            client = hop
        address = _parse_address(client)
        if address is None:
            return "unknown" if client else "local"
        return str(IPv6Network((address, 64), strict=False) if isinstance(address, IPv6Address) else address)

    def _is_trusted(self, peer: str) -> bool:
        if self._any or not peer:
            return True
        address = _parse_address(peer)
        return address is not None and any(address in network for network in self._networks)


def _parse_address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address
