"""Who to be connected to: the bootstrap peers always, and everybody they know of, found by asking each peer that is reached.

Every peer answers `/triggerx/1/peers` with the peers it is connected to and the addresses they announced for themselves. An
address carries the peer id that must prove itself when it is dialled, so a lie in the list costs a failed dial and nothing more.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import msgspec
import structlog
import trio

from consensus.errors import Misconfigured, Reject, Transient, TriggerXError
from p2p.network import Exchange, PeerId

ADDRESSES_PER_PEER = 4
ADDRESS_BYTES = 256
LISTED = 64
BOOK_PEERS = 512
DIALS_AT_ONCE = 8
DIAL_SECONDS = 5.0
ASK_SECONDS = 5.0
AGAIN_SECONDS = 1.0  # between two successful dials: a peer that hangs up at once is not dialled in a circle
REFRESH_SECONDS = 15.0
FORGET_AFTER = 12
"""Failed dials in a row, about three minutes: then the peer is gone, until somebody lists it again."""

log = structlog.get_logger()


class Announcement(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Where the asking peer can be dialled: multiaddrs, each ending in its own /p2p/<peer id>."""

    addresses: list[str]


class Listing(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Peers the answering peer is connected to, itself included, with the addresses they announced."""

    peers: dict[str, list[str]]


def _decoder(kind: type[msgspec.Struct]) -> Callable[[bytes], msgspec.Struct]:
    decoder = msgspec.msgpack.Decoder(kind)

    def decode(data: bytes) -> msgspec.Struct:
        try:
            return decoder.decode(data)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise Reject("UNDECODABLE", f"peers: {error}") from error

    return decode


PEERS: Exchange[Announcement, Listing] = Exchange(
    protocol="/triggerx/1/peers",
    encode_request=msgspec.msgpack.encode,
    decode_request=_decoder(Announcement),  # type: ignore[arg-type]
    encode_answer=msgspec.msgpack.encode,
    decode_answer=_decoder(Listing),  # type: ignore[arg-type]
    max_request_bytes=ADDRESSES_PER_PEER * (ADDRESS_BYTES + 8),
    max_answer_bytes=LISTED * (ADDRESSES_PER_PEER * (ADDRESS_BYTES + 8) + 64),
)


class Links(Protocol):
    """What peers are found with; `p2p.host` implements it."""

    @property
    def peer_id(self) -> PeerId: ...

    @property
    def addresses(self) -> tuple[str, ...]: ...

    def connected(self) -> frozenset[PeerId]: ...

    def refused(self, peer: PeerId) -> bool:
        """Cut off for lying: not to be dialled."""
        ...

    def remote_ip(self, peer: PeerId) -> str | None:
        """Where the connected peer's packets come from."""
        ...

    async def changed(self) -> None:
        """Returns when somebody has connected or disconnected since the last call returned."""
        ...

    async def dial(self, peer: PeerId, address: str) -> None:
        """One attempt. Raises `Transient`."""
        ...

    async def request(self, peer: PeerId, exchange: Exchange[Announcement, Listing], message: Announcement) -> Listing: ...


def peer_of(address: str) -> PeerId:
    """The peer id at the end of a multiaddr. Raises ValueError when there is none or the address is not TCP."""
    parts = address.split("/")
    if len(address) > ADDRESS_BYTES or len(parts) != 7 or parts[0] or parts[5] != "p2p" or not parts[6]:
        raise ValueError(f"not /<ip4|ip6|dns...>/<host>/tcp/<port>/p2p/<peer id>: {address[:ADDRESS_BYTES]}")
    if parts[1] not in ("ip4", "ip6", "dns", "dns4", "dns6") or parts[3] != "tcp" or not parts[4].isdigit():
        raise ValueError(f"not a TCP address: {address}")
    return parts[6]


def parse_bootstrap(addresses: Iterable[str]) -> dict[PeerId, list[str]]:
    """Groups bootstrap multiaddrs by peer. Raises `Misconfigured` naming the key `bootstrap`."""
    grouped: dict[PeerId, list[str]] = {}
    for address in addresses:
        try:
            grouped.setdefault(peer_of(address), []).append(address)
        except ValueError as error:
            raise Misconfigured("mesh.bootstrap", str(error)) from error
    return grouped


@dataclass(slots=True)
class _Entry:
    addresses: list[str]
    bootstrap: bool = False
    failures: int = 0
    due: float = 0.0
    dialling: bool = False

    def failed(self, now: float) -> None:
        self.failures += 1
        # A bootstrap peer that restarts is back within two seconds; anybody else may wait.
        longest = 1.5 if self.bootstrap else 30.0
        self.due = now + min(0.2 * 2 ** min(self.failures, 10), longest) * random.uniform(0.8, 1.2)  # noqa: S311 - only spreads dials


class Peers:
    """The address book and the loop that keeps it true. `run` never returns; cancel it."""

    def __init__(self, links: Links, bootstrap: Mapping[PeerId, list[str]], *, target: int) -> None:
        self._links = links
        self._target = target
        self._book = {peer: _Entry(list(known), bootstrap=True) for peer, known in bootstrap.items() if peer != links.peer_id}
        self._wake = trio.Event()
        self._dials = trio.CapacityLimiter(DIALS_AT_ONCE)

    def addresses_of(self, peer: PeerId) -> tuple[str, ...]:
        entry = self._book.get(peer)
        return tuple(entry.addresses) if entry is not None else ()

    async def answer(self, announcement: Announcement, source: PeerId) -> Listing:
        """The handler for `PEERS`."""
        self._learn(source, announcement.addresses, remote_ip=self._links.remote_ip(source))
        connected = [peer for peer in self._links.connected() if peer != source and self.addresses_of(peer)]
        sample = random.sample(connected, min(LISTED - 1, len(connected)))
        listed = {peer: list(self.addresses_of(peer)) for peer in sample}
        if self._links.addresses:
            listed[self._links.peer_id] = self._own_addresses()
        return Listing(listed)

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_links)
            nursery.start_soon(self._refresh)
            while True:
                self._wake = trio.Event()
                due = self._dial_due(nursery)
                with trio.move_on_at(due):
                    await self._wake.wait()

    async def _watch_links(self) -> None:
        while True:
            await self._links.changed()
            self._wake.set()

    async def _refresh(self) -> None:
        """Asks somebody now and then: whoever could not be found at first is found later."""
        while True:
            await trio.sleep(REFRESH_SECONDS * random.uniform(0.8, 1.2))  # noqa: S311
            connected = sorted(self._links.connected())
            if connected:
                await self._ask(random.choice(connected))  # noqa: S311

    def _dial_due(self, nursery: trio.Nursery) -> float:
        """Starts the dials that are due; returns when the next one is."""
        now = trio.current_time()
        connected = self._links.connected()
        room = self._target - len(connected) - sum(entry.dialling for entry in self._book.values())
        next_due = now + REFRESH_SECONDS
        for peer, entry in tuple(self._book.items()):
            if peer in connected:
                entry.failures = 0
                continue
            if entry.dialling or self._links.refused(peer) or not (entry.bootstrap or room > 0):
                continue
            if entry.due > now:
                next_due = min(next_due, entry.due)
                continue
            entry.dialling = True
            room -= 1
            nursery.start_soon(self._connect, peer, entry)
        return next_due

    async def _connect(self, peer: PeerId, entry: _Entry) -> None:
        try:
            async with self._dials:
                reached = await self._dial(peer, entry)
        finally:
            entry.dialling = False
        if reached:
            entry.due = trio.current_time() + AGAIN_SECONDS
            await self._ask(peer)
            return
        entry.failed(trio.current_time())
        if entry.failures >= FORGET_AFTER and not entry.bootstrap:
            self._book.pop(peer, None)
        self._wake.set()

    async def _dial(self, peer: PeerId, entry: _Entry) -> bool:
        for address in tuple(entry.addresses):
            if peer in self._links.connected():
                return True
            with suppress(Transient), trio.move_on_after(DIAL_SECONDS):
                await self._links.dial(peer, address)
                return True
        return False

    async def _ask(self, peer: PeerId) -> None:
        try:
            with trio.move_on_after(ASK_SECONDS):
                listing = await self._links.request(peer, PEERS, Announcement(self._own_addresses()))
                for listed, addresses in tuple(listing.peers.items())[:LISTED]:
                    self._learn(listed, addresses, remote_ip=self._links.remote_ip(peer) if listed == peer else None)
        except TriggerXError as error:  # a peer that knows no such exchange, or is gone again: others will do
            log.debug("peers_not_told", peer=peer, reason=str(error))

    def _own_addresses(self) -> list[str]:
        return list(self._links.addresses[:ADDRESSES_PER_PEER])

    def _learn(self, peer: PeerId, addresses: Iterable[str], *, remote_ip: str | None) -> None:
        usable = []
        for address in addresses:
            with suppress(ValueError):
                if peer_of(address) == peer and (reachable := _specific(address, remote_ip)) is not None:
                    usable.append(reachable)
        known = self._book.get(peer)
        if peer == self._links.peer_id or not usable or (known is not None and known.bootstrap):
            return
        usable = usable[:ADDRESSES_PER_PEER]
        if known is None:
            if len(self._book) >= BOOK_PEERS and not self._make_room():
                return
            self._book[peer] = _Entry(usable)
        elif set(known.addresses) != set(usable):
            known.addresses, known.failures, known.due = usable, 0, 0.0
        self._wake.set()

    def _make_room(self) -> bool:
        connected = self._links.connected()
        for peer, entry in self._book.items():
            if not entry.bootstrap and not entry.dialling and peer not in connected:
                del self._book[peer]
                return True
        return False


def _specific(address: str, remote_ip: str | None) -> str | None:
    """An address on "every interface" means: where that peer's packets come from. None when nobody knows."""
    parts = address.split("/")
    if parts[2] not in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        return address
    if remote_ip is None:
        return None
    return "/".join(["", "ip6" if ":" in remote_ip else "ip4", remote_ip, *parts[3:]])
