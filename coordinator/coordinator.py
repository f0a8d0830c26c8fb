"""The coordinator's parts connected: what each is given, what goes from one to another, and in which order they live and end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import structlog
import trio
from eth_utils.address import to_checksum_address

from consensus.errors import Transient
from coordinator.alerts import platform
from coordinator.answers import Answers
from coordinator.attempts import Attempts
from coordinator.authorising import Authoriser
from coordinator.charges import Charges
from coordinator.checkpoints import FencedCheckpoints
from coordinator.dispatcher import Dispatcher
from coordinator.endings import Endings
from coordinator.fees import Fees
from coordinator.firing import FiringDesk
from coordinator.guard import Guard
from coordinator.health import KeeperWatch, UserWatch
from coordinator.jobs import Jobs
from coordinator.keepers import Keepers
from coordinator.line import Line
from coordinator.monitor import Monitor
from coordinator.news import Teller
from coordinator.ownership import Kind, Ownership
from coordinator.parts import Parts
from coordinator.runs import Runs
from coordinator.scheduler.condition import ConditionScheduler
from coordinator.scheduler.event import EventScheduler
from coordinator.scheduler.port import Scheduler
from coordinator.scheduler.time import TimeScheduler
from coordinator.signals import Signals
from coordinator.store.records import Fired, Firing
from coordinator.watch import Watch, funds, probes
from node.infra.chain import Chain
from node.packages import Packages

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # its stubs, which libp2p brings along, shadow trio's own types

_log = structlog.get_logger(__name__)

VERSION = version("triggerx-node")
_HAND_OVER_S = 2.0  # of the five that a program has to end

Step = Callable[..., Awaitable[None]]


class Coordinator:
    """The parts connected. `run` is ready when every chain is followed and this coordinator has begun to take its share."""

    def __init__(self, parts: Parts) -> None:
        p = self._parts = parts
        self.guard, self.signals = Guard(), Signals()
        self.clock, self.compute = p.clock, p.compute
        chains: dict[int, Chain] = {chain_id: observer.chain for chain_id, observer in p.observers.items()}
        self.chain_ids = tuple(chains)

        # dispatch: queue -> attempts -> keepers
        self.ownership = Ownership(p.store, p.streams, p.clock, p.instance, lease_s=p.lease, guard=self.guard)
        changed = self.ownership.job_changed
        endings = Endings(p.store, changed)
        self.users = UserWatch(p.store, chains, p.alerts, p.clock, low_balance_executions=p.alert_settings.low_balance_executions)
        self.teller = Teller(p.streams, p.clock, self.users.task_ended)
        self.keepers = Keepers(p.store, p.network, p.registry, self.signals, p.clock, offline_after=p.offline_after)
        self.line = Line(self.keepers, self.signals, p.clock, p.keeper_policy)
        fees = Fees(p.store, chains, p.clock, p.compute)
        attempts = Attempts(
            p.store,
            p.network,
            chains,
            self.line,
            Authoriser(p.store, fees, p.dispatcher_key, p.clock, window=p.policy.window),
            self.signals,
            self.teller,
            p.clock,
            p.policy,
            ended=endings,
            alone=self.ownership.alone,
            on_published=p.on_published,
        )
        answers = Answers(p.store, p.registry, self.signals, lambda: p.clock.now_ns() // 1_000_000)
        self.dispatcher = Dispatcher(
            p.store,
            p.streams,
            p.network,
            attempts,
            answers,
            self.signals,
            self.guard,
            p.clock,
            held_shards=lambda: self.ownership.fences,
            alone=self.ownership.alone,
        )

        # firing: schedulers -> desk -> store and queue
        self.desk = FiringDesk(
            p.store,
            self.dispatcher.push,
            p.clock,
            self.ownership.fences,
            fenced=self.ownership.fenced,
            reread=self.ownership.reread,
            changed=changed,
        )
        self.time = TimeScheduler(p.clock, self.desk, lookahead=p.lookahead, script_lead=p.script_lead)
        checkpoints = FencedCheckpoints(p.store, self.ownership.watched)
        self.event = EventScheduler(chains, p.clock, self._fire_events, checkpoints, self._cancel_event)
        self.condition = ConditionScheduler(p.sources, p.clock, self.desk, p.store.add_gap, interval=p.poll_interval)
        self.schedulers: dict[Kind, Scheduler] = {"time": self.time, "event": self.event, "condition": self.condition}

        # what became of it: mesh and chain -> runs and monitor -> store; what runs without a transaction cost -> hub
        self.runs = Runs(
            p.store,
            p.network,
            chains,
            p.registry,
            Packages(p.network, p.content),
            self.signals,
            self.teller,
            p.clock,
            p.compute,
            ended=endings,
        )
        self.charges = {
            chain_id: Charges(
                p.store,
                chains[chain_id],
                wallet,
                p.clock,
                mine=lambda: 0 in self.ownership.fences,
                batch=p.charge_batch,
                interval=p.charge_interval,
            )
            for chain_id, wallet in p.wallets.items()
        }
        self.monitors = [
            Monitor(
                p.store,
                observer.chain,
                observer,
                self.signals,
                self.teller,
                p.clock,
                ended=endings,
                dispatch=self.dispatcher.push,
                settle=self.runs.settle,
            )
            for observer in p.observers.values()
        ]

        # health: who is told of what
        self.alerts = p.alerts
        self.keeper_watch = KeeperWatch(p.store, p.registry, p.alerts, p.clock, offline_after=p.offline_after)
        self.part_watch = Watch(
            probes(p.store, p.streams, chains, p.network, p.clock) | funds(chains, p.wallets, p.least_funds),
            p.alerts,
            p.clock,
            to=platform(p.alert_settings),
            down_after=p.alert_settings.part_down_s,
        )

        # users -> jobs -> store and schedulers
        self.jobs = Jobs(p.store, fees, p.clock, p.compute, changed=changed, check_url=p.check_url)
        self.ready = False

    async def _fire_events(self, firings: Sequence[Firing], /) -> Sequence[Fired]:
        """A log that is on the chain again, after its task was cancelled, is a firing that the store knows."""
        answers = await self.desk(firings)
        for firing, answer in zip(firings, answers, strict=True):
            if answer is Fired.KNOWN and firing.task is not None:
                await self.dispatcher.revive(firing.task.id)
        return answers

    async def _cancel_event(self, task_id: int) -> None:
        if await self.dispatcher.cancel(task_id, "EVENT_REORGANISED"):
            task = await self._parts.store.task(task_id)
            assert task is not None  # it was just changed
            await self.ownership.job_changed(task.job_id)  # one that runs once is to be watched again

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Works until cancelled, then hands over. Each part is begun anew when it fails; none takes another down."""
        steps: list[tuple[str, Step]] = [("monitor", m.run) for m in self.monitors]
        steps += [
            ("keepers", self.keepers.run),
            ("line", self.line.run),
            ("news", self.teller.run),
            ("runs", self.runs.run),
            *((f"charges {chain_id}", charges.run) for chain_id, charges in self.charges.items()),
            ("dispatcher", self.dispatcher.run),
            ("firing", self.desk.run),
            *((f"{kind} scheduler", scheduler.run) for kind, scheduler in self.schedulers.items()),
            ("alerts", self.alerts.run),
            ("users watched", self.users.run),
            ("keepers watched", self.keeper_watch.run),
            ("parts watched", self.part_watch.run),
            ("ownership", partial(self.ownership.run, self.schedulers, self.desk.settled)),
        ]
        try:
            async with trio.open_nursery() as nursery:
                for name, step in steps:
                    began = trio.Event()
                    nursery.start_soon(self.guard, name, _beginning(step, began))
                    await began.wait()
                self.ready = True
                task_status.started()
        finally:  # nothing fires here any more, and the leases are released: what was driven goes back to the queue
            self.ready = False
            with trio.move_on_after(_HAND_OVER_S) as scope:
                scope.shield = True
                try:
                    await self.dispatcher.hand_over()
                except Transient as error:
                    _log.warning("not_handed_over", code=error.code, detail=error.detail)

    def status(self) -> dict[str, Any]:
        """FIELD's GET /status, the mesh as this peer sees it, and its share of the jobs."""
        seen = self.keepers.all()
        online = [k for k in seen if self.keepers.is_online(k)]
        return {
            "total_keepers": len({k.address for k in seen}),
            "active_keepers": len({k.address for k in online}),
            "active_keeper_list": [
                {
                    "keeper_address": to_checksum_address(k.address),
                    "peer_id": k.peer_id,
                    "chain_id": str(k.chain_id),
                    "version": k.version,
                    "uptime": k.uptime_s,
                    "last_checked_in": k.last_seen,
                }
                for k in online
            ],
            "version": VERSION,
            "peer_id": self._parts.network.peer_id,
            "peers": sorted(self._parts.network.connected()),
            "jobs_scheduled": sum(len(scheduler) for scheduler in self.schedulers.values()),
            "instance": self._parts.instance,
            "instances": sorted(self.ownership.instances),
            "shards": list(self.ownership.held),
        }

    def missing(self) -> list[str]:
        """What it still lacks to do its work: empty means ready."""
        return [
            *([] if self.ready else ["chain: not followed yet"]),
            *([] if self._parts.network.connected() else ["mesh: no peer connected"]),
        ]


def _beginning(step: Step, began: trio.Event) -> Callable[[], Awaitable[None]]:
    """`step` with its readiness as an event: the guard that runs it may have to begin it several times."""

    class Status:
        def started(self, value: object = None) -> None:
            began.set()

    async def run() -> None:
        await step(task_status=Status())

    return run
