"""Which hosts a user's URL may name: those of the public internet, written in the one way that has no other reading.

The networks are IANA's special-purpose registries (RFC 6890 and its successors), written out: what Python's `ipaddress` calls
global differs between the versions we run on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

MAX_URL = 2048

_REFUSED_V4 = tuple(
    IPv4Network(each)
    for each in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT; metadata at Alibaba
        "127.0.0.0/8",
        "168.63.129.16/32",  # Azure's wire server: public by its number only
        "169.254.0.0/16",  # link-local; metadata at most clouds
        "172.16.0.0/12",
        "192.0.0.0/24",  # protocol assignments; metadata at Oracle
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",
        "198.18.0.0/15",  # benchmarking
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
    )
)
_GLOBAL_V6 = IPv6Network("2000::/3")  # all that IANA has given out as global unicast
_REFUSED_V6 = tuple(
    IPv6Network(each)
    for each in (
        "2001::/23",  # protocol assignments: Teredo, ORCHID, benchmarking
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: an IPv4 address inside
        "3fff::/20",  # documentation
    )
)
_NAT64 = IPv6Network("64:ff9b::/96")  # an IPv4 address inside, which a network without IPv4 reaches so

_URL = re.compile(r"(?P<scheme>[a-z]+)://(?P<authority>[^/?#]*)(?P<rest>[!-~]*)", re.IGNORECASE)
_AUTHORITY = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\[\]:]+)(?::(?P<port>[0-9]{1,5}))?")
_QUAD = re.compile(r"(?:(?:0|[1-9][0-9]{0,2})\.){3}(?:0|[1-9][0-9]{0,2})")
_NUMERIC = re.compile(r"(?:[0-9]+|0x[0-9a-f]*)")
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_LOCAL = frozenset(
    {"local", "localhost", "localdomain", "internal", "intranet", "lan", "home", "corp", "onion", "test", "invalid"}
)
_DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}


class RefusedUrl(ValueError):
    """A URL that is not asked for anything; the text says why."""


@dataclass(frozen=True, slots=True)
class Target:
    """A URL taken apart. `host` is lower case, without brackets; `path` has the query."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def secure(self) -> bool:
        return self.scheme in ("https", "wss")

    @property
    def literal(self) -> IPv4Address | IPv6Address | None:
        """The address, when the host is one."""
        return _literal(self.host)

    @property
    def place(self) -> str:
        """`host:port`."""
        return f"{self._shown}:{self.port}"

    @property
    def authority(self) -> str:
        """For the Host header."""
        return self._shown if self.port == _DEFAULT_PORTS[self.scheme] else self.place

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}"

    @property
    def _shown(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host


def parse_url(url: str, *schemes: str) -> Target:
    """Takes `url` apart, strictly: what two programs could read differently is refused. Resolves nothing. Raises `RefusedUrl`."""
    if len(url) > MAX_URL:
        raise RefusedUrl(f"a url has at most {MAX_URL} characters")
    if not url.isascii() or any(character <= " " or character in '\\\x7f"<>' for character in url):
        raise RefusedUrl("a url is printable ASCII without spaces and backslashes: percent-encode, and write names in punycode")
    match = _URL.fullmatch(url)
    if match is None or match["scheme"].lower() not in schemes:
        raise RefusedUrl(f"a url begins with {' or '.join(f'{scheme}://' for scheme in schemes)}")
    scheme = match["scheme"].lower()
    if "@" in match["authority"]:
        raise RefusedUrl("a url carries no user or password")
    authority = _AUTHORITY.fullmatch(match["authority"])
    if authority is None:
        raise RefusedUrl("a url has a host, and then perhaps a port")
    port = int(authority["port"]) if authority["port"] else _DEFAULT_PORTS[scheme]
    if not 1 <= port <= 65535:
        raise RefusedUrl("a port is 1 to 65535")
    path = match["rest"].partition("#")[0]
    return Target(scheme, _host(authority["host"].lower()), port, path if path.startswith("/") else f"/{path}")


def refusal(address: IPv4Address | IPv6Address) -> str | None:
    """Why nothing is fetched from this address; None for one of the public internet."""
    if isinstance(address, IPv4Address):
        return f"{address} is no address of the public internet" if any(address in net for net in _REFUSED_V4) else None
    if address.scope_id is None and address in _NAT64:
        return refusal(IPv4Address(int(address) & 0xFFFFFFFF))
    public = address.scope_id is None and address in _GLOBAL_V6 and not any(address in net for net in _REFUSED_V6)
    return None if public else f"{address} is no address of the public internet"


def name_refusal(host: str) -> str | None:
    """Why nothing is fetched from a host of this name, whatever it resolves to: names that only a local network knows."""
    last = host.rpartition(".")[2]
    return f"{host} is no name of the public internet" if last == host or last in _LOCAL else None


def port_refusal(port: int) -> str | None:
    """Why nothing is fetched from this port: below 1024 live mail, remote shells and the like."""
    return None if port in (80, 443) or port >= 1024 else f"port {port} is none for the web: 80, 443, or 1024 and above"


def _host(text: str) -> str:
    if text.startswith("["):
        try:
            return str(IPv6Address(text[1:-1]))
        except ValueError:
            raise RefusedUrl("the host is no IPv6 address") from None
    labels = text.split(".")
    if len(text) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise RefusedUrl("the host is neither a name of letters, digits and hyphens nor an address")
    # As browsers decide: a name that ends in a number is an address, and there is one way to write it.
    if _NUMERIC.fullmatch(labels[-1]) and (not _QUAD.fullmatch(text) or _literal(text) is None):
        raise RefusedUrl("an IPv4 address is written as four decimal numbers")
    return text


def _literal(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None
