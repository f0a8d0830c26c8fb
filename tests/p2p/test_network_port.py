"""The port's promises, kept by every adapter."""

from __future__ import annotations

import pytest
import trio

from consensus.errors import Ignore, Invalid, Reject, Transient
from p2p.network import Network, PeerId, Received, Topic
from tests.p2p.conftest import ECHO, OTHER, TEXT, OpenMesh, accept, joined, until


async def test_a_message_reaches_every_subscriber_once_with_its_signer_and_never_its_publisher(open_mesh: OpenMesh) -> None:
    async with (
        open_mesh(3) as (a, b, c),
        a.subscribe(TEXT, accept, capacity=8) as at_a,
        b.subscribe(TEXT, accept, capacity=8) as at_b,
        c.subscribe(TEXT, accept, capacity=8) as at_c,
    ):
        await joined([a, b, c])
        await a.publish(TEXT, "one")
        await b.publish(TEXT, "two")
        with trio.fail_after(5):
            assert await at_a.receive() == Received("two", b.peer_id)
            assert await at_b.receive() == Received("one", a.peer_id)
            both = {await at_c.receive(), await at_c.receive()}
        assert both == {Received("one", a.peer_id), Received("two", b.peer_id)}
        await joined([a, b, c])
        assert [network.counters.delivered for network in (a, b, c)] == [1, 1, 2]
        assert [network.counters.published for network in (a, b, c)] == [1, 1, 0]


async def test_a_peer_that_does_not_subscribe_may_publish(open_mesh: OpenMesh) -> None:
    async with open_mesh(2) as (a, b), b.subscribe(TEXT, accept, capacity=8) as at_b:
        await until(lambda: a.topic_peers(TEXT) == {b.peer_id})
        await a.publish(TEXT, "from outside")
        with trio.fail_after(5):
            assert (await at_b.receive()).message == "from outside"


async def test_topics_do_not_mix(open_mesh: OpenMesh) -> None:
    async with (
        open_mesh(2) as (a, b),
        b.subscribe(TEXT, accept, capacity=8) as texts,
        b.subscribe(OTHER, accept, capacity=8) as others,
    ):
        await until(lambda: bool(a.topic_peers(TEXT)) and bool(a.topic_peers(OTHER)))
        await a.publish(OTHER, "other")
        await a.publish(TEXT, "text")
        with trio.fail_after(5):
            assert (await others.receive()).message == "other"
            assert (await texts.receive()).message == "text"


async def test_rejected_and_ignored_messages_do_not_arrive_and_are_counted_by_code(open_mesh: OpenMesh) -> None:
    async def rule(message: str, _source: PeerId) -> None:
        if message == "lie":
            raise Reject("A_LIE")
        if message == "late":
            raise Ignore("TOO_LATE")
        if message == "bug":
            raise KeyError(message)

    async with open_mesh(2) as (a, b), b.subscribe(TEXT, rule, capacity=8) as at_b:
        await until(lambda: bool(a.topic_peers(TEXT)))
        for message in ("lie", "late", "bug", "fine"):
            await a.publish(TEXT, message)
        with trio.fail_after(5):
            assert (await at_b.receive()).message == "fine"
        await until(lambda: sum(b.counters.ignored.values()) == 2)
        assert b.counters.rejected == {"A_LIE": 1}
        assert b.counters.ignored == {"TOO_LATE": 1, "RULE_FAILED": 1}


async def test_a_slow_rule_holds_up_nobody_else(open_mesh: OpenMesh) -> None:
    release = trio.Event()

    async def rule(message: str, _source: PeerId) -> None:
        if message == "slow":
            await release.wait()

    async with open_mesh(2) as (a, b), b.subscribe(TEXT, rule, capacity=8) as at_b:
        await until(lambda: bool(a.topic_peers(TEXT)))
        await a.publish(TEXT, "slow")
        await a.publish(TEXT, "quick")
        with trio.fail_after(5):
            assert (await at_b.receive()).message == "quick"
            release.set()
            assert (await at_b.receive()).message == "slow"


async def test_a_reader_that_falls_behind_loses_the_newest_and_they_are_counted(open_mesh: OpenMesh) -> None:
    async with open_mesh(2) as (a, b), b.subscribe(TEXT, accept, capacity=2) as at_b:
        await until(lambda: bool(a.topic_peers(TEXT)))
        for number in range(5):
            await a.publish(TEXT, str(number))
        await until(lambda: b.counters.delivered + b.counters.dropped == 5)
        assert b.counters.dropped == 3
        assert at_b.statistics().current_buffer_used == 2


async def test_publishing_over_the_topics_size_is_the_callers_mistake(open_mesh: OpenMesh) -> None:
    async with open_mesh(1) as (a,):
        with pytest.raises(Invalid, match="TOO_LARGE"):
            await a.publish(OTHER, "x" * 65)
        await a.publish(OTHER, "x" * 64)


async def test_a_message_over_the_readers_size_is_rejected_before_it_is_decoded(open_mesh: OpenMesh) -> None:
    decoded: list[bytes] = []

    def decode(data: bytes) -> str:
        decoded.append(data)
        return data.decode()

    narrow: Topic[str] = Topic(TEXT.name, str.encode, decode, max_bytes=3)
    async with open_mesh(2) as (a, b), b.subscribe(narrow, accept, capacity=8) as at_b:
        await until(lambda: bool(a.topic_peers(TEXT)))
        await a.publish(TEXT, "four")
        await a.publish(TEXT, "two")
        with trio.fail_after(5):
            assert (await at_b.receive()).message == "two"
        assert decoded == [b"two"]
        assert b.counters.rejected == {"TOO_LARGE": 1}


async def test_only_peers_that_the_gate_allows_are_heard(open_mesh: OpenMesh) -> None:
    allowed: dict[PeerId, bool] = {}

    gated = open_mesh(3, gate=lambda peer, _topic: allowed.get(peer))
    async with gated as (a, b, c), c.subscribe(TEXT, accept, capacity=8) as at_c:
        await until(lambda: bool(a.topic_peers(TEXT)) and bool(b.topic_peers(TEXT)))
        await a.publish(TEXT, "before the registry is known")
        await until(lambda: c.counters.ignored == {"REGISTRY_UNKNOWN": 1})
        allowed.update({a.peer_id: True, b.peer_id: False})
        await b.publish(TEXT, "from a stranger")
        await a.publish(TEXT, "from a keeper")
        with trio.fail_after(5):
            assert (await at_c.receive()).message == "from a keeper"
        await until(lambda: c.counters.ignored == {"REGISTRY_UNKNOWN": 1, "NOT_ALLOWED": 1})
        assert c.counters.rejected == {}


async def test_three_lies_cut_a_peer_off_and_ignored_messages_never_do(open_mesh: OpenMesh) -> None:
    async def rule(message: str, _source: PeerId) -> None:
        if message.startswith("lie"):
            raise Reject("A_LIE")
        if message.startswith("late"):
            raise Ignore("TOO_LATE")

    async with open_mesh(3) as (liar, laggard, judge), judge.subscribe(TEXT, rule, capacity=8) as heard:
        await until(lambda: bool(liar.topic_peers(TEXT)) and bool(laggard.topic_peers(TEXT)))
        for number in range(6):
            await laggard.publish(TEXT, f"late {number}")
        await until(lambda: judge.counters.ignored.get("TOO_LATE") == 6)
        await laggard.publish(TEXT, "in time")
        with trio.fail_after(5):
            assert (await heard.receive()).message == "in time"
        for number in range(3):
            assert judge.counters.cut_off == 0
            await liar.publish(TEXT, f"lie {number}")
            await until(lambda n=number: judge.counters.rejected.get("A_LIE") == n + 1)
        await until(lambda: judge.counters.cut_off == 1)
        await liar.publish(TEXT, "now I am honest")
        await laggard.publish(TEXT, "still here")
        with trio.fail_after(5):
            assert (await heard.receive()).message == "still here"


async def test_leaving_a_topic_is_seen_by_the_others_and_it_can_be_joined_again(open_mesh: OpenMesh) -> None:
    async with open_mesh(2) as (a, b):
        for number in range(2):
            async with b.subscribe(TEXT, accept, capacity=8) as at_b:
                await until(lambda: a.topic_peers(TEXT) == {b.peer_id})
                await a.publish(TEXT, f"round {number}")
                with trio.fail_after(5):
                    assert (await at_b.receive()).message == f"round {number}"
            await until(lambda: a.topic_peers(TEXT) == frozenset())


async def test_a_topic_has_one_reader_a_peer(open_mesh: OpenMesh) -> None:
    async with open_mesh(1) as (a,), a.subscribe(TEXT, accept, capacity=1):
        with pytest.raises(ValueError, match="already subscribed"):
            async with a.subscribe(TEXT, accept, capacity=1):
                pass


async def test_an_error_in_the_body_of_a_subscription_comes_out_as_it_is(open_mesh: OpenMesh) -> None:
    with pytest.raises(LookupError):  # not in an exception group
        async with open_mesh(1) as (a,), a.subscribe(TEXT, accept, capacity=1), a.serve(ECHO, echo):
            raise LookupError


async def echo(message: str, source: PeerId) -> str:
    return f"{message} from {source}"


async def test_a_request_is_answered_and_the_handler_knows_who_asks(open_mesh: OpenMesh) -> None:
    async with open_mesh(2) as (a, b), b.serve(ECHO, echo):
        with trio.fail_after(5):
            assert await a.request(b.peer_id, ECHO, "hello") == f"hello from {a.peer_id}"
            assert await b.request(b.peer_id, ECHO, "me") == f"me from {b.peer_id}"


async def test_many_requests_at_once_are_all_answered(open_mesh: OpenMesh) -> None:
    answers: set[str] = set()

    async with open_mesh(2) as (a, b), b.serve(ECHO, echo):

        async def ask(number: int) -> None:
            answers.add(await a.request(b.peer_id, ECHO, str(number)))

        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                for number in range(12):
                    nursery.start_soon(ask, number)
    assert answers == {f"{number} from {a.peer_id}" for number in range(12)}


@pytest.mark.parametrize("failure", [Reject("NOT_YOURS"), Ignore("NOT_MINE"), RuntimeError("bug")])
async def test_a_handler_that_fails_closes_the_stream_and_nothing_else(open_mesh: OpenMesh, failure: Exception) -> None:
    async def handler(message: str, source: PeerId) -> str:
        if message == "fail":
            raise failure
        return message

    async with open_mesh(2) as (a, b), b.serve(ECHO, handler):
        with trio.fail_after(5):
            with pytest.raises(Transient, match="PEER_HUNG_UP"):
                await a.request(b.peer_id, ECHO, "fail")
            assert await a.request(b.peer_id, ECHO, "work") == "work"


async def test_an_oversized_request_is_refused_here_and_an_oversized_answer_there(open_mesh: OpenMesh) -> None:
    async def flood(_message: str, _source: PeerId) -> str:
        return "x" * (ECHO.max_answer_bytes + 1)

    async with open_mesh(2) as (a, b), b.serve(ECHO, flood):
        with pytest.raises(Invalid, match="TOO_LARGE"):
            await a.request(b.peer_id, ECHO, "x" * (ECHO.max_request_bytes + 1))
        with trio.fail_after(5), pytest.raises(Transient, match="PEER_HUNG_UP"):
            await a.request(b.peer_id, ECHO, "x" * ECHO.max_request_bytes)


async def test_an_unknown_peer_and_an_unserved_protocol_may_work_later(open_mesh: OpenMesh) -> None:
    async with open_mesh(2) as (a, b):
        nobody = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"
        with trio.fail_after(5):
            with pytest.raises(Transient):
                await a.request(nobody, ECHO, "anybody?")
            with pytest.raises(Transient):
                await a.request(b.peer_id, ECHO, "anything?")


async def test_whoever_stops_serving_hangs_up_on_those_who_wait(open_mesh: OpenMesh) -> None:
    entered = trio.Event()

    async def never(_message: str, _source: PeerId) -> str:
        entered.set()
        await trio.sleep_forever()
        raise AssertionError

    async with open_mesh(2) as (a, b), trio.open_nursery() as nursery:

        async def ask() -> None:
            with pytest.raises(Transient, match="PEER_HUNG_UP"):
                await a.request(b.peer_id, ECHO, "wait")

        with trio.fail_after(5):
            async with b.serve(ECHO, never):
                nursery.start_soon(ask)
                await entered.wait()


async def test_everybody_knows_who_is_connected(open_mesh: OpenMesh) -> None:
    async with open_mesh(4) as networks:
        everybody = {network.peer_id for network in networks}
        await until(lambda: all(network.connected() == everybody - {network.peer_id} for network in networks))
        assert all(network.counters.peers == 3 for network in networks)
        assert all(address.endswith(f"/p2p/{network.peer_id}") for network in networks for address in network.addresses)


async def test_a_burst_from_everybody_is_delivered_to_everybody(open_mesh: OpenMesh) -> None:
    async with open_mesh(5) as networks, trio.open_nursery() as nursery:
        done: list[Network] = []

        async def read(network: Network, *, task_status: trio.TaskStatus[None]) -> None:
            async with network.subscribe(TEXT, accept, capacity=200) as channel:
                task_status.started()
                seen = {(await channel.receive()).message for _ in range(160)}
                assert len(seen) == 160
                done.append(network)
                await until(lambda: len(done) == 5)

        for network in networks:
            await nursery.start(read, network)
        await joined(networks)
        with trio.fail_after(20):
            for number in range(200):
                await networks[number % 5].publish(TEXT, f"{number} " + "x" * 2000)
            await until(lambda: len(done) == 5)
