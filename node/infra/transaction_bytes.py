"""A transaction's bytes: what is asked of the chain and offered for it, signed, and read back out of our own journal."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from eth_account import Account

from node.infra.secret import Secret

_EIP1559 = 2


@dataclass(frozen=True, slots=True)
class Payload:
    """What a transaction does. `to` is None for a deployment, `value` is wei, `gas` the limit."""

    to: bytes | None
    value: int
    data: bytes = field(repr=False)
    gas: int


@dataclass(frozen=True, slots=True)
class Offer:
    """What a unit of gas may cost, wei. `tip` is None on a chain without EIP-1559, where `most` is the price itself."""

    most: int
    tip: int | None


@dataclass(frozen=True, slots=True)
class Signed:
    """`raw` is what goes to the node."""

    raw: bytes = field(repr=False)
    tx_hash: bytes


def sign(secret: Secret[bytes], chain_id: int, nonce: int, payload: Payload, offer: Offer) -> Signed:
    """Takes 0.4 ms: less than a trip to a worker thread would save. The same arguments give the same bytes (RFC 6979)."""
    fields: dict[str, Any] = {
        "chainId": chain_id,
        "nonce": nonce,
        "gas": payload.gas,
        "to": payload.to if payload.to is not None else b"",
        "value": payload.value,
        "data": payload.data,
    }
    if offer.tip is None:
        fields["gasPrice"] = offer.most
    else:
        fields |= {"type": _EIP1559, "maxFeePerGas": offer.most, "maxPriorityFeePerGas": offer.tip}
    signed = Account.sign_transaction(fields, secret.reveal())
    return Signed(bytes(signed.raw_transaction), bytes(signed.hash))


def read(raw: bytes) -> tuple[Payload, Offer]:
    """What `sign` was given. Raises `ValueError` for bytes that are not of its making."""
    if raw[:1] == bytes([_EIP1559]):
        # EIP-1559: chain, nonce, tip, most, gas, to, value, data, access list, signature
        items = _items(raw[1:])
        _, _, tip, most, gas, to, value, data = items[:8]
        offer = Offer(_number(most), _number(tip))
    else:
        # EIP-155: nonce, price, gas, to, value, data, signature
        items = _items(raw)
        _, price, gas, to, value, data = items[:6]
        offer = Offer(_number(price), None)
    return Payload(to or None, _number(value), data, _number(gas)), offer


def _number(text: bytes) -> int:
    return int.from_bytes(text, "big")


def _items(encoded: bytes) -> list[bytes]:
    """The items of one RLP list (Ethereum's yellow paper, appendix B); a list among them is left as its bytes."""
    body, rest = _split(encoded)
    if rest or encoded[0] < 0xC0:
        raise ValueError("not one RLP list")
    items = []
    while body:
        item, body = _split(body)
        items.append(item)
    return items


def _split(encoded: bytes) -> tuple[bytes, bytes]:
    """The content of the first item, and what follows it."""
    if not encoded:
        raise ValueError("RLP ends too early")
    first = encoded[0]
    if first < 0x80:
        return encoded[:1], encoded[1:]
    base = 0xC0 if first >= 0xC0 else 0x80
    size, begin = first - base, 1
    if size > 55:
        begin = 1 + size - 55
        size = _number(encoded[1:begin])
    end = begin + size
    if end > len(encoded):
        raise ValueError("RLP ends too early")
    return encoded[begin:end], encoded[end:]
