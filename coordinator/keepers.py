"""Who is there to be given a task: keepers by their check-ins, and the choice among them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import structlog
import trio

from consensus.errors import Ignore
from consensus.messages import CheckIn
from consensus.rules import Facts, check_check_in
from coordinator.signals import Signals
from coordinator.store.port import Store
from coordinator.store.records import KeeperSeen
from node.infra.clock import Clock
from p2p.network import Network, PeerId
from p2p.topics import CHECK_INS

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # its stubs, which libp2p brings along, shadow trio's own types

log = structlog.get_logger(__name__)

OFFLINE_AFTER_S = 600
"""Seconds without a check-in after which a keeper is offline; they come every 60."""
_WAITING = 256  # one of each keeper that an epoch can have, and room


@dataclass(frozen=True, slots=True)
class Candidate:
    """A keeper that may be given a task now. `connected`: the mesh sees its peer at this moment."""

    address: bytes
    peer_id: PeerId
    connected: bool


def choose(
    candidates: Iterable[Candidate], tried: frozenset[bytes], load: Counter[bytes], turn: dict[bytes, int]
) -> Candidate | None:
    """The keeper for the next attempt; None when there is none.

    One that has not been tried comes before all that have, one that is connected before one that is not; then the least
    loaded, then whose turn was longest ago. `load` counts open attempts, `turn` numbers the last assignment.
    """
    return min(
        candidates,
        key=lambda c: (c.address in tried, not c.connected, load[c.address], turn.get(c.address, -1), c.address),
        default=None,
    )


class Keepers:
    """Check-ins as they come, kept in the store; answers from memory."""

    def __init__(self, store: Store, network: Network, facts: Facts, signals: Signals, clock: Clock) -> None:
        self._store = store
        self._network = network
        self._facts = facts
        self._signals = signals
        self._clock = clock
        self._seen: dict[tuple[int, bytes], KeeperSeen] = {}

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listens for check-ins until cancelled; ready once what was known before is loaded."""
        async with self._network.subscribe(CHECK_INS, self._rule, capacity=_WAITING) as received:
            for keeper in await self._store.keepers():
                self._seen.setdefault((keeper.chain_id, keeper.address), keeper)
            task_status.started()
            async for each in received:
                await self._record(each.message, each.source)

    def online(self, chain_id: int) -> list[Candidate]:
        """Registered keepers of a chain whose last check-in is recent, or who are connected: as after a long absence of ours."""
        connected = self._network.connected()
        recent = {k.peer_id for k in self._seen.values() if k.chain_id == chain_id and self.is_online(k)}
        return [
            Candidate(address, peer_id, peer_id in connected)
            for peer_id in sorted(recent | connected)
            if (address := self._facts.operator_of(chain_id, peer_id)) is not None
        ]

    def all(self) -> list[KeeperSeen]:
        """Every keeper that ever checked in."""
        return sorted(self._seen.values(), key=lambda k: (k.chain_id, k.address))

    def is_online(self, keeper: KeeperSeen) -> bool:
        return self._clock.now() - keeper.last_seen < OFFLINE_AFTER_S

    async def _rule(self, message: CheckIn, source: PeerId) -> None:
        known = self._seen.get((message.chain_id, message.operator))
        if known is not None and message.at <= known.last_seen:  # IGNORE: one already counted, or a replay
            raise Ignore("REPLAY", "not newer than the keeper's last check-in")
        check_check_in(message, source, self._facts, self._clock.now())

    async def _record(self, message: CheckIn, source: PeerId) -> None:
        key = (message.chain_id, message.operator)
        known = self._seen.get(key)
        if known is None:
            keeper = KeeperSeen(message.chain_id, message.operator, source, message.version, message.at, message.at, 0)
        else:
            gap = message.at - known.last_seen
            uptime = known.uptime_s + (gap if 0 < gap < OFFLINE_AFTER_S else 0)
            last_seen = max(message.at, known.last_seen)
            keeper = replace(known, peer_id=source, version=message.version, last_seen=last_seen, uptime_s=uptime)
        if known is None or not self.is_online(known):
            log.info("keeper_online", keeper="0x" + message.operator.hex(), version=message.version, chain=message.chain_id)
        self._seen[key] = keeper
        self._signals.notify(("keepers", message.chain_id))
        await self._store.save_keeper(keeper)
