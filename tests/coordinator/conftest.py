"""The job API as it is served, for the tests that ask it over HTTP."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import httpx
from eth_utils.address import to_checksum_address
from pytest_trio import trio_fixture

from coordinator.api.access import Sources
from coordinator.api.keys import new_key
from coordinator.api.server import api_app
from coordinator.store.records import ApiKey
from node.infra.compute import Threads
from node.infra.http import open_server
from tests.coordinator.world import KEY_OWNER, OWNER, TARGET, World, open_world

ABI = json.dumps([{"type": "function", "name": "ping", "inputs": [{"name": "value", "type": "uint256"}]}])
BIG = 2**200 + 1


@dataclass
class Api:
    """A served API, a client without a key, and the headers of one that has one."""

    world: World
    client: httpx.AsyncClient
    headers: dict[str, str]
    key: ApiKey

    async def get(self, path: str, **params: str) -> httpx.Response:
        return await self.client.get(path, headers=self.headers, params=params)

    async def post(self, job: Any, **headers: str) -> httpx.Response:
        content = job if isinstance(job, bytes) else json.dumps([job])
        return await self.client.post("/api/jobs", content=content, headers={**self.headers, **headers})

    async def other_key(self, owner: str, **changes: Any) -> dict[str, str]:
        text, record = new_key(owner, now=0)
        await self.world.store.add_key(replace(record, **changes))
        return {"X-API-KEY": text}

    def job(self, *, interval: int = 10, time_frame: int = 1000, **changes: Any) -> dict[str, Any]:
        """A job on chain, and what the SDK posts for it."""
        job_id = self.world.ledger.create_job(OWNER, target=TARGET, interval=interval, time_frame=time_frame)
        chain_id = str(self.world.ledger.domain.chain_id)
        return {
            "job_id": str(job_id),
            "user_address": to_checksum_address(OWNER),
            "ether_balance": 1e21,
            "token_balance": 1e21,
            "job_title": "every ten",
            "task_definition_id": 1,
            "custom": True,
            "time_frame": time_frame,
            "recurring": False,
            "job_cost_prediction": 0.0123,
            "timezone": "Europe/Berlin",
            "created_chain_id": chain_id,
            "schedule_type": "interval",
            "time_interval": interval,
            "target_chain_id": chain_id,
            "target_contract_address": to_checksum_address(TARGET),
            "target_function": "ping",
            "abi": ABI,
            "arg_type": 1,
            "arguments": [str(BIG)],
            "is_imua": True,
            "is_safe": False,
            "safe_name": "",
            "safe_address": "",
            "language": "",
            **changes,
        }


@trio_fixture  # type: ignore[untyped-decorator]
async def api() -> AsyncIterator[Api]:
    async with open_world(keepers=1) as world:
        coordinator = world.coordinator
        assert coordinator is not None
        text, key = new_key(KEY_OWNER, now=0)
        await world.store.add_key(key)

        async def metrics() -> bytes:
            return b"triggerx_build_info 1\n"

        sources = Sources(
            store=world.store,
            jobs=coordinator.jobs,
            clock=world.clock,
            compute=Threads(),
            explorers={world.ledger.domain.chain_id: "https://scan.example.org/"},
            missing=coordinator.missing,
            status=coordinator.status,
            metrics=metrics,
            observe=lambda method, route, status, seconds: None,
        )
        headers = {"X-API-KEY": text, "Authorization": f"Bearer {text}"}
        async with (
            open_server(api_app(sources), "127.0.0.1", 0, body_limit=1_048_576) as url,
            httpx.AsyncClient(base_url=url, timeout=20) as client,
        ):
            yield Api(world, client, headers, key)
