"""Finding peers: the book, the dials and their patience, on fake links and a virtual clock."""

from __future__ import annotations

from contextlib import suppress

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from consensus.errors import Misconfigured, Reject, Transient
from p2p.network import Exchange, PeerId
from p2p.peers import (
    ADDRESSES_PER_PEER,
    BOOK_PEERS,
    FORGET_AFTER,
    LISTED,
    PEERS,
    Announcement,
    Listing,
    Peers,
    parse_bootstrap,
    peer_of,
)


def address(peer: PeerId, port: int = 1, host: str = "/ip4/10.0.0.1") -> str:
    return f"{host}/tcp/{port}/p2p/{peer}"


class FakeLinks:
    """Links that work, fail and break as the test says."""

    peer_id = "me"
    addresses = (address("me"),)

    def __init__(self) -> None:
        self.up: set[PeerId] = set()
        self.reachable: set[str] = set()
        self.listings: dict[PeerId, dict[str, list[str]]] = {}
        self.cut_off: set[PeerId] = set()
        self.dialled: list[tuple[float, str]] = []
        self.told: list[tuple[PeerId, list[str]]] = []
        self.event = trio.Event()

    def connected(self) -> frozenset[PeerId]:
        return frozenset(self.up)

    def refused(self, peer: PeerId) -> bool:
        return peer in self.cut_off

    def remote_ip(self, peer: PeerId) -> str | None:
        return "192.0.2.7" if peer in self.up else None

    async def changed(self) -> None:
        await self.event.wait()
        self.event = trio.Event()

    async def dial(self, peer: PeerId, address: str) -> None:
        self.dialled.append((trio.current_time(), address))
        await trio.sleep(0.01)
        if address not in self.reachable:
            raise Transient("PEER_UNREACHABLE", address)
        self.up.add(peer)
        self.event.set()

    async def request(self, peer: PeerId, exchange: Exchange[Announcement, Listing], message: Announcement) -> Listing:
        self.told.append((peer, message.addresses))
        if peer not in self.up:
            raise Transient("PEER_UNREACHABLE", peer)
        return Listing(self.listings.get(peer, {}))

    def lose(self, peer: PeerId) -> None:
        self.up.discard(peer)
        self.event.set()


async def test_everybody_a_bootstrap_peer_lists_is_dialled_and_told_where_we_are(autojump_clock: MockClock) -> None:
    links = FakeLinks()
    links.reachable = {address("boot"), address("a", 2), address("b", 3)}
    links.listings = {"boot": {"a": [address("a", 2)]}, "a": {"b": [address("b", 3)], "me": [address("me", 9)]}}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Peers(links, {"boot": [address("boot")]}, target=8).run)
        await trio.sleep(1)
        assert links.up == {"boot", "a", "b"}
        assert sorted(links.told) == [(peer, [address("me")]) for peer in ("a", "b", "boot")]
        nursery.cancel_scope.cancel()


async def test_a_bootstrap_peer_is_redialled_every_second_or_two_for_as_long_as_it_takes(autojump_clock: MockClock) -> None:
    links = FakeLinks()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Peers(links, {"boot": [address("boot")]}, target=8).run)
        await trio.sleep(600)
        gaps = [later - earlier for (earlier, _), (later, _) in zip(links.dialled, links.dialled[1:], strict=False)]
        assert max(gaps) < 2.0
        assert max(gaps[5:]) > 1.0
        links.reachable = {address("boot")}
        await trio.sleep(2)
        assert links.up == {"boot"}
        nursery.cancel_scope.cancel()


async def test_a_lost_connection_is_restored_at_once_and_one_that_keeps_breaking_is_not_dialled_in_a_circle(
    autojump_clock: MockClock,
) -> None:
    links = FakeLinks()
    links.reachable = {address("boot")}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Peers(links, {"boot": [address("boot")]}, target=8).run)
        await trio.sleep(5)
        links.lose("boot")
        await trio.sleep(0.1)
        assert links.up == {"boot"}
        before = len(links.dialled)
        for _ in range(100):
            links.lose("boot")
            await trio.sleep(0.05)
        assert len(links.dialled) - before <= 7
        nursery.cancel_scope.cancel()


async def test_others_are_given_up_and_their_place_in_the_book_is_freed(autojump_clock: MockClock) -> None:
    links = FakeLinks()
    links.reachable = {address("boot")}
    links.listings = {"boot": {"gone": [address("gone", 2)]}}
    peers = Peers(links, {"boot": [address("boot")]}, target=8)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peers.run)
        await trio.sleep(1)
        links.listings = {}
        assert peers.addresses_of("gone")
        await trio.sleep(600)
        assert not peers.addresses_of("gone")
        assert sum(dialled == address("gone", 2) for _, dialled in links.dialled) == FORGET_AFTER
        nursery.cancel_scope.cancel()


async def test_no_more_connections_are_sought_than_wanted(autojump_clock: MockClock) -> None:
    links = FakeLinks()
    many = {f"p{n}": [address(f"p{n}", n + 1)] for n in range(40)}
    links.reachable = {address("boot"), *(known[0] for known in many.values())}
    links.listings = {"boot": many}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Peers(links, {"boot": [address("boot")]}, target=10).run)
        await trio.sleep(60)
        assert len(links.up) == 10
        nursery.cancel_scope.cancel()


async def test_a_liar_is_not_dialled(autojump_clock: MockClock) -> None:
    links = FakeLinks()
    links.cut_off = {"boot"}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Peers(links, {"boot": [address("boot")]}, target=8).run)
        await trio.sleep(30)
        assert links.dialled == []
        nursery.cancel_scope.cancel()


async def test_only_addresses_that_carry_their_peer_are_believed_and_only_connected_peers_are_listed() -> None:
    links = FakeLinks()
    links.up = {"a", "b", "c"}
    peers = Peers(links, {"boot": [address("boot")]}, target=8)
    await peers.answer(Announcement([address("victim"), "nonsense", "/ip4/10.0.0.1/udp/1/p2p/a", address("a", 5)]), "a")
    await peers.answer(Announcement([address("b", 6, host="/ip4/0.0.0.0")]), "b")
    await peers.answer(Announcement([address("gone", 7)]), "gone")
    assert peers.addresses_of("victim") == ()
    listing = await peers.answer(Announcement([]), "c")
    assert listing.peers == {
        "me": [address("me")],
        "a": [address("a", 5)],
        "b": [address("b", 6, host="/ip4/192.0.2.7")],
    }


async def test_a_bootstrap_peers_addresses_are_the_operators_to_say() -> None:
    links = FakeLinks()
    peers = Peers(links, {"boot": [address("boot")]}, target=8)
    await peers.answer(Announcement([address("boot", 666)]), "boot")
    assert peers.addresses_of("boot") == (address("boot"),)


async def test_the_book_is_bounded() -> None:
    links = FakeLinks()
    peers = Peers(links, {"boot": [address("boot")]}, target=8)
    for number in range(BOOK_PEERS + 50):
        await peers.answer(Announcement([address(f"p{number}", port + 1) for port in range(50)]), f"p{number}")
    known = [number for number in range(BOOK_PEERS + 50) if peers.addresses_of(f"p{number}")]
    assert len(known) == BOOK_PEERS - 1
    assert known[-1] == BOOK_PEERS + 49
    assert len(peers.addresses_of(f"p{known[-1]}")) == ADDRESSES_PER_PEER


def test_the_largest_listing_fits_its_frame() -> None:
    longest = "/dns4/" + "x" * 160 + "/tcp/65535/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"
    full = Listing({f"{n:052}": [longest] * ADDRESSES_PER_PEER for n in range(LISTED)})
    assert len(PEERS.encode_answer(full)) <= PEERS.max_answer_bytes
    assert len(PEERS.encode_request(Announcement([longest] * ADDRESSES_PER_PEER))) <= PEERS.max_request_bytes
    assert PEERS.decode_answer(PEERS.encode_answer(full)) == full


@given(st.binary(max_size=64))
def test_any_bytes_are_a_listing_or_rejected(data: bytes) -> None:
    for decode in (PEERS.decode_answer, PEERS.decode_request):
        with suppress(Reject):
            decode(data)


@given(st.text(max_size=80))
def test_any_text_is_an_address_or_no_address(text: str) -> None:
    with suppress(ValueError):
        assert text.endswith("/p2p/" + peer_of(text))


def test_bootstrap_addresses_are_grouped_by_peer_and_mistakes_named() -> None:
    assert parse_bootstrap([address("a", 1), address("a", 2), address("b")]) == {
        "a": [address("a", 1), address("a", 2)],
        "b": [address("b")],
    }
    with pytest.raises(Misconfigured, match="bootstrap"):
        parse_bootstrap(["/ip4/127.0.0.1/tcp/4001"])
