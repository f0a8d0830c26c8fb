"""The unmodified npm `sdk-triggerx` with an ethers signer against a devnet: what a user's program does, and what it sees."""

from __future__ import annotations

import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import trio

from consensus.codec import task_id as task_id_of
from node.infra.chain import TaskExecuted
from node.infra.clock import SystemClock
from tests.components import NODE_MODULES, require
from tests.devnet.fixtures import on_anvil
from tests.devnet.running import ENDS, Network, RunningDevnet, connected, soon

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


SCRIPT = "ipfs://bafkreif426p7t7takzhw3g6we2h6wsvf27p5jxj3gaiynqf22p3jvhx4la"


def in_seconds(seconds: float) -> str:
    return datetime.fromtimestamp(int(time.time() + seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


async def tasks_of(devnet: RunningDevnet, job_id: str) -> list[dict[str, Any]]:
    got = await sdk("get", devnet, job_id=job_id)
    found: list[dict[str, Any]] = got["data"]["taskData"]
    return found


@on_anvil
async def test_static_jobs_of_every_trigger_run(devnet: RunningDevnet):
    """Each calls with a value of its own, so that the target contract tells which ran, and how often."""
    kinds: dict[str, dict[str, Any]] = {
        "cron": {"cron": "* * * * *", "time_frame": 90},
        "specific": {"specific": f"{in_seconds(25)}, {in_seconds(27)}", "time_frame": 60},
        "condition": {"time_frame": 90},
        "event": {"time_frame": 90},
    }
    async with connected(devnet) as network:
        posted: dict[str, str] = {}
        for number, (kind, more) in enumerate(kinds.items(), start=1):
            created = await sdk("create", devnet, kind=kind, value=str(BIG + number), title=kind, **more)
            posted[kind] = created["data"]["job_ids"][0]

        async def accepted() -> bool:
            listed = {kind: await tasks_of(devnet, job_id) for kind, job_id in posted.items()}
            least = {"cron": 1, "specific": 2, "condition": 1, "event": 1}
            return all(sum(bool(t["is_accepted"]) for t in tasks) >= least[kind] for kind, tasks in listed.items())

        await soon(accepted, "an accepted task of every kind", seconds=150, every=0.5)
        ran = {kind: await network.pings(BIG + number) for number, kind in enumerate(kinds, start=1)}
        assert ran.pop("cron") in (1, 2)
        assert ran == {"specific": 2, "condition": 1, "event": 1}

        async def status(kind: str) -> str:
            got = await sdk("get", devnet, job_id=posted[kind])
            return str(got["data"]["jobData"]["status"])

        for kind in ("condition", "event"):  # they fire once, and are then complete

            async def complete(kind: str = kind) -> bool:
                return await status(kind) == "completed"

            await soon(complete, f"the end of the {kind} job", every=0.5)
        [task] = await tasks_of(devnet, posted["event"])
        assert len(task["observation"]["event_tx_hash"]) == 66
        [task] = await tasks_of(devnet, posted["condition"])
        assert task["observation"]["values"] == ["0.5"]
        mine = {str(entry["job_data"]["job_id"]): entry for entry in (await sdk("jobs", devnet))["jobs"]}
        assert mine[posted["cron"]]["time_job_data"]["cron_expression"] == "* * * * *"
        assert mine[posted["event"]]["event_job_data"]["trigger_event"] == "Pinged(uint256 value,uint256 count)"
        assert mine[posted["condition"]]["condition_job_data"]["upper_limit"] == "0.2"


@on_anvil
async def test_dynamic_jobs_are_taken_and_end_with_the_reason_that_scripts_are_not_run_yet(devnet: RunningDevnet):
    kinds: dict[str, dict[str, Any]] = {
        "interval": {"interval": 15, "time_frame": 15},
        "condition": {"time_frame": 60},
        "script": {"interval": 15, "time_frame": 15, "overrides": {"targetContractAddress": "0x" + "0" * 40}},
        "event": {"time_frame": 60},
    }
    definitions = {}
    posted = {}
    for kind, more in kinds.items():
        created = await sdk("create", devnet, kind=kind, script=SCRIPT, title=kind, **more)
        posted[kind], definitions[kind] = created["data"]["job_ids"][0], created["data"]["task_definition_ids"][0]
    assert definitions == {"interval": 2, "condition": 6, "script": 7, "event": 4}
    await sdk("create", devnet, kind="condition", value="1", time_frame=60)  # a ping, which the event job waits for

    async def ended() -> list[dict[str, Any]]:
        tasks = [task for job_id in posted.values() for task in await tasks_of(devnet, job_id)]
        return tasks if len(tasks) == len(posted) and all(t["task_status"] in ENDS for t in tasks) else []

    for task in await soon(ended, "the end of each dynamic job's task", every=0.5):
        assert task["task_status"] == "failed"
        assert task["task_error"].startswith("UNSUPPORTED_JOB")
