"""The platform's own parts (store, streams, each chain's RPC, mesh), looked at every few seconds; their outages are told once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import structlog
import trio

from consensus.errors import Transient, TriggerXError
from coordinator.alerts import Alerts, Notice, Recipient
from coordinator.store.port import Store
from coordinator.streams.port import Streams
from coordinator.times import minutes, utc
from node.infra.chain import Chain, Wallet
from node.infra.clock import Clock
from p2p.network import Network

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # its stubs, which libp2p brings along, shadow trio's own types

log = structlog.get_logger(__name__)

_EVERY_S = 5.0
_PATIENCE_S = 5.0  # a part that answers no sooner is as good as away

NO_PEER = "NO_PEER"
LOW_FUNDS = "LOW_FUNDS"
PROBE = "watch"
"""The checkpoint that is written to see whether the store writes."""

Probe = Callable[[], Awaitable[None]]
"""Returns when the part does its work; raises a `TriggerXError` that says why it does not."""

REMEDIES = {
    "store": "See that the store's disk has room and can be written to, and that nothing else holds its file locked.",
    "streams": "See that the Redis server runs and can be reached (redis-cli ping), and that `redis.url` names it.",
    "chain": "See that the endpoints in `chains.rpc` answer (eth_chainId), and add another one to the list.",
    "dispatcher": "Send coins of the chain to the dispatcher's account: without them no run is charged.",
    "mesh": "See that the bootstrap peers in `mesh.bootstrap` run and that this machine can reach their TCP ports.",
}
"""What to do, by the part's name up to its colon."""


@dataclass(frozen=True, slots=True)
class PartState:
    """A part as last seen: `since` (UTC seconds) it has been so, and why when it is away."""

    up: bool
    since: float
    why: str = ""


class Watch:
    """Probes each part by itself, so that one that hangs delays no other. Told of: away for `down_after` seconds, and its end."""

    def __init__(
        self,
        probes: Mapping[str, Probe],
        alerts: Alerts,
        clock: Clock,
        *,
        to: Recipient,
        down_after: float = 30.0,
        every: float = _EVERY_S,
        patience: float = _PATIENCE_S,
    ) -> None:
        self._probes = dict(probes)
        self._alerts = alerts
        self._clock = clock
        self._to = to
        self._down_after = down_after
        self._every = min(every, down_after)
        self._patience = patience
        self._states: dict[str, PartState] = {}

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Looks until cancelled."""
        async with trio.open_nursery() as nursery:
            for name, probe in self._probes.items():
                nursery.start_soon(self._follow, name, probe)
            task_status.started()

    def states(self) -> Mapping[str, PartState]:
        """Each part that has been looked at."""
        return dict(self._states)

    def degraded(self) -> list[str]:
        """Names of the parts that are away, told of or not yet."""
        return sorted(name for name, state in self._states.items() if not state.up)

    async def _follow(self, name: str, probe: Probe) -> None:
        told: bool | None = None  # not known: a former run may have told of an outage, and died before its end
        while True:
            why = await self._look(probe)
            state = self._note(name, why)
            try:
                if state.up and told is not False:
                    await self._alerts.end(f"part:{name}", lambda since: _recovered(name, since, self._clock.now()), [self._to])
                    told = False
                elif not state.up and not told and self._clock.now() - state.since >= self._down_after:
                    await self._alerts.begin(f"part:{name}", _away(name, state), [self._to], always=True)
                    told = True
            except Transient as error:  # the store: asked again at the next look
                log.warning("store_unavailable", code=error.code, detail=error.detail)
            await trio.sleep(self._every)

    async def _look(self, probe: Probe) -> str | None:
        try:
            with trio.fail_after(self._patience):
                await probe()
        except TriggerXError as error:
            return str(error)[:300]
        except trio.TooSlowError:
            return f"no answer in {self._patience:g} s"
        return None

    def _note(self, name: str, why: str | None) -> PartState:
        known, now = self._states.get(name), self._clock.now()
        if known is None or known.up != (why is None):
            known = PartState(why is None, now)
            if why is not None:
                log.warning("part_away", part=name, why=why)
        self._states[name] = replace(known, why=why or "")
        return self._states[name]


def probes(store: Store, streams: Streams, chains: Mapping[int, Chain], network: Network, clock: Clock) -> dict[str, Probe]:
    """How each part shows that it works: the store by a write (a full disk still reads), chains by their head, the mesh by a
    connected peer."""

    async def write_store() -> None:
        await store.save_checkpoints({PROBE: int(clock.now())})

    async def mesh() -> None:
        await trio.lowlevel.checkpoint()
        if not network.connected():
            raise Transient(NO_PEER, "no peer is connected")

    def head_of(chain: Chain) -> Probe:
        async def read_head() -> None:
            await chain.head()

        return read_head

    return {
        "store": write_store,
        "streams": streams.ping,
        **{f"chain:{chain_id}": head_of(chain) for chain_id, chain in chains.items()},
        "mesh": mesh,
    }


def funds(chains: Mapping[int, Chain], wallets: Mapping[int, Wallet], least: int) -> dict[str, Probe]:
    """The dispatcher's account on each chain holds `least` wei: it pays for the transactions that charge runs."""

    def holds(chain: Chain, account: bytes) -> Probe:
        async def look() -> None:
            balance = await chain.native_balance(account)
            if balance < least:
                raise Transient(LOW_FUNDS, f"{balance} wei, at least {least} are asked for")

        return look

    if not least:
        return {}
    return {f"dispatcher:{chain_id}": holds(chains[chain_id], wallet.address) for chain_id, wallet in wallets.items()}


def _away(name: str, state: PartState) -> Notice:
    return Notice(
        f"TriggerX: {name} is away",
        f"{name} has not worked since {utc(state.since)}: {state.why}.\n\n"
        f"What to do: {REMEDIES[name.partition(':')[0]]}\n"
        "GET /api/health shows the state of every part. You hear of this again only when it is over.",
    )


def _recovered(name: str, told_at: int | None, now: float) -> Notice:
    lasted = f" It was told of at {utc(told_at)}, {minutes(now - told_at)} ago." if told_at is not None else ""
    return Notice(f"TriggerX: {name} works again", f"{name} works again since {utc(now)}.{lasted} Nothing is to be done.")


def part_rows(states: Mapping[str, PartState]) -> Sequence[dict[str, object]]:
    """For GET /api/health, which is open to all: `why` is the code alone, since details may name hosts."""
    return [
        {"part": name, "up": state.up, "since": utc(state.since), **({"why": state.why.partition(":")[0]} if state.why else {})}
        for name, state in sorted(states.items())
    ]
