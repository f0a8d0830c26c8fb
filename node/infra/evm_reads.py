"""Reading an EVM by JSON-RPC: views of contracts, blocks, code, and logs over ranges of any length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eth_utils.address import to_checksum_address

from consensus.errors import Failed, Transient
from node.infra.chain import Head
from node.infra.contracts import Function
from node.infra.rpc import Rpc, RpcError, Unreachable

_FIRST_SPAN = 10_000  # blocks of one eth_getLogs; most public providers allow this many
_MAX_SPAN = 1_000_000
_LEAST_SPAN = 64  # that an outage shortens it to: few calls more when it is over
_GROW_AFTER = 8  # ranges taken in a row before a longer one is tried: of a long catch-up one in nine is refused at most


@dataclass(frozen=True, slots=True)
class View:
    """A view function's call on a contract (20 bytes)."""

    contract: bytes
    function: Function
    arguments: tuple[Any, ...] = ()

    def request(self, block: str = "latest") -> tuple[str, list[Any]]:
        call = {"to": hex_of(self.contract), "data": hex_of(self.function.encode(*self.arguments))}
        return "eth_call", [call, block]

    def decode(self, answer: Any) -> tuple[Any, ...]:
        try:
            return self.function.decode_output(bytes_of(answer))
        except Failed as error:
            # No code, or not ours: a node that lags behind the deployment, or a wrong address in the configuration.
            raise Transient("RPC_ERROR", f"{to_checksum_address(self.contract)} does not answer {self.function.name}") from error


def hex_of(value: bytes) -> str:
    return "0x" + value.hex()


def bytes_of(value: Any) -> bytes:
    """The bytes of an answer's hex text. Raises `Transient` for anything else: the node's fault."""
    try:
        return bytes.fromhex(value.removeprefix("0x"))
    except (AttributeError, ValueError):
        raise Transient("RPC_ERROR", f"expected hexadecimal text, not {str(value)[:80]!r}") from None


def int_of(value: Any) -> int:
    try:
        return int(value, 16)
    except (TypeError, ValueError):
        raise Transient("RPC_ERROR", f"expected a quantity, not {str(value)[:80]!r}") from None


def head_of(block: Any) -> Head | None:
    """A block's answer; None for the node's `null`."""
    if block is None:
        return None
    try:
        parent = bytes.fromhex(block["parentHash"][2:])
        return Head(int(block["number"], 16), bytes.fromhex(block["hash"][2:]), int(block["timestamp"], 16), parent)
    except (KeyError, TypeError, ValueError):
        raise Transient("RPC_ERROR", "a malformed block") from None


class Reader:
    """Reads over an `Rpc`; an error that the node answers is `Transient` (`RPC_ERROR`): what we ask is always valid."""

    def __init__(self, rpc: Rpc) -> None:
        self.rpc = rpc
        self._span = _FIRST_SPAN
        self._taken = 0

    async def call(self, method: str, params: Sequence[Any]) -> Any:
        try:
            return await self.rpc.call(method, params)
        except RpcError as error:
            raise Transient("RPC_ERROR", f"{method}: {error.message}") from error

    async def batch(self, calls: Sequence[tuple[str, Sequence[Any]]]) -> list[Any]:
        try:
            return await self.rpc.batch(calls)
        except RpcError as error:
            raise Transient("RPC_ERROR", f"{calls[0][0]}: {error.message}") from error

    async def view(self, contract: bytes, function: Function, *arguments: Any) -> tuple[Any, ...]:
        view = View(contract, function, arguments)
        return view.decode(await self.call(*view.request()))

    async def views(self, views: Sequence[View]) -> list[tuple[Any, ...]]:
        """Several in as few round trips as the node allows, though not at one and the same block."""
        answers = await self.batch([view.request() for view in views]) if views else []
        return [view.decode(answer) for view, answer in zip(views, answers, strict=True)]

    async def head(self) -> Head:
        head = head_of(await self.call("eth_getBlockByNumber", ["latest", False]))
        if head is None:
            raise Transient("RPC_ERROR", "the node knows no block")
        return head

    async def block(self, number: int) -> Head | None:
        if number < 0:
            return None
        found = head_of(await self.call("eth_getBlockByNumber", [hex(number), False]))
        if found is not None and found.number != number:
            raise Transient("RPC_ERROR", f"asked for block {number}, the node answered with {found.number}")
        return found

    async def code(self, address: bytes) -> bytes:
        return bytes_of(await self.call("eth_getCode", [hex_of(address), "latest"]))

    async def logs(
        self,
        addresses: Sequence[bytes],
        topics: Sequence[bytes],
        from_block: int,
        to_block: int,
        *,
        rare: bool = False,
        most: int | None = None,
        held: bool = False,
    ) -> list[dict[str, Any]]:
        """Logs in chain order of these addresses whose first topic is among `topics` (any, where empty). A range that the node
        refuses, or whose answer is too long, is halved until it is taken.

        With more than `most` before the last range it gives up: `Transient`, and the caller asks for fewer blocks.
        Of `rare` ones the whole range is asked for at once: many providers limit what they find, not where they look.
        With `held` the node must say in the same batch that it holds each range's last block: behind one URL are many nodes, and
        one that lags answers with the logs it has, as if there were no others. `Transient` when it does not.
        """
        found: list[dict[str, Any]] = []
        begin = max(0, from_block)
        span = to_block - begin + 1 if rare else self._span
        while begin <= to_block:
            end = min(to_block, begin + span - 1)
            query: dict[str, Any] = {"fromBlock": hex(begin), "toBlock": hex(end)}
            if addresses:
                query["address"] = [hex_of(a) for a in addresses]
            if topics:
                query["topics"] = [[hex_of(t) for t in topics]]
            try:
                answer = await self._range(query) if held else await self.rpc.call("eth_getLogs", [query])
            except RpcError as error:
                # Providers word their limits each in its own way: whatever the refusal, a smaller range is the remedy.
                if begin == end:
                    raise Transient("RPC_ERROR", f"eth_getLogs: {error.message}") from error
                span, self._taken = max(1, (end - begin + 1) // 2), 0
            except Unreachable as error:
                span, self._taken = max(1, (end - begin + 1) // 2), 0
                if begin == end or not error.too_large:
                    # It may have been the range that took too long: the next one to ask begins with less.
                    self._span = max(span, min(self._span, _LEAST_SPAN))
                    raise
            else:
                if not isinstance(answer, list) or not all(isinstance(log, dict) for log in answer):
                    raise Transient("RPC_ERROR", "eth_getLogs: no list of logs")
                found += answer
                begin = end + 1
                if most is not None and len(found) > most and begin <= to_block:
                    raise Transient("RPC_ERROR", f"more than {most} logs up to block {end}: too many for one answer")
                self._taken += 1
                if self._taken % _GROW_AFTER == 0:
                    span = min(2 * span, _MAX_SPAN)
        if not rare:
            self._span = span
        return found

    async def _range(self, query: dict[str, Any]) -> Any:
        """The answer of a node that held the range's last block before it looked for logs."""
        last, answer = await self.rpc.batch([("eth_getBlockByNumber", [query["toBlock"], False]), ("eth_getLogs", [query])])
        if last is None:
            raise Transient("RPC_ERROR", f"the node that was asked for logs has no block {int(query['toBlock'], 16)} yet")
        return answer
