"""Routes into JSON documents: `data.prices[0].usd` to the value it leads to."""

from __future__ import annotations

import re
from typing import Any

MAX_ROUTE = 256
MAX_STEPS = 16

_STEP = re.compile(
    r"""\[(?P<index>[0-9]{1,6})\] | \["(?P<double>[^"]+)"\] | \['(?P<single>[^']+)'\] | (?P<dot>\.?)(?P<name>[^\s.\[\]"']+)""",
    re.VERBOSE,
)

Route = tuple[str | int, ...]
"""Steps: an int is an array's place, a str an object's key, or an array's place when its digits are written as a name."""


class NoSuchRoute(LookupError):
    """The document has nothing there; the text says how far the route leads."""


def parse_route(text: str) -> Route:
    """`a.b`, `a[0]`, `a.0`, and keys of any form in brackets, `["a.b"]`; `$` may stand for the document. '' is the document.

    Raises ValueError.
    """
    if len(text) > MAX_ROUTE:
        raise ValueError(f"a route has at most {MAX_ROUTE} characters")
    at = 1 if text == "$" or text.startswith(("$.", "$[")) else 0
    rooted = at == 1
    steps: list[str | int] = []
    while at < len(text):
        match = _STEP.match(text, at)
        if match is None:
            raise ValueError(f"a route is written like data.prices[0].usd: {text[at : at + 20]!r} is no step")
        if match["name"] is not None and bool(match["dot"]) != (rooted or bool(steps)):
            raise ValueError(f"a route is written like data.prices[0].usd: a dot is {'missing' if steps else 'too many'}")
        if match["index"] is not None:
            steps.append(int(match["index"]))
        else:
            steps.append(match["double"] or match["single"] or match["name"])
        at = match.end()
        if len(steps) > MAX_STEPS:
            raise ValueError(f"a route has at most {MAX_STEPS} steps")
    return tuple(steps)


def select(document: Any, route: Route) -> Any:
    """What the route leads to, whatever it is. Raises `NoSuchRoute`."""
    found = document
    for place, step in enumerate(route):
        if isinstance(found, dict) and isinstance(step, str):
            if step not in found:
                raise NoSuchRoute(f"there is no key {step[:40]!r} {_after(route[:place])}")
            found = found[step]
        elif isinstance(found, list) and (isinstance(step, int) or (step.isascii() and step.isdigit() and len(step) <= 6)):
            if int(step) >= len(found):
                raise NoSuchRoute(f"there is no place {step} in an array of {len(found)} {_after(route[:place])}")
            found = found[int(step)]
        else:
            kind = "an object" if isinstance(found, dict) else "an array" if isinstance(found, list) else "a single value"
            raise NoSuchRoute(f"{str(step)[:40]!r} leads nowhere: there is {kind} {_after(route[:place])}")
    return found


def _after(route: Route) -> str:
    return f"after {'.'.join(map(str, route))[:80]}" if route else "at the top"
