"""The aggregator: real BLS signatures in, one certificate out, and no more memory than its bounds."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from consensus import bls
from consensus.codec import keccak
from consensus.committee import Committee, Operator
from consensus.errors import Reject
from consensus.messages import Uint256, Verdict, Vote
from node.aggregator import Aggregator, Round
from node.infra.chain import Certificate
from node.infra.compute import inline
from tests.consensus.samples import DOMAIN

SECRETS = [bls.secret_from_seed(keccak(bytes([i]))) for i in range(5)]
MEMBERS = tuple(Operator(i + 1, bytes([i + 1]) * 20, bls.public_key(s)) for i, s in enumerate(SECRETS))
ROUND = Round(DOMAIN, 77, keccak(b"execution"), 50, 3, 0, Committee(MEMBERS))


def vote(member: int, verdict: Verdict = Verdict.YES, *, signer: int | None = None, round_: int = 0, task_id: int = 77) -> Vote:
    signature = bls.sign(SECRETS[member if signer is None else signer], ROUND.digest(verdict))
    return Vote(DOMAIN.chain_id, Uint256(task_id), ROUND.execution, verdict, "", 50, 3, round_, signature)


async def certificate(aggregator: Aggregator, votes: list[tuple[int, Vote]]) -> Certificate:
    result: list[Certificate] = []
    async with trio.open_nursery() as nursery:

        async def collect() -> None:
            result.append(await aggregator.certificate(ROUND))

        nursery.start_soon(collect)
        await wait_all_tasks_blocked()
        for member, v in votes:
            aggregator.take(v, MEMBERS[member].address)
    return result[0]


def holds(made: Certificate) -> bool:
    keys = [m.key for m in MEMBERS if m.address in made.signers]
    return bls.fast_aggregate_verify(keys, ROUND.digest(made.verdict), made.signature)


async def test_a_quorum_becomes_a_certificate_in_draw_order() -> None:
    made = await certificate(Aggregator(inline), [(i, vote(i)) for i in (4, 2, 0, 1)])
    assert made.signers == tuple(MEMBERS[i].address for i in (0, 1, 2, 4))
    assert made.verdict is Verdict.YES
    assert holds(made)


async def test_votes_that_came_before_the_round_opened_count() -> None:
    aggregator = Aggregator(inline)
    for member in range(3):
        aggregator.take(vote(member), MEMBERS[member].address)
    assert holds(await certificate(aggregator, [(3, vote(3))]))


async def test_a_bad_signature_is_left_out_and_its_seat_counts_no_more() -> None:
    made = await certificate(Aggregator(inline), [(0, vote(0, signer=4)), *[(i, vote(i)) for i in (1, 2, 3, 4)]])
    assert made.signers == tuple(MEMBERS[i].address for i in (1, 2, 3, 4))
    assert holds(made)


async def test_more_than_a_third_of_noes_reject() -> None:
    made = await certificate(Aggregator(inline), [(0, vote(0, Verdict.NO)), (1, vote(1)), (2, vote(2, Verdict.NO))])
    assert made.verdict is Verdict.NO
    assert holds(made)


async def test_two_keys_that_cancel_out_stop_no_aggregator() -> None:
    """One owner may register a key and its negative; the aggregate of both is infinity, which no contract accepts."""
    secrets = [SECRETS[0], bls.ORDER - SECRETS[0], *SECRETS[2:]]
    members = tuple(Operator(i + 1, bytes([i + 1]) * 20, bls.public_key(s)) for i, s in enumerate(secrets))
    round_ = Round(DOMAIN, 77, ROUND.execution, 50, 3, 0, Committee(members))

    def says(member: int, verdict: Verdict) -> Vote:
        signature = bls.sign(secrets[member], round_.digest(verdict))
        return Vote(DOMAIN.chain_id, Uint256(77), round_.execution, verdict, "", 50, 3, 0, signature)

    aggregator, made = Aggregator(inline), list[Certificate]()
    async with trio.open_nursery() as nursery:

        async def collect() -> None:
            made.append(await aggregator.certificate(round_))

        nursery.start_soon(collect)
        await wait_all_tasks_blocked()
        for member in (0, 1):
            aggregator.take(says(member, Verdict.NO), members[member].address)
        await wait_all_tasks_blocked()
        assert not made
        for member in (2, 3):
            aggregator.take(says(member, Verdict.NO), members[member].address)
    assert made[0].signers == (members[2].address, members[3].address)


async def test_before_its_turn_an_aggregator_waits_and_takes_what_comes_meanwhile(autojump_clock: MockClock) -> None:
    aggregator, turn, made = Aggregator(inline), trio.Event(), []
    async with trio.open_nursery() as nursery:

        async def collect() -> None:
            made.append(await aggregator.certificate(ROUND, not_before=turn))

        nursery.start_soon(collect)
        for member in range(4):
            aggregator.take(vote(member), MEMBERS[member].address)
        await wait_all_tasks_blocked()
        assert not made
        aggregator.take(vote(4), MEMBERS[4].address)
        turn.set()
    assert len(made[0].signers) == 5


async def test_a_strangers_vote_is_rejected_in_an_open_round() -> None:
    aggregator = Aggregator(inline)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(aggregator.certificate, ROUND)
        await wait_all_tasks_blocked()
        with pytest.raises(Reject, match="NOT_IN_COMMITTEE"):
            aggregator.take(vote(0), b"\xee" * 20)
        nursery.cancel_scope.cancel()


async def test_a_flood_of_early_votes_pushes_out_nobody_elses() -> None:
    aggregator = Aggregator(inline)
    for member in range(4):
        aggregator.take(vote(member), MEMBERS[member].address)
    for task_id in range(100, 2000):
        aggregator.take(vote(4, task_id=task_id), MEMBERS[4].address)
    assert sum(map(len, aggregator._early.values())) <= 4 + 128
    assert len((await certificate(aggregator, [])).signers) == 4
