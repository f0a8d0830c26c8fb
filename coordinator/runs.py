"""Hears what keepers' scripts came to: packages with a run, and runs that asked for no transaction; writes what is proved.

Nothing is believed for having been said: a package counts once it describes what the hub has recorded, what its script
keeps once that is certified, and the end of a task without a transaction with the certificate of its committee.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

import msgspec
import structlog
import trio

from consensus import rules
from consensus.errors import Failed, Ignore, Invalid, Reject, Transient
from consensus.lifecycle import REASONS, TaskState
from consensus.messages import Execution, JobSpec, NotExecuted, PackageReference, RunCertificate
from consensus.messages import Task as TaskMessage
from consensus.runs import CUSTOM
from coordinator.fees import cid_of
from coordinator.news import Teller, kind_of
from coordinator.signals import Signals
from coordinator.store.changes import STORED
from coordinator.store.port import Store
from coordinator.store.records import Attempt, RunPackage, Task, TaskChange
from node.arguments import canonical_arguments, dump_json, encode_call
from node.infra.chain import Chain, ExecutionRecord, ExecutionStatus
from node.infra.clock import Clock
from node.infra.compute import Compute
from node.packages import Packages, describes
from node.run_certificates import RunCertificates
from node.scripts.outputs import action_of, storage_updates
from node.scripts.port import NoCall
from node.scripts.quoting import quoted
from p2p.network import Network, PeerId
from p2p.topics import EXECUTIONS, NOT_EXECUTED, PACKAGES, RUN_CERTIFICATES

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # its stubs, which libp2p brings along, shadow trio's own types

log = structlog.get_logger(__name__)

S = TaskState
_WAITING = 256  # messages while the store is slow; what is dropped of them is published again, or found in another copy
_FETCHING = 16  # packages that are on their way here
_FETCHING_OF_ONE = 4  # of one peer: whoever names what nobody has leaves the others room, and publishes again
_RETRY_S = 1.0
_LOOK_AGAIN_S = 60.0


def ran(attempt: int) -> str:
    """The stage of a task that says that an attempt's keeper reported a run without a transaction."""
    return f"ran:{attempt}"


class Runs:
    """`run` listens; `settle` is told tasks that the chain has moved. `ended` is told the job of each task that ended here."""

    def __init__(
        self,
        store: Store,
        network: Network,
        chains: Mapping[int, Chain],
        facts: rules.Facts,
        packages: Packages,
        signals: Signals,
        teller: Teller,
        clock: Clock,
        compute: Compute,
        *,
        ended: Callable[[int], Awaitable[None]],
    ) -> None:
        self._store = store
        self._network = network
        self._chains = chains
        self._facts = facts
        self._packages = packages
        self._signals = signals
        self._teller = teller
        self._clock = clock
        self._compute = compute
        self._ended = ended
        self._certificates = RunCertificates(chains, facts, clock, compute)
        self._fetching = trio.Semaphore(_FETCHING)
        self._fetching_of: Counter[PeerId] = Counter()

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listens until cancelled; now and then looks at what was left unsettled, by a former run or another coordinator."""
        network = self._network
        async with (
            network.subscribe(EXECUTIONS, self._execution_rule, capacity=_WAITING) as executions,
            network.subscribe(PACKAGES, self._reference_rule, capacity=_WAITING) as references,
            network.subscribe(NOT_EXECUTED, self._said_rule, capacity=_WAITING) as said,
            network.subscribe(RUN_CERTIFICATES, self._certificates.check, capacity=_WAITING) as certificates,
            trio.open_nursery() as nursery,
        ):
            task_status.started()
            nursery.start_soon(self._settle_left)
            nursery.start_soon(self._each, executions, self._heard)
            nursery.start_soon(self._each, said, self._said)
            nursery.start_soon(self._each, certificates, self._certified)
            async for received in references:
                if self._fetching_of[received.source] >= _FETCHING_OF_ONE:
                    continue
                await self._fetching.acquire()
                self._fetching_of[received.source] += 1
                nursery.start_soon(self._fetch, received.message, received.source)

    # --- what the mesh may bring

    async def _execution_rule(self, execution: Execution, source: PeerId) -> None:
        rules.check_execution(execution, source, self._facts, self._clock.now())

    async def _reference_rule(self, reference: PackageReference, source: PeerId) -> None:
        rules.check_reference(reference, source, self._facts)

    async def _said_rule(self, said: NotExecuted, source: PeerId) -> None:
        rules.check_not_executed(said, source, self._facts, self._clock.now())

    async def _each(self, received: trio.MemoryReceiveChannel, step: Callable[..., Awaitable[None]]) -> None:  # type: ignore[type-arg]
        """Takes messages one after the other. One that the store does not take is tried again: it may be the only copy."""
        async for each in received:
            while True:
                try:
                    await step(each.message)
                    break
                except Transient as error:
                    log.warning("run_not_recorded", code=error.code, detail=error.detail)
                    await trio.sleep(_RETRY_S)

    async def _fetch(self, reference: PackageReference, source: PeerId) -> None:
        """A package too large for gossip, of an attempt that is known here. Whoever published it may have lied about it."""
        try:
            known = await self._store.attempts(reference.task_id)
            if any(a.number == reference.attempt and a.peer_id == source for a in known):
                execution = await self._packages.fetch(reference, source)
                await self._execution_rule(execution, source)
                await self._heard(execution)
        except (Failed, Transient, Reject, Ignore) as error:
            log.info("package_not_fetched", task_id=str(reference.task_id), code=error.code, detail=error.detail)
        finally:
            self._fetching.release()
            self._fetching_of[source] -= 1
            self._fetching_of += Counter()  # forgets whoever has none

    async def _attempt(self, message: TaskMessage) -> Attempt | None:
        """The attempt that says the same: whatever a dispatcher's key has signed elsewhere is none of ours.

        What no dispatcher signed (trace id, what was seen) does not count: anyone may publish a task again with another one,
        and the performer cannot tell which is ours.
        """
        attempts = await self._store.attempts(message.task_id)
        found = next((a for a in attempts if a.number == message.authorisation.attempt), None)
        return found if found is not None and _signed(TaskMessage.decode(found.message)) == _signed(message) else None

    # --- packages

    async def _heard(self, execution: Execution) -> None:
        task = execution.task
        if execution.run is None or (attempt := await self._attempt(task)) is None:
            return
        said = _claimed(execution, attempt).encode()
        package = RunPackage(task.task_id, task.authorisation.attempt, said, int(self._clock.now()))
        await self._store.add_package(package)
        await self.settle(task.task_id)

    async def _settle_left(self) -> None:
        """Packages of tasks that are settled by now: whoever recorded that may have died before it looked at them."""
        while True:
            try:
                for task_id in await self._store.tasks_with_packages():
                    task = await self._store.task(task_id)
                    if task is not None and task.accepted is not None:
                        await self.settle(task_id)
            except Transient as error:
                log.warning("packages_not_settled", code=error.code, detail=error.detail)
            await trio.sleep(_LOOK_AGAIN_S)

    async def settle(self, task_id: int) -> None:
        """What the package of a task's execution says, as far as the chain bears it out: its arguments once it is recorded, what
        its script keeps once that is certified. Told again it changes nothing. Raises `Transient`."""
        packages = await self._store.packages(task_id)
        task = await self._store.task(task_id)
        chain = self._chains.get(task.chain_id) if task is not None else None
        if task is None or chain is None or not packages:
            return
        record = await chain.execution(task_id)
        if record is None:
            return
        if record.status not in (ExecutionStatus.PENDING, ExecutionStatus.CERTIFIED):
            await self._store.drop_packages(task_id)
            return
        for package in packages:
            execution = Execution.decode(package.package)
            if describes(execution, record):
                await self._settle(task, package, execution, record)
                return

    async def _settle(self, task: Task, package: RunPackage, execution: Execution, record: ExecutionRecord) -> None:
        assert execution.run is not None  # others are not kept
        spec = execution.task.job()
        now_ms = self._now_ms()
        arguments = await self._compute(_shown, spec, execution)
        certified = record.status is ExecutionStatus.CERTIFIED and task.accepted is True
        stages = {STORED: now_ms} if certified and spec.definition == CUSTOM else {}
        storage = None
        if stages and package.contradicted:
            log.warning("packages_contradict_each_other", task_id=str(task.id), keeper="0x" + record.performer.hex())
        elif stages:
            storage = await self._compute(_stored, execution.run.output)
        await self._store.change(TaskChange(task.id, (), stages, arguments=arguments, storage=storage), now_ms // 1000)
        if certified:
            await self._store.add_usage(cid_of(spec.script_url), execution.run.usage)
            await self._store.drop_packages(task.id)

    # --- runs without a transaction

    async def _said(self, said: NotExecuted) -> None:
        """The attempt is not given up while a committee may still confirm it."""
        attempt = await self._attempt(said.task)
        if attempt is None or attempt.ended_ms is not None:
            return
        log.info("run_reported", task_id=str(attempt.task_id), attempt=attempt.number, code=said.code)
        now_ms = self._now_ms()
        await self._store.change(TaskChange(attempt.task_id, (), {ran(attempt.number): now_ms}), now_ms // 1000)
        self._signals.notify(attempt.task_id)

    async def _certified(self, certificate: RunCertificate) -> None:
        """The task ends as its committee confirmed, unless it has executed: once, whoever certifies it again."""
        said = certificate.not_executed
        attempt = await self._attempt(said.task)
        if attempt is None:
            return
        task = await self._store.task(attempt.task_id)
        if task is None or task.state is S.NOT_EXECUTED:
            return
        epoch = await self._chains[task.chain_id].epoch_at(said.task.pinned_block)
        ids = {o.address: o.id for o in epoch.operators} if epoch is not None else {}
        spec, now_ms = said.task.job(), self._now_ms()
        keeps = spec.definition == CUSTOM and said.code == "SCRIPT_DECLINED" and said.run is not None
        storage = await self._compute(_stored, said.run.output) if keeps and said.run is not None else None
        after = await self._store.change(
            TaskChange(
                task.id,
                (S.NOT_EXECUTED,),
                {"not_executed": now_ms, **({STORED: now_ms} if keeps else {})},
                reason=said.code,
                detail=await self._compute(_quoted, said, spec) or REASONS[said.code].text,
                attempt=attempt.number,
                performer=attempt.performer,
                performer_id=ids.get(attempt.performer),
                attester_ids=tuple(ids[signer] for signer in certificate.signers if signer in ids),
                storage=storage,
                charge=certificate.encode() if said.fee else b"",
            ),
            now_ms // 1000,
        )
        if after is None:
            return
        if said.run is not None:
            await self._store.add_usage(cid_of(spec.script_url), said.run.usage)
        log.info("task_not_executed", task_id=str(task.id), job_id=str(task.job_id), code=said.code, attempt=attempt.number)
        self._signals.notify(task.id)
        self._teller.tell(kind_of(after), after)
        await self._ended(task.job_id)

    def _now_ms(self) -> int:
        return self._clock.now_ns() // 1_000_000


def _signed(message: TaskMessage) -> tuple[object, ...]:
    return message.chain_id, message.authorisation, message.pinned_block, message.storage


def _claimed(execution: Execution, attempt: Attempt) -> Execution:
    """A package without what may differ between two honest ones of one attempt: the transaction, which a dearer one may
    have replaced, with the signature over it; and what was not signed of the task."""
    task = TaskMessage.decode(attempt.message)
    return msgspec.structs.replace(execution, task=task, transaction=bytes(32), signature=bytes(65))


def _shown(spec: JobSpec, execution: Execution) -> str:
    """The call as the API shows it: the arguments as JSON; of a custom script's the target and its calldata."""
    if spec.definition == CUSTOM:
        return dump_json({"targetContract": "0x" + execution.target.hex(), "calldata": "0x" + execution.call.hex()})
    assert execution.run is not None
    try:
        printed = execution.run.output.decode()
        if encode_call(spec.function, printed, fixed=spec.arguments) == execution.call:
            return canonical_arguments(spec.function, printed)
    except (Invalid, UnicodeDecodeError):
        pass
    return ""  # it lied, and its committee will say so


def _stored(output: bytes) -> dict[str, str | None]:
    """What an output changes in its job's storage, as `TaskChange.storage` wants it."""
    try:
        updates = storage_updates(output)
    except Failed as error:
        log.warning("storage_not_updated", code=error.code, detail=error.detail)
        return {}
    return {key: None if value is None else dump_json(value) for key, value in updates.items()}


def _quoted(said: NotExecuted, spec: JobSpec) -> str:
    """Why, in the script's words: from the output where it says so, since that is what the committee signed for."""
    if said.run is not None and said.code in ("SCRIPT_DECLINED", "SCRIPT_OUTPUT"):
        action = action_of(spec, said.run.output)
        if isinstance(action, NoCall) and action.code == said.code:
            return action.detail
    return quoted(said.detail)  # nobody signed it, and anybody may have written it
