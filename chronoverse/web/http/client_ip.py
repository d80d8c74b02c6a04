"""Which client a request comes from: behind a proxy that is trusted, the proxy's word; else the connection's end."""

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

#: What gunicorn writes for any proxy at all.
ANY_PROXY: Final = "*"
#: Bits of an IPv6 address that tell one client from another: whoever has an address has all that share these.
IPV6_PREFIX_BITS: Final = 64
#: Texts remembered with the address that they are: each request has one to three, mostly the same.
CACHE_SIZE: Final = 1024


def forwarded_for(headers: Iterable[tuple[str, str]]) -> str:
    """All that ``headers``, with their names in capitals, have in X-Forwarded-For, the last proxy's word last.

    Some proxies add a header of their own behind the client's, and do not append to that one.
    """
    return ",".join(value for name, value in headers if name == "X-FORWARDED-FOR")


class TrustedProxies:
    """The proxies whose X-Forwarded-For is believed. There are none until the server says which."""

    def __init__(self) -> None:
        self._networks: list[IPv4Network | IPv6Network] = []
        self._any = False
        self._trusts = lru_cache(CACHE_SIZE)(self._is_trusted)

    def trust(self, proxies: Iterable[str]) -> None:
        """Addresses and networks, or ``*``: what gunicorn has read from FORWARDED_ALLOW_IPS."""
        for each in proxies:
            self._any |= each == ANY_PROXY
            if each != ANY_PROXY:
                self._networks.append(ip_network(each, strict=False))
        self._trusts.cache_clear()

    def client(self, peer: str, forwarded_for: str | None) -> str:
        """The client's address, an IPv6 one as its network; ``peer`` is the connection's, empty on a unix socket.

        The last one in ``forwarded_for`` that is no trusted proxy is what a proxy of ours has seen.
        """
        client = peer
        for hop in reversed((forwarded_for or "").split(",")):
            if not self._trusts(client) or not (hop := hop.strip()):
                break
            client = hop
        return _normalized(client)

    def _is_trusted(self, peer: str) -> bool:
        if self._any or not peer:
            return True
        address = _parse_address(peer)
        return address is not None and any(address in network for network in self._networks)


@lru_cache(CACHE_SIZE)
def _parse_address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


@lru_cache(CACHE_SIZE)
def _normalized(text: str) -> str:
    """One spelling of each client. All that is no address is one and the same, or one could make shares up."""
    address = _parse_address(text)
    if address is None:
        return "unknown" if text else "local"
    if isinstance(address, IPv6Address):
        return str(IPv6Network((address, IPV6_PREFIX_BITS), strict=False))
    return str(address)
