"""Sources on a real chain: an aggregator, balances, view calls with exact arguments, and how deep a transaction lies."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from decimal import Decimal
from functools import lru_cache
from typing import Any, cast

import pytest
from vyper.compiler import compile_code

from consensus.conditions import BalanceSource, ConfirmationsSource, OracleSource, Source, ViewSource
from consensus.errors import Failed, Transient
from node.arguments import encode_call
from node.infra.evm import EvmChain
from node.infra.evm_reads import Reader
from node.infra.fetch import open_fetcher
from node.infra.rpc import Rpc, open_rpc
from node.infra.settings import ChainSettings, FetchSettings
from node.infra.sources import Sources
from tests.anvil import running_anvil

FEED = """
struct Pair:
    name: String[32]
    amount: int128

answer: public(int256)
updated: public(uint256)
round: public(uint80)
answered_in: public(uint80)
decimals: public(uint8)

@external
def set(answer: int256, updated: uint256, round: uint80, answered_in: uint80, decimals: uint8):
    self.answer = answer
    self.updated = updated
    self.round = round
    self.answered_in = answered_in
    self.decimals = decimals

@external
@view
def latestRoundData() -> (uint80, int256, uint256, uint256, uint80):
    return self.round, self.answer, self.updated, self.updated, self.answered_in

@external
@view
def balanceOf(account: address) -> uint256:
    return convert(convert(account, uint160), uint256) + 1

@external
@view
def plus(a: uint256, b: int256) -> (String[10], bool, int256):
    return "text", True, convert(a, int256) + b

@external
@view
def third(values: DynArray[uint256, 5]) -> uint256:
    return values[2]

@external
@view
def fails() -> uint256:
    raise "not now"

@external
@view
def pair() -> (Pair, uint8):
    return Pair(name="x", amount=-5), 7
"""

CONTRACT = b"\xfe" * 20
NOBODY = b"\x77" * 20
ACCOUNT = bytes.fromhex("f39fd6e51aad88f6f4ce6ab8827279cfffb92266")
CHAIN = 31337


@lru_cache
def feed_code() -> str:
    return str(compile_code(FEED, output_formats=["bytecode_runtime"])["bytecode_runtime"])


@pytest.fixture(scope="module")
def anvil() -> Iterator[str]:
    with running_anvil() as url:
        yield url


@pytest.fixture
async def rpc(anvil: str):
    async with open_rpc([anvil], expect_chain_id=CHAIN) as opened:
        await opened.call("anvil_setCode", ["0x" + CONTRACT.hex(), feed_code()])
        yield opened


@pytest.fixture
async def sources(rpc: Rpc):
    contracts = dict.fromkeys(("hub", "attestation_center", "keeper_registry", "job_registry", "gas_registry"), "0x" + "11" * 20)
    settings = ChainSettings.model_validate({"id": CHAIN, "name": "anvil", "rpc": ("http://localhost",), "contracts": contracts})
    chain = EvmChain(settings, Reader(rpc), cast(Any, None))  # the tariff is for executing
    async with open_fetcher(FetchSettings()) as fetcher:
        yield Sources(fetcher, {CHAIN: chain}, encode_call)


async def send(rpc: Rpc, signature: str, arguments: Sequence[int]) -> bytes:
    call = encode_call(signature, json.dumps(list(arguments)))
    answer = await rpc.call(
        "eth_sendTransaction", [{"from": "0x" + ACCOUNT.hex(), "to": "0x" + CONTRACT.hex(), "data": "0x" + call.hex()}]
    )
    while await rpc.call("eth_getTransactionReceipt", [answer]) is None:
        pass  # anvil mines it in a moment
    return bytes.fromhex(answer[2:])


async def set_round(rpc: Rpc, answer: int, age: int = 0, round_id: int = 2, answered_in: int = 2, decimals: int = 8) -> None:
    head = await rpc.call("eth_getBlockByNumber", ["latest", False])
    updated = int(head["timestamp"], 16) - age if age >= 0 else 0
    await send(rpc, "set(int256,uint256,uint80,uint80,uint8)", [answer, updated, round_id, answered_in, decimals])


async def refused(sources: Sources, source: Source) -> str:
    with pytest.raises(Failed) as raised:
        await sources.read(source)
    assert raised.value.code == "SOURCE_UNUSABLE"
    return raised.value.detail


@pytest.mark.parametrize(
    ("answer", "decimals", "expected"),
    [
        (250_012_345_678, 8, "2500.12345678"),
        (0, 8, "0"),
        (-5, 1, "-0.5"),
        (2**255 - 1, 18, "57896044618658097711785492504343953926634992332820282019728.792003956564819967"),
    ],
)
async def test_an_oracles_answer_is_scaled_by_its_decimals(rpc: Rpc, sources: Sources, answer: int, decimals: int, expected: str):
    await set_round(rpc, answer, decimals=decimals)
    value = await sources.read(OracleSource(CHAIN, CONTRACT))
    assert value == Decimal(expected)


async def test_an_oracles_decimals_are_asked_for_once(rpc: Rpc, sources: Sources):
    await set_round(rpc, 5, decimals=0)
    assert await sources.read(OracleSource(CHAIN, CONTRACT)) == 5
    await set_round(rpc, 6, decimals=1)
    assert await sources.read(OracleSource(CHAIN, CONTRACT)) == 6


async def test_an_oracle_that_nobody_renews_is_of_no_use(rpc: Rpc, sources: Sources):
    await set_round(rpc, 5, age=100_000)
    assert "s old" in await refused(sources, OracleSource(CHAIN, CONTRACT))
    await set_round(rpc, 5, age=-1)
    assert "no answer yet" in await refused(sources, OracleSource(CHAIN, CONTRACT))
    await set_round(rpc, 5, round_id=7, answered_in=6)
    assert "round 6, not 7" in await refused(sources, OracleSource(CHAIN, CONTRACT))


async def test_absurd_decimals_are_named(rpc: Rpc, sources: Sources):
    await set_round(rpc, 5, decimals=255)
    assert "255 decimals" in await refused(sources, OracleSource(CHAIN, CONTRACT))


async def test_balances_are_exact(rpc: Rpc, sources: Sources):
    wei = 123_456_789_012_345_678_901
    await rpc.call("anvil_setBalance", ["0x" + NOBODY.hex(), hex(wei)])
    assert await sources.read(BalanceSource(CHAIN, NOBODY)) == wei
    assert await sources.read(BalanceSource(CHAIN, b"\x01" * 20)) == 0
    assert await sources.read(BalanceSource(CHAIN, NOBODY, CONTRACT)) == int.from_bytes(NOBODY, "big") + 1
    assert "0 bytes came back" in await refused(sources, BalanceSource(CHAIN, NOBODY, b"\x01" * 20))


async def test_views_take_arguments_to_the_last_digit(sources: Sources):
    plus = "plus(uint256,int256)(string,bool,int256)"
    arguments = f"[{2**200}, -7]"
    assert await sources.read(ViewSource(CHAIN, CONTRACT, plus, arguments, 2)) == 2**200 - 7
    assert await sources.read(ViewSource(CHAIN, CONTRACT, plus, arguments, 1)) == 1
    assert await sources.read(ViewSource(CHAIN, CONTRACT, "third(uint256[])(uint256)", '[["1", 2, "0x3"]]')) == 3
    assert await sources.read(ViewSource(CHAIN, CONTRACT, "pair()((string,int128),uint8)", "[]", 1)) == 7


@pytest.mark.parametrize(
    ("function", "arguments", "says"),
    [
        ("fails()(uint256)", "[]", "not now"),
        ("missing()(uint256)", "[]", ""),
        ("plus(uint256,int256)(uint256)", "[1]", "arguments"),
        ("plus(uint256,int256)(uint256)", "[-1, 0]", "out of range"),
        ("plus(uint256,int256)(uint256)", "nonsense", "JSON"),
        ("balanceOf(address)(uint8)", '["0x7777777777777777777777777777777777777777"]', "does not fit"),
    ],
)
async def test_a_view_that_gives_no_number_says_why(sources: Sources, function: str, arguments: str, says: str):
    assert says in await refused(sources, ViewSource(CHAIN, CONTRACT, function, arguments))


async def test_a_transactions_confirmations_count_its_own_block(rpc: Rpc, sources: Sources):
    assert await sources.read(ConfirmationsSource(CHAIN, b"\x01" * 32)) == 0
    tx_hash = await send(rpc, "set(int256,uint256,uint80,uint80,uint8)", [0, 0, 0, 0, 0])
    assert await sources.read(ConfirmationsSource(CHAIN, tx_hash)) == 1
    await rpc.call("anvil_mine", ["0x5"])
    assert await sources.read(ConfirmationsSource(CHAIN, tx_hash)) == 6


async def test_a_chain_that_is_not_configured_may_be_elsewhere(sources: Sources):
    with pytest.raises(Transient) as raised:
        await sources.read(BalanceSource(5, NOBODY))
    assert raised.value.code == "SOURCE_UNREACHABLE"
