"""The circuit breaker of each endpoint, what a refusal is worth after a lost answer, and two real chains side by side."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack

import pytest
import trio
import trio.testing

from consensus.errors import Misconfigured, Transient
from node.infra import rpc as rpc_module
from node.infra.rpc import RpcError, Unreachable, open_rpc
from tests.anvil import running_anvil
from tests.infra.http_peer import Answer, open_peer, rpc_answer

CHAIN = {"eth_chainId": "0x7a69", "eth_blockNumber": "0x10", "eth_sendRawTransaction": "0x01"}
BROKEN = Answer(b"", status=503)


class Clockwork:
    """trio's clock, as the breaker reads it: a test moves it, while sockets stay in real time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead = 0.0
        real = trio.current_time
        monkeypatch.setattr(rpc_module, "breaker_time", lambda: real() + self.ahead)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clockwork:
    return Clockwork(monkeypatch)


class Switch:
    """An endpoint that a test breaks and mends."""

    def __init__(self) -> None:
        self.broken = False
        self.hold: trio.Event | None = None
        self.asked = 0

    async def __call__(self, request: object) -> Answer:
        self.asked += 1
        if self.hold is not None:
            await self.hold.wait()
        return BROKEN if self.broken else rpc_answer(CHAIN)(request)


def refusing(message: str) -> Callable[[object], Answer]:
    return rpc_answer({**CHAIN, "eth_sendRawTransaction": {"error": {"code": -32000, "message": message}}})


async def test_a_broken_endpoint_is_passed_over_until_its_rest_is_over_and_longer_after_each_probe_that_fails(clock):
    switch = Switch()
    async with (
        open_peer(switch) as peer,
        open_peer(rpc_answer(CHAIN)) as other,
        open_rpc([peer.url, other.url], expect_chain_id=31337) as rpc,
    ):
        switch.broken = True
        for rest in (2.0, 4.0, 8.0):
            before = switch.asked
            await rpc.call("eth_blockNumber")
            assert switch.asked == before + 1  # the request that opens the circuit
            clock.ahead += rest - 0.5
            for _ in range(5):
                await rpc.call("eth_blockNumber")
            assert switch.asked == before + 1
            clock.ahead += 1
        switch.broken = False
        seen = len(other.requests)
        for _ in range(3):
            await rpc.call("eth_blockNumber")
        assert len(other.requests) == seen  # closed again: preferred, as its place in the list says


async def test_a_half_open_circuit_lets_one_request_through(clock):
    switch = Switch()
    async with (
        open_peer(switch) as peer,
        open_peer(rpc_answer(CHAIN)) as other,
        open_rpc([peer.url, other.url], expect_chain_id=31337) as rpc,
    ):
        switch.broken = True
        await rpc.call("eth_blockNumber")
        clock.ahead += 3
        switch.broken, switch.hold = False, trio.Event()
        before = switch.asked
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rpc.call, "eth_blockNumber")
            while switch.asked == before:
                await trio.testing.wait_all_tasks_blocked(0.01)
            for _ in range(5):
                assert await rpc.call("eth_blockNumber") == "0x10"  # by the other one, at once
            assert switch.asked == before + 1
            switch.hold.set()


async def test_a_probe_that_is_cancelled_leaves_the_next_request_to_try(clock):
    switch = Switch()
    async with (
        open_peer(switch) as peer,
        open_peer(rpc_answer(CHAIN)) as other,
        open_rpc([peer.url, other.url], expect_chain_id=31337) as rpc,
    ):
        switch.broken = True
        await rpc.call("eth_blockNumber")
        clock.ahead += 3
        switch.broken, switch.hold = False, trio.Event()
        before = switch.asked
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rpc.call, "eth_blockNumber")
            while switch.asked == before:
                await trio.testing.wait_all_tasks_blocked(0.01)
            nursery.cancel_scope.cancel()
        switch.hold = None
        seen = len(other.requests)
        await rpc.call("eth_blockNumber")
        assert len(other.requests) == seen


async def test_when_all_circuits_are_open_they_are_asked_all_the_same(clock):
    switch = Switch()
    async with open_peer(switch) as peer, open_rpc([peer.url], expect_chain_id=31337) as rpc:
        switch.broken = True
        with pytest.raises(Unreachable):
            await rpc.call("eth_blockNumber")
        switch.broken = False
        assert await rpc.call("eth_blockNumber") == "0x10"


async def test_many_that_fail_together_lengthen_the_rest_once(clock):
    switch = Switch()
    async with (
        open_peer(switch) as peer,
        open_peer(rpc_answer(CHAIN)) as other,
        open_rpc([peer.url, other.url], expect_chain_id=31337) as rpc,
    ):
        await rpc.call("eth_blockNumber")
        switch.broken, switch.hold = True, trio.Event()
        before = switch.asked
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(rpc.call, "eth_blockNumber")
            while switch.asked < before + 10:
                await trio.testing.wait_all_tasks_blocked(0.01)
            switch.hold.set()
        clock.ahead += 2.5
        switch.broken, switch.hold = False, None
        before = switch.asked
        await rpc.call("eth_blockNumber")
        assert switch.asked > before


async def test_an_endpoint_that_limits_its_callers_by_a_json_error_is_passed_over():
    limited = rpc_answer({**CHAIN, "eth_blockNumber": {"error": {"code": 429, "message": "Too Many Requests"}}})
    async with (
        open_peer(limited) as first,
        open_peer(rpc_answer(CHAIN)) as second,
        open_rpc([first.url, second.url], expect_chain_id=31337) as rpc,
    ):
        assert await rpc.call("eth_blockNumber") == "0x10"


@pytest.mark.parametrize(("status", "doubtful"), [(503, True), (429, False)])
async def test_a_refusal_says_whether_another_endpoint_may_have_got_the_request(status, doubtful):
    def broken(request: dict[str, object]) -> Answer:
        return rpc_answer(CHAIN)(request) if request["method"] == "eth_chainId" else Answer(b"", status=status)

    async with (
        open_peer(broken) as first,
        open_peer(refusing("nonce too low")) as second,
        open_rpc([first.url, second.url], expect_chain_id=31337) as rpc,
    ):
        with pytest.raises(RpcError) as caught:
            await rpc.call("eth_sendRawTransaction", ["0x02"])
    assert caught.value.doubtful == doubtful


async def test_a_refusal_of_what_may_have_arrived_twice_at_one_endpoint_is_doubtful():
    seen: list[str] = []

    def answer(request: dict[str, object]) -> Answer:
        seen.append(str(request["method"]))
        if seen.count("eth_sendRawTransaction") == 1 and seen[-1] == "eth_sendRawTransaction":
            return Answer(b"", hang_up=True)
        return refusing("nonce too low")(request)

    async with open_peer(answer) as peer, open_rpc([peer.url], expect_chain_id=31337) as rpc:
        with pytest.raises(RpcError) as caught:
            await rpc.call("eth_sendRawTransaction", ["0x02"])
    assert caught.value.doubtful


async def test_of_two_real_chains_the_one_that_was_not_meant_is_never_asked_anything_else():
    with running_anvil() as first, running_anvil("--chain-id", "4242") as second:
        async with open_rpc([second, first], expect_chain_id=31337) as rpc:
            with pytest.raises(Misconfigured, match="serves chain 4242, expected 31337"):
                await rpc.call("eth_blockNumber")
        async with open_rpc([first, second], expect_chain_id=31337) as rpc:
            assert await rpc.call("eth_chainId") == "0x7a69"
    async with open_rpc([first, second], expect_chain_id=31337) as rpc:
        with pytest.raises(Transient) as caught:
            await rpc.call("eth_blockNumber")
    assert caught.value.code == "RPC_UNREACHABLE"


async def test_when_the_meant_chain_goes_away_the_other_one_does_not_stand_in_for_it():
    async with AsyncExitStack() as stack:
        other = stack.enter_context(running_anvil("--chain-id", "4242"))
        with running_anvil() as meant:
            rpc = await stack.enter_async_context(open_rpc([meant, other], expect_chain_id=31337))
            assert await rpc.call("eth_chainId") == "0x7a69"
        with pytest.raises(Unreachable, match="serves chain 4242"):
            await rpc.call("eth_blockNumber")
