"""What the store in dictionaries keeps of scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import trio

from consensus.messages import Usage
from coordinator.store import changes as rules
from coordinator.store.records import RunCharge, RunPackage, Task, TaskChange

T = TypeVar("T")


class ScriptsInMemory:
    """The part of `coordinator.store.port.Store` that is of scripts."""

    def __init__(self) -> None:
        super().__init__()
        self._storage: dict[int, Mapping[str, str]] = {}
        self._packages: dict[tuple[int, int], RunPackage] = {}
        self._charges: dict[int, RunCharge] = {}
        self._usage: dict[str, Usage] = {}
        self._safes: dict[tuple[bytes, str], tuple[str, str, int]] = {}

    async def storage(self, job_id: int) -> str:
        return await _now(rules.storage_text(self._storage.get(job_id, {})))

    async def add_package(self, package: RunPackage) -> None:
        await trio.lowlevel.checkpoint()
        key = (package.task_id, package.attempt)
        known = self._packages.get(key)
        if known is None:
            self._packages[key] = package
            horizon = package.heard_at - rules.PACKAGE_DAYS * 86_400
            kept = [(k, p) for k, p in self._packages.items() if p.heard_at >= horizon]
            self._packages = dict(sorted(kept, key=lambda pair: pair[1].heard_at)[-rules.MAX_PACKAGES :])
        elif known.package != package.package:
            self._packages[key] = replace(known, contradicted=True)

    async def packages(self, task_id: int) -> Sequence[RunPackage]:
        return await _now(sorted((p for p in self._packages.values() if p.task_id == task_id), key=lambda p: p.attempt))

    async def drop_packages(self, task_id: int) -> None:
        await trio.lowlevel.checkpoint()
        self._packages = {key: package for key, package in self._packages.items() if key[0] != task_id}

    async def tasks_with_packages(self) -> Sequence[int]:
        return await _now(list(dict.fromkeys(p.task_id for p in sorted(self._packages.values(), key=lambda p: p.heard_at))))

    async def run_charges(self, chain_id: int, limit: int) -> Sequence[RunCharge]:
        return await _now([c for c in self._charges.values() if c.chain_id == chain_id][:limit])

    async def usage(self, script: str) -> Usage | None:
        return await _now(self._usage.get(script))

    async def add_usage(self, script: str, latest: Usage) -> None:
        await trio.lowlevel.checkpoint()
        self._usage[script] = rules.smoothed(self._usage.get(script), latest)

    async def safe_addresses(self, owner: bytes) -> Sequence[tuple[str, str, int]]:
        found = (safe for (of, _), safe in self._safes.items() if of == owner)
        return await _now(sorted(found, key=lambda safe: (safe[2], safe[0])))

    def _note_run(self, before: Task, after: Task, change: TaskChange, at: int) -> None:
        if rules.stores(before, after, change):
            self._storage[after.job_id] = rules.stored(self._storage.get(after.job_id, {}), change.storage or {})
        if change.charge and after.cost is None:
            self._charges[after.id] = RunCharge(after.id, after.chain_id, change.charge, at)
        elif after.cost is not None and before.cost is None:
            self._charges.pop(after.id, None)


async def _now(answer: T) -> T:
    await trio.lowlevel.checkpoint()
    return answer
