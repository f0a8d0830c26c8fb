"""Who is there to be given a task: keepers by their check-ins, and what each has done so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import structlog
import trio

from consensus.errors import Ignore, Transient
from consensus.messages import CheckIn
from consensus.rules import Facts, check_check_in
from coordinator.scoring import Standing
from coordinator.signals import Signals
from coordinator.store.port import Store
from coordinator.store.records import KeeperRecord, KeeperSeen
from node.infra.clock import Clock
from p2p.network import Network, PeerId
from p2p.topics import CHECK_INS

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # its stubs, which libp2p brings along, shadow trio's own types

log = structlog.get_logger(__name__)

OFFLINE_AFTER_S = 600.0
"""Seconds without a check-in after which a keeper is offline; they come every 60."""
_WAITING = 256  # one of each keeper that an epoch can have, and room
_REFRESH_S = 10.0  # records change with each settled task; a score needs no more than their drift


class Keepers:
    """Check-ins as they come, kept in the store; answers from memory."""

    def __init__(
        self,
        store: Store,
        network: Network,
        facts: Facts,
        signals: Signals,
        clock: Clock,
        *,
        offline_after: float = OFFLINE_AFTER_S,
    ) -> None:
        self._store = store
        self._network = network
        self._facts = facts
        self._signals = signals
        self._clock = clock
        self._offline_after = offline_after
        self._seen: dict[tuple[int, bytes], KeeperSeen] = {}
        self._records: dict[tuple[int, bytes], KeeperRecord] = {}

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listens for check-ins until cancelled; ready once what was known before is loaded."""
        async with self._network.subscribe(CHECK_INS, self._rule, capacity=_WAITING) as received, trio.open_nursery() as nursery:
            await self._refresh()
            task_status.started()
            nursery.start_soon(self._keep_current)
            async for each in received:
                await self._record(each.message, each.source)

    async def check_in(self, message: CheckIn, peer_id: PeerId) -> None:
        """A check-in that came another way than by gossip (`POST /keeper/checkin`): the same rule, the same record.

        `peer_id` is what the message's signature binds. Raises `Reject`, `Ignore`, and `Transient` when the store is away.
        """
        await self._rule(message, peer_id)
        await self._record(message, peer_id)

    def online(self, chain_id: int) -> list[Standing]:
        """Registered keepers of a chain whose last check-in is recent, or who are connected: as after a long absence of ours.

        Of each what check-ins and the store's records say; its open attempts are the waiting line's to know.
        """
        connected = self._network.connected()
        seen = {k.peer_id: k for k in self._seen.values() if k.chain_id == chain_id and self.is_online(k)}
        found = []
        for peer_id in sorted(seen.keys() | connected):
            address = self._facts.operator_of(chain_id, peer_id)
            if address is None:
                continue
            known = seen.get(peer_id) or self._seen.get((chain_id, address))
            found.append(
                Standing(
                    address=address,
                    peer_id=peer_id,
                    connected=peer_id in connected,
                    version=known.version if known else "",
                    sandbox=known.sandbox if known else "",
                    uptime_s=known.uptime_s if known else 0,
                    known_s=max(0, int(self._clock.now()) - known.first_seen) if known else 0,
                    record=self._records.get((chain_id, address)),
                )
            )
        return found

    def all(self) -> list[KeeperSeen]:
        """Every keeper that ever checked in."""
        return sorted(self._seen.values(), key=lambda k: (k.chain_id, k.address))

    def records(self) -> Sequence[KeeperRecord]:
        """What each keeper has done, as of a few seconds ago."""
        return tuple(self._records.values())

    def is_online(self, keeper: KeeperSeen) -> bool:
        return self._clock.now() - keeper.last_seen < self._offline_after

    async def _keep_current(self) -> None:
        while True:
            await trio.sleep(_REFRESH_S)
            try:
                await self._refresh()
            except Transient as error:
                log.warning("store_unavailable", code=error.code, detail=error.detail)

    async def _refresh(self) -> None:
        """What is in the store, other coordinators' news included."""
        for keeper in await self._store.keepers():
            key = (keeper.chain_id, keeper.address)
            known = self._seen.get(key)
            if known is None or known.last_seen < keeper.last_seen:
                self._seen[key] = keeper
                self._signals.notify(("keepers", keeper.chain_id))
        self._records = {(r.chain_id, r.address): r for r in await self._store.keeper_records()}

    async def _rule(self, message: CheckIn, source: PeerId) -> None:
        known = self._seen.get((message.chain_id, message.operator))
        if known is not None and message.at <= known.last_seen:  # IGNORE: one already counted, or a replay
            raise Ignore("REPLAY", "not newer than the keeper's last check-in")
        check_check_in(message, source, self._facts, self._clock.now())

    async def _record(self, message: CheckIn, source: PeerId) -> None:
        key = (message.chain_id, message.operator)
        known = self._seen.get(key)
        first_seen, last_seen, uptime = message.at, message.at, 0
        if known is not None:
            gap = message.at - known.last_seen
            first_seen, last_seen = known.first_seen, max(message.at, known.last_seen)
            uptime = known.uptime_s + (gap if 0 < gap < self._offline_after else 0)
        keeper = KeeperSeen(
            chain_id=message.chain_id,
            address=message.operator,
            peer_id=source,
            version=message.version,
            first_seen=first_seen,
            last_seen=last_seen,
            uptime_s=uptime,
            sandbox=message.sandbox,
        )
        if known is None or not self.is_online(known):
            log.info("keeper_online", keeper="0x" + message.operator.hex(), version=message.version, chain=message.chain_id)
        self._seen[key] = keeper
        self._signals.notify(("keepers", message.chain_id))
        await self._store.save_keeper(keeper)
