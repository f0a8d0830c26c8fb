"""The unmodified npm `sdk-triggerx` with an ethers signer against a devnet: what a user's program does, and what it sees."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

from consensus.codec import task_id as task_id_of
from node.infra.clock import SystemClock
from tests.devnet.fixtures import on_anvil
from tests.devnet.running import RunningDevnet, connected, soon
from tests.sdk.sdk import executions, sdk, tasks_of

INTERVAL = 3
BIG = 2**199 + 987_654_321_012_345_678_901


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


def in_seconds(seconds: float) -> str:
    return datetime.fromtimestamp(int(time.time() + seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


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
