"""Conditions from posted fields: one comparison, or a tree of them, over the sources that values come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, TypeVar, get_args

from eth_utils.address import to_checksum_address

from consensus.conditions import (
    MAX_COMPARISONS,
    MAX_DEPTH,
    AllOf,
    AnyOf,
    ApiSource,
    BalanceSource,
    Comparison,
    ConfirmationsSource,
    Node,
    OnCondition,
    Operator,
    OracleSource,
    Source,
    StaticSource,
    ViewSource,
    WebSocketSource,
    leaves,
    number,
    single_limit,
)
from consensus.errors import Invalid
from coordinator.definitions.values import address, chain_id, hash32
from node.arguments import canonical_arguments, resolve_function

OPERATORS: tuple[str, ...] = get_args(Operator)
_LEAF = (
    "condition_type",
    "upper_limit",
    "lower_limit",
    "hysteresis",
    "value_source_type",
    "value_source_url",
    "selected_key_route",
)
FIELDS = (*_LEAF, "condition")
"""Posted fields of a condition job."""

T = TypeVar("T")

_PLAIN = 90  # characters without an exponent: `number` takes 100 digits


def on_condition(posted: Mapping[str, Any]) -> OnCondition:
    """The condition of these `FIELDS`: a tree in `condition`, or one comparison in the others. Raises `Invalid`."""
    tree = posted.get("condition")
    if tree is None:
        return OnCondition(_comparison(posted, ""))
    for field in _LEAF:
        if posted.get(field) not in (None, ""):
            raise Invalid(field, "comes with condition", "put all of it in condition, or send no condition")
    root = _node(tree, "condition", 1)
    if len(list(leaves(root))) > MAX_COMPARISONS:
        raise Invalid("condition", f"has more than {MAX_COMPARISONS} comparisons", "send fewer")
    return OnCondition(root)


def _node(posted: Any, at: str, depth: int) -> Node:
    if depth > MAX_DEPTH:
        raise Invalid(at[:80], f"is deeper than {MAX_DEPTH} levels", "nest less")
    if not isinstance(posted, dict):
        raise Invalid(at, "is no object", 'send {"all": [...]}, {"any": [...]} or a comparison')
    for word in ("all", "any"):
        if word not in posted:
            continue
        members = posted[word]
        if len(posted) != 1 or not isinstance(members, list) or not 1 <= len(members) <= MAX_COMPARISONS:
            raise Invalid(f"{at}.{word}", f"is no array of 1 to {MAX_COMPARISONS} conditions", "send it alone, as an array")
        nodes = tuple(_node(member, f"{at}.{word}[{place}]", depth + 1) for place, member in enumerate(members))
        return _born(at, lambda: AllOf(nodes) if word == "all" else AnyOf(nodes))  # noqa: B023 - called at once
    source = posted.get("source")
    for field in posted:
        if field not in (*_LEAF, "source"):
            raise Invalid(f"{at}.{str(field)[:40]}", "is not known in a comparison", "leave it out")
    if source is None:
        return _comparison(posted, f"{at}.")
    if not isinstance(source, dict) or not {"type", "url"} <= set(source) <= {"type", "url", "route"}:
        raise Invalid(f"{at}.source", "is no source", 'send {"type": ..., "url": ..., "route": ...}')
    flat = {"value_source_type": source["type"], "value_source_url": source["url"], "selected_key_route": source.get("route")}
    return _comparison({**posted, **flat}, f"{at}.")


def _comparison(posted: Mapping[str, Any], at: str) -> Comparison:
    operator = posted.get("condition_type")
    if operator not in OPERATORS:
        shown = "is missing" if operator in (None, "") else f"{str(operator)[:40]!r} is not known"
        raise Invalid(f"{at}condition_type", shown, f"send one of {', '.join(OPERATORS)}")
    source = _source(posted, at)
    upper, lower = (_limit(posted.get(name), f"{at}{name}") for name in ("upper_limit", "lower_limit"))
    hysteresis = _limit(posted.get("hysteresis"), f"{at}hysteresis") or "0"
    if operator == "between":
        for name, limit in (("upper_limit", upper), ("lower_limit", lower)):
            if limit is None:
                raise Invalid(f"{at}{name}", "is missing, between takes both limits", "add it")
        if number(lower) > number(upper):
            raise Invalid(f"{at}lower_limit", "is above upper_limit", "exchange the two")
    else:
        if upper is None and lower is None:
            raise Invalid(f"{at}upper_limit", "is missing", "send the limit")
        upper, lower = single_limit(upper, lower), "0"
    if number(hysteresis) < 0:
        raise Invalid(f"{at}hysteresis", "is negative", "send how far the value must fall back, 0 or more")
    return _born(f"{at}hysteresis", lambda: Comparison(source, operator, str(upper), str(lower), hysteresis))


def _limit(value: Any, field: str) -> str | None:
    """Exact decimal text; None for what is not set."""
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, int | Decimal | str):
        raise Invalid(field, "is no number", "send a decimal number, as number or text")
    try:
        exact = number(value.strip() if isinstance(value, str) else value)
    except ValueError as error:
        raise Invalid(field, str(error)[:120], "send a decimal number, as number or text") from None
    plain = format(exact, "f")
    return plain if len(plain) <= _PLAIN else str(exact)


# --- sources ----------------------------------------------------------------------------------------------------


def _source(posted: Mapping[str, Any], at: str) -> Source:
    kind, url, route = (posted.get(name) for name in ("value_source_type", "value_source_url", "selected_key_route"))
    field, kind_field, route_field = (f"{at}{n}" for n in ("value_source_url", "value_source_type", "selected_key_route"))
    route = "" if route is None else route
    if not isinstance(route, str) or not isinstance(kind, str) or kind not in _SOURCES:
        if not isinstance(route, str):
            raise Invalid(route_field, "is no text", "send it like data.prices[0].usd")
        raise Invalid(kind_field, "is missing or not known", f"send one of {', '.join(_SOURCES)}")
    if isinstance(url, int | Decimal) and not isinstance(url, bool) and kind == "static":
        url = str(url)
    if not isinstance(url, str) or not url.strip():
        raise Invalid(field, "is missing", _FORMS[kind])
    # `static:5` and `balance:1:0x...` are what a client can send that insists on a URL
    text = url.strip().removeprefix(f"{kind}:")
    if kind == "oracle" and text.lower().startswith(("http://", "https://")):
        kind = "api"
    if route and kind not in ("api", "websocket", "contract"):
        raise Invalid(route_field, f"leads nowhere in a source of type {kind}", "leave it out")
    return _SOURCES[kind](text, route, field, route_field)


def _api(url: str, route: str, field: str, route_field: str) -> Source:
    _born(route_field, lambda: ApiSource("http://x/", route))
    return _born(field, lambda: ApiSource(url, route))


def _websocket(url: str, route: str, field: str, route_field: str) -> Source:
    _born(route_field, lambda: ApiSource("http://x/", route))
    return _born(field, lambda: WebSocketSource(url, route))


def _static(value: str, route: str, field: str, route_field: str) -> Source:
    return StaticSource(_limit(value, field) or "0")


def _oracle(text: str, route: str, field: str, route_field: str) -> Source:
    parts = _parts(text, field, "oracle", 2, 2)
    return OracleSource(chain_id(parts[0], field), address(parts[1], field))


def _balance(text: str, route: str, field: str, route_field: str) -> Source:
    parts = _parts(text, field, "balance", 2, 3)
    token = address(parts[2], field) if len(parts) == 3 else b""
    return BalanceSource(chain_id(parts[0], field), address(parts[1], field), token)


def _contract(text: str, route: str, field: str, route_field: str) -> Source:
    parts = text.split(":", 3)  # arguments may hold colons
    if len(parts) < 3:
        raise Invalid(field, "is not complete", _FORMS["contract"])
    chain, contract = chain_id(parts[0], field), address(parts[1], field)
    if route and not (route.isascii() and route.isdecimal() and len(route) <= 3):
        raise Invalid(route_field, "is no number of an output", "send 0 for the first output, 1 for the second")
    function = "".join(parts[2].split())
    called, _, outputs = function.partition(")(")
    if not outputs:
        raise Invalid(field, "does not say what the call returns", _FORMS["contract"])
    try:
        signature = resolve_function(f"{called})", "")
        returned = resolve_function(f"f({outputs}", "")[1:]
        arguments = canonical_arguments(signature, parts[3] if len(parts) == 4 else "")
    except Invalid as error:
        raise Invalid(field, f"{error.field} {error.problem}"[:200], _FORMS["contract"]) from None
    return _born(field, lambda: ViewSource(chain, contract, signature + returned, arguments, int(route or 0)))


def _transaction(text: str, route: str, field: str, route_field: str) -> Source:
    parts = _parts(text, field, "transaction", 2, 2)
    return ConfirmationsSource(chain_id(parts[0], field), hash32(parts[1], field))


_SOURCES: Mapping[str, Callable[[str, str, str, str], Source]] = {
    "api": _api,
    "oracle": _oracle,
    "static": _static,
    "websocket": _websocket,
    "balance": _balance,
    "contract": _contract,
    "transaction": _transaction,
}
SOURCE_TYPES = tuple(_SOURCES)
_FORMS = {
    "api": "send an http(s) URL",
    "oracle": "send <chain id>:<aggregator's address>, or an http(s) URL",
    "static": "send a number",
    "websocket": "send a ws(s) URL",
    "balance": "send <chain id>:<account>, and :<token> for an ERC-20",
    "contract": "send <chain id>:<address>:<name(inputs)(outputs)>, and :<JSON array> for its arguments",
    "transaction": "send <chain id>:<transaction hash>",
}


def _parts(text: str, field: str, kind: str, least: int, most: int) -> Sequence[str]:
    parts = text.split(":")
    if not least <= len(parts) <= most:
        raise Invalid(field, f"is no source of type {kind}", _FORMS[kind])
    return parts


def _born(field: str, make: Callable[[], T]) -> T:
    """What `make` makes; a value that cannot exist is the user's to mend."""
    try:
        return make()
    except ValueError as error:
        raise Invalid(field, str(error)[:200], "correct it") from None


@dataclass(frozen=True, slots=True)
class Watched:
    """What a condition needs to be watched: chains it reads, and URLs that strangers named."""

    chains: frozenset[int]
    urls: frozenset[str]


def sources_of(condition: OnCondition) -> Watched:
    chains, urls = set(), set()
    for leaf in leaves(condition.root):
        match leaf.source:
            case ApiSource(url=url) | WebSocketSource(url=url):
                urls.add(url)
            case OracleSource(chain_id=chain) | BalanceSource(chain_id=chain) | ViewSource(chain_id=chain):
                chains.add(chain)
            case ConfirmationsSource(chain_id=chain):
                chains.add(chain)
    return Watched(frozenset(chains), frozenset(urls))


# --- as it would be posted --------------------------------------------------------------------------------------


def fields(condition: OnCondition) -> dict[str, Any]:
    """The condition in the fields that it would be posted in."""
    if isinstance(condition.root, Comparison):
        return {**_leaf_fields(condition.root), "condition": None}
    return {**dict.fromkeys(_LEAF, ""), "condition": _tree_fields(condition.root)}


def _tree_fields(root: Node) -> dict[str, Any]:
    match root:
        case AllOf(members=members):
            return {"all": [_tree_fields(member) for member in members]}
        case AnyOf(members=members):
            return {"any": [_tree_fields(member) for member in members]}
        case Comparison():
            return _leaf_fields(root)


def _leaf_fields(leaf: Comparison) -> dict[str, Any]:
    kind, url, route = _source_fields(leaf.source)
    return {
        "condition_type": leaf.operator,
        "upper_limit": leaf.upper,
        "lower_limit": leaf.lower,
        "hysteresis": leaf.hysteresis,
        "value_source_type": kind,
        "value_source_url": url,
        "selected_key_route": route,
    }


def _source_fields(source: Source) -> tuple[str, str, str]:
    match source:
        case StaticSource(value=value):
            return "static", value, ""
        case ApiSource(url=url, route=route):
            return "api", url, route
        case WebSocketSource(url=url, route=route):
            return "websocket", url, route
        case OracleSource(chain_id=chain, contract=contract):
            return "oracle", f"{chain}:{to_checksum_address(contract)}", ""
        case BalanceSource(chain_id=chain, account=account, token=token):
            held = f":{to_checksum_address(token)}" if token else ""
            return "balance", f"{chain}:{to_checksum_address(account)}{held}", ""
        case ViewSource():
            text = f"{source.chain_id}:{to_checksum_address(source.contract)}:{source.function}:{source.arguments}"
            return "contract", text, str(source.output)
        case ConfirmationsSource(chain_id=chain, transaction=transaction):
            return "transaction", f"{chain}:0x{transaction.hex()}", ""
