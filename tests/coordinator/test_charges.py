"""Charges of runs without a transaction, on a wallet that the hub's word never comes from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import pytest
import trio
from trio.testing import MockClock

from coordinator import charges
from coordinator.charges import Charges
from coordinator.store.port import Store
from coordinator.store.records import RunCharge as Waiting
from node.infra.chain import Chain, Keeper, Mined, Prepared, RunCharge, Wallet
from node.infra.clock import TrioClock
from tests.consensus import samples
from tests.consensus.samples import DOMAIN, NOW

LATER = NOW + 3600


class Held:
    """Runs that wait, and go on waiting."""

    def __init__(self, runs: int) -> None:
        self._waiting = [Waiting(n, 31337, samples.run_certificate().encode(), NOW) for n in range(runs)]

    async def run_charges(self, chain_id: int, limit: int) -> Sequence[Waiting]:
        return self._waiting[:limit]


class Listed:
    domain = DOMAIN

    async def keepers(self) -> list[Keeper]:
        performer = samples.authorisation().performer
        return [Keeper(1, performer, bytes(48), "", bytes(20), True)]


class Purse:
    def __init__(self) -> None:
        self.sent = 0

    async def prepare_run_charges(self, runs: Sequence[RunCharge], *, again: int = 0) -> Prepared:
        return cast(Prepared, None)

    async def send(self, prepared: Prepared) -> bytes:
        self.sent += 1
        assert self.sent < 10, "it goes on and on"
        return bytes(32)

    async def mined(self, tx_hash: bytes) -> Mined:
        await trio.lowlevel.checkpoint()
        return cast(Mined, type("Mined", (), {"success": True}))


async def test_what_was_sent_and_is_not_booked_yet_is_not_sent_again_however_much_it_is(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(charges, "_KEPT", 2)
    purse = Purse()
    part = Charges(cast(Store, Held(3)), cast(Chain, Listed()), cast(Wallet, purse), TrioClock(LATER), mine=lambda: True, batch=1)
    with trio.move_on_after(60):
        await part.run()
    assert purse.sent == 2
