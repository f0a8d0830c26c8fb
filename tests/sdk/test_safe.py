"""Safe jobs of the unmodified SDK: a Safe of the user's, driven by keepers for its owner's jobs and for nobody else's."""

from __future__ import annotations

import time
from typing import Any

from node.infra.contracts import Function
from tests.devnet.fixtures import on_anvil
from tests.devnet.running import RunningDevnet, connected
from tests.sdk.sdk import create, sdk
from tests.sdk.test_scripts import first_accepted, in_seconds, uploaded

PING = Function("ping", ("uint256",))
OWNER = 2  # the devnet account that owns the Safe

DYNAMIC = """import json
print(json.dumps(["%s", "%s", "0", "%s", 0, "%s"]))
"""


async def test_a_safe_runs_single_batched_and_scripted_jobs_of_its_owner(devnet: RunningDevnet):
    safe = (await sdk("create-safe", devnet, account=OWNER))["safe"]
    demo, owner = devnet.ready["contracts"]["demo"], devnet.ready["accounts"][OWNER]["address"]
    number = int(time.time() * 1000)

    def call(value: int) -> dict[str, Any]:
        return {"to": demo, "value": "0", "data": "0x" + PING.encode(value).hex()}

    def in_safe(**more: Any) -> dict[str, Any]:
        return {"walletMode": "safe", "safeAddress": safe, "safeName": "mine", **more}

    script = await uploaded(devnet, DYNAMIC % (safe, demo, call(number + 3)["data"], owner))
    common: dict[str, Any] = {"account": OWNER, "kind": "specific", "time_frame": 120}
    single = await create(
        devnet, specific=in_seconds(30), value="0", overrides=in_safe(safeTransactions=[call(number)]), **common
    )
    batch = await create(
        devnet,
        specific=in_seconds(30),
        value="0",
        overrides=in_safe(safeTransactions=[call(number + 1), call(number + 2)]),
        **common,
    )
    scripted = await create(devnet, specific=in_seconds(30), script=script, overrides=in_safe(), **common)
    for job_id in (single, batch, scripted):
        task = await first_accepted(devnet, job_id)
        assert task["is_successful"], task
    async with connected(devnet) as network:
        assert [await network.pings(number + each) for each in range(4)] == [1, 1, 1, 1]


@on_anvil
async def test_a_script_that_names_another_safe_ends_without_a_transaction(devnet: RunningDevnet):
    safe = (await sdk("create-safe", devnet, account=OWNER))["safe"]
    demo, owner = devnet.ready["contracts"]["demo"], devnet.ready["accounts"][OWNER]["address"]
    value = int(time.time() * 1000)
    script = await uploaded(devnet, DYNAMIC % (demo, demo, "0x" + PING.encode(value).hex(), owner))
    job_id = await create(
        devnet,
        account=OWNER,
        kind="specific",
        specific=in_seconds(30),
        time_frame=90,
        script=script,
        overrides={"walletMode": "safe", "safeAddress": safe, "safeName": "mine"},
    )
    async with connected(devnet) as network:
        [task] = await network.tasks_ended(job_id)
        assert task["task_status"] == "not_executed"
        assert task["task_error"].startswith("SCRIPT_OUTPUT")
        assert await network.pings(value) == 0
