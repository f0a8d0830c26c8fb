"""The draw, the tree, the tally, due seconds and the lifecycle, as properties."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus import committee, merkle, schedules
from consensus.codec import keccak
from consensus.committee import Committee, Epoch, Operator
from consensus.errors import Ignore, Reject
from consensus.lifecycle import FINAL, TRANSITIONS, TaskState, may_follow
from consensus.messages import Uint256, Verdict, Vote
from consensus.schedules import Interval
from consensus.tally import Tally


def operators(count: int) -> tuple[Operator, ...]:
    return tuple(Operator(i + 1, bytes([i + 1]) * 20, bytes([i + 1]) * 48) for i in range(count))


seats = st.integers(1, 20).flatmap(lambda n: st.lists(st.integers(0, n - 1), max_size=40).map(lambda extra: [*range(n), *extra]))


@given(seed=st.binary(min_size=32, max_size=32), table=seats, count=st.integers(1, 14))
def test_a_draw_seats_distinct_operators_as_many_as_there_are(seed: bytes, table: list[int], count: int) -> None:
    drawn = committee.draw(seed, table, count)
    assert len(set(drawn)) == len(drawn) == min(count, len(set(table)))


@given(
    block_hash=st.binary(min_size=32, max_size=32), n=st.integers(2, 20), level=st.integers(0, 4), performer=st.integers(0, 19)
)
def test_a_performer_never_sits_on_its_own_committee(block_hash: bytes, n: int, level: int, performer: int) -> None:
    epoch = Epoch(1, 0, None, operators(n), tuple(range(n)))
    me = epoch.operators[performer % n]
    for round_ in range(committee.MAX_ROUNDS):
        members = committee.of_task(epoch, block_hash, round_, level, me.address).members
        assert me not in members
        assert len(members) == min(committee.SIZE_BY_LEVEL[level], n - 1)


def test_an_operator_with_more_seats_is_drawn_more_often() -> None:
    table = [0] * 8 + list(range(1, 9))
    first = [committee.draw(keccak(bytes([i % 256, i // 256])), table, 1)[0] for i in range(2000)]
    assert 0.44 < first.count(0) / 2000 < 0.56


def test_nobody_is_drawn_where_the_performer_is_alone() -> None:
    epoch = Epoch(1, 0, None, operators(1), (0,))
    assert committee.of_task(epoch, bytes(32), 0, 0, epoch.operators[0].address).members == ()


@pytest.mark.parametrize(("n", "yes", "no"), [(1, 1, 1), (3, 2, 2), (4, 3, 2), (5, 4, 2), (7, 5, 3), (13, 9, 5)])
def test_quorums_are_two_thirds_and_more_than_a_third(n: int, yes: int, no: int) -> None:
    assert (committee.yes_quorum(n), committee.no_quorum(n)) == (yes, no)


@given(n=st.integers(1, 13))
def test_two_contradicting_quorums_never_fit_one_committee(n: int) -> None:
    assert committee.yes_quorum(n) + committee.no_quorum(n) > n


@given(leaves=st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=32), data=st.data())
def test_every_leaf_leads_to_the_root_and_no_other_does(leaves: list[bytes], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(leaves) - 1))
    path = merkle.path(leaves, index)
    assert len(path) <= 5
    assert merkle.fold(leaves[index], index, path) == merkle.root(leaves)
    other = data.draw(st.binary(min_size=32, max_size=32).filter(lambda b: b != leaves[index]))
    assert merkle.fold(other, index, path) != merkle.root(leaves)


@pytest.mark.parametrize("count", [0, 33])
def test_a_tree_has_1_to_32_leaves(count: int) -> None:
    with pytest.raises(ValueError):
        merkle.root([bytes(32)] * count)


EXECUTION = keccak(b"execution")


def vote(verdict: Verdict = Verdict.YES, execution: bytes = EXECUTION) -> Vote:
    return Vote(1, Uint256(1), execution, verdict, "", 1, 1, 0, bytes(96))


def test_a_quorum_is_reported_in_draw_order() -> None:
    members = operators(5)
    tally = Tally(Committee(members), EXECUTION)
    for member in reversed(members[:4]):
        assert tally.quorum() is None
        tally.add(vote(), member.address)
    quorum = tally.quorum()
    assert quorum is not None
    assert quorum.signers == members[:4]


def test_nobody_is_no_quorum() -> None:
    tally = Tally(Committee(()), EXECUTION)
    assert tally.quorum() is None


def test_a_strangers_vote_is_rejected_and_a_second_one_ignored() -> None:
    tally = Tally(Committee(operators(3)), EXECUTION)
    with pytest.raises(Reject, match="NOT_IN_COMMITTEE"):
        tally.add(vote(), b"\xff" * 20)
    tally.add(vote(), operators(1)[0].address)
    with pytest.raises(Ignore, match="DUPLICATE_VOTE"):
        tally.add(vote(Verdict.NO), operators(1)[0].address)
    with pytest.raises(Ignore, match="OTHER_EXECUTION"):
        tally.add(vote(execution=bytes(32)), operators(2)[1].address)


def test_whoever_could_not_tell_may_tell_later() -> None:
    tally = Tally(Committee(operators(1)), EXECUTION)
    tally.add(vote(Verdict.CANNOT_TELL), operators(1)[0].address)
    assert tally.quorum() is None
    tally.add(vote(), operators(1)[0].address)
    assert tally.quorum() is not None


def test_a_seat_with_a_bad_signature_counts_no_more() -> None:
    members = operators(3)
    tally = Tally(Committee(members), EXECUTION)
    tally.add(vote(), members[0].address)
    tally.add(vote(), members[1].address)
    tally.discard([members[0].address])
    assert tally.quorum() is None
    with pytest.raises(Ignore):
        tally.add(vote(), members[0].address)


@given(interval=st.integers(1, 5000), frame=st.integers(1, 100_000), at=st.integers(-10, 120_000))
def test_due_seconds_agree_with_counting_them(interval: int, frame: int, at: int) -> None:
    created = 1_700_000_000
    due = range(created + interval, created + frame + 1, interval)
    now = created + at
    following = next((d for d in due if d > now), None)
    passed = [d for d in due if d <= now]
    trigger = Interval(interval)
    assert schedules.next_due(trigger, now, created_at=created, time_frame=frame) == following
    assert schedules.last_due(trigger, now, created_at=created, time_frame=frame) == (passed[-1] if passed else None)
    assert schedules.is_due(trigger, now, created_at=created, time_frame=frame) == (now in due)


def test_every_state_has_its_row_and_success_is_never_undone() -> None:
    assert set(TRANSITIONS) == set(TaskState)
    assert not TRANSITIONS[TaskState.COMPLETED]
    assert not TRANSITIONS[TaskState.REJECTED]
    for state in FINAL:
        assert not may_follow(state, TaskState.DISPATCHED)
