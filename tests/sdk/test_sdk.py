"""The unmodified npm `sdk-triggerx` with an ethers signer against a devnet: what a user's program does, and what it sees."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import trio

from consensus.codec import task_id as task_id_of
from node.infra.chain import TaskExecuted
from node.infra.clock import SystemClock
from tests.components import NODE_MODULES, require
from tests.devnet.fixtures import on_anvil
from tests.devnet.running import Network, RunningDevnet, connected, soon

CLIENT = Path(__file__).with_name("client.mjs")
INTERVAL = 3
BIG = 2**199 + 987_654_321_012_345_678_901


async def sdk(command: str, devnet: RunningDevnet, **more: Any) -> dict[str, Any]:
    """One call of the SDK; what it answered."""
    node = require("node")
    require("sdk-triggerx")
    require("ethers")
    r = devnet.ready
    chain = {key: r[key] for key in ("coordinator_url", "api_key", "rpc_url", "chain_id", "contracts")}
    done = await trio.run_process(
        [str(node), str(CLIENT), command],
        stdin=json.dumps({**chain, "account": r["accounts"][1], **more}).encode(),
        env={**os.environ, "NODE_PATH": str(NODE_MODULES)},
        capture_stdout=True,
        capture_stderr=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    answer: dict[str, Any] = json.loads(done.stdout)
    assert answer["success"], (answer, done.stderr.decode())
    return answer


async def executions(network: Network, job_id: int) -> list[TaskExecuted]:
    head = await network.chain.head()
    return [e for e in await network.chain.events(0, head.number) if isinstance(e, TaskExecuted) and e.job_id == job_id]


async def test_a_time_job_of_the_sdk_runs_once_an_interval_until_it_is_deleted(devnet: RunningDevnet):
    async with connected(devnet) as network:
        created = await sdk("create", devnet, interval=INTERVAL, time_frame=120, value=str(BIG))
        job_id = int(created["data"]["job_ids"][0])
        job = await network.chain.job(job_id)
        assert job is not None
        assert job.interval == INTERVAL

        async def three() -> bool:
            return len(await executions(network, job_id)) >= 3

        await soon(three, "three executions", every=0.2)

        async def three_accepted() -> list[dict[str, Any]]:
            got = await sdk("get", devnet, job_id=str(job_id))
            assert got["data"]["jobData"]["job_id"] == str(job_id)
            tasks = [task for task in got["data"]["taskData"] if task["is_accepted"]]
            return tasks if len(tasks) >= 3 else []

        tasks = await soon(three_accepted, "three accepted tasks in getJobDataById", every=0.2)
        for task in tasks:
            assert len(task["execution_tx_hash"]) == len(task["submission_tx_hash"]) == 66
            assert task["task_number"] > 0
            assert task["task_attester_ids"]

        assert (await sdk("delete", devnet, job_id=str(job_id))) == {"success": True}
        after_deletion = await network.chain.job(job_id)
        assert after_deletion is not None
        assert not after_deletion.active
        await network.settled(job_id)
        ran = await executions(network, job_id)

        # Once an interval, and never twice for one due second.
        seconds = [e.trigger_id for e in ran]
        assert len(seconds) == len(set(seconds))
        assert sorted(seconds) == [job.created_at + INTERVAL * i for i in range(1, len(seconds) + 1)]
        assert all(e.task_id == task_id_of(job_id, e.trigger_id) for e in ran)
        # The argument arrived exactly, all 200 bits of it, once for each execution.
        assert await network.pings(BIG) == len(ran)
        # Three more due seconds pass, and nothing runs.
        await SystemClock().sleep_until(max(time.time(), max(seconds)) + 3 * INTERVAL)
        assert await executions(network, job_id) == ran


@on_anvil
async def test_the_sdk_reads_its_jobs_and_its_user(devnet: RunningDevnet):
    created = await sdk("create", devnet, interval=60, time_frame=60, value="1", title="sixty")
    job_id = created["data"]["job_ids"][0]
    mine = await sdk("jobs", devnet)
    assert any(str(entry["job_data"]["job_id"]) == job_id for entry in mine["jobs"])
    of_user = await sdk("jobs-of-user", devnet)
    entry = next(entry for entry in of_user["jobs"] if str(entry["job_data"]["job_id"]) == job_id)
    assert entry["job_data"]["job_title"] == "sixty"
    assert entry["time_job_data"]["time_interval"] == 60
    user = await sdk("user", devnet)
    assert job_id in user["data"]["job_ids"]
