"""Keepers that run scripts, for the coordinator's tests: what they print is what a test says, and a committee confirms it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from consensus import bls, runs
from consensus.fees import resource_fee
from consensus.messages import Execution, NotExecuted, Run, RunCertificate, Task, Usage, Verdict
from consensus.triggers import Interval
from node.scripts.outputs import action_of
from node.scripts.port import Call
from p2p.network import PeerId
from p2p.topics import EXECUTIONS, NOT_EXECUTED, RUN_CERTIFICATES
from tests.coordinator.world import FakeKeeper, World

SCRIPT = "ipfs://bafkreif426p7t7takzhw3g6we2h6wsvf27p5jxj3gaiynqf22p3jvhx4la"
USAGE = Usage(cpu_ms=250, wall_ms=400, peak_kib=64 * 1024, transferred=2048)


async def post(world: World, definition: int = 7, *, interval: int = 10, time_frame: int = 10, **changes: Any) -> int:
    """A time job with a script, on chain and in the coordinator."""
    job_id = world.create(definition=definition, interval=interval, time_frame=time_frame)
    fields: dict[str, Any] = {"script_url": SCRIPT, "language": "py", "arg_type": 2, "arguments": "[]"}
    if definition == 7:
        fields["function"] = ""
    await world.take_on(world.posted(job_id, **{"trigger": Interval(interval), **fields, **changes}))
    return job_id


def decides(target: bytes, call: bytes, **updates: Any) -> bytes:
    """What a custom script prints to have a call made."""
    said = {
        "shouldExecute": True,
        "targetContract": "0x" + target.hex(),
        "calldata": "0x" + call.hex(),
        "storageUpdates": updates,
    }
    return json.dumps(said).encode()


def declines(reason: str = "nothing to do", **updates: Any) -> bytes:
    return json.dumps({"shouldExecute": False, "metadata": {"reason": reason}, "storageUpdates": updates}).encode()


@dataclass
class Scripted:
    """A behaviour: runs the script, which prints `output(task)`, and does what that means. `published` are its messages."""

    output: Callable[[Task], bytes]
    certify: bool = True
    fee: int | None = None
    published: list[Execution | NotExecuted] = field(default_factory=list)
    inputs: list[tuple[int, str]] = field(default_factory=list)

    async def __call__(self, keeper: FakeKeeper, task: Task, source: PeerId) -> None:
        await keeper.acknowledge(task, source)
        self.inputs.append((task.pinned_block, task.storage))
        job, domain = task.job(), keeper.world.ledger.domain
        run = Run(bytes(32), self.output(task), USAGE)
        fee = resource_fee(job.priority, USAGE) if self.fee is None else self.fee
        action = action_of(job, run.output)
        if isinstance(action, Call):
            await keeper.world.clock.sleep_until(task.authorisation.not_before)
            prepared = await keeper.wallet.prepare_execution(task.authorisation, task.signature, action.target, action.data, fee)
            sent = await keeper.wallet.send(prepared)
            package = keeper.signer.execution(task, domain, sent, action.target, action.data, fee, run)
            self.published.append(package)
            await keeper.network.publish(EXECUTIONS, package)
            return
        said = keeper.signer.not_executed(task, domain, action.code, action.detail, run, fee)
        self.published.append(said)
        await keeper.network.publish(NOT_EXECUTED, said)
        if self.certify:
            await keeper.network.publish(RUN_CERTIFICATES, certificate(keeper.world, said))


def everybody(world: World, behaviour: Scripted) -> Scripted:
    for keeper in world.keepers:
        keeper.behaviour = behaviour
    return behaviour


def certificate(world: World, said: NotExecuted, *, signers: int | None = None) -> RunCertificate:
    """What the committee of the first round makes of it when all, or the first so many, of its members sign."""
    task, ledger = said.task, world.ledger
    epoch, block = ledger.state.epoch_of(task.pinned_block), ledger.block_hash(task.pinned_block)
    assert epoch is not None
    assert block is not None
    members = runs.drawn(task, epoch, block, 0).members[:signers]
    message = runs.digest(said, ledger.domain, epoch.number, 0, Verdict.YES)
    keepers = {k.address: k for k in world.keepers}
    signatures = [
        keepers[m.address]
        .signer.vote(
            ledger.domain,
            task.task_id,
            said.digest(),
            Verdict.YES,
            "",
            block_number=task.pinned_block,
            epoch=epoch.number,
            round_=0,
        )
        .signature
        for m in members
    ]
    assert bls.fast_aggregate_verify([m.key for m in members], message, bls.aggregate(signatures))
    return RunCertificate(said, epoch.number, 0, tuple(m.address for m in members), bls.aggregate(signatures))
