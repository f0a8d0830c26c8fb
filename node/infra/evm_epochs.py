"""Epochs as the KeeperRegistry keeps them: sets in the code of data contracts, read once each."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from consensus import bls
from consensus.committee import MAX_SEATS, Epoch, Operator
from consensus.errors import Transient
from node.infra.contracts import EPOCH_AT, EPOCH_INFO
from node.infra.evm_reads import Reader, View

_OPERATOR_BYTES = 152
_EMPTY_SEAT = 0xFF


@lru_cache(maxsize=1024)  # 0.2 ms each: the keys of three epochs of 150 operators, and room
def decode_key(key: bytes) -> bytes:
    """The 48-byte key of the registry's 128 bytes. Raises ValueError."""
    return bls.key_from_evm(key)


def decode_set(code: bytes) -> tuple[tuple[Operator, ...], tuple[int, ...]]:
    """Operators and seat table of an epoch's data contract: 0x00 | seats 192 | operators: id 4, address 20, key 128.

    Raises ValueError for any other code.
    """
    body = code[1 + MAX_SEATS :]
    if len(code) < 1 + MAX_SEATS or code[0] != 0 or len(body) % _OPERATOR_BYTES:
        raise ValueError(f"{len(code)} bytes are no epoch's set")
    operators = []
    for at in range(0, len(body), _OPERATOR_BYTES):
        entry = body[at : at + _OPERATOR_BYTES]
        operators.append(Operator(int.from_bytes(entry[:4], "big"), entry[4:24], decode_key(entry[24:])))
    seats = code[1 : 1 + MAX_SEATS].rstrip(bytes([_EMPTY_SEAT]))
    return tuple(operators), tuple(seats)


class EpochReader:
    """Epochs by block. What a feed has followed is answered from memory; everything else asks the registry.

    An epoch is announced in the block before its first: once a feed has delivered block b without a change of the
    registry, the newest epoch known covers b + 1 too.
    """

    def __init__(self, reader: Reader, registry: bytes) -> None:
        self._reader = reader
        self._registry = registry
        self._sets: dict[bytes, tuple[tuple[Operator, ...], tuple[int, ...]]] = {}
        self._epochs: dict[int, Epoch] = {}
        self._current_until = -1  # the last block that the newest epoch known is sure to cover

    def followed(self, block_number: int, *, changed: bool) -> None:
        """A feed has delivered everything up to a block; `changed` when the registry's events were among it."""
        if changed:  # perhaps the newest epoch has ended; its set stays known
            self._current_until = -1
            self._epochs = {number: e for number, e in self._epochs.items() if e.until_block is not None}
        elif self._current_until >= 0:
            self._current_until = max(self._current_until, block_number + 1)

    def forget(self) -> None:
        """After a reorganisation: even a data contract's address may hold another set now."""
        self._sets.clear()
        self._epochs.clear()
        self._current_until = -1

    async def at(self, block_number: int) -> Epoch | None:
        """The epoch that covers a block; None before the first. Raises `Transient`."""
        for epoch in self._epochs.values():
            last = epoch.until_block if epoch.until_block is not None else self._current_until
            if epoch.from_block <= block_number <= last:
                return epoch
        [number] = await self._reader.view(self._registry, EPOCH_AT, block_number)
        return await self._read(number, block_number) if number else None

    async def _read(self, number: int, block_number: int) -> Epoch:
        known = self._epochs.get(number)
        if known is not None and known.covers(block_number):
            self._current_until = max(self._current_until, block_number)
            return known
        (blob, _, _, first), (_, _, _, following) = await self._reader.views(
            [View(self._registry, EPOCH_INFO, (n,)) for n in (number, number + 1)]
        )
        if blob not in self._sets:
            try:
                self._sets[blob] = decode_set(await self._reader.code(blob))
            except ValueError as error:
                raise Transient("RPC_ERROR", f"epoch {number}: {error}") from None
        operators, seats = self._sets[blob]
        epoch = Epoch(number, first, following - 1 if following else None, operators, seats)
        # Only the newest may stay open: of one that was newest, the end is known now, or has to be asked for again.
        for stale in [e for e in self._epochs.values() if e.until_block is None and e.number < number]:
            del self._epochs[stale.number]
            if stale.number == number - 1:
                self._epochs[stale.number] = replace(stale, until_block=first - 1)
        self._epochs[number] = epoch
        if epoch.until_block is None:
            self._current_until = max(first, block_number)
        return epoch
