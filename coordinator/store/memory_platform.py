"""What the store in dictionaries keeps of the platform itself: API keys, keepers, shards, gaps and alerts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import trio

from coordinator.store import changes as rules
from coordinator.store.records import ApiKey, Gap, KeeperRecord, KeeperSeen

T = TypeVar("T")


class PlatformInMemory:
    """The part of `coordinator.store.port.Store` that is of the platform."""

    def __init__(self) -> None:
        super().__init__()
        self._keys: dict[bytes, ApiKey] = {}
        self._keepers: dict[tuple[int, bytes], KeeperSeen] = {}
        self._records: dict[tuple[int, bytes], KeeperRecord] = {}
        self._tokens: dict[int, int] = {}
        self._watched: dict[int, int] = {}
        self._gaps: dict[tuple[str, int], Gap] = {}
        self._alerts: dict[str, int] = {}

    # keys and keepers

    async def add_key(self, key: ApiKey) -> None:
        await trio.lowlevel.checkpoint()
        self._keys[key.digest] = key

    async def key(self, digest: bytes) -> ApiKey | None:
        return await _now(self._keys.get(digest))

    async def save_keeper(self, keeper: KeeperSeen) -> None:
        await trio.lowlevel.checkpoint()
        self._keepers[keeper.chain_id, keeper.address] = keeper

    async def keepers(self) -> Sequence[KeeperSeen]:
        return await _now(sorted(self._keepers.values(), key=lambda k: (k.chain_id, k.address)))

    async def keeper_records(self) -> Sequence[KeeperRecord]:
        return await _now(sorted(self._records.values(), key=lambda k: (k.chain_id, k.address)))

    async def save_keeper_form(self, record: KeeperRecord) -> None:
        await trio.lowlevel.checkpoint()
        stored = self._record_of(record.chain_id, record.address)
        self._records[record.chain_id, record.address] = rules.named(stored, record)

    # shards

    async def claim_shard(self, shard: int, token: int, at: int) -> bool:
        await trio.lowlevel.checkpoint()
        if token < self._tokens.get(shard, token):
            return False
        self._tokens[shard] = token
        return True

    async def touch_shards(self, shards: Sequence[int], at: int) -> None:
        await trio.lowlevel.checkpoint()
        for shard in shards:
            self._watched[shard] = max(at, self._watched.get(shard, at))

    async def watched_at(self, shard: int) -> int | None:
        return await _now(self._watched.get(shard))

    # gaps and alerts

    async def add_gap(self, gap: Gap) -> None:
        await trio.lowlevel.checkpoint()
        known = self._gaps.get((gap.scope, gap.began), gap)
        self._gaps[gap.scope, gap.began] = replace(gap, ended=max(gap.ended, known.ended))
        kept = [g for g in self._gaps.values() if g.ended >= rules.gap_horizon(gap)]
        kept.sort(key=rules.by_end)
        self._gaps = {(g.scope, g.began): g for g in kept[-rules.MAX_GAPS :]}

    async def gaps(self, scopes: Sequence[str], since: int) -> Sequence[Gap]:
        await trio.lowlevel.checkpoint()
        chosen = [g for g in self._gaps.values() if g.scope in scopes and g.ended > since]
        return sorted(chosen, key=rules.by_end)[-rules.GAPS_SHOWN :]

    async def open_alert(self, subject: str, text: str, at: int) -> bool:
        await trio.lowlevel.checkpoint()
        if subject in self._alerts:
            return False
        self._alerts[subject] = at
        return True

    async def close_alert(self, subject: str) -> int | None:
        await trio.lowlevel.checkpoint()
        return self._alerts.pop(subject, None)

    async def alerts(self) -> Mapping[str, int]:
        return await _now(dict(self._alerts))

    def _record_of(self, chain_id: int, address: bytes) -> KeeperRecord:
        return self._records.get((chain_id, address)) or KeeperRecord(chain_id, address)


async def _now(answer: T) -> T:
    await trio.lowlevel.checkpoint()
    return answer
