"""A keeper of a running devnet is paid: `triggerx claim` brings what it earned to its rewards address, and once."""

from __future__ import annotations

import itertools
import sys

import trio

from cli.rewards import OWED
from tests.devnet.fixtures import on_anvil
from tests.devnet.running import ROOT, RunningDevnet, connected

pytestmark = on_anvil

values = itertools.count(77_001)


async def triggerx_claim(config: str) -> str:
    done = await trio.run_process(
        [sys.executable, "-m", "cli.triggerx", "claim", "--config", config], capture_stdout=True, cwd=ROOT
    )
    return done.stdout.decode().strip()


async def test_what_a_keeper_earned_is_paid_once(devnet: RunningDevnet):
    async with connected(devnet) as network:
        task_id = await network.only_task(await network.post(next(values), interval=5))
        record = await network.ended(task_id)
        assert record["task_status"] == "completed", record
        performer = await network.performer_of(task_id)
        owed = (task_id, record["task_performer_id"])
        assert await network.view("hub", OWED, *owed) > 0
        assert (await triggerx_claim(performer["config"])).startswith("claimed for ")
        assert await network.view("hub", OWED, *owed) == 0
        assert await triggerx_claim(performer["config"]) == "nothing to claim"
