"""Which logs fire an event job: the declaration, the filters, and the identity of a firing."""

from __future__ import annotations

import msgspec

from consensus.codec import keccak, words

MAX_FILTERS = 16


class EventFilter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A parameter, by the name it has in the declaration, and the value it must have, as canonical text of its type."""

    parameter: str
    value: str


class OnEvent(msgspec.Struct, frozen=True, tag="event", forbid_unknown_fields=True):
    """A log of `contract` (20 bytes) that `event` declares and every filter matches.

    `event` is the whole declaration, from which topic and types follow: `Transfer(address indexed from,address indexed
    to,uint256 value)`. `confirmations` is how many blocks must lie on top of the log's.
    """

    chain_id: int
    contract: bytes
    event: str
    filters: tuple[EventFilter, ...] = ()
    confirmations: int = 0

    def __post_init__(self) -> None:
        if len(self.contract) != 20 or not 0 < self.chain_id < 2**63:
            raise ValueError("contract is 20 bytes, chain_id positive")
        if len(self.filters) > MAX_FILTERS or len(self.event) > 4096 or not 0 <= self.confirmations <= 10_000:
            raise ValueError("at most 16 filters, a declaration of 4096 characters, 10,000 confirmations")


def firing_id(chain_id: int, transaction: bytes, position: int) -> int:
    """The trigger id of a log: chain, transaction hash, and its position within the receipt.

    Not the block-wide log index: a reorganisation moves that.
    """
    return int.from_bytes(keccak(words(chain_id, transaction, position)), "big")
