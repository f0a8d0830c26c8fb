"""Certificates of runs at a process: checked by the chain it reads, remembered, and waited for."""

from __future__ import annotations

from contextlib import suppress
from typing import cast

import msgspec
import pytest
import trio
from trio.testing import MockClock

from consensus.committee import Epoch
from consensus.errors import Ignore, Reject, Transient
from node.infra.chain import Chain, Head
from node.infra.clock import TrioClock
from node.infra.compute import inline
from node.run_certificates import RunCertificates
from tests.consensus import samples
from tests.consensus.samples import DOMAIN, NOW, PEER
from tests.consensus.test_rules import KNOWN
from tests.consensus.test_runs import BLOCK_HASH, EPOCH, SAID, certified


class Read:
    """What this process' RPC says of the pinned block."""

    domain = DOMAIN

    def __init__(self) -> None:
        self.epoch: Epoch | None = EPOCH
        self.head: Head | None = Head(samples.PINNED, BLOCK_HASH, NOW)
        self.away = False
        self.asked = 0

    async def epoch_at(self, block_number: int) -> Epoch | None:
        self.asked += 1
        if self.away:
            raise Transient("RPC_UNREACHABLE")
        return self.epoch

    async def block(self, number: int) -> Head | None:
        return self.head if number == samples.PINNED else None


def process(read: Read) -> RunCertificates:
    return RunCertificates({DOMAIN.chain_id: cast(Chain, read)}, KNOWN, TrioClock(NOW), inline)


async def test_a_true_certificate_is_accepted_and_costs_the_chain_nothing_the_second_time(autojump_clock: MockClock) -> None:
    read = Read()
    certificates = process(read)
    for _ in range(3):
        await certificates.check(certified(), PEER)
    assert read.asked == 1


async def test_a_forged_one_is_rejected_each_time(autojump_clock: MockClock) -> None:
    certificates = process(Read())
    for _ in range(2):
        with pytest.raises(Reject, match="NO_QUORUM"):
            await certificates.check(certified(signers=3), PEER)


async def test_a_true_ones_signature_makes_no_other_true(autojump_clock: MockClock) -> None:
    certificates = process(Read())
    await certificates.check(certified(), PEER)
    with pytest.raises(Reject):
        await certificates.check(msgspec.structs.replace(certified(), round=1), PEER)


async def test_one_run_certified_in_ever_other_words_costs_little(autojump_clock: MockClock) -> None:
    """The performer's words are not signed: anyone could publish a true certificate again with others."""
    read = Read()
    certificates = process(read)
    said = [msgspec.structs.replace(SAID, detail=f"word {n}") for n in range(10)]
    taken = 0
    for each in said:
        with suppress(Ignore):
            await certificates.check(certified(each), PEER)
            taken += 1
    assert 3 <= read.asked == taken <= 4  # as many as aggregate it honestly
    await certificates.check(certified(said[0]), PEER)
    with pytest.raises(Ignore, match="KNOWN_RUN"):
        await certificates.check(certified(said[9]), PEER)


async def test_what_this_process_cannot_read_counts_against_nobody(autojump_clock: MockClock) -> None:
    away, blind, early = Read(), Read(), Read()
    away.away, blind.head, early.epoch = True, None, None
    for read, code in ((away, "RPC_UNREACHABLE"), (blind, "UNKNOWN_BLOCK"), (early, "UNKNOWN_BLOCK")):
        with pytest.raises(Ignore, match=code):
            await process(read).check(certified(), PEER)


async def test_an_rpc_that_does_not_answer_holds_no_rule_up(autojump_clock: MockClock) -> None:
    class Silent(Read):
        async def epoch_at(self, block_number: int) -> Epoch | None:
            await trio.sleep_forever()
            raise AssertionError

    with pytest.raises(Ignore, match="RPC_UNREACHABLE"):
        await process(Silent()).check(certified(), PEER)


async def test_whoever_waits_is_woken_and_whoever_comes_later_need_not_wait(autojump_clock: MockClock) -> None:
    certificates = process(Read())
    with trio.move_on_after(5) as impatient:
        await certificates.wait(SAID.digest())
    assert impatient.cancelled_caught
    assert not certificates._waiting  # the last to lose patience leaves nothing behind
    async with trio.open_nursery() as nursery:
        nursery.start_soon(certificates.wait, SAID.digest())
        await trio.testing.wait_all_tasks_blocked()
        certificates.take(certified())
    await certificates.wait(SAID.digest())
    assert certificates.certified(SAID.digest())
    assert not certificates.certified(bytes(32))
