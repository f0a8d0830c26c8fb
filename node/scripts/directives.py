"""What a script says of itself to the keepers, in comments of its first lines: the hosts it reads, and how exact that is."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from decimal import Decimal

from consensus.errors import Failed
from node.infra.addresses import RefusedUrl, name_refusal, parse_url, port_refusal, refusal
from node.scripts.quoting import quoted

LINES = 64
"""Directives stand in the first so many lines: whoever reads a script sees them."""
MOST_HOSTS = 8
MOST_TOLERANCE = Decimal("0.1")

_DIRECTIVE = re.compile(r"\s*(?://|#)[/!#\s]*triggerx\s*:\s*(?P<name>\S*)\s*(?P<value>.*?)\s*\Z", re.IGNORECASE)
_TOLERANCE = re.compile(r"(?P<number>[0-9]{1,3}(?:\.[0-9]{1,9})?|\.[0-9]{1,9})(?P<percent>\s?%)?\Z")


@dataclass(frozen=True, slots=True)
class Directives:
    """`hosts` are names or public addresses in lower case, with `:port` where the script names one; `tolerance` is a fraction
    as numerator and denominator."""

    hosts: tuple[str, ...] = ()
    tolerance: tuple[int, int] = (0, 1)


def directives(source: str, private: Collection[str] = ()) -> Directives:
    """The directives of a script's text.

    `private` are hosts (`host` or `host:port`) that may be named though they are none of the public internet: for tests and
    devnets, and the same for every keeper. Raises `Failed` SCRIPT_INVALID naming the line.
    """
    hosts: dict[str, None] = {}
    tolerance: tuple[int, int] | None = None
    for number, line in enumerate(source.split("\n", LINES)[:LINES], 1):
        match = _DIRECTIVE.match(line)
        if match is None:
            continue
        match match["name"].lower():
            case "allow":
                hosts[_host(match["value"], number, private)] = None
            case "tolerance" if tolerance is not None:
                raise _invalid(number, "a second tolerance")
            case "tolerance":
                tolerance = _fraction(match["value"], number)
            case other:
                raise _invalid(number, f"{quoted(other, 40)!r} is no directive: allow, tolerance")
    if len(hosts) > MOST_HOSTS:
        raise Failed("SCRIPT_INVALID", f"allows {len(hosts)} hosts, at most {MOST_HOSTS}")
    if tolerance is not None and not hosts:
        raise Failed("SCRIPT_INVALID", "has a tolerance but allows no host: without network outputs are compared exactly")
    return Directives(tuple(hosts), tolerance or (0, 1))


def _invalid(line: int, problem: str) -> Failed:
    return Failed("SCRIPT_INVALID", f"line {line}: {problem}")


def _host(text: str, line: int, private: Collection[str]) -> str:
    if not text or any(each in text for each in "/?#@ \t"):
        raise _invalid(line, "allow takes a host, and perhaps its port: allow api.example.org:443")
    try:
        target = parse_url(f"https://{text}", "https")
    except RefusedUrl as error:
        raise _invalid(line, str(error)) from None
    shown = target.place.removesuffix(f":{target.port}")
    if shown not in private and target.place not in private:
        literal = target.literal
        why = (refusal(literal) if literal is not None else name_refusal(target.host)) or port_refusal(target.port)
        if why:
            raise _invalid(line, why)
    return target.place if _names_port(text) else shown


def _names_port(text: str) -> bool:
    return re.search(r"(?:^[^\[\]:]+|\]):[0-9]+\Z", text) is not None


def _fraction(text: str, line: int) -> tuple[int, int]:
    match = _TOLERANCE.match(text)
    if match is None:
        raise _invalid(line, f"{quoted(text, 40)!r} is no tolerance: 0.5% or 0.005")
    value = Decimal(match["number"]) / (100 if match["percent"] else 1)
    if value > MOST_TOLERANCE:
        raise _invalid(line, "a tolerance is at most 10%")
    return value.as_integer_ratio()
