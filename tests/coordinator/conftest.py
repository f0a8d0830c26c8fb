"""The job API as it is served, over the memory store and the memory chain, for the tests that ask it over HTTP."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import httpx
from eth_utils.address import to_checksum_address
from pytest_trio import trio_fixture

from consensus.codec import keccak
from coordinator.api.access import Sources
from coordinator.api.keys import new_key
from coordinator.api.server import api_app
from coordinator.fees import Fees
from coordinator.jobs import Jobs
from coordinator.store.memory import MemoryStore
from coordinator.store.records import ApiKey, Job
from node.infra.chain_memory import Ledger, MemoryChain
from node.infra.clock import Clock, TrioClock
from node.infra.compute import Threads
from node.infra.fetch import open_fetcher
from node.infra.http import open_server
from node.infra.settings import FetchSettings

OWNER = keccak(b"owner")[:20]
TARGET = keccak(b"target")[:20]
KEY_OWNER = "devnet"
BIG = 2**200 + 1
EVENTS: list[dict[str, Any]] = [
    {
        "type": "event",
        "name": "Pinged",
        "inputs": [
            {"name": "sender", "type": "address", "indexed": True},
            {"name": "value", "type": "uint256", "indexed": False},
        ],
    },
    {"type": "event", "name": "Twice", "inputs": [{"name": "a", "type": "uint256", "indexed": True}]},
    {"type": "event", "name": "Twice", "inputs": [{"name": "a", "type": "bytes32", "indexed": True}]},
    {
        "type": "event",
        "name": "Shaped",
        "inputs": [
            {
                "name": "shape",
                "type": "tuple[]",
                "components": [{"name": "x", "type": "uint8"}, {"name": "y", "type": "string"}],
                "indexed": False,
            }
        ],
    },
    {"type": "event", "name": "Quiet", "inputs": [], "anonymous": True},
]
PING: dict[str, Any] = {"type": "function", "name": "ping", "inputs": [{"name": "value", "type": "uint256"}]}
ABI = json.dumps([PING, *EVENTS])
SCRIPT = "ipfs://bafkreif426p7t7takzhw3g6we2h6wsvf27p5jxj3gaiynqf22p3jvhx4la"
PRICE = "https://price.example.org/v1?coin=eth"

EVENT: dict[str, Any] = {
    "trigger_chain_id": "31337",
    "trigger_contract_address": to_checksum_address(TARGET),
    "trigger_event": "Pinged",
}
CONDITION: dict[str, Any] = {
    "condition_type": "greater_than",
    "upper_limit": 2000.50,
    "lower_limit": 0,
    "value_source_type": "api",
    "value_source_url": PRICE,
}
NAMES = {"price.example.org": "93.184.216.34", "inside.example.org": "10.0.0.7", "mixed.example.org": "93.184.216.34 127.0.0.1"}
"""What the test's resolver knows."""


async def resolver(host: str, port: int) -> Sequence[str]:
    if host not in NAMES:
        raise OSError("no such name")
    return NAMES[host].split()


@dataclass
class Api:
    """A served API, a client without a key, and the headers of one that has one. `changed` are the jobs it told of."""

    store: MemoryStore
    ledger: Ledger
    chain: MemoryChain
    clock: TrioClock
    changed: list[int]
    client: httpx.AsyncClient
    headers: dict[str, str]
    key: ApiKey

    async def get(self, path: str, **params: str) -> httpx.Response:
        return await self.client.get(path, headers=self.headers, params=params)

    async def put(self, path: str, body: Any = None) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps({} if body is None else body)
        return await self.client.put(path, headers=self.headers, content=content)

    async def post(self, job: Any, **headers: str) -> httpx.Response:
        content = job if isinstance(job, bytes) else json.dumps(job if isinstance(job, list) else [job])
        return await self.client.post("/api/jobs", content=content, headers={**self.headers, **headers})

    async def taken(self, job: Mapping[str, Any]) -> Job:
        """The job as it is stored, having been posted."""
        answer = await self.post(job)
        assert answer.status_code == 200, answer.text
        return await self.stored(job)

    async def stored(self, job: Mapping[str, Any]) -> Job:
        stored = await self.store.job(int(job["job_id"]))
        assert stored is not None
        return stored

    async def other_key(self, owner: str, **changes: Any) -> dict[str, str]:
        text, record = new_key(owner, now=0)
        await self.store.add_key(replace(record, **changes))
        return {"X-API-KEY": text}

    def job(self, *, interval: int = 10, time_frame: int = 1000, **changes: Any) -> dict[str, Any]:
        """A time job on chain, and what the SDK posts for it."""
        fields = {"schedule_type": "interval", "time_interval": interval}
        return self.posted(1, fields, interval=interval, time_frame=time_frame, **changes)

    def posted(
        self,
        definition: int,
        fields: Mapping[str, Any],
        *,
        interval: int = 0,
        time_frame: int = 1000,
        target: bytes = TARGET,
        **changes: Any,
    ) -> dict[str, Any]:
        """A job of any type on chain (`interval` is what the registry holds), and what the SDK posts for it."""
        recurring = changes.get("recurring", False) if 3 <= definition <= 6 else True
        job_id = self.ledger.create_job(
            OWNER, target=target, interval=interval, time_frame=time_frame, definition=definition, recurring=recurring
        )
        chain_id = str(self.ledger.domain.chain_id)
        dynamic = definition in (2, 4, 6, 7)
        return {
            "job_id": str(job_id),
            "user_address": to_checksum_address(OWNER),
            "ether_balance": 1e21,
            "token_balance": 1e21,
            "job_title": "every ten",
            "task_definition_id": definition,
            "custom": True,
            "time_frame": time_frame,
            "recurring": False,
            "job_cost_prediction": 0.0123,
            "timezone": "Europe/Berlin",
            "created_chain_id": chain_id,
            "target_chain_id": chain_id,
            "target_contract_address": to_checksum_address(target) if any(target) else "",
            "target_function": "ping",
            "abi": ABI,
            "arg_type": 2 if dynamic else 1,
            "is_imua": True,
            "is_safe": False,
            "safe_name": "",
            "safe_address": "",
            "language": "py" if dynamic else "",
            **fields,
            **({"dynamic_arguments_script_url": SCRIPT} if dynamic else {"arguments": [str(BIG)]}),
            **changes,
        }


def sources(store: MemoryStore, jobs: Jobs, clock: Clock, **changes: Any) -> Sources:
    """What an API answers from when there is no more of a coordinator than its jobs."""

    async def metrics() -> bytes:
        return b"triggerx_build_info 1\n"

    parts: dict[str, Any] = {
        "store": store,
        "jobs": jobs,
        "clock": clock,
        "compute": Threads(),
        "explorers": {31337: "https://scan.example.org/"},
        "missing": list,
        "status": lambda: {"total_keepers": 0, "active_keepers": 0, "active_keeper_list": []},
        "metrics": metrics,
        "observe": lambda method, route, status, seconds: None,
    }
    return Sources(**{**parts, **changes})


@trio_fixture  # type: ignore[untyped-decorator]
async def api() -> AsyncIterator[Api]:
    clock, store, changed = TrioClock(), MemoryStore(), list[int]()
    ledger = Ledger(clock, round_seconds=12)
    chain = MemoryChain(clock, ledger=ledger)
    ledger.deposit(OWNER, 10**20)
    text, key = new_key(KEY_OWNER, now=0)
    await store.add_key(key)

    async def tell(job_id: int) -> None:
        changed.append(job_id)

    async with open_fetcher(FetchSettings(allow=("127.0.0.1:8080",)), resolver=resolver) as fetcher:
        jobs = Jobs(store, Fees(store, {31337: chain}, clock, Threads()), clock, Threads(), changed=tell, check_url=fetcher.check)
        headers = {"X-API-KEY": text, "Authorization": f"Bearer {text}"}
        async with (
            open_server(api_app(sources(store, jobs, clock)), "127.0.0.1", 0, body_limit=1_048_576) as url,
            httpx.AsyncClient(base_url=url, timeout=20) as client,
        ):
            yield Api(store, ledger, chain, clock, changed, client, headers, key)
