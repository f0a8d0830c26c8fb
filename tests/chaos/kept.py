"""What the chain keeps of a storm: executions and pings, read again and again behind every crash of the chain."""

from __future__ import annotations

from dataclasses import dataclass

import structlog
import trio

from cli.devnet.devnet import Devnet
from consensus.codec import keccak
from consensus.errors import Transient, TriggerXError
from node.infra.chain import TaskExecuted
from node.infra.evm import EvmChain
from tests.chaos.auditor import Executed

log = structlog.get_logger(__name__)

PINGED = keccak(b"Pinged(uint256,uint256)")
_AGAIN = 60  # blocks read again each time: many more than a crash takes back
_EVERY_S = 2.0


@dataclass(frozen=True, slots=True)
class Ping:
    """A log that the demo contract emitted: the value, its transaction, and the block's number and timestamp."""

    value: int
    transaction: bytes
    block: int
    at: int


class Kept:
    """By block, so that a block that another takes the place of is forgotten."""

    def __init__(self, devnet: Devnet, chain: EvmChain) -> None:
        self._devnet = devnet
        self._chain = chain
        self._executed: dict[int, list[Executed]] = {}
        self._pings: dict[int, list[Ping]] = {}
        self.head = 0

    @property
    def executed(self) -> list[Executed]:
        return [each for number in sorted(self._executed) for each in self._executed[number]]

    @property
    def pings(self) -> list[Ping]:
        return [each for number in sorted(self._pings) for each in self._pings[number]]

    async def follow(self) -> None:
        """Reads until cancelled."""
        while True:
            try:
                await self.read()
            except TriggerXError as error:
                log.info("chain is away", code=error.code)
            await trio.sleep(_EVERY_S)

    async def read(self) -> None:
        """The newest blocks once. Raises `Transient`, and has then changed nothing."""
        head = (await self._chain.head()).number
        first = max(0, min(head, self.head) - _AGAIN)
        executed = [e for e in await self._chain.events(first, head) if isinstance(e, TaskExecuted)]
        # By the raw JSON-RPC and a decoding of our own: the value is the data's first word.
        query = {"address": self._devnet.deployment.demo, "topics": ["0x" + PINGED.hex()]}
        logs = await self._devnet.rpc.call("eth_getLogs", [{**query, "fromBlock": hex(first), "toBlock": hex(head)}])
        numbers = {e.place.block_number for e in executed} | {int(each["blockNumber"], 16) for each in logs}
        times = await self._timestamps(sorted(numbers))
        for number in [n for n in {*self._executed, *self._pings} if n >= first]:
            self._executed.pop(number, None)
            self._pings.pop(number, None)
        for event in executed:
            number = event.place.block_number
            self._executed.setdefault(number, []).append(Executed(event.job_id, event.trigger_id, times[number]))
        for each in logs:
            number = int(each["blockNumber"], 16)
            ping = Ping(int(each["data"][2:66], 16), bytes.fromhex(each["transactionHash"][2:]), number, times[number])
            self._pings.setdefault(number, []).append(ping)
        self.head = head

    async def _timestamps(self, numbers: list[int]) -> dict[int, int]:
        blocks = await self._devnet.rpc.batch([("eth_getBlockByNumber", [hex(n), False]) for n in numbers]) if numbers else []
        if any(block is None for block in blocks):
            raise Transient("RPC_ERROR", "a block is gone")
        return {number: int(block["timestamp"], 16) for number, block in zip(numbers, blocks, strict=True)}
