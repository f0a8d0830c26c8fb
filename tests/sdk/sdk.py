"""The unmodified npm `sdk-triggerx` with an ethers signer against a devnet, one call each."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import trio

from node.infra.chain import TaskExecuted
from tests.components import NODE_MODULES, require
from tests.devnet.running import Network, RunningDevnet

CLIENT = Path(__file__).with_name("client.mjs")


async def sdk(command: str, devnet: RunningDevnet, *, account: int = 1, **more: Any) -> dict[str, Any]:
    """One call of the SDK; what it answered."""
    node = require("node")
    require("sdk-triggerx")
    require("ethers")
    r = devnet.ready
    chain = {key: r[key] for key in ("coordinator_url", "api_key", "rpc_url", "chain_id", "contracts")}
    done = await trio.run_process(
        [str(node), str(CLIENT), command],
        stdin=json.dumps({**chain, "account": r["accounts"][account], **more}).encode(),
        env={**os.environ, "NODE_PATH": str(NODE_MODULES)},
        capture_stdout=True,
        capture_stderr=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    answer: dict[str, Any] = json.loads(done.stdout)
    assert answer["success"], (answer.get("error"), answer.get("errorCode"), done.stderr.decode()[:500])
    return answer


async def create(devnet: RunningDevnet, **more: Any) -> int:
    """Creates a job; its id."""
    return int((await sdk("create", devnet, **more))["data"]["job_ids"][0])


async def tasks_of(devnet: RunningDevnet, job_id: int | str) -> list[dict[str, Any]]:
    got = await sdk("get", devnet, job_id=str(job_id))
    found: list[dict[str, Any]] = got["data"]["taskData"]
    return found


async def executions(network: Network, job_id: int) -> list[TaskExecuted]:
    head = await network.chain.head()
    return [e for e in await network.chain.events(0, head.number) if isinstance(e, TaskExecuted) and e.job_id == job_id]
