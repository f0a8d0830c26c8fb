"""The gas table in docs/gas.md is what the contracts really cost; TRIGGERX_WRITE_DOCS=1 writes it anew."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest

from consensus import merkle
from consensus.codec import keccak
from tests.contracts.safes import DELEGATECALL, GAS_LIMIT, batch, job_call
from tests.contracts.world import DISPATCHER, STRANGER, USER, YES, World, account

DOCS = Path(__file__).parents[2] / "docs" / "gas.md"
TOLERANCE = 0.01  # calldata holds random points, whose zero bytes are cheaper
AIM = 230_000


def measured(world: World) -> dict[str, int]:
    """Gas by row of the table."""
    rows: dict[str, int] = {}
    rows["KeeperRegistry.register, first"] = world.register(1).gas
    registered = [world.register(i).gas for i in range(2, 33)]
    rows["KeeperRegistry.register"] = int(median(registered))
    rows["KeeperRegistry.advanceEpoch, 32 operators"] = world.advance().gas
    rows["TriggerGasRegistry.depositETH, first"] = world.deposit().gas
    rows["TriggerGasRegistry.depositETH"] = world.deposit(10**20).gas
    world.create_job()
    data = (10).to_bytes(32, "big")
    call = ("a job", 1, 3600, world.demo.address, data)
    made = world.jobs.send("createJob", *call, sender=world.chain.fund(b"\x01" * 20))
    rows["JobRegistry.createJob"] = made.gas
    job = world.create_job(time_frame=36_000)
    rows["Hub.execute, static ping, first"] = world.execute(job, world.due(job, 1)).receipt.gas
    second = iter(range(2, 100))

    def certified(signers: int, **changes: int) -> Callable[[], int]:
        def one() -> int:
            task = world.execute(job, world.due(job, next(second)), **changes)
            executed.append(task.receipt.gas)
            made = replace(world.certificate(task, signers=range(signers)), position=9)
            return world.submit(made).gas

        return one

    executed: list[int] = []
    rows["AttestationCenter.submitTaskValidation, first"] = certified(4)()
    for signers in (4, 5):
        name = f"AttestationCenter.submitTaskValidation, N = 5, {signers} signers"
        rows[name] = int(median(certified(signers)() for _ in range(9)))
    rows["Hub.execute, static ping"] = int(median(executed))
    rows["AttestationCenter.submitTaskValidation, N = 13, 9 signers"] = int(median(certified(9, level=1)() for _ in range(3)))
    task = world.execute(job, world.due(job, next(second)))
    others = [merkle.leaf(i, keccak(bytes([i])), YES) for i in range(31)]
    large = replace(world.certificate(task, others=others, index=3), position=9)
    rows["AttestationCenter.submitTaskValidation, N = 5, 4 signers, leaf of 32"] = world.submit(large).gas
    task = world.execute(job, world.due(job, next(second)))
    world.chain.warp(600)
    rows["AttestationCenter.expire"] = world.center.send("expire", task.id, sender=STRANGER).gas
    tasks = []
    for _ in range(11):
        task = world.execute(job, world.due(job, next(second)))
        world.submit(world.certificate(task))
        tasks.append(task.id)
    for count in (1, 10):
        rows[f"Hub.claim, {count} executions"] = world.hub.send("claim", 1, tasks[:count], sender=account(2)).gas
        tasks = tasks[count:]
    coordinator = world.chain.fund(DISPATCHER.public_key.to_canonical_address())
    scripted = world.create_job(kind=2, time_frame=36_000)
    charges = [(scripted, world.due(scripted, i), 1 + i % 10, 10**13) for i in range(1, 66)]
    rows["Hub.chargeRuns, 1 run, first"] = world.hub.send("chargeRuns", charges[:1], sender=coordinator).gas
    rows["Hub.chargeRuns, 64 runs"] = world.hub.send("chargeRuns", charges[1:], sender=coordinator).gas
    rows["SafeFactory.createSafeWallet"] = world.safe_factory.send("createSafeWallet", USER, sender=USER).gas
    safe = world.safe_factory.view("latestSafeWallet", USER)
    multisend = bytes.fromhex(world.deployment.multisend_call_only[2:])
    ping = (world.demo.address, 0, world.ping(7))
    calls = {
        "Hub.execute, static ping by a Safe": job_call(world, safe, world.demo.address, world.ping(7)),
        "Hub.execute, a batch of two pings by a Safe": job_call(
            world, safe, multisend, batch(ping, ping), operation=DELEGATECALL
        ),
    }
    module = world.safe_module.address
    job = world.create_job(time_frame=36_000, target=module)
    for i, (name, call) in enumerate(calls.items(), start=1):
        rows[name] = world.execute(job, world.due(job, i), call=call, target=module, gas_limit=GAS_LIMIT).receipt.gas
    return rows


@pytest.fixture
def rows(bare: World) -> dict[str, int]:
    return measured(bare)


def test_the_gas_table_is_true(rows: dict[str, int]):
    text = DOCS.read_text("utf-8")
    if os.environ.get("TRIGGERX_WRITE_DOCS"):
        table = ["| call | gas |", "| --- | --- |", *(f"| {name} | {gas:,} |" for name, gas in rows.items())]
        body = "<!-- table -->\n" + "\n".join(table) + "\n<!-- /table -->"
        text = re.sub(r"<!-- table -->.*?<!-- /table -->", body, text, flags=re.DOTALL)
        DOCS.write_text(text, "utf-8")
    found = re.findall(r"^\| (\w+\.\w.*?) \| ([\d,]+) \|$", text, re.MULTILINE)
    stated = {name: int(gas.replace(",", "")) for name, gas in found}
    assert stated.keys() == rows.keys()
    off = {name: (stated[name], gas) for name, gas in rows.items() if abs(stated[name] - gas) > TOLERANCE * gas}
    assert not off


def test_a_certificate_of_five_keeps_to_its_aim(rows: dict[str, int]):
    for signers in (4, 5):
        assert rows[f"AttestationCenter.submitTaskValidation, N = 5, {signers} signers"] < AIM


def test_the_hub_reimburses_no_less_than_a_certificate_costs(bare: World, rows: dict[str, int]):
    base, seat = bare.hub.view("VALIDATION_GAS"), bare.hub.view("VALIDATION_SEAT_GAS")
    each = (rows["Hub.claim, 10 executions"] - rows["Hub.claim, 1 executions"]) / 9
    claiming = each + (rows["Hub.claim, 1 executions"] - each) / 100  # 100 executions at a time
    assert rows["AttestationCenter.submitTaskValidation, N = 5, 5 signers"] + claiming < base + 5 * seat
    assert rows["AttestationCenter.submitTaskValidation, N = 13, 9 signers"] + claiming < base + 13 * seat
