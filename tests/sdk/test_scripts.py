"""Jobs whose calls a script decides, posted by the unmodified SDK: every type, every language, through a real sandbox."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import Any

from cli.devnet.jobs import DEMO_ABI
from node.infra.contracts import Function
from tests.devnet.fixtures import on_anvil
from tests.devnet.running import ENDS, RunningDevnet, connected, soon
from tests.sdk.sdk import create

assert DEMO_ABI[0]["name"] == "ping"
PING = Function("ping", ("uint256",))
BIG = 2**199 + 5 * 10**30
SCRIPT_S = 150.0
"""Five keepers on two cores compile and run it."""

ARGUMENTS = {
    "py": "import json\nprint(json.dumps([str(2**199 + %d)]))\n",
    "js": "console.log(JSON.stringify([(2n ** 199n + %dn).toString()]));\n",
    "ts": "const value: bigint = 2n ** 199n + %dn;\nconsole.log(JSON.stringify([value.toString()] as string[]));\n",
    "go": (
        'package main\n\nimport (\n\t"fmt"\n\t"math/big"\n)\n\nfunc main() {\n\tvalue := new(big.Int).Lsh(big.NewInt(1), 199)\n'
        '\tmore, _ := new(big.Int).SetString("%d", 10)\n\tfmt.Printf("[%%q]\\n", value.Add(value, more).String())\n}\n'
    ),
}
"""Scripts that print one argument: 2**199 and a number."""
OF_THE_EVENT = """import json, sys
event = json.load(sys.stdin)["event"]
print(json.dumps([str(int(event["data"][2:66], 16) + 1)]))
"""
CUSTOM = """import json, sys
given = json.load(sys.stdin)
runs = int(given["storage"].get("runs", "0")) + 1
print(json.dumps({
    "shouldExecute": runs %% 2 == 1,
    "targetContract": "%s",
    "calldata": "%s",
    "metadata": {"timestamp": given["time"], "reason": "run %%d" %% runs},
    "storageUpdates": {"runs": str(runs)},
}))
"""


async def uploaded(devnet: RunningDevnet, source: str) -> str:
    """The script's URL, from the coordinator's own store."""
    async with connected(devnet) as network:
        answer = await network.client.post(
            f"{devnet.ready['coordinator_url']}/api/content",
            content=source.encode(),
            headers={"X-API-KEY": devnet.ready["api_key"], "Content-Type": "application/octet-stream"},
        )
        assert answer.status_code == 201, answer.text
        return f"ipfs://{answer.json()['cid']}"


def in_seconds(seconds: float) -> str:
    return datetime.fromtimestamp(int(time.time() + seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


async def tasks(devnet: RunningDevnet, job_id: int) -> list[dict[str, Any]]:
    """The job's tasks in the order in which they fell due."""
    async with connected(devnet) as network:
        found = await network.tasks(job_id)
    return sorted(found, key=lambda task: str(task["created_at"]))


async def first_accepted(devnet: RunningDevnet, job_id: int) -> dict[str, Any]:
    """The job's first task that a committee accepted; fails at once when one ended otherwise."""

    async def look() -> dict[str, Any]:
        found = await tasks(devnet, job_id)
        failed = [
            (t["task_status"], t["task_error"]) for t in found if t["task_status"] in ENDS and t["task_status"] != "completed"
        ]
        assert not failed, failed
        return next((t for t in found if t["is_accepted"]), {})

    return await soon(look, f"an accepted task of job {job_id}", seconds=SCRIPT_S, every=0.5)


@on_anvil
async def test_dynamic_time_jobs_run_in_every_language(devnet: RunningDevnet):
    number = int(time.time() * 1000)
    jobs = {
        await create(
            devnet,
            kind="specific",
            specific=in_seconds(30),
            time_frame=90,
            script=await uploaded(devnet, source % (number + place)),
            language=language,
            title=language,
        ): 2**199 + number + place
        for place, (language, source) in enumerate(ARGUMENTS.items())
    }
    async with connected(devnet) as network:
        for job_id, value in jobs.items():
            task = await first_accepted(devnet, job_id)
            assert json.loads(task["converted_arguments"]) == [value]  # all 200 bits
            assert await network.pings(value) == 1


@on_anvil
async def test_dynamic_jobs_of_events_and_conditions_run(devnet: RunningDevnet):
    number = int(time.time() * 1000)
    on_event = await create(devnet, kind="event", script=await uploaded(devnet, OF_THE_EVENT), time_frame=120)
    on_condition = await create(devnet, kind="condition", script=await uploaded(devnet, ARGUMENTS["py"] % number), time_frame=120)
    await first_accepted(devnet, on_condition)
    task = await first_accepted(devnet, on_event)  # the condition's ping, or another test's: whatever was pinged, plus one
    async with connected(devnet) as network:
        assert await network.pings(2**199 + number) >= 1
        [argument] = json.loads(task["converted_arguments"])
        assert await network.pings(int(argument) - 1) >= 1
        assert await network.pings(int(argument)) >= 1


@on_anvil
async def test_a_custom_script_decides_calls_and_keeps_its_storage(devnet: RunningDevnet):
    value = BIG + int(time.time() * 1000)
    source = CUSTOM % (devnet.ready["contracts"]["demo"], "0x" + PING.encode(value).hex())
    nowhere = {"targetContractAddress": "0x" + "0" * 40}
    job_id = await create(
        devnet, kind="script", interval=20, time_frame=70, script=await uploaded(devnet, source), overrides=nowhere
    )

    async def three() -> list[dict[str, Any]]:
        found = await tasks(devnet, job_id)
        return found if len(found) >= 3 and all(t["task_status"] in ENDS for t in found[:3]) else []

    first, second, third = (await soon(three, "three ended tasks", seconds=SCRIPT_S, every=0.5))[:3]
    assert (first["task_status"], first["is_accepted"]) == ("completed", True)
    assert second["task_status"] == "not_executed"
    assert second["task_error"].startswith("SCRIPT_DECLINED")
    assert "run 2" in second["task_error"]
    assert (third["task_status"], third["is_accepted"]) == ("completed", True)
    async with connected(devnet) as network:
        assert await network.pings(value) == 2
