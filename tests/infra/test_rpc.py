"""JSON-RPC: failover between endpoints, errors that are answers, and nothing shown that the URL hides."""

from __future__ import annotations

import json

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from consensus.errors import Misconfigured, Transient
from node.infra.rpc import RpcError, Unreachable, open_rpc, revert_reason
from tests.infra.http_peer import Answer, open_peer, rpc_answer

CHAIN = {"eth_chainId": "0x7a69", "eth_blockNumber": "0x10", "evm_mine": "0x0"}
DEAD = "http://127.0.0.1:9"  # discard: nobody listens
ERROR_STRING = bytes.fromhex("08c379a0") + (32).to_bytes(32, "big") + (8).to_bytes(32, "big") + b"not duly".ljust(32, b"\0")


async def test_a_call_gets_its_result_over_one_kept_connection():
    async with open_peer(rpc_answer(CHAIN)) as peer, open_rpc([peer.url], expect_chain_id=31337) as rpc:
        assert [await rpc.call("eth_blockNumber") for _ in range(5)] == ["0x10"] * 5
    assert peer.connections == 1
    assert peer.methods == ["eth_chainId"] + ["eth_blockNumber"] * 5


async def test_a_batch_keeps_the_order_of_its_calls_and_splits_when_long():
    async with open_peer(rpc_answer(CHAIN)) as peer, open_rpc([peer.url], expect_chain_id=31337) as rpc:
        assert await rpc.batch([]) == []
        calls = [("eth_chainId", []), ("eth_blockNumber", [])] * 75
        assert await rpc.batch(calls) == ["0x7a69", "0x10"] * 75
    assert [len(request) for request in peer.requests if isinstance(request, list)] == [100, 50]


async def test_a_node_without_batches_is_asked_one_by_one():
    def answer(request: object) -> Answer:
        if isinstance(request, list):
            return Answer(json.dumps({"jsonrpc": "2.0", "id": None, "error": {"code": -32600, "message": "no batch"}}).encode())
        return rpc_answer(CHAIN)(request)

    async with open_peer(answer) as peer, open_rpc([peer.url], expect_chain_id=31337) as rpc:
        assert await rpc.batch([("eth_chainId", []), ("eth_blockNumber", [])]) == ["0x7a69", "0x10"]


async def test_an_error_answer_is_no_reason_to_ask_somebody_else():
    refusing = rpc_answer({**CHAIN, "eth_call": {"error": {"code": 3, "message": "reverted", "data": "0x" + ERROR_STRING.hex()}}})
    async with (
        open_peer(refusing) as first,
        open_peer(rpc_answer(CHAIN)) as second,
        open_rpc([first.url, second.url], expect_chain_id=31337) as rpc,
    ):
        with pytest.raises(RpcError) as caught:
            await rpc.call("eth_call", [{}, "latest"])
        with pytest.raises(RpcError, match="reverted"):
            await rpc.batch([("eth_blockNumber", []), ("eth_call", [])])
    assert (caught.value.rpc_code, caught.value.message, caught.value.reason) == (3, "reverted", "not duly")
    assert caught.value.data == ERROR_STRING
    assert second.requests == []


@pytest.mark.parametrize(
    "garbage",
    [
        Answer(b"<html>bad gateway</html>", status=502),
        Answer(b"<html>welcome</html>"),
        Answer(b"[1,2,3]"),
        Answer(b'{"jsonrpc":"2.0","id":424242,"result":"0x1"}'),
        Answer(b'{"jsonrpc":"2.0","id":1}'),
        Answer(b'{"jsonrpc":"2.0","id":[1],"result":"0x1"}'),
        Answer(b"[" * 100_000),
        Answer(b'{"error": {"message": "slow down"}}', status=429),
        Answer(b"", hang_up=True),
        Answer(b" " * 70_000),
    ],
)
async def test_an_endpoint_that_answers_garbage_is_passed_over(garbage):
    async with (
        open_peer(lambda request: garbage) as bad,
        open_peer(rpc_answer(CHAIN)) as good,
        open_rpc([bad.url, good.url], expect_chain_id=31337, max_response_bytes=65536) as rpc,
    ):
        assert await rpc.call("eth_blockNumber") == "0x10"
    assert bad.requests
    assert good.requests


async def test_a_dead_endpoint_is_passed_over_and_rests():
    async with open_peer(rpc_answer(CHAIN)) as peer, open_rpc([DEAD, peer.url], expect_chain_id=31337) as rpc:
        with capture_logs() as logs:
            assert await rpc.call("eth_blockNumber") == "0x10"
            assert await rpc.call("eth_blockNumber") == "0x10"
    assert [(entry["event"], entry["host"]) for entry in logs] == [("rpc_endpoint_failed", "127.0.0.1:9")]


async def test_a_silent_endpoint_costs_one_timeout_and_then_rests():
    async def never(request: object) -> Answer:
        await trio.sleep_forever()
        raise AssertionError

    async with (
        open_peer(never) as silent,
        open_peer(rpc_answer(CHAIN)) as good,
        open_rpc([silent.url, good.url], timeout=0.05, expect_chain_id=31337) as rpc,
    ):
        for _ in range(3):
            assert await rpc.call("eth_blockNumber") == "0x10"
    assert len(silent.requests) == 1


async def test_when_nobody_answers_it_is_transient_and_names_hosts_only():
    secret = "http://user:hunter2@127.0.0.1:9/v3/0123456789abcdef?key=hunter3"
    async with open_rpc([secret, DEAD], expect_chain_id=31337) as rpc:
        with capture_logs() as logs, pytest.raises(Transient, match=r"127\.0\.0\.1:9") as caught:
            await rpc.call("eth_blockNumber")
    assert caught.value.code == "RPC_UNREACHABLE"
    assert not caught.value.received
    for text in (str(caught.value), repr(logs)):
        assert "hunter" not in text
        assert "0123456789abcdef" not in text


async def test_credentials_in_the_url_become_a_header():
    async with open_peer(rpc_answer(CHAIN)) as peer:
        url = peer.url.replace("http://", "http://me:p%40ss@") + "/v3/key?x=1"
        async with open_rpc([url], expect_chain_id=31337) as rpc:
            await rpc.call("eth_blockNumber")
    assert peer.headers[0]["authorization"] == "Basic bWU6cEBzcw=="
    assert "me:" not in peer.headers[0]["host"]


async def test_a_wrong_chain_names_the_key():
    async with open_peer(rpc_answer({**CHAIN, "eth_chainId": "0x1"})) as peer, open_rpc([peer.url], expect_chain_id=31337) as rpc:
        with pytest.raises(Misconfigured, match="serves chain 1, expected 31337") as caught:
            await rpc.call("eth_blockNumber")
    assert caught.value.key == "chain.rpc"
    assert peer.methods == ["eth_chainId"]


@pytest.mark.parametrize("url", ["ftp://host", "http://", "http://host:port", "not a url"])
async def test_an_unusable_url_is_refused_before_it_is_dialled(url):
    with pytest.raises(Misconfigured, match=r"chain\.rpc"):
        async with open_rpc([url], expect_chain_id=1):
            pass


async def test_a_kept_connection_that_was_closed_is_replaced_unseen():
    seen: list[str] = []

    def answer(request: dict[str, object]) -> Answer:
        seen.append(str(request["method"]))
        if seen.count("eth_blockNumber") == 1 and seen[-1] == "eth_blockNumber":
            return Answer(b"", hang_up=True)
        return rpc_answer(CHAIN)(request)

    async with open_peer(answer) as peer, open_rpc([peer.url], expect_chain_id=31337) as rpc:
        assert await rpc.call("eth_blockNumber") == "0x10"
    assert seen == ["eth_chainId", "eth_blockNumber", "eth_blockNumber"]


async def test_what_must_not_happen_twice_is_not_repeated_anywhere():
    def answer(request: dict[str, object]) -> Answer:
        return Answer(b"", hang_up=True) if request["method"] == "evm_mine" else rpc_answer(CHAIN)(request)

    async with (
        open_peer(answer) as first,
        open_peer(rpc_answer(CHAIN)) as second,
        open_rpc([first.url, second.url], expect_chain_id=31337) as rpc,
    ):
        with pytest.raises(Unreachable) as caught:
            await rpc.call("evm_mine")
    assert caught.value.received
    assert first.methods.count("evm_mine") == 1
    assert second.methods == []


async def test_concurrency_is_bounded():
    peak = running = 0
    gate = trio.Event()

    async def answer(request: dict[str, object]) -> Answer:
        nonlocal peak, running
        if request["method"] != "eth_chainId":
            running += 1
            peak = max(peak, running)
            if running == 32:
                gate.set()
            await gate.wait()
            running -= 1
        return rpc_answer(CHAIN)(request)

    async with open_peer(answer) as peer, open_rpc([peer.url], expect_chain_id=31337) as rpc, trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(rpc.call, "eth_blockNumber")
    assert peak == 32
    assert peer.connections <= 32


def test_revert_data_is_read():
    assert revert_reason(ERROR_STRING) == "not duly"
    assert revert_reason(bytes.fromhex("4e487b71") + (0x11).to_bytes(32, "big")) == "panic 0x11: arithmetic overflow"
    assert revert_reason(b"") is None
    assert revert_reason(bytes.fromhex("deadbeef") + bytes(32)) is None


@given(st.binary(max_size=200), st.sampled_from([b"", ERROR_STRING[:4], ERROR_STRING[:36], ERROR_STRING[:68]]))
def test_any_revert_data_is_survived(tail, head):
    reason = revert_reason(head + tail)
    assert reason is None or len(reason) <= len(tail)


@pytest.mark.parametrize("shape", [{"data": "0x" + ERROR_STRING.hex()}, "Reverted 0x" + ERROR_STRING.hex()])
async def test_revert_data_is_found_where_nodes_put_it(shape):
    refusing = rpc_answer({**CHAIN, "eth_call": {"error": {"code": -32015, "message": "VM execution error", "data": shape}}})
    async with open_peer(refusing) as peer, open_rpc([peer.url], expect_chain_id=31337) as rpc:
        with pytest.raises(RpcError) as caught:
            await rpc.call("eth_call")
    assert caught.value.reason == "not duly"


async def test_a_real_node_answers_and_refuses(anvil):
    async with open_rpc([anvil], expect_chain_id=31337) as rpc:
        assert int(await rpc.call("eth_blockNumber"), 16) >= 0
        number, chain = await rpc.batch([("eth_blockNumber", []), ("eth_chainId", [])])
        assert chain == "0x7a69"
        block = await rpc.call("eth_getBlockByNumber", [number, False])
        assert block["number"] == number
        assert await rpc.call("eth_getTransactionReceipt", ["0x" + "00" * 32]) is None
        # init code that reverts with four bytes: PUSH4 deadbeef, MSTORE at 0, REVERT(28, 4)
        with pytest.raises(RpcError) as caught:
            await rpc.call("eth_call", [{"data": "0x63deadbeef6000526004601cfd"}, "latest"])
        assert caught.value.data == bytes.fromhex("deadbeef")
        with pytest.raises(RpcError, match="not found"):
            await rpc.call("eth_nonsense")
    async with open_rpc([anvil], expect_chain_id=1) as rpc:
        with pytest.raises(Misconfigured):
            await rpc.call("eth_blockNumber")


async def test_a_second_endpoint_of_another_chain_counts_as_unreachable_and_ends_nothing():
    answers_left = [2]  # eth_chainId and one call

    def twice(request: dict[str, object]) -> Answer:
        answers_left[0] -= 1
        return rpc_answer(CHAIN)(request) if answers_left[0] >= 0 else Answer(b"", status=503)

    wrong = rpc_answer({**CHAIN, "eth_chainId": "0x1"})
    async with (
        open_peer(twice) as first,
        open_peer(wrong) as second,
        open_rpc([first.url, second.url], expect_chain_id=31337) as rpc,
    ):
        assert await rpc.call("eth_blockNumber") == "0x10"
        with pytest.raises(Unreachable, match="serves chain 1, expected 31337"):
            await rpc.call("eth_blockNumber")
