"""The embedded chain's blocks and pool, in this process and on a clock of the test's."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from eth_account import Account
from hypothesis import given, settings
from hypothesis import strategies as st

from cli.devnet.embedded.accounts import dev_accounts
from cli.devnet.embedded.errors import RpcError
from cli.devnet.embedded.ledger import Ledger
from cli.devnet.embedded.methods import METHODS, Methods
from cli.devnet.embedded.server import RpcServer

GWEI = 10**9
ETHER = 10**18
BALANCE = 100 * ETHER
START = 1_700_000_000.75


@dataclass
class Clock:
    now: float = START

    def __call__(self) -> float:
        return self.now


@dataclass
class Sender:
    ledger: Ledger
    account: Any

    @property
    def address(self) -> bytes:
        return bytes.fromhex(self.account.address[2:])

    def send(self, nonce: int, tip: int = 1, **fields: Any) -> bytes:
        base = {"chainId": 31337, "to": self.account.address, "value": 0, "gas": 21_000, "nonce": nonce}
        base |= {"maxFeePerGas": 50 * GWEI, "maxPriorityFeePerGas": tip * GWEI}
        signed = self.account.sign_transaction(base | fields)
        return self.ledger.send(bytes(signed.raw_transaction))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(clock: Clock) -> Ledger:
    return Ledger(31337, {bytes.fromhex(each.address[2:]): BALANCE for each in dev_accounts(4)}, now=clock)


@pytest.fixture
def senders(ledger: Ledger) -> list[Sender]:
    return [Sender(ledger, Account.from_key(each.private_key)) for each in dev_accounts(4)]


def order(ledger: Ledger) -> list[tuple[bytes, int]]:
    return [(each.sender, each.transaction.nonce) for each in ledger.head.transactions]


def test_a_block_takes_many_transactions_in_order_of_nonce_and_tip(ledger: Ledger, senders: list[Sender]) -> None:
    a, b, c, _ = senders
    a.send(0, tip=1)
    a.send(1, tip=9)
    b.send(0, tip=5)
    c.send(1, tip=9)  # has a gap before it
    ledger.mine()
    assert order(ledger) == [(b.address, 0), (a.address, 0), (a.address, 1)]
    c.send(0)
    ledger.mine()
    assert order(ledger) == [(c.address, 0), (c.address, 1)]


def test_blocks_of_one_second_share_their_timestamp(ledger: Ledger, senders: list[Sender], clock: Clock) -> None:
    for nonce in range(3):
        senders[0].send(nonce)
        ledger.mine()
    assert [block.header.timestamp for block in ledger.blocks(0, 3)] == [int(START)] * 4
    clock.now += 1.5
    senders[0].send(3)
    ledger.mine()
    assert ledger.head.header.timestamp == int(START + 1.5)


def test_a_wall_clock_set_back_does_not_take_the_chain_with_it(ledger: Ledger, senders: list[Sender], clock: Clock) -> None:
    clock.now -= 3600
    senders[0].send(0)
    block = ledger.mine()
    assert block is not None
    assert block.header.timestamp == int(START)


def test_what_does_not_fit_waits_for_the_next_block(ledger: Ledger, senders: list[Sender]) -> None:
    a, b, _, _ = senders
    a.send(0, gas=20_000_000, tip=5)
    b.send(0, gas=20_000_000, tip=2)
    b.send(1)
    ledger.mine()
    # Gas used is what counts: the first one's limit leaves no room for the second, but it uses little of it.
    assert order(ledger) == [(a.address, 0), (b.address, 0), (b.address, 1)]

    a.send(1, gas=20_000_000, tip=5, to=b"", data="0xfe")  # an invalid opcode burns the whole limit
    b.send(2, gas=20_000_000, tip=2)
    ledger.mine()
    assert order(ledger) == [(a.address, 1)]
    assert not ledger.head.transactions[0].success
    ledger.mine()
    assert order(ledger) == [(b.address, 2)]


def test_nothing_ready_means_no_block(ledger: Ledger, senders: list[Sender]) -> None:
    assert ledger.mine() is None
    senders[0].send(5)
    senders[1].send(0, maxFeePerGas=GWEI // 2, maxPriorityFeePerGas=0)  # below the base fee
    assert ledger.mine() is None
    assert ledger.head.number == 0
    assert len(ledger.pool) == 2
    assert not ledger.wants_mining


def test_a_cheap_transaction_is_mined_when_the_base_fee_has_fallen(ledger: Ledger, senders: list[Sender]) -> None:
    cheap = senders[1].send(0, maxFeePerGas=GWEI // 2, maxPriorityFeePerGas=0)
    while ledger.mined(cheap) is None:
        assert ledger.mine(even_empty=True) is not None
        assert ledger.head.number < 20
    assert len(ledger.pool) == 0


def test_a_transaction_whose_sender_was_robbed_meanwhile_is_dropped(ledger: Ledger, senders: list[Sender]) -> None:
    a, b, _, _ = senders
    a.send(0)
    b.send(0)
    ledger.set_balance(a.address, 0)
    ledger.mine()
    assert order(ledger) == [(b.address, 0)]
    assert len(ledger.pool) == 0


def test_the_costs_of_waiting_transactions_add_up(ledger: Ledger, senders: list[Sender]) -> None:
    a = senders[0]
    a.send(0, value=BALANCE // 2)
    with pytest.raises(RpcError, match="insufficient funds"):
        a.send(1, value=BALANCE // 2)


def test_a_reverted_snapshot_forgets_blocks_state_and_hashes(ledger: Ledger, senders: list[Sender]) -> None:
    a, b, _, _ = senders
    kept = a.send(0)
    ledger.mine()
    number = ledger.snapshot()
    gone = a.send(1, to=b.account.address, value=1)
    block = ledger.mine()
    assert block is not None
    assert ledger.revert(number)
    assert not ledger.revert(number)  # used up
    assert ledger.block_by_hash(block.hash) is None
    assert ledger.mined(gone) is None
    assert ledger.mined(kept) is not None
    assert ledger.state_at(ledger.head).get_balance(b.address) == BALANCE  # type: ignore[arg-type]
    ledger.mine(even_empty=True)
    assert ledger.head.number == 2
    assert ledger.head.hash != block.hash


def test_a_call_as_deep_as_the_evm_allows_does_not_end_the_process(ledger: Ledger, senders: list[Sender]) -> None:
    calls_itself = "5f5f5f5f5f305af100"
    created = senders[0].send(0, to=b"", data="0x6009600a5f3960095ff3" + calls_itself, gas=200_000)
    ledger.mine()
    mined = ledger.mined(created)
    assert mined is not None
    assert mined.created is not None
    server = RpcServer(Methods(ledger, [], "test"))
    answer = in_a_thread_of_the_server(
        lambda: server._answer(request("eth_call", {"to": "0x" + mined.created.hex(), "gas": "0x1c9c380"}))
    )
    assert json.loads(answer)["result"] == "0x"


def in_a_thread_of_the_server(function: Callable[[], bytes]) -> bytes:
    """Runs it with the stack that the server gives its threads (set when it is built)."""
    answers: list[bytes] = []
    thread = threading.Thread(target=lambda: answers.append(function()))
    thread.start()
    thread.join()
    return answers[0]


def request(method: str, *params: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()


@pytest.fixture(scope="module")
def server() -> RpcServer:
    return RpcServer(Methods(Ledger(31337, {}), [], "test"))


hexes = st.one_of(
    st.sampled_from(
        ["latest", "pending", "earliest", "0x", "0x0", "0x1", "0x" + "00" * 20, "0x" + "00" * 32, "0x" + "0f".zfill(40)]
    ),
    st.binary(max_size=40).map(lambda raw: "0x" + raw.hex()),
)
messages = st.dictionaries(
    st.sampled_from(
        ["from", "to", "data", "value", "gas", "maxFeePerGas", "accessList", "address", "topics", "fromBlock", "blockHash"]
    ),
    st.one_of(hexes, st.lists(hexes, max_size=3), st.none()),
)
anything = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=8),
        hexes,
        messages,
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=8,
)


@settings(max_examples=300)
@given(method=st.sampled_from(sorted(METHODS)), params=st.lists(anything, max_size=4))
def test_no_parameters_make_a_method_fail_inside(server: RpcServer, method: str, params: list[Any]) -> None:
    answer = json.loads(server._answer(request(method, *params)))
    assert answer["id"] == 1
    assert "result" in answer or answer["error"]["code"] != -32603, answer


@given(st.one_of(st.binary(max_size=60), anything.map(lambda value: json.dumps(value).encode())))
def test_no_body_goes_unanswered(server: RpcServer, body: bytes) -> None:
    answer = json.loads(server._answer(body))
    assert answer


@given(st.binary(max_size=200))
def test_no_bytes_enter_the_pool_that_are_no_transaction(server: RpcServer, raw: bytes) -> None:
    answer = json.loads(server._answer(request("eth_sendRawTransaction", "0x" + raw.hex())))
    assert answer["error"]["code"] in (-32602, -32000)
