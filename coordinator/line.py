"""The line in which tasks wait for a keeper: by priority, then by who came first; whoever is free is given the next one.

Keepers are few at times. Nobody polls for them: a keeper that becomes free, or comes online, is matched there and then.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import trio

from coordinator import scoring
from coordinator.keepers import Keepers
from coordinator.scoring import Need, Standing
from coordinator.signals import Signals
from node.infra.clock import Clock

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # its stubs, which libp2p brings along, shadow trio's own types

NO_KEEPER_PATIENCE_S = 130.0
"""How long a task waits for any suitable keeper to come online: two check-ins of a minute, and room."""
BUSY_PATIENCE_S = 600.0
"""How long it waits in all while suitable keepers are there, but have as many tasks as they may have."""
_LOOK_S = 1.0  # a connection alone tells nobody

_Keeper = tuple[int, bytes]


@dataclass(slots=True, eq=False)
class _Waiter:
    need: Need
    came: trio.Event = field(default_factory=trio.Event)
    given: Standing | None = None


@dataclass(slots=True)
class _Experience:
    """What this coordinator has seen of a keeper since it started. `turn` numbers the last assignment."""

    recent: float | None = None
    latency_s: float | None = None
    turn: int = 0


class Line:
    """`place` waits for a keeper and holds it; `release` lets it go. Each coordinator counts what it gave itself."""

    def __init__(
        self,
        keepers: Keepers,
        signals: Signals,
        clock: Clock,
        policy: scoring.Policy,
        *,
        no_keeper_patience: float = NO_KEEPER_PATIENCE_S,
        busy_patience: float = BUSY_PATIENCE_S,
    ) -> None:
        self._keepers = keepers
        self._signals = signals
        self._clock = clock
        self._policy = policy
        self._no_keeper_patience = no_keeper_patience
        self._busy_patience = max(busy_patience, no_keeper_patience)
        self._open: Counter[_Keeper] = Counter()
        self._experience: defaultdict[_Keeper, _Experience] = defaultdict(_Experience)
        self._waiting: dict[int, dict[int, dict[_Waiter, None]]] = {}  # chain, priority, in order of coming
        self._turn = 0
        self._resting: list[tuple[float, _Keeper]] = []
        self._came = trio.Event()

    def __len__(self) -> int:
        """Tasks that wait for a keeper."""
        return sum(len(line) for lines in self._waiting.values() for line in lines.values())

    def open(self, chain_id: int, address: bytes) -> int:
        """Attempts that a keeper has under way here."""
        return self._open[chain_id, address]

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Matches whenever keepers may have come, while anybody waits."""
        task_status.started()
        while True:
            self._came = trio.Event()
            chains = [chain_id for chain_id, lines in self._waiting.items() if any(lines.values())]
            if not chains:
                await self._came.wait()
                continue
            news = [self._signals.of(("keepers", chain_id)) for chain_id in chains]
            for chain_id in chains:
                self._match(chain_id)
            with trio.move_on_after(_LOOK_S):
                await news[0].wait() if len(news) == 1 else await trio.sleep_forever()

    async def place(self, chain_id: int, need: Need, priority: int, not_before: float) -> Standing | str:
        """A keeper, held until `release`; or why there is none: NO_KEEPER, KEEPERS_BUSY. Patience begins at `not_before`."""
        waiter = _Waiter(need)
        line = self._waiting.setdefault(chain_id, {}).setdefault(priority, {})
        line[waiter] = None
        self._match(chain_id)
        try:
            if waiter.given is None:
                self._came.set()
                await self._wait(waiter, chain_id, max(not_before, self._clock.now()))
            await trio.lowlevel.checkpoint_if_cancelled()
        except trio.Cancelled:
            if waiter.given is not None:
                self.release(chain_id, waiter.given.address)
            raise
        finally:
            line.pop(waiter, None)
        if waiter.given is not None:
            return waiter.given
        return "KEEPERS_BUSY" if self._suitable(chain_id, need) else "NO_KEEPER"

    def hold(self, chain_id: int, address: bytes) -> None:
        """An attempt that was assigned before, by a former run or another coordinator, counts for its keeper here."""
        self._open[chain_id, address] += 1

    def release(self, chain_id: int, address: bytes) -> None:
        """One attempt less: whoever waits may have the keeper."""
        self._let_go((chain_id, address))
        self._match(chain_id)

    def rest(self, chain_id: int, address: bytes, until: float) -> None:
        """A held attempt that its keeper refused counts for it until then (its deadline, UTC seconds): saying no makes
        nobody free for more."""
        heapq.heappush(self._resting, (until, (chain_id, address)))

    def acknowledged(self, chain_id: int, address: bytes, seconds: float) -> None:
        """How soon a keeper answered, for its score."""
        known = self._experience[chain_id, address]
        known.latency_s = seconds if known.latency_s is None else known.latency_s + (seconds - known.latency_s) / 8

    def ended(self, chain_id: int, address: bytes, *, executed: bool) -> None:
        """How an attempt went, for its keeper's score: only what was the keeper's doing is told."""
        known = self._experience[chain_id, address]
        before = known.recent
        if before is None and (record := self._record(chain_id, address)) is not None:
            before = record
        known.recent = scoring.recent_after(before, executed=executed)

    def _record(self, chain_id: int, address: bytes) -> float | None:
        """The share of all its attempts that a keeper has executed, as its first experience here."""
        found = next((s for s in self._keepers.online(chain_id) if s.address == address), None)
        if found is None or found.record is None:
            return None
        return scoring.share_executed(found.record)

    async def _wait(self, waiter: _Waiter, chain_id: int, began: float) -> None:
        for patience in (self._no_keeper_patience, self._busy_patience):
            with trio.move_on_after(max(0.0, began + patience - self._clock.now())):
                await waiter.came.wait()
            if waiter.given is not None or not self._suitable(chain_id, waiter.need):
                return

    def _suitable(self, chain_id: int, need: Need) -> list[Standing]:
        return scoring.suitable(self._standings(chain_id), need, self._policy)

    def _standings(self, chain_id: int) -> list[Standing]:
        self._rouse()
        found = []
        for keeper in self._keepers.online(chain_id):
            key = (chain_id, keeper.address)
            known = self._experience.get(key)
            if known is None:
                found.append(replace(keeper, open=self._open[key]))
            else:
                found.append(
                    replace(keeper, open=self._open[key], recent=known.recent, latency_s=known.latency_s, turn=known.turn)
                )
        return found

    def _rouse(self) -> None:
        now = self._clock.now()
        while self._resting and self._resting[0][0] <= now:
            _, key = heapq.heappop(self._resting)
            self._let_go(key)

    def _let_go(self, key: _Keeper) -> None:
        self._open[key] -= 1
        if not self._open[key]:
            del self._open[key]

    def _match(self, chain_id: int) -> None:
        """Gives keepers to those in line until no keeper, or nobody whom one suits, is left."""
        lines = self._waiting.get(chain_id)
        if not lines or not any(lines.values()):
            return
        standings = {k.address: k for k in self._standings(chain_id)}
        unmet: set[Need] = set()  # in this pass: those behind with the same need fare no better
        given: list[tuple[dict[_Waiter, None], _Waiter]] = []
        for line, waiter in self._in_order(lines):
            if all(k.open >= self._policy.tasks_each for k in standings.values()):
                break
            if waiter.need in unmet:
                continue
            fit = scoring.suitable(standings.values(), waiter.need, self._policy)
            keeper = scoring.choose(fit, waiter.need, self._policy, self._turn)
            if keeper is None:
                unmet.add(waiter.need)
                continue
            self._turn += 1
            key = (chain_id, keeper.address)
            self._open[key] += 1
            self._experience[key].turn = self._turn
            standings[keeper.address] = replace(keeper, open=self._open[key], turn=self._turn)
            waiter.given = keeper
            waiter.came.set()
            given.append((line, waiter))
        for line, waiter in given:
            del line[waiter]

    @staticmethod
    def _in_order(lines: dict[int, dict[_Waiter, None]]) -> Iterator[tuple[dict[_Waiter, None], _Waiter]]:
        for priority in sorted(lines):
            for waiter in lines[priority]:
                yield lines[priority], waiter


class Held:
    """The keeper that the task driven here counts for in the line: one at most."""

    def __init__(self, line: Line, chain_id: int) -> None:
        self._line = line
        self._chain_id = chain_id
        self.address: bytes | None = None

    def given(self, address: bytes) -> None:
        """The line has counted it already."""
        self.address = address

    def take(self, address: bytes) -> None:
        if self.address != address:
            self.drop()
            self._line.hold(self._chain_id, address)
            self.address = address

    def rest(self, until: float) -> None:
        if self.address is not None:
            self._line.rest(self._chain_id, self.address, until)
            self.address = None

    def drop(self) -> None:
        if self.address is not None:
            self._line.release(self._chain_id, self.address)
            self.address = None
