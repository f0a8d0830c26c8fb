"""A blocking JSON-RPC client and ABI-aware contracts for the tests against a real EVM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import httpx
from eth_abi.abi import decode as abi_decode
from eth_abi.abi import encode as abi_encode

import consensus.contracts
from consensus.codec import keccak
from consensus.contracts import artifact

GAS = 16_000_000


class Refused(Exception):
    """A call or transaction that reverted. `reason` is empty when the EVM gave none, `gas` is what a mined one used."""

    def __init__(self, reason: str, message: str, gas: int = 0) -> None:
        super().__init__(reason or message)
        self.gas = gas
        self.reason = reason
        self.message = message


@dataclass
class Chain:
    """One anvil. Every address may send: accounts are impersonated."""

    url: str
    client: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=60))

    def rpc(self, method: str, *params: Any) -> Any:
        answer = self.client.post(self.url, json={"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).json()
        if "error" in answer:
            error = answer["error"]
            raise Refused(reason_of(error.get("data")), error["message"])
        return answer["result"]

    def number(self) -> int:
        return int(self.rpc("eth_blockNumber"), 16)

    def now(self) -> int:
        return int(self.rpc("eth_getBlockByNumber", "latest", False)["timestamp"], 16)

    def block_hash(self, number: int) -> bytes:
        return bytes.fromhex(self.rpc("eth_getBlockByNumber", hex(number), False)["hash"][2:])

    def balance(self, address: bytes) -> int:
        return int(self.rpc("eth_getBalance", text(address), "latest"), 16)

    def fund(self, address: bytes, wei: int = 10**22) -> bytes:
        self.rpc("anvil_setBalance", text(address), hex(wei))
        return address

    def code(self, address: bytes) -> bytes:
        return bytes.fromhex(self.rpc("eth_getCode", text(address), "latest")[2:])

    def mine(self, count: int = 1) -> None:
        self.rpc("anvil_mine", hex(count))

    def warp_to(self, timestamp: int) -> None:
        """Mines a block of that time; what follows is at that time or after it."""
        self.rpc("evm_setNextBlockTimestamp", timestamp)
        self.rpc("evm_mine")

    def warp(self, seconds: int) -> None:
        self.warp_to(self.now() + seconds)

    def request(self, sender: bytes, to: bytes | None, data: bytes, value: int, gas: int) -> dict[str, str]:
        made = {"from": text(sender), "data": "0x" + data.hex(), "value": hex(value), "gas": hex(gas)}
        return made if to is None else {**made, "to": text(to)}

    def call(self, sender: bytes, to: bytes, data: bytes, value: int = 0, gas: int = GAS) -> bytes:
        """`eth_call` in the block that comes next, where BLOCKHASH knows the latest."""
        return bytes.fromhex(self.rpc("eth_call", self.request(sender, to, data, value, gas), "pending")[2:])

    def send(self, sender: bytes, to: bytes | None, data: bytes, value: int = 0, gas: int = GAS, **fees: str) -> Receipt:
        """Mines a transaction; raises Refused when it reverts."""
        tx_hash = self.rpc("eth_sendTransaction", {**self.request(sender, to, data, value, gas), **fees})
        while (raw := self.rpc("eth_getTransactionReceipt", tx_hash)) is None:  # mined at once, visible a moment later
            assert self.rpc("eth_getTransactionByHash", tx_hash) is not None, "the transaction was dropped"
        if raw["status"] != "0x1":
            raise Refused("", f"reverted: {tx_hash}", int(raw["gasUsed"], 16))
        created = bytes.fromhex(raw["contractAddress"][2:]) if raw["contractAddress"] else None
        return Receipt(
            int(raw["gasUsed"], 16), int(raw["blockNumber"], 16), int(raw["effectiveGasPrice"], 16), raw["logs"], created
        )


@dataclass(frozen=True)
class Receipt:
    """What a mined transaction used and logged."""

    gas: int
    block: int
    price: int
    logs: list[dict[str, Any]]
    created: bytes | None


def text(address: bytes) -> str:
    return "0x" + address.hex()


def reason_of(data: Any) -> str:
    """The reason string of revert data."""
    if isinstance(data, str) and data.startswith("0x08c379a0"):
        return str(abi_decode(["string"], bytes.fromhex(data[10:]))[0])
    return ""


def canonical(entry: dict[str, Any]) -> str:
    """The ABI type of one parameter, structs spelt out."""
    if entry["type"].startswith("tuple"):
        return "(" + ",".join(map(canonical, entry["components"])) + ")" + entry["type"][5:]
    return str(entry["type"])


@dataclass(frozen=True)
class Abi:
    """Functions and events of an artifact, by name."""

    functions: dict[str, tuple[bytes, list[str], list[dict[str, Any]]]]
    events: dict[bytes, tuple[str, list[dict[str, Any]]]]


@cache
def abi_of(name: str) -> Abi:
    return read_abi(artifact(name).abi)


def read_abi(entries: Sequence[dict[str, Any]]) -> Abi:
    functions, events = {}, {}
    for entry in entries:
        if entry["type"] == "function":
            types = [canonical(i) for i in entry["inputs"]]
            functions[entry["name"]] = (keccak(f"{entry['name']}({','.join(types)})".encode())[:4], types, entry["outputs"])
        elif entry["type"] == "event":
            types = [canonical(i) for i in entry["inputs"]]
            events[keccak(f"{entry['name']}({','.join(types)})".encode())] = (entry["name"], entry["inputs"])
    return Abi(functions, events)


def plain(entry: dict[str, Any], value: Any) -> Any:
    """Addresses as bytes, structs as dicts."""
    if entry["type"] == "tuple":
        return {c["name"]: plain(c, v) for c, v in zip(entry["components"], value, strict=True)}
    if entry["type"] == "address":
        return bytes.fromhex(value[2:])
    if entry["type"] == "address[]":
        return [bytes.fromhex(v[2:]) for v in value]
    return value


@dataclass(frozen=True)
class Contract:
    """A deployed contract by its ABI."""

    chain: Chain
    address: bytes
    abi: Abi

    def encode(self, function: str, *args: Any) -> bytes:
        selector, types, _ = self.abi.functions[function]
        return selector + abi_encode(types, args)

    def view(self, function: str, *args: Any, sender: bytes = bytes(20)) -> Any:
        outputs = self.abi.functions[function][2]
        data = self.chain.call(sender, self.address, self.encode(function, *args))
        values = [plain(o, v) for o, v in zip(outputs, abi_decode([canonical(o) for o in outputs], data), strict=True)]
        return values[0] if len(values) == 1 else tuple(values)

    def send(self, function: str, *args: Any, sender: bytes, value: int = 0, gas: int = GAS) -> Receipt:
        """Raises Refused with its reason, from the same call made first."""
        data = self.encode(function, *args)
        try:
            return self.chain.send(sender, self.address, data, value, gas)
        except Refused:
            self.chain.call(sender, self.address, data, value, gas)
            raise

    def refusal(self, function: str, *args: Any, sender: bytes, value: int = 0, gas: int = GAS) -> str:
        """The reason for which the call is refused; fails when it is not."""
        try:
            self.chain.call(sender, self.address, self.encode(function, *args), value, gas)
        except Refused as refused:
            return refused.reason or refused.message
        raise AssertionError(f"{function} was not refused")

    def wasted(self, function: str, *args: Any, sender: bytes, value: int = 0, gas: int = GAS) -> int:
        """The gas that a refused transaction used up; fails when it is not refused."""
        try:
            self.chain.send(sender, self.address, self.encode(function, *args), value, gas)
        except Refused as refused:
            return refused.gas
        raise AssertionError(f"{function} was not refused")

    def events(self, receipt: Receipt, name: str) -> list[dict[str, Any]]:
        """The decoded events of that name that this contract logged."""
        found = []
        for log in receipt.logs:
            known = self.abi.events.get(bytes.fromhex(log["topics"][0][2:]))
            if log["address"] != text(self.address) or known is None or known[0] != name:
                continue
            indexed = [e for e in known[1] if e["indexed"]]
            others = [e for e in known[1] if not e["indexed"]]
            values = {}
            for entry, topic in zip(indexed, log["topics"][1:], strict=True):
                values[entry["name"]] = plain(entry, abi_decode([canonical(entry)], bytes.fromhex(topic[2:]))[0])
            decoded = abi_decode([canonical(e) for e in others], bytes.fromhex(log["data"][2:]))
            values.update({e["name"]: plain(e, v) for e, v in zip(others, decoded, strict=True)})
            found.append(values)
        return found


@cache
def built(name: str) -> tuple[Abi, bytes]:
    """ABI and creation bytecode of one of this folder's sources."""
    from vyper.cli.vyper_compile import compile_files

    here = Path(__file__).parent / "sources"
    contracts = Path(consensus.contracts.__file__).parent
    output = compile_files([here / f"{name}.vy"], ["abi", "bytecode"], paths=[str(here), str(contracts)])
    contract = next(iter(output.values()))
    return read_abi(contract["abi"]), bytes.fromhex(contract["bytecode"][2:])


def create(chain: Chain, name: str, sender: bytes) -> Contract:
    """Deploys one of this folder's sources."""
    abi, bytecode = built(name)
    created = chain.send(sender, None, bytecode).created
    assert created is not None
    return Contract(chain, created, abi)
