"""Which URLs name the same page, and which hosts a server may be sent to by a stranger.

A URL comes from a user or from a page, and whoever wrote it may want our server to call what only our server can reach.
So a name is resolved here, every address it has must be public, and the connection goes to the address that was
checked: a name that resolves to another one a moment later changes nothing.
"""

import asyncio
import ipaddress
import re
import socket
from collections.abc import Iterable
from functools import lru_cache
from urllib.parse import parse_qsl, quote, urlencode, urljoin, urlsplit, urlunsplit

from website.errors import Refused, Unreachable

URL_CHARS_MAX = 2_000
PORTS = {"http": 80, "https": 443}
NAMES_KEPT = 4_096
"""Links whose one way to be written is remembered: the pages of a site lead to the same ones over and over."""

_SITE = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)*(_[0-9]{1,5})?")
_TRACKING = ("utm_", "fbclid", "gclid", "mc_")
_CARRIES_IPV4 = [ipaddress.IPv6Network(net) for net in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")]
"""Addresses that a gateway turns into IPv4 ones, so that a private one could hide in them."""


@lru_cache(NAMES_KEPT)
def normal(url: str, base: str = "") -> str:
    """Return the one way to write a page's URL: absolute, without a fragment and without what only counts visitors.

    Raises:
        Refused: It is not one that a page can be fetched from.
    """
    if len(url) > URL_CHARS_MAX:
        raise Refused(f"a URL of {len(url)} characters")
    try:
        parts = urlsplit(urljoin(base, url.strip()))
        host, port = (parts.hostname or "").rstrip("."), parts.port
        name = host if ":" in host else host.encode("idna").decode() if not host.isascii() else host
    except ValueError:
        raise Refused(f"{url!r} is no URL") from None
    if parts.scheme not in PORTS or not name:
        raise Refused(f"{url!r} is no http or https URL with a host")
    if parts.username is not None or parts.password is not None:
        raise Refused("a URL with a password in it")
    where = f"[{name}]" if ":" in name else name
    if port is not None and port != PORTS[parts.scheme]:
        where += f":{port}"
    asked = parse_qsl(parts.query, keep_blank_values=True)
    kept = [(key, value) for key, value in asked if not key.casefold().startswith(_TRACKING)]
    query = parts.query if len(kept) == len(asked) else urlencode(kept)
    return urlunsplit(
        (parts.scheme, where, quote(parts.path or "/", safe="/%:@!$&'()*+,;=~"), quote(query, "=&%+;/:?@,!$'()*~"), "")
    )


def site_of(url: str) -> str:
    """Return the name of a URL's site: its host without www, and the port where it is not the usual one.

    It can be a file's name: nothing but letters, digits, dots, dashes and one underscore.

    Raises:
        Refused: It is no URL of a site that can be named.
    """
    parts = urlsplit(normal(url))
    assert parts.hostname is not None
    site = parts.hostname.removeprefix("www.").replace(":", "-") + (f"_{parts.port}" if parts.port else "")
    if not is_site(site):
        raise Refused(f"{parts.hostname!r} is no name of a host")
    return site


def is_site(site: str) -> bool:
    """Say whether this can be the name of a site."""
    return len(site) <= 200 and _SITE.fullmatch(site) is not None


def same_host(url: str, other: str) -> bool:
    """Say whether two URLs are of one host; www and the scheme do not count."""
    first, second = urlsplit(url), urlsplit(other)
    names = {(parts.hostname or "").removeprefix("www.") for parts in (first, second)}
    return len(names) == 1 and (first.port == second.port or first.scheme != second.scheme)


async def resolve(host: str, port: int, private: Iterable[str] = ()) -> str:
    """Return an address of a host that may be connected to.

    Args:
        host: A name or an address.
        port: Where the connection goes.
        private: HOST:PORT of servers that may be called although they are not public.

    Raises:
        Refused: One of its addresses is not public.
        Unreachable: It has none now.
    """
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Unreachable(f"{host} has no address: {error}") from None
    addresses = [str(entry[4][0]) for entry in found]
    if f"{host}:{port}" not in private:
        for address in addresses:
            if not is_public(address):
                raise Refused(f"{host} is not on the public network")
    return addresses[0]


def is_public(address: str) -> bool:
    """Say whether everybody can reach this address: it is no machine's own, no local network's, no group's."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        elif any(ip in net for net in _CARRIES_IPV4):
            return False
    return ip.is_global and not ip.is_multicast
