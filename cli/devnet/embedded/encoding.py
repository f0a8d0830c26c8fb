"""Values of the JSON-RPC wire: strict on the way in, and exactly the forms that ethers and web3.py expect on the way out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from eth.abc import BlockHeaderAPI, SignedTransactionAPI
from eth.constants import BLANK_ROOT_HASH, EMPTY_SHA256
from eth_utils.address import to_checksum_address

from cli.devnet.embedded.errors import invalid_params
from cli.devnet.embedded.evm import base_fee
from cli.devnet.embedded.ledger import Block, Log, Mined

Json = Any

EMPTY_UNCLES: Final = "0x1dcc4de8dec75d7aab85b567b6ccd41ad312451b948a7413f0a142fd40d49347"
WORD: Final = 2**256


# ---- out ----


def quantity(value: int) -> str:
    """A number: no leading zeros, 0x0 for zero."""
    return hex(value)


def octets(value: bytes) -> str:
    """Bytes as they are."""
    return "0x" + value.hex()


def address(value: bytes) -> str:
    """Lower-case address, as geth and anvil answer."""
    return "0x" + value.hex()


def _address_or_null(value: bytes | None) -> str | None:
    return address(value) if value else None


def bloom(value: int) -> str:
    """256 bytes of bloom filter."""
    return f"0x{value:0512x}"


def log_entry(mined: Mined, block_hash: bytes, timestamp: int, position: int, entry: Log) -> Json:
    """One log, `position` counted within its transaction."""
    return {
        "address": address(entry.address),
        "topics": [octets(topic) for topic in entry.topics],
        "data": octets(entry.data),
        "blockHash": octets(block_hash),
        "blockNumber": quantity(mined.block_number),
        "blockTimestamp": quantity(timestamp),
        "transactionHash": octets(mined.hash),
        "transactionIndex": quantity(mined.index),
        "logIndex": quantity(mined.first_log + position),
        "removed": False,
    }


def receipt(mined: Mined, block: Block) -> Json:
    """A mined transaction's receipt."""
    timestamp = int(block.header.timestamp)
    return {
        "transactionHash": octets(mined.hash),
        "transactionIndex": quantity(mined.index),
        "blockHash": octets(block.hash),
        "blockNumber": quantity(mined.block_number),
        "from": address(mined.sender),
        "to": _address_or_null(bytes(mined.transaction.to)),
        "cumulativeGasUsed": quantity(mined.cumulative_gas),
        "gasUsed": quantity(mined.gas_used),
        "effectiveGasPrice": quantity(mined.gas_price),
        "contractAddress": _address_or_null(mined.created),
        "logs": [log_entry(mined, block.hash, timestamp, at, entry) for at, entry in enumerate(mined.logs)],
        "logsBloom": bloom(mined.bloom),
        "status": quantity(int(mined.success)),
        "type": quantity(mined.transaction.type_id or 0),
    }


def transaction(
    signed: SignedTransactionAPI, transaction_hash: bytes, sender: bytes, block: Block | None, mined: Mined | None
) -> Json:
    """A transaction, in its block or (block and mined None) waiting."""
    kind = signed.type_id or 0
    parity = signed.y_parity
    fields: dict[str, Json] = {
        "hash": octets(transaction_hash),
        "type": quantity(kind),
        "nonce": quantity(signed.nonce),
        "from": address(sender),
        "to": _address_or_null(bytes(signed.to)),
        "value": quantity(signed.value),
        "gas": quantity(signed.gas),
        "gasPrice": quantity(mined.gas_price if mined else signed.max_fee_per_gas),
        "input": octets(bytes(signed.data)),
        "r": quantity(signed.r),
        "s": quantity(signed.s),
        "blockHash": octets(block.hash) if block else None,
        "blockNumber": quantity(block.number) if block else None,
        "transactionIndex": quantity(mined.index) if mined else None,
    }
    if kind == 0:
        fields["v"] = quantity(signed.v)  # type: ignore[attr-defined]
        if signed.chain_id is not None:
            fields["chainId"] = quantity(signed.chain_id)
        return fields
    fields["chainId"] = quantity(signed.chain_id or 0)
    fields["v"] = fields["yParity"] = quantity(parity)
    fields["accessList"] = [
        {"address": address(bytes(account)), "storageKeys": [f"0x{slot:064x}" for slot in slots]}
        for account, slots in signed.access_list
    ]
    if kind >= 2:
        fields["maxFeePerGas"] = quantity(signed.max_fee_per_gas)
        fields["maxPriorityFeePerGas"] = quantity(signed.max_priority_fee_per_gas)
    return fields


def header_fields(header: BlockHeaderAPI) -> dict[str, Json]:
    """What a block and a pending block say alike."""
    return {
        "number": quantity(header.block_number),
        "parentHash": octets(header.parent_hash),
        "sha3Uncles": EMPTY_UNCLES,
        "miner": address(bytes(header.coinbase)),
        "stateRoot": octets(header.state_root),
        "transactionsRoot": octets(header.transaction_root),
        "receiptsRoot": octets(header.receipt_root),
        "logsBloom": bloom(header.bloom),
        "difficulty": "0x0",
        "totalDifficulty": "0x0",
        "gasLimit": quantity(header.gas_limit),
        "gasUsed": quantity(header.gas_used),
        "timestamp": quantity(header.timestamp),
        "extraData": octets(header.extra_data),
        "mixHash": octets(header.mix_hash),
        "nonce": octets(header.nonce),
        "baseFeePerGas": quantity(base_fee(header)),
        "withdrawalsRoot": octets(BLANK_ROOT_HASH),
        "blobGasUsed": "0x0",
        "excessBlobGas": "0x0",
        "parentBeaconBlockRoot": octets(BLANK_ROOT_HASH),
        "requestsHash": octets(EMPTY_SHA256),
        "uncles": [],
        "withdrawals": [],
    }


def block(sealed: Block, full: bool) -> Json:
    """A block with its transactions' hashes, or with the transactions themselves."""
    fields = header_fields(sealed.header)
    fields["hash"] = octets(sealed.hash)
    fields["size"] = quantity(sealed.size)
    fields["transactions"] = [
        transaction(each.transaction, each.hash, each.sender, sealed, each) if full else octets(each.hash)
        for each in sealed.transactions
    ]
    return fields


# ---- in ----


def read_octets(value: Json, name: str, length: int | None = None) -> bytes:
    """0x and an even number of hex digits; `length` in bytes when it is fixed."""
    if not isinstance(value, str) or not value.startswith("0x"):
        raise invalid_params(f"{name}: hex string with 0x prefix expected")
    try:
        raw = bytes.fromhex(value[2:])
    except ValueError:
        raise invalid_params(f"{name}: invalid hex string") from None
    if length is not None and len(raw) != length:
        raise invalid_params(f"{name}: {length} bytes expected, got {len(raw)}")
    return raw


def read_quantity(value: Json, name: str) -> int:
    """A number below 2**256: 0x and hex digits; plain JSON integers are taken too."""
    if isinstance(value, int) and not isinstance(value, bool):
        number = value
    elif isinstance(value, str) and value.startswith("0x") and 2 < len(value) <= 66:
        try:
            number = int(value[2:], 16)
        except ValueError:
            raise invalid_params(f"{name}: invalid hex quantity") from None
    else:
        raise invalid_params(f"{name}: hex quantity expected")
    if not 0 <= number < WORD:
        raise invalid_params(f"{name}: out of range")
    return number


def read_address(value: Json, name: str) -> bytes:
    """20 bytes."""
    return read_octets(value, name, 20)


def read_mapping(value: Json, name: str) -> Mapping[str, Json]:
    """A JSON object."""
    if not isinstance(value, dict):
        raise invalid_params(f"{name}: object expected")
    return value


def read_topics(value: Json) -> tuple[frozenset[bytes] | None, ...]:
    """Per position: None for anything, else the topics that match."""
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > 4:
        raise invalid_params("topics: a list of at most 4 expected")
    return tuple(_alternatives(each) for each in value)


def _alternatives(value: Json) -> frozenset[bytes] | None:
    if value is None:
        return None
    options = value if isinstance(value, list) else [value]
    if not options or None in options:
        return None
    return frozenset(read_octets(option, "topic", 32) for option in options)


def read_addresses(value: Json) -> frozenset[bytes] | None:
    """None for any address, else those that match."""
    if value is None:
        return None
    options = value if isinstance(value, list) else [value]
    return frozenset(read_address(option, "address") for option in options) or None


def read_access_list(value: Json) -> tuple[tuple[bytes, tuple[int, ...]], ...]:
    """EIP-2930's list of addresses with their slots."""
    if value is None:
        return ()
    if not isinstance(value, list):
        raise invalid_params("accessList: list expected")
    entries = [read_mapping(each, "accessList entry") for each in value]
    return tuple(
        (
            read_address(each.get("address"), "accessList address"),
            tuple(int.from_bytes(read_octets(key, "storageKey", 32), "big") for key in each.get("storageKeys") or ()),
        )
        for each in entries
    )


def matches(entry: Log, addresses: frozenset[bytes] | None, topics: Sequence[frozenset[bytes] | None]) -> bool:
    """Whether a log passes a filter."""
    if addresses is not None and entry.address not in addresses:
        return False
    if len(topics) > len(entry.topics):
        return False
    return all(wanted is None or topic in wanted for wanted, topic in zip(topics, entry.topics, strict=False))


def checksum(values: Iterable[bytes]) -> list[str]:
    """Checksum addresses, for eth_accounts."""
    return [to_checksum_address(value) for value in values]
