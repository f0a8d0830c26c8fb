"""What a coordinator is made of: everything that it is given, real or simulated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from coordinator import scoring
from coordinator.alerts import Alerts
from coordinator.attempts import DispatchPolicy
from coordinator.charges import BATCH, INTERVAL_S
from coordinator.jobs import CheckUrl
from coordinator.keepers import OFFLINE_AFTER_S
from coordinator.scheduler.readings import SourceReader
from coordinator.settings import AlertSettings
from coordinator.store.port import Store
from coordinator.store.records import Task
from coordinator.streams.port import Streams
from node.infra.chain import Wallet
from node.infra.clock import Clock
from node.infra.compute import Compute
from node.infra.observe import Observer, Registry
from node.infra.secret import Secret
from node.packages import NoContent
from p2p.content import Content
from p2p.network import Network


async def _any_url(url: str, /, *schemes: str) -> None:
    """Refuses nothing: for simulations, which ask no URLs."""


@dataclass(frozen=True)
class Parts:
    """Everything a coordinator is made of; `run_coordinator` builds the real ones, the simulation its own.

    `instance` names this coordinator among those that share store and streams; `wallets` are the dispatcher's account by chain.
    """

    store: Store
    streams: Streams
    instance: str
    network: Network
    sources: SourceReader
    alerts: Alerts
    observers: Mapping[int, Observer]
    registry: Registry
    dispatcher_key: Secret[bytes]
    clock: Clock
    compute: Compute
    wallets: Mapping[int, Wallet] = field(default_factory=dict)
    content: Content = field(default_factory=NoContent)
    policy: DispatchPolicy = field(default_factory=DispatchPolicy)
    keeper_policy: scoring.Policy = field(default_factory=scoring.Policy)
    lookahead: float = 5.0
    script_lead: float = 5.0
    poll_interval: float = 5.0
    lease: float = 4.0
    offline_after: float = OFFLINE_AFTER_S
    charge_batch: int = BATCH
    charge_interval: float = INTERVAL_S
    least_funds: int = 0
    """Wei below which the dispatcher's account is reported; 0 for never."""
    alert_settings: AlertSettings = field(default_factory=AlertSettings)
    check_url: CheckUrl = _any_url
    on_published: Callable[[Task, float], None] = lambda task, at: None
