"""What this process has seen of a chain: its keepers and dispatchers, and a feed of events that steps can wait on."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import structlog
import trio

from consensus.codec import Domain
from consensus.errors import Transient
from node.infra.chain import (
    Chain,
    ChainEvent,
    ExecutionRecord,
    ExecutionStatus,
    Head,
    Keeper,
    RegistryChanged,
    TaskExpired,
    TaskValidated,
)
from p2p.topics import TASKS

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # its stubs, which libp2p brings along, shadow trio's own types

_log = structlog.get_logger(__name__)

_SETTLED = 4096  # settled tasks remembered: an hour of more than one a second
_RETRY_S = 1.0

DONE = "done"
"""How a task ended that was executed and certified; the other outcomes are `consensus.lifecycle.REASONS`."""

_OUTCOMES = {
    ExecutionStatus.CERTIFIED: DONE,
    ExecutionStatus.REJECTED: "REFUSED_BY_COMMITTEE",
    ExecutionStatus.EXPIRED: "NO_QUORUM",
}

COURSES = frozenset(_OUTCOMES.values())
"""Every way in which the contracts end a task that was executed."""

OnEvents = Callable[[Head, Sequence[ChainEvent]], Awaitable[None]]


def outcome_of(record: ExecutionRecord) -> str | None:
    """How the contracts ended a task; None while they have not."""
    return _OUTCOMES.get(record.status)


class Observer:
    """Follows one chain from its head. `run` keeps it current; everything else answers from memory.

    A node that has lost its RPC goes on with what it last knew: registries change by epoch, not by the second.
    """

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self._keepers: dict[bytes, Keeper] = {}
        self._by_peer: dict[str, Keeper] = {}
        self._dispatchers: frozenset[bytes] = frozenset()
        self._settled: OrderedDict[int, tuple[str, int]] = OrderedDict()  # task -> outcome, block
        self._waiting: dict[int, trio.Event] = {}
        self._rewound = trio.Event()
        self.rewinds = 0
        """Reorganisations seen: how often blocks that were followed have left the chain."""
        self.head: Head | None = None
        """Last head followed; None until the first."""

    @property
    def domain(self) -> Domain:
        return self.chain.domain

    @property
    def dispatchers(self) -> frozenset[bytes]:
        return self._dispatchers

    def keeper(self, address: bytes) -> Keeper | None:
        """The active keeper with this operator address."""
        return self._keepers.get(address)

    def keeper_of_peer(self, peer_id: str) -> Keeper | None:
        return self._by_peer.get(peer_id)

    @property
    def keepers(self) -> tuple[Keeper, ...]:
        return tuple(self._keepers.values())

    async def refresh(self) -> None:
        """Reads keepers and dispatchers anew. Raises `Transient`."""
        keepers = [k for k in await self.chain.keepers() if k.active]
        dispatchers = await self.chain.dispatchers()
        self._keepers = {k.address: k for k in keepers}
        self._by_peer = {k.peer_id: k for k in keepers}
        self._dispatchers = dispatchers

    async def run(self, on_events: OnEvents | None = None, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follows the chain for ever; started once the registry has been read. `on_events` sees every batch, in order."""
        while True:
            try:
                start = await self.chain.head()  # before the registry: what changes while it is read comes with the feed
                await self.refresh()
                break
            except Transient as error:
                _log.warning("chain unreachable, trying again", code=error.code, detail=error.detail)
                await trio.sleep(_RETRY_S)
        self.head = start
        task_status.started()
        stale = False
        async with self.chain.follow(start.number + 1) as feed:
            while True:
                try:
                    if stale:
                        await self.refresh()
                        stale = False
                    head, events = await feed.next()
                except Transient as error:
                    _log.warning("chain unreachable, trying again", code=error.code, detail=error.detail)
                    await trio.sleep(_RETRY_S)
                    continue
                stale = any(isinstance(e, RegistryChanged) for e in events)
                if stale:
                    with suppress(Transient):  # tried again above: these events must not wait for it, nor be lost
                        await self.refresh()
                        stale = False
                self.head = head
                self._settle(events, taken_back=feed.rewound)
                if on_events is not None:
                    await on_events(head, events)

    def outcome(self, task_id: int) -> str | None:
        """How the contract has ended this task since we follow (`DONE` or a reason's code); None when it has not."""
        settled = self._settled.get(task_id)
        return settled[0] if settled else None

    async def wait_settled(self, task_id: int) -> str:
        """The task's outcome, once the contract has settled it. The caller sets the deadline."""
        while (outcome := self.outcome(task_id)) is None:
            event = self._waiting.setdefault(task_id, trio.Event())
            try:
                await event.wait()
            finally:
                if not event.is_set() and not event.statistics().tasks_waiting and self._waiting.get(task_id) is event:
                    del self._waiting[task_id]  # the last to lose patience
        return outcome

    async def wait_rewound(self, seen: int) -> None:
        """Returns once there have been more than `seen` reorganisations (`rewinds`)."""
        while self.rewinds <= seen:
            await self._rewound.wait()

    def _settle(self, events: Sequence[ChainEvent], *, taken_back: int | None) -> None:
        if taken_back is not None:
            for task_id in [t for t, (_, block) in self._settled.items() if block >= taken_back]:
                del self._settled[task_id]
        for event in events:
            match event:
                case TaskValidated(task_id=task_id, accepted=accepted):
                    outcome = DONE if accepted else "REFUSED_BY_COMMITTEE"
                case TaskExpired(task_id=task_id):
                    outcome = "NO_QUORUM"
                case _:
                    continue
            self._settled[task_id] = (outcome, event.place.block_number)
            if (waiting := self._waiting.pop(task_id, None)) is not None:
                waiting.set()
        while len(self._settled) > _SETTLED:
            self._settled.popitem(last=False)
        if taken_back is not None:
            self.rewinds += 1
            self._rewound.set()
            self._rewound = trio.Event()


class Registry:
    """`consensus.rules.Facts` over the observers of all chains a process serves."""

    def __init__(self, observers: Mapping[int, Observer]) -> None:
        self._observers = observers

    def domain(self, chain_id: int) -> Domain | None:
        observer = self._observers.get(chain_id)
        return observer.domain if observer else None

    def dispatchers(self, chain_id: int) -> frozenset[bytes]:
        observer = self._observers.get(chain_id)
        return observer.dispatchers if observer else frozenset()

    def operator_of(self, chain_id: int, peer_id: str) -> bytes | None:
        observer = self._observers.get(chain_id)
        keeper = observer.keeper_of_peer(peer_id) if observer else None
        return keeper.address if keeper else None

    def height(self, chain_id: int) -> int | None:
        observer = self._observers.get(chain_id)
        return observer.head.number if observer and observer.head else None

    def is_known(self, peer_id: str) -> bool:
        """Whether an active keeper of any chain is registered with this peer id."""
        return any(o.keeper_of_peer(peer_id) is not None for o in self._observers.values())

    def may_publish(self, peer_id: str, topic: str) -> bool | None:
        """The mesh's gate: tasks by anybody (their worth is the dispatcher's signature), all else by registered keepers.

        None while no chain has been read yet.
        """
        if topic == TASKS.name or self.is_known(peer_id):
            return True
        return None if any(o.head is None for o in self._observers.values()) else False

    def peer_of(self, chain_id: int, operator: bytes) -> str | None:
        """The peer id registered for an operator."""
        observer = self._observers.get(chain_id)
        keeper = observer.keeper(operator) if observer else None
        return keeper.peer_id if keeper else None
