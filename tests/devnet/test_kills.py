"""SIGKILL at the worst moments, with real processes: the task still ends exactly once on chain, or fails and says why."""

from __future__ import annotations

import itertools
import os
import signal
from typing import Any

import pytest

from node.infra.chain import TaskExecuted, TaskValidated
from node.infra.clock import SystemClock
from tests.devnet.fixtures import on_anvil
from tests.devnet.running import COMMITTEE, Network, RunningDevnet, connected, soon

pytestmark = on_anvil

values = itertools.count(9_001)
INTERVAL = 10
"""Long enough to find the performer, and kill, between acknowledgement and due second."""


async def ends_once(network: Network, task_id: int, value: int) -> dict[str, Any]:
    """The task's end: one execution and one certificate on chain, or none of both and a named reason."""
    record = await network.ended(task_id)
    executed = await network.events(TaskExecuted, task_id)
    validated = await network.events(TaskValidated, task_id)
    if record["task_status"] == "completed":
        assert len(executed) == len(validated) == 1
        assert validated[0].accepted
        assert await network.pings(value) == 1
    else:
        assert len(executed) <= 1
        assert record["task_error"]
    return record


async def test_a_performer_killed_after_its_acknowledgement_is_replaced(devnet: RunningDevnet):
    async with connected(devnet) as network:
        value = next(values)
        task_id = await network.only_task(await network.post(value, interval=INTERVAL))
        performer = await network.performer_of(task_id)
        network.kill(performer["pid"])
        assert await network.events(TaskExecuted, task_id) == []
        try:
            record = await ends_once(network, task_id, value)
            assert record["task_status"] == "completed", record
            [executed] = await network.events(TaskExecuted, task_id)
            assert executed.attempt == 2
            assert executed.performer.hex() != performer["address"][2:].lower()
        finally:
            await network.restart_keeper(performer)
            await network.whole()


async def test_a_performer_that_comes_back_in_time_executes_what_it_acknowledged(devnet: RunningDevnet):
    async with connected(devnet) as network:
        value = next(values)
        task_id = await network.only_task(await network.post(value, interval=INTERVAL))
        performer = await network.performer_of(task_id)
        network.kill(performer["pid"])
        await network.restart_keeper(performer)
        record = await ends_once(network, task_id, value)
        assert record["task_status"] == "completed", record
        await network.whole()


async def test_a_first_ranked_aggregator_killed_before_its_certificate_is_stood_in_for(devnet: RunningDevnet):
    """Five keepers: the four that do not perform are the committee. With two of them paused there is no quorum yet."""
    async with connected(devnet) as network:
        value = next(values)
        task_id = await network.only_task(await network.post(value, interval=INTERVAL))
        performer = await network.performer_of(task_id)
        others = [keeper for keeper in network.keepers if keeper is not performer]
        paused = others[:2]
        for keeper in paused:
            os.kill(keeper["pid"], signal.SIGSTOP)
        first: dict[str, Any] | None = None
        try:
            await soon(lambda: network.events(TaskExecuted, task_id), "the execution")
            committee = await network.view("attestation_center", COMMITTEE, task_id, 0)
            assert len(committee) == 4
            first = network.keeper("0x" + committee[0].hex())
            network.kill(first["pid"])
        finally:
            for keeper in paused:
                if keeper is not first:
                    os.kill(keeper["pid"], signal.SIGCONT)
        try:
            record = await ends_once(network, task_id, value)
            assert record["task_status"] == "completed", record
            [validated] = await network.events(TaskValidated, task_id)
            ids = {"0x" + keeper.address.hex(): keeper.id for keeper in await network.chain.keepers()}
            assert validated.submitter_id != ids[first["address"].lower()]
            assert len(validated.attester_ids) >= 3  # the killed one may have sent its vote before
        finally:
            await network.restart_keeper(first)
            await network.whole()


@pytest.mark.parametrize("stage", ["posted", "dispatched", "acknowledged", "executed", "certified"])
async def test_a_coordinator_killed_at_any_stage_comes_back_and_the_task_ends_once(devnet: RunningDevnet, stage: str):
    async with connected(devnet) as network:
        value = next(values)
        task_id = await network.only_task(await network.post(value, interval=INTERVAL))
        if stage != "posted":
            await network.stage_reached(task_id, stage)
        network.kill(network.ready["coordinator_pid"])
        if stage in ("acknowledged", "executed"):  # the mesh finishes what was published, without it
            await soon(lambda: network.events(TaskValidated, task_id), "the certificate, with no coordinator")
        await network.restart_coordinator()
        record = await ends_once(network, task_id, value)
        assert record["task_status"] == "completed", record


async def test_a_coordinator_that_was_down_at_the_due_second_makes_up_for_it(devnet: RunningDevnet):
    async with connected(devnet) as network:
        value = next(values)
        job_id = await network.post(value, interval=INTERVAL)
        task_id = await network.only_task(job_id)
        network.kill(network.ready["coordinator_pid"])
        job = await network.chain.job(job_id)
        assert job is not None
        await SystemClock().sleep_until(job.created_at + job.interval + 1)
        await network.restart_coordinator()
        await ends_once(network, task_id, value)
