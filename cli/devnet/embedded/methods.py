"""The JSON-RPC methods, each a function of the ledger and its parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

from eth.abc import BlockHeaderAPI, StateAPI
from eth_utils.crypto import keccak

from cli.devnet.embedded import calls, encoding
from cli.devnet.embedded.encoding import Json, octets, quantity
from cli.devnet.embedded.errors import METHOD_NOT_FOUND, RpcError, invalid_params, refused
from cli.devnet.embedded.evm import base_fee
from cli.devnet.embedded.ledger import Block, Ledger

Params = Sequence[Json]
Method = Callable[["Methods", Params], Json]

TIP: Final = 10**9  # wei; anvil's suggestion
MAX_FEE_HISTORY: Final = 1024
MAX_LOGS: Final = 50_000
"""More than this in one answer is a mistake, and a body of tens of megabytes."""
NAMED_BLOCKS: Final = ("latest", "safe", "finalized")


def _at(params: Params, index: int, name: str) -> Json:
    if index >= len(params):
        raise invalid_params(f"missing value for required argument {index} ({name})")
    return params[index]


def _or(params: Params, index: int, default: Json) -> Json:
    return params[index] if index < len(params) and params[index] is not None else default


class Methods:
    """Answers single requests against one ledger, in the thread that owns it."""

    def __init__(self, ledger: Ledger, accounts: Sequence[bytes], version: str) -> None:
        self.ledger = ledger
        self._accounts = accounts
        self._version = version

    def call(self, name: str, params: Params) -> Json:
        """The result of one request; raises RpcError."""
        method = METHODS.get(name)
        if method is None:
            raise RpcError(METHOD_NOT_FOUND, f"the method {name[:100]} does not exist/is not available")
        return method(self, params)

    # ---- the node ----

    def client_version(self, _: Params) -> Json:
        return self._version

    def net_version(self, _: Params) -> Json:
        return str(self.ledger.chain_id)

    def chain_id(self, _: Params) -> Json:
        return quantity(self.ledger.chain_id)

    def syncing(self, _: Params) -> Json:
        return False

    def accounts(self, _: Params) -> Json:
        return encoding.checksum(self._accounts)

    def sha3(self, params: Params) -> Json:
        return octets(keccak(encoding.read_octets(_at(params, 0, "data"), "data")))

    # ---- blocks ----

    def block_number(self, _: Params) -> Json:
        return quantity(self.ledger.head.number)

    def block_by_number(self, params: Params) -> Json:
        tag, full = _at(params, 0, "block"), bool(_or(params, 1, False))
        if tag == "pending":
            return self._pending_block(full)
        block = self._find(tag)
        return encoding.block(block, full) if block else None

    def block_by_hash(self, params: Params) -> Json:
        block = self.ledger.block_by_hash(encoding.read_octets(_at(params, 0, "hash"), "hash", 32))
        return encoding.block(block, bool(_or(params, 1, False))) if block else None

    def block_receipts(self, params: Params) -> Json:
        block = self._find(_at(params, 0, "block"))
        return [encoding.receipt(each, block) for each in block.transactions] if block else None

    def _pending_block(self, full: bool) -> Json:
        fields = encoding.header_fields(self.ledger.pending_header())
        waiting = self.ledger.pool.all()
        fields.update(hash=None, nonce=None, miner=None, size="0x0")
        fields["transactions"] = [
            encoding.transaction(each.transaction, each.hash, each.sender, None, None) if full else octets(each.hash)
            for each in waiting
        ]
        return fields

    # ---- state ----

    def balance(self, params: Params) -> Json:
        who = encoding.read_address(_at(params, 0, "address"), "address")
        return quantity(self._state(_or(params, 1, "latest")).get_balance(who))  # type: ignore[arg-type]

    def code(self, params: Params) -> Json:
        who = encoding.read_address(_at(params, 0, "address"), "address")
        return octets(self._state(_or(params, 1, "latest")).get_code(who))  # type: ignore[arg-type]

    def storage_at(self, params: Params) -> Json:
        who = encoding.read_address(_at(params, 0, "address"), "address")
        slot = encoding.read_quantity(_at(params, 1, "slot"), "slot")
        return f"0x{self._state(_or(params, 2, 'latest')).get_storage(who, slot):064x}"  # type: ignore[arg-type]

    def transaction_count(self, params: Params) -> Json:
        who = encoding.read_address(_at(params, 0, "address"), "address")
        tag = _or(params, 1, "latest")
        mined = self._state("latest" if tag == "pending" else tag).get_nonce(who)  # type: ignore[arg-type]
        return quantity(self.ledger.pool.next_nonce(who, mined) if tag == "pending" else mined)

    # ---- calls and fees ----

    def eth_call(self, params: Params) -> Json:
        call = self._message(_at(params, 0, "transaction"))
        state = self._state(_or(params, 1, "latest"), free_gas=not call.max_fee)
        return octets(calls.output(calls.run(state, call, self.ledger.chain_id)))

    def estimate_gas(self, params: Params) -> Json:
        call = self._message(_at(params, 0, "transaction"))
        state = self._state(_or(params, 1, "pending"), free_gas=not call.max_fee)
        return quantity(calls.estimate(state, call, self.ledger.chain_id, self._gas_limit))

    def gas_price(self, _: Params) -> Json:
        return quantity(base_fee(self.ledger.pending_header()) + TIP)

    def tip(self, _: Params) -> Json:
        return quantity(TIP)

    def fee_history(self, params: Params) -> Json:
        count = min(encoding.read_quantity(_at(params, 0, "blockCount"), "blockCount"), MAX_FEE_HISTORY)
        tag = _at(params, 1, "newestBlock")
        newest = self._known("latest" if tag == "pending" else tag)
        percentiles = _percentiles(_or(params, 2, []))
        blocks = list(self.ledger.blocks(newest.number - count + 1, newest.number)) if count else []
        following = self.ledger.block(newest.number + 1)
        base_fees = [base_fee(each.header) for each in blocks]
        base_fees.append(base_fee(following.header if following else self.ledger.pending_header()))
        answer: dict[str, Json] = {
            "oldestBlock": quantity(blocks[0].number if blocks else newest.number),
            "baseFeePerGas": [quantity(each) for each in base_fees],
            "gasUsedRatio": [each.header.gas_used / each.header.gas_limit for each in blocks],
            "baseFeePerBlobGas": ["0x1"] * len(base_fees),
            "blobGasUsedRatio": [0.0] * len(blocks),
        }
        if percentiles:
            answer["reward"] = [_rewards(each, percentiles) for each in blocks]
        return answer

    # ---- transactions ----

    def send_raw(self, params: Params) -> Json:
        return octets(self.ledger.send(encoding.read_octets(_at(params, 0, "transaction"), "transaction")))

    def transaction_by_hash(self, params: Params) -> Json:
        wanted = encoding.read_octets(_at(params, 0, "hash"), "hash", 32)
        mined = self.ledger.mined(wanted)
        if mined is not None:
            block = self.ledger.block(mined.block_number)
            return encoding.transaction(mined.transaction, mined.hash, mined.sender, block, mined)
        waiting = self.ledger.pool.get(wanted)
        return encoding.transaction(waiting.transaction, waiting.hash, waiting.sender, None, None) if waiting else None

    def receipt(self, params: Params) -> Json:
        mined = self.ledger.mined(encoding.read_octets(_at(params, 0, "hash"), "hash", 32))
        block = self.ledger.block(mined.block_number) if mined else None
        return encoding.receipt(mined, block) if mined and block else None

    def logs(self, params: Params) -> Json:
        wanted = encoding.read_mapping(_at(params, 0, "filter"), "filter")
        addresses = encoding.read_addresses(wanted.get("address"))
        topics = encoding.read_topics(wanted.get("topics"))
        if wanted.get("blockHash") is not None:
            block = self.ledger.block_by_hash(encoding.read_octets(wanted["blockHash"], "blockHash", 32))
            if block is None:
                raise refused("unknown block")
            first = last = block.number
        else:
            first, last = (self._height(wanted.get(key)) for key in ("fromBlock", "toBlock"))
            if first > last:
                raise invalid_params("invalid block range params")
        found: list[Json] = []
        for block in self.ledger.blocks(first, last):
            if not block.header.bloom:
                continue
            timestamp = int(block.header.timestamp)
            for mined in block.transactions:
                found.extend(
                    encoding.log_entry(mined, block.hash, timestamp, at, entry)
                    for at, entry in enumerate(mined.logs)
                    if encoding.matches(entry, addresses, topics)
                )
            if len(found) > MAX_LOGS:
                raise RpcError(-32005, f"query returned more than {MAX_LOGS} results")
        return found

    # ---- for tests ----

    def snapshot(self, _: Params) -> Json:
        return quantity(self.ledger.snapshot())

    def revert(self, params: Params) -> Json:
        return self.ledger.revert(encoding.read_quantity(_at(params, 0, "snapshot"), "snapshot"))

    def mine(self, _: Params) -> Json:
        self.ledger.mine(even_empty=True)
        return "0x0"

    def set_automine(self, params: Params) -> Json:
        self.ledger.set_automine(bool(_at(params, 0, "enabled")))

    def set_balance(self, params: Params) -> Json:
        who = encoding.read_address(_at(params, 0, "address"), "address")
        self.ledger.set_balance(who, encoding.read_quantity(_at(params, 1, "balance"), "balance"))

    # ---- reading parameters ----

    @property
    def _gas_limit(self) -> int:
        return int(self.ledger.head.header.gas_limit)

    def _find(self, tag: Json) -> Block | None:
        """A sealed block by tag, number, or EIP-1898 object."""
        if isinstance(tag, dict):
            if "blockHash" in tag:
                return self.ledger.block_by_hash(encoding.read_octets(tag["blockHash"], "blockHash", 32))
            return self._find(tag.get("blockNumber"))
        if tag in NAMED_BLOCKS:
            return self.ledger.head
        if tag == "earliest":
            return self.ledger.block(0)
        return self.ledger.block(encoding.read_quantity(tag, "block"))

    def _known(self, tag: Json) -> Block:
        block = self._find(tag)
        if block is None:
            raise refused("header not found")
        return block

    def _height(self, tag: Json) -> int:
        if tag is None or tag == "pending" or tag in NAMED_BLOCKS:
            return self.ledger.head.number
        return 0 if tag == "earliest" else encoding.read_quantity(tag, "block")

    def _state(self, tag: Json, free_gas: bool = False) -> StateAPI:
        if tag == "pending":
            return self.ledger.pending_state(free_gas)
        return self.ledger.state_at(self._known(tag), free_gas)

    def _message(self, value: Json) -> calls.Call:
        fields = encoding.read_mapping(value, "transaction")

        def number(key: str, default: int) -> int:
            return encoding.read_quantity(fields[key], key) if fields.get(key) is not None else default

        data = fields.get("input") if fields.get("input") is not None else fields.get("data")
        price = number("gasPrice", 0)
        max_fee = number("maxFeePerGas", price)
        return calls.Call(
            sender=encoding.read_address(fields["from"], "from") if fields.get("from") is not None else bytes(20),
            to=encoding.read_address(fields["to"], "to") if fields.get("to") else b"",
            data=encoding.read_octets(data, "data") if data is not None else b"",
            value=number("value", 0),
            gas=min(number("gas", self._gas_limit), self._gas_limit),
            max_fee=max_fee,
            tip=min(number("maxPriorityFeePerGas", price), max_fee),
            access_list=encoding.read_access_list(fields.get("accessList")),
        )


def _percentiles(value: Json) -> list[float]:
    if not isinstance(value, list) or len(value) > 100:
        raise invalid_params("rewardPercentiles: a list of at most 100 expected")
    if not all(isinstance(each, (int, float)) and not isinstance(each, bool) and 0 <= each <= 100 for each in value):
        raise invalid_params("rewardPercentiles: numbers between 0 and 100 expected")
    return [float(each) for each in value]


def _rewards(block: Block, percentiles: Sequence[float]) -> list[str]:
    """Tips at the percentiles of the block's gas, as eth_feeHistory defines them."""
    header: BlockHeaderAPI = block.header
    tips = sorted((each.gas_price - base_fee(header), each.gas_used) for each in block.transactions)
    if not tips:
        return ["0x0"] * len(percentiles)
    rewards: list[str] = []
    for percentile in percentiles:
        wanted, summed, reward = math.ceil(header.gas_used * percentile / 100), 0, tips[-1][0]
        for tip, gas in tips:
            summed += gas
            if summed >= wanted:
                reward = tip
                break
        rewards.append(quantity(reward))
    return rewards


METHODS: Final[dict[str, Callable[[Methods, Params], Any]]] = {
    "web3_clientVersion": Methods.client_version,
    "web3_sha3": Methods.sha3,
    "net_version": Methods.net_version,
    "eth_chainId": Methods.chain_id,
    "eth_syncing": Methods.syncing,
    "eth_accounts": Methods.accounts,
    "eth_blockNumber": Methods.block_number,
    "eth_getBlockByNumber": Methods.block_by_number,
    "eth_getBlockByHash": Methods.block_by_hash,
    "eth_getBlockReceipts": Methods.block_receipts,
    "eth_getBalance": Methods.balance,
    "eth_getCode": Methods.code,
    "eth_getStorageAt": Methods.storage_at,
    "eth_getTransactionCount": Methods.transaction_count,
    "eth_call": Methods.eth_call,
    "eth_estimateGas": Methods.estimate_gas,
    "eth_gasPrice": Methods.gas_price,
    "eth_maxPriorityFeePerGas": Methods.tip,
    "eth_feeHistory": Methods.fee_history,
    "eth_sendRawTransaction": Methods.send_raw,
    "eth_getTransactionByHash": Methods.transaction_by_hash,
    "eth_getTransactionReceipt": Methods.receipt,
    "eth_getLogs": Methods.logs,
    "evm_snapshot": Methods.snapshot,
    "evm_revert": Methods.revert,
    "evm_mine": Methods.mine,
    "evm_setAutomine": Methods.set_automine,
    "anvil_setBalance": Methods.set_balance,
}
