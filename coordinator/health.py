"""Who must be told: keepers that have gone silent, users whose jobs fail or whose deposits run low."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import structlog
import trio
from eth_utils.address import to_checksum_address

from consensus.errors import Transient
from consensus.lifecycle import REASONS
from consensus.rules import CLOCK_SKEW, Facts
from coordinator.alerts import Alerts, Notice, Recipient
from coordinator.news import kind_of
from coordinator.store.port import Store
from coordinator.store.records import ACTIVE, Job, KeeperRecord, KeeperSeen, Task
from coordinator.times import minutes, utc
from node.infra.chain import Chain
from node.infra.clock import Clock
from node.infra.retry import retry

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # its stubs, which libp2p brings along, shadow trio's own types

log = structlog.get_logger(__name__)

_EVERY_S = 15.0
_GRACE_S = 150.0  # after a start, before anybody is called offline: two check-ins of 60 s, and room
_ENDED = 1024  # tasks that ended and were not looked at yet; further ones are not told of
_BALANCE_EVERY_S = 60.0  # looks at one owner's deposit
_OWNERS = 10_000  # whose last look is remembered
_OPEN_LOOKED_AT = 500  # jobs that were failing, looked at in one round
_RECENT = 20  # of a job's tasks, among which its last ended one is
_STORE_PAUSES = (1.0, 2.0, 4.0, 8.0)


class KeeperWatch:
    """Tells keepers by Telegram and e-mail that they are offline, once, and that they are back.

    What counts is the newest check-in in the store, whichever coordinator took it and on whichever chain; after a start
    keepers have a while to be heard, since it was we who were away. Who is no longer registered is left in peace.
    """

    def __init__(
        self,
        store: Store,
        facts: Facts,
        alerts: Alerts,
        clock: Clock,
        *,
        offline_after: float = 600.0,
        every: float = _EVERY_S,
    ) -> None:
        self._store = store
        self._facts = facts
        self._alerts = alerts
        self._clock = clock
        self._offline_after = offline_after
        self._grace = min(_GRACE_S, offline_after)
        self._every = min(every, offline_after)
        self._began = 0.0

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Looks until cancelled."""
        self._began = self._clock.now()
        task_status.started()
        while True:
            try:
                await self.look()
            except Transient as error:
                log.warning("store_unavailable", code=error.code, detail=error.detail)
            await trio.sleep(self._every)

    async def look(self) -> None:
        """One round over all keepers. Raises `Transient`."""
        open_ = await self._store.alerts()
        people = _people(await self._store.keeper_records())
        by_address: dict[bytes, list[KeeperSeen]] = defaultdict(list)
        for keeper in await self._store.keepers():
            by_address[keeper.address].append(keeper)
        now = self._clock.now()
        for address, seen in by_address.items():
            outage = f"keeper:{to_checksum_address(address)}"
            last_seen = max(k.last_seen for k in seen)
            registered = any(self._facts.operator_of(k.chain_id, k.peer_id) == address for k in seen)
            away = now - last_seen >= self._offline_after
            if away and registered and outage not in open_ and now - self._began >= self._grace:
                await self._alerts.begin(outage, _offline(seen, last_seen), people[address])
            elif outage in open_ and not away:
                await self._alerts.end(outage, partial(_online, address, last_seen), people[address])
            elif outage in open_ and not registered:
                await self._alerts.end(outage, None, ())


def _people(records: Sequence[KeeperRecord]) -> defaultdict[bytes, set[Recipient]]:
    """Where each operator wants to be told; the same place on several chains is told once."""
    found: defaultdict[bytes, set[Recipient]] = defaultdict(set)
    for record in records:
        found[record.address] |= {r for r in (Recipient(record.chat_id), Recipient(email=record.email)) if r}
    return found


def _offline(seen: Sequence[KeeperSeen], last_seen: int) -> Notice:
    keeper, chains = to_checksum_address(seen[0].address), ", ".join(str(k.chain_id) for k in seen)
    return Notice(
        f"TriggerX: keeper {keeper} is offline",
        f"Your keeper {keeper} (chain {chains}) has not checked in since {utc(last_seen)}. It gets no tasks until it does.\n\n"
        "What to do: see that triggerx-node runs (GET /readyz at its status address names what it lacks), that it reaches its "
        f"bootstrap peers and RPC endpoints, and that its clock is right (more than {CLOCK_SKEW} s off is refused).\n"
        "You hear of this again when it is back.",
    )


def _online(address: bytes, last_seen: int, told_at: int | None) -> Notice:
    keeper = to_checksum_address(address)
    lasted = f" You were told at {utc(told_at)}, {minutes(last_seen - told_at)} before." if told_at is not None else ""
    return Notice(
        f"TriggerX: keeper {keeper} is online again",
        f"Your keeper {keeper} checked in at {utc(last_seen)} and is given tasks again.{lasted} Nothing is to be done.",
    )


class UserWatch:
    """Tells users with an e-mail of the first failure of a job after it worked, and of a deposit that runs low."""

    def __init__(
        self,
        store: Store,
        chains: Mapping[int, Chain],
        alerts: Alerts,
        clock: Clock,
        *,
        low_balance_executions: int = 3,
        every: float = _EVERY_S,
    ) -> None:
        self._store = store
        self._chains = chains
        self._alerts = alerts
        self._clock = clock
        self._executions = low_balance_executions
        self._every = every
        self._send, self._ended = trio.open_memory_channel[Task](_ENDED)
        self._open: set[str] = set()  # alerts, as of the last round and with our own
        self._looked_until = ""  # the last one of the last round
        self._looked: OrderedDict[tuple[int, bytes], float] = OrderedDict()

    def task_ended(self, task: Task) -> None:
        """To be called with each task that has ended, by whoever changed it in the store. Cheap; raises nothing."""
        try:
            self._send.send_nowait(task)
        except trio.WouldBlock:
            log.warning("ended_task_not_looked_at", task_id=str(task.id))

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Tells until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._rounds)
            task_status.started()
            while True:
                task = await self._ended.receive()
                try:
                    await retry(partial(self._look_at, task), _STORE_PAUSES, deadline=trio.current_time() + 60)
                except Transient as error:
                    log.warning("ended_task_not_looked_at", task_id=str(task.id), code=error.code, detail=error.detail)

    async def _rounds(self) -> None:
        while True:
            try:
                await self.look()
            except Transient as error:
                log.warning("store_unavailable", code=error.code, detail=error.detail)
            await trio.sleep(self._every)

    async def look(self) -> None:
        """One round over jobs that were failing: those that work again, or have ended, may be told of anew.

        Of very many, each round takes those after the last one's: one user's jobs that fail for ever hide nobody else's.
        """
        self._open = set(await self._store.alerts())
        failing = sorted(outage for outage in self._open if outage.startswith("job:"))
        turn = bisect_right(failing, self._looked_until)
        failing = [*failing[turn:], *failing[:turn]][:_OPEN_LOOKED_AT]
        for outage in failing:
            self._looked_until = outage
            job_id = int(outage.removeprefix("job:"))
            job = await self._store.job(job_id)
            if job is None or job.status not in ACTIVE or await self._works(job_id):
                await self._alerts.end(outage, None, ())
                self._open.discard(outage)

    async def _works(self, job_id: int) -> bool:
        ended = [t for t in await self._store.tasks_of_job(job_id, _RECENT) if t.ended]
        return bool(ended) and kind_of(ended[-1]) == "completed"

    async def _look_at(self, task: Task) -> None:
        job = await self._store.job(task.job_id)
        if job is None:
            return
        if task.reason != "INSUFFICIENT_BALANCE":
            if kind_of(task) == "failed":
                await self._failed(task, job)
            if not self._due(task.chain_id, job.owner):
                return
        await self._look_at_balance(task, job)

    async def _failed(self, task: Task, job: Job) -> None:
        outage = f"job:{job.id}"
        if outage in self._open or not (to := await self._owner(job)):
            return
        await self._alerts.begin(outage, _failing(task, job), [to])
        self._open.add(outage)

    async def _look_at_balance(self, task: Task, job: Job) -> None:
        chain, cost = self._chains.get(task.chain_id), task.cost or task.predicted_cost
        if chain is None or not self._executions:
            return
        outage = f"balance:{task.chain_id}:{to_checksum_address(job.owner)}"
        try:
            balance = await chain.balance(job.owner)
        except Transient as error:  # looked at again when the next task ends
            log.info("balance_not_read", code=error.code, chain=task.chain_id)
            return
        needed = max(self._executions * cost, task.predicted_cost)  # the hub asks for the whole of a task's upper bound
        if balance < needed or task.reason == "INSUFFICIENT_BALANCE":
            if outage not in self._open and (to := await self._owner(job)):
                await self._alerts.begin(outage, _low(task, job, balance, cost), [to])
                self._open.add(outage)
        elif outage in self._open:
            await self._alerts.end(outage, None, ())
            self._open.discard(outage)

    def _due(self, chain_id: int, owner: bytes) -> bool:
        """Whether it is time to look at the owner's deposit again."""
        now = self._clock.now()
        if now - self._looked.get((chain_id, owner), float("-inf")) < _BALANCE_EVERY_S:
            return False
        self._looked.pop((chain_id, owner), None)
        self._looked[chain_id, owner] = now
        if len(self._looked) > _OWNERS:
            self._looked.popitem(last=False)
        return True

    async def _owner(self, job: Job) -> Recipient:
        user = await self._store.user(job.owner)
        return Recipient(email=user.email if user else "")


_REVERTS = "Call the function yourself with the job's arguments to see why it reverts, then update or delete the job."

_SCRIPT = "Run the script yourself with the inputs that docs/scripts.md names, and post a job with a corrected one."

REMEDIES = {
    "INNER_CALL_FAILED": _REVERTS,
    "CALL_REVERTS": _REVERTS,
    "CONDITION_NOT_MET": "The value changed before a keeper could act; a hysteresis or another limit may help.",
    "SOURCE_UNREACHABLE": "See that the condition's source answers from the public internet.",
    "SOURCE_UNUSABLE": "See that the condition's source answers with a number where the job's route leads.",
    "SOURCE_REFUSED": "Name a source that is reached over the public internet.",
    "JOB_INACTIVE": "Create the job anew if it is still wanted.",
    "UNSUPPORTED_JOB": "Delete the job: keepers cannot execute jobs of its type.",
    "FEE_ABOVE_CAP": "Raise the job's max_fee, or wait for a lower gas price.",
    "SCRIPT_FAILED": _SCRIPT,
    "SCRIPT_TIMEOUT": _SCRIPT,
    "SCRIPT_MEMORY": _SCRIPT,
    "SCRIPT_OUTPUT": _SCRIPT,
    "SCRIPT_INVALID": _SCRIPT,
    "SCRIPT_UNREACHABLE": "Upload the script with POST /api/content, or see that its gateway answers.",
}
"""What a job's owner can do about a task's reason; of the others the platform takes care."""


def _failing(task: Task, job: Job) -> Notice:
    reason = REASONS.get(task.reason)
    why = f"{task.reason}: {reason.text}" if reason else task.reason or str(task.state)
    detail = f" ({task.detail[:200]})" if task.detail else ""
    remedy = REMEDIES.get(task.reason, "This is not the job's fault: the next firing is tried as usual.")
    return Notice(
        f"TriggerX: job {job.title[:80] or job.id} fails",
        f"A task of your job {job.title!r} ({job.id}) failed for good.\n\nTask: {task.id}\nReason: {why}{detail}\n\n"
        f"What to do: {remedy}\nGET /api/tasks/id/{task.id} shows all of it. "
        "You hear of this job's failures again only after it has worked.",
    )


def _low(task: Task, job: Job, balance: int, cost: int) -> Notice:
    covers = f"enough for {balance // cost} more execution(s) like the last one" if cost else "less than an execution's fee"
    return Notice(
        f"TriggerX: your deposit on chain {task.chain_id} is low",
        f"The deposit of {to_checksum_address(job.owner)} on chain {task.chain_id} is {balance} wei: {covers}. When it does not "
        "cover a fee, your jobs' tasks fail with INSUFFICIENT_BALANCE.\n\n"
        f"What to do: call depositETH of the TriggerGasRegistry on chain {task.chain_id} from that account.\n"
        "You hear of this again only after the deposit has been enough.",
    )
