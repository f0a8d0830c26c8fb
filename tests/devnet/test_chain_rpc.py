"""One suite for anvil and for the embedded chain: whatever the project asks of a chain, both answer alike."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from eth_account import Account
from eth_utils import keccak
from py_arkworks_bls12381 import G1Point, G2Point, Scalar
from web3 import HTTPProvider, Web3
from web3.exceptions import ContractLogicError, Web3RPCError

from cli.devnet.chain import Chain
from tests import components
from tests.devnet.onchain import GWEI, HISTORY, Party, Running, World, compiled

PAIRING = "0x000000000000000000000000000000000000000F"
COUNTED = keccak(text="Counted(address,uint256)")

ACCOUNTS = 80  # two for every test: none sees another's nonces


@pytest.fixture(scope="module", params=["anvil", "embedded"])
def running(request: pytest.FixtureRequest) -> Iterator[tuple[Chain, Iterator[int]]]:
    """One chain of each engine, and the numbers of its accounts that no test has taken."""
    if request.param == "anvil":
        components.require("anvil")
    with Running(request.param, ACCOUNTS) as chain:
        yield chain, itertools.count()


@pytest.fixture
def world(running: tuple[Chain, Iterator[int]]) -> World:
    """A client of the chain under test and two accounts nobody used before."""
    chain, numbers = running
    web3 = Web3(HTTPProvider(chain.rpc_url))
    keys = [chain.accounts[next(numbers)].private_key for _ in range(2)]
    party, other = (Party(web3, Account.from_key(key)) for key in keys)
    return World(chain, web3, party, other)


def padded(xy: bytes) -> bytes:
    return b"".join(bytes(16) + xy[at : at + 48] for at in range(0, len(xy), 48))


def pair(g1: G1Point, g2: G2Point) -> bytes:
    return padded(g1.to_xy_bytes_be()) + padded(g2.to_xy_bytes_be())


def test_the_accounts_are_those_of_the_test_mnemonic_and_funded(world: World) -> None:
    assert world.chain.accounts[0].address == "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266"
    assert world.web3.eth.chain_id == 31337
    assert world.web3.eth.accounts == [each.address for each in world.chain.accounts]
    assert Account.from_key(world.chain.accounts[-1].private_key).address == world.chain.accounts[-1].address
    assert world.web3.eth.get_balance(world.party.address) == 10_000 * 10**18


def test_a_contract_is_deployed_called_and_logs(world: World) -> None:
    contract = world.party.deploy()
    assert bytes(world.web3.eth.get_code(contract.address))

    receipt = world.party.transact(to=contract.address, data=contract.encode_abi("bump"))

    assert receipt["status"] == 1
    assert receipt["type"] == 2
    assert receipt["to"] == contract.address
    assert receipt["from"] == world.party.address
    assert receipt["contractAddress"] is None
    assert GWEI < receipt["effectiveGasPrice"] <= 10 * GWEI
    (event,) = contract.events.Counted().process_receipt(receipt)
    assert event["args"] == {"who": world.party.address, "number": 1}
    assert contract.functions.count().call() == 1
    assert int.from_bytes(world.web3.eth.get_storage_at(contract.address, 1), "big") == 1  # `count` is the second variable
    block = world.web3.eth.get_block(receipt["blockNumber"], full_transactions=True)
    assert block["hash"] == receipt["blockHash"]
    assert block["transactions"][receipt["transactionIndex"]]["hash"] == receipt["transactionHash"]  # type: ignore[index]
    receipts = world.web3.eth.get_block_receipts(receipt["blockNumber"])
    assert receipt["transactionHash"] in [each["transactionHash"] for each in receipts]


def test_logs_are_found_by_address_topic_range_and_block(world: World) -> None:
    first, second = world.party.deploy(), world.party.deploy()
    mine = world.party.transact(to=first.address, data=first.encode_abi("bump"))
    theirs = world.other.transact(to=first.address, data=first.encode_abi("bump"))
    world.party.transact(to=second.address, data=second.encode_abi("bump"))
    start = mine["blockNumber"]

    def found(**wanted: Any) -> list[tuple[str, int]]:
        entries = world.web3.eth.get_logs({"fromBlock": start, "toBlock": "latest", **wanted})  # type: ignore[typeddict-item]
        return [(each["address"], int.from_bytes(each["data"], "big")) for each in entries]

    everywhere = [(first.address, 1), (first.address, 2), (second.address, 1)]
    own = "0x" + bytes(12).hex() + world.party.address[2:].lower()
    other = "0x" + bytes(12).hex() + world.other.address[2:].lower()
    assert found(address=[first.address, second.address]) == everywhere
    assert found(address=first.address) == everywhere[:2]
    assert found(address=first.address, topics=["0x" + COUNTED.hex(), own]) == everywhere[:1]
    assert found(address=first.address, topics=[None, [own, other]]) == everywhere[:2]
    assert found(topics=[["0x" + COUNTED.hex()], [other]], address=[first.address]) == everywhere[1:2]
    assert found(address=first.address, topics=["0x" + bytes(32).hex()]) == []
    assert found(address=first.address, topics=[None, None, own]) == []
    in_block = world.web3.eth.get_logs({"blockHash": theirs["blockHash"], "address": first.address})
    assert [each["transactionHash"] for each in in_block] == [theirs["transactionHash"]]
    assert [each["logIndex"] for each in in_block] == [each["logIndex"] for each in theirs["logs"]]


def test_a_revert_carries_its_reason_and_its_bytes(world: World) -> None:
    contract = world.party.deploy()
    with pytest.raises(ContractLogicError, match="too large a number"):
        contract.functions.refuse(10).call()

    message = {"to": contract.address, "data": contract.encode_abi("refuse", [10]), "from": world.party.address}
    for method in ("eth_call", "eth_estimateGas"):
        error = world.raw(method, message)["error"]
        assert error["code"] == 3
        assert error["message"] == "execution reverted: too large a number"
        assert error["data"].startswith("0x08c379a0")
    silent = world.raw("eth_call", {"to": contract.address, "data": contract.encode_abi("refuse_silently")}, "latest")["error"]
    assert (silent["code"], silent["message"], silent["data"]) == (3, "execution reverted", "0x")


def test_a_reverted_transaction_is_mined_without_its_effects(world: World) -> None:
    contract = world.party.deploy()
    receipt = world.party.transact(to=contract.address, data=contract.encode_abi("refuse", [11]))
    assert receipt["status"] == 0
    assert receipt["logs"] == []
    assert world.party.nonce("latest") == 2


def test_an_estimate_is_enough_where_gas_is_passed_on(world: World) -> None:
    contract = world.party.deploy()
    for amount in (1, 20, 90):
        data = contract.encode_abi("fill_through_a_call", [amount * 1000, amount])
        gas = world.web3.eth.estimate_gas({"from": world.party.address, "to": contract.address, "data": data})
        receipt = world.party.transact(to=contract.address, data=data, gas=gas)
        assert receipt["status"] == 1
        assert receipt["gasUsed"] <= gas < receipt["gasUsed"] * 1.1


def test_an_estimate_is_enough_where_gas_is_refunded(world: World) -> None:
    contract = world.party.deploy()
    world.party.transact(to=contract.address, data=contract.encode_abi("fill", [0, 20]), gas=2_000_000)
    data = contract.encode_abi("clear", [0, 20])
    gas = world.web3.eth.estimate_gas({"from": world.party.address, "to": contract.address, "data": data})
    assert world.party.transact(to=contract.address, data=data, gas=gas)["status"] == 1


def test_the_pending_nonce_counts_what_waits(world: World) -> None:
    world.raw("evm_setAutomine", False)
    try:
        hashes = [world.party.send(nonce=nonce) for nonce in (0, 1, 3)]
        assert world.party.nonce("pending") == 2  # 3 has a gap before it
        assert world.party.nonce("latest") == 0
        waiting = world.web3.eth.get_transaction(hashes[0])
        assert waiting.get("blockNumber") is None
        assert world.raw("eth_getTransactionReceipt", "0x" + bytes(hashes[0]).hex())["result"] is None
        assert len(world.web3.eth.get_block("pending")["transactions"]) >= 2
    finally:
        world.raw("evm_setAutomine", True)
    world.party.transact(nonce=2)
    world.web3.eth.wait_for_transaction_receipt(hashes[2], timeout=20, poll_latency=0.02)
    assert world.party.nonce("latest") == 4


def test_refused_transactions_are_refused_in_words_that_a_submitter_knows(world: World) -> None:
    def refusal(raw: Any) -> str:
        with pytest.raises(Web3RPCError) as caught:
            world.web3.eth.send_raw_transaction(raw)
        return str(caught.value).lower()

    world.party.transact()
    assert "nonce too low" in refusal(world.party.sign(nonce=0))
    assert "insufficient funds for gas * price + value" in refusal(world.party.sign(value=10**24))
    assert "intrinsic gas too low" in refusal(world.party.sign(gas=20_000))
    assert "chain id" in refusal(world.party.sign(chainId=1))
    world.raw("evm_setAutomine", False)
    try:
        waiting = world.party.sign(nonce=1)
        world.web3.eth.send_raw_transaction(waiting)
        known = refusal(waiting)
        assert "already known" in known or "already imported" in known
        assert "replacement transaction underpriced" in refusal(world.party.sign(nonce=1, value=1))
        better = world.party.send(nonce=1, value=1, maxFeePerGas=20 * GWEI, maxPriorityFeePerGas=2 * GWEI)
    finally:
        world.raw("evm_setAutomine", True)
    world.party.transact(nonce=2)
    assert world.web3.eth.wait_for_transaction_receipt(better, timeout=20, poll_latency=0.02)["status"] == 1


@pytest.mark.parametrize(
    ("kind", "fields"),
    [(0, {"gasPrice": 5 * GWEI}), (1, {"gasPrice": 5 * GWEI, "accessList": [], "type": 1}), (2, {"type": 2})],
)
def test_every_kind_of_transaction_is_mined(world: World, kind: int, fields: dict[str, Any]) -> None:
    receipt = world.party.transact(to=world.other.address, value=7, **fields)
    assert receipt["type"] == kind
    sent = world.web3.eth.get_transaction(receipt["transactionHash"])
    assert (sent["from"], sent["to"], sent["value"]) == (world.party.address, world.other.address, 7)
    spent = 10_000 * 10**18 - world.web3.eth.get_balance(world.party.address)
    assert spent == 7 + receipt["gasUsed"] * receipt["effectiveGasPrice"]


def test_the_pairing_precompile_tells_true_from_false_from_malformed(world: World) -> None:
    g1, g2 = G1Point(), G2Point()
    true = pair(g1 * Scalar(7), g2) + pair(-g1, g2 * Scalar(7))
    false = pair(g1 * Scalar(8), g2) + pair(-g1, g2 * Scalar(7))

    def ask(data: bytes) -> Any:
        return world.raw("eth_call", {"to": PAIRING, "data": "0x" + data.hex()}, "latest")

    assert int(ask(true)["result"], 16) == 1
    assert int(ask(false)["result"], 16) == 0
    off_the_curve = bytearray(true)
    off_the_curve[127] ^= 1
    for malformed in (bytes(off_the_curve), true[:-1], b"", b"\xff" * 384):
        assert "error" in ask(malformed)


def test_the_history_contract_gives_the_hash_of_an_earlier_block(world: World) -> None:
    contract = world.party.deploy()
    for _ in range(3):
        world.party.transact()
    head = world.web3.eth.block_number

    def history(number: int) -> Any:
        return world.raw("eth_call", {"to": HISTORY, "data": "0x" + number.to_bytes(32, "big").hex()}, hex(head))

    for number in (head - 1, head - 2, 1):
        expected = world.web3.eth.get_block(number)["hash"]
        assert expected is not None
        assert history(number)["result"] == "0x" + bytes(expected).hex()
        if number > head - 256:
            assert contract.functions.hash_of(number).call(block_identifier=head) == bytes(expected)
    assert "error" in history(head)
    assert "error" in history(head + 1)


def test_a_burst_is_mined_at_once_and_never_ahead_of_the_wall_clock(world: World) -> None:
    before = world.web3.eth.block_number
    hashes = [world.party.send(nonce=nonce, to=world.other.address, value=1) for nonce in range(50)]
    receipts = [world.web3.eth.wait_for_transaction_receipt(each, timeout=20, poll_latency=0.02) for each in hashes]
    now = time.time()
    stamps = [world.web3.eth.get_block(number)["timestamp"] for number in range(before, receipts[-1]["blockNumber"] + 1)]
    assert [receipt["status"] for receipt in receipts] == [1] * 50
    places = [(receipt["blockNumber"], receipt["transactionIndex"]) for receipt in receipts]
    assert places == sorted(places)
    assert stamps == sorted(stamps)
    assert stamps[-1] <= now
    assert world.web3.eth.get_block("pending")["timestamp"] <= time.time()


def test_a_call_sees_the_block_it_names(world: World) -> None:
    contract = world.party.deploy()
    first = world.party.transact(to=contract.address, data=contract.encode_abi("bump"))["blockNumber"]
    world.party.transact(to=contract.address, data=contract.encode_abi("bump"))
    assert contract.functions.count().call(block_identifier=first) == 1
    assert contract.functions.count().call() == 2
    assert contract.functions.height().call(block_identifier=first) == first
    stamp = world.web3.eth.get_block(first)["timestamp"]
    assert contract.functions.now().call(block_identifier=first) == stamp
    block_hash = world.web3.eth.get_block(first)["hash"]
    assert block_hash is not None
    assert contract.functions.count().call(block_identifier=block_hash) == 1
    assert world.web3.eth.get_transaction_count(world.party.address, first) == 2


def test_what_is_missing_is_null(world: World) -> None:
    nothing = "0x" + bytes(32).hex()
    for method, params in (
        ("eth_getBlockByNumber", ["0xffffffff", False]),
        ("eth_getBlockByHash", [nothing, False]),
        ("eth_getTransactionByHash", [nothing]),
        ("eth_getTransactionReceipt", [nothing]),
    ):
        assert world.raw(method, *params)["result"] is None


def test_numbers_have_no_leading_zeros_and_hashes_have_all_their_digits(world: World) -> None:
    world.party.transact()
    block = world.raw("eth_getBlockByNumber", "latest", False)["result"]
    for key in ("number", "timestamp", "gasLimit", "gasUsed", "baseFeePerGas"):
        assert block[key] == hex(int(block[key], 16))
    for key in ("hash", "parentHash", "stateRoot", "transactionsRoot", "receiptsRoot", "mixHash"):
        assert len(block[key]) == 66
    assert len(block["logsBloom"]) == 2 + 512
    slot = world.raw("eth_getStorageAt", world.party.address, "0x0", "latest")["result"]
    assert slot == "0x" + bytes(32).hex()
    assert world.raw("eth_getTransactionCount", world.other.address, "latest")["result"] == "0x0"


def test_fees_are_suggested_and_remembered(world: World) -> None:
    for _ in range(2):
        world.party.transact()
    history = world.web3.eth.fee_history(2, "latest", [25, 75])
    assert len(history["baseFeePerGas"]) == 3
    assert len(history["gasUsedRatio"]) == 2
    assert [len(each) for each in history["reward"]] == [2, 2]
    assert history["reward"][-1][0] == GWEI
    assert world.web3.eth.max_priority_fee == GWEI
    assert world.web3.eth.gas_price >= GWEI


def test_a_batch_is_answered_request_by_request(world: World) -> None:
    requests = [
        {"jsonrpc": "2.0", "id": 1, "method": "eth_chainId", "params": []},
        {"jsonrpc": "2.0", "id": 2, "method": "eth_noSuchThing", "params": []},
        {"jsonrpc": "2.0", "id": 3, "method": "eth_getBalance", "params": [world.party.address, "latest"]},
    ]
    answers = {each["id"]: each for each in httpx.post(world.chain.rpc_url, json=requests, trust_env=False).json()}
    assert answers[1]["result"] == "0x7a69"
    assert answers[2]["error"]["code"] == -32601
    assert int(answers[3]["result"], 16) == 10_000 * 10**18
    assert world.raw("eth_subscribe", "newHeads")["error"]["code"] == -32601  # over HTTP on both


def test_a_body_without_end_is_refused_and_the_chain_goes_on(world: World) -> None:
    answer = httpx.post(world.chain.rpc_url, content=b"[" + b" " * 3 * 1024 * 1024, trust_env=False)
    assert answer.status_code == 413 or answer.json()["error"]["code"] == -32600  # anvil says it in the body
    assert httpx.post(world.chain.rpc_url, content=b"{", trust_env=False).json()["error"]["code"] in (-32600, -32700)
    assert world.web3.eth.chain_id == 31337


def test_a_snapshot_takes_blocks_back(world: World) -> None:
    snapshot = world.raw("evm_snapshot")["result"]
    height = world.web3.eth.block_number
    gone = world.party.transact(value=5, to=world.other.address)
    assert world.raw("evm_revert", snapshot)["result"] is True
    assert world.web3.eth.block_number == height
    assert world.raw("eth_getTransactionReceipt", "0x" + bytes(gone["transactionHash"]).hex())["result"] is None
    assert world.party.nonce("latest") == 0
    again = world.party.transact(value=6, to=world.other.address)
    assert again["blockNumber"] == height + 1
    assert world.web3.eth.get_balance(world.other.address) == 10_000 * 10**18 + 6


def test_a_balance_can_be_set_and_an_empty_block_mined(world: World) -> None:
    stranger = Account.create().address
    world.raw("anvil_setBalance", stranger, hex(12345))
    assert world.web3.eth.get_balance(stranger) == 12345
    height = world.web3.eth.block_number
    world.raw("evm_mine")
    assert world.web3.eth.block_number == height + 1
    assert world.web3.eth.get_balance(stranger) == 12345


def test_the_largest_contract_fits(world: World) -> None:
    size = 0x6000
    code = bytes.fromhex(f"61{size:04x}600c60003961{size:04x}6000f3") + b"\x00" * size
    receipt = world.party.transact(to=None, data="0x" + code.hex(), gas=10_000_000)
    assert receipt["status"] == 1
    assert len(world.web3.eth.get_code(receipt["contractAddress"])) == size


def test_gas_is_the_same_on_every_engine(world: World) -> None:
    artefact = compiled()
    deployed = world.party.transact(to=None, data=artefact["bytecode"], gas=3_000_000)
    contract = world.web3.eth.contract(address=deployed["contractAddress"], abi=artefact["abi"])
    used = [
        world.party.transact(to=contract.address, data=data, gas=3_000_000)["gasUsed"]
        for data in (
            contract.encode_abi("bump"),
            contract.encode_abi("bump"),
            contract.encode_abi("fill_through_a_call", [0, 7]),
            contract.encode_abi("clear", [0, 7]),
            contract.encode_abi("refuse", [99]),
        )
    ]
    used.append(world.party.transact(to=world.other.address, data="0x" + "ff00" * 400)["gasUsed"])  # EIP-7623's floor
    # What anvil charges at Prague; the embedded chain must not differ by one.
    assert used == [44913, 27813, 177696, 46068, 21543, 41000]
