"""The score's parts one by one, and what they lead to over thousands of assignments."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator import scoring
from coordinator.scoring import Need, Policy, Standing, choose, recent_after, score, suitable, version_of
from coordinator.store.records import KeeperRecord

POLICY = Policy()
ANY = Need(1)


def keeper(number: int, **changes: object) -> Standing:
    standing = Standing(bytes(19) + bytes([number]), f"keeper-{number}", connected=True, version="0.1.0", sandbox="embedded")
    return replace(standing, **changes)  # type: ignore[arg-type]


def record(number: int, **counts: object) -> KeeperRecord:
    return KeeperRecord(chain_id=1, address=bytes(19) + bytes([number]), **counts)  # type: ignore[arg-type]


def test_the_weights_are_those_of_the_field() -> None:
    weights = (scoring.PERFORMANCE, scoring.LOAD, scoring.REPUTATION, scoring.SPECIALIZATION)
    assert weights == (0.40, 0.30, 0.20, 0.10)
    assert sum(weights) == pytest.approx(1)


@pytest.mark.parametrize(
    ("better", "worse", "difference"),
    [
        ({"recent": 1.0}, {"recent": 0.0}, 0.40 * 0.75),
        ({"latency_s": 0.0}, {"latency_s": 30.0}, 0.40 * 0.25),
        ({"latency_s": 0.0}, {"latency_s": 3000.0}, 0.40 * 0.25),
        ({"open": 0}, {"open": 64}, 0.30),
        ({"open": 0}, {"open": 32}, 0.15),
        ({"record": record(1)}, {"record": record(1, rejected=4), "recent": 1.0}, 0.20 * 0.5 * 0.5),
        ({"uptime_s": 7200, "known_s": 7200}, {"uptime_s": 0, "known_s": 3600 * 3}, 0.20 * 0.5 * 0.75),
        (
            {"record": record(1, executed=96, by_definition={1: 96}), "recent": 1.0},
            {"record": record(1, executed=96, by_definition={3: 96}), "recent": 1.0},
            0.10 * 0.96,
        ),
    ],
)
def test_each_part_counts_as_documented(better: dict[str, object], worse: dict[str, object], difference: float) -> None:
    found = score(keeper(1, **better), 1, POLICY) - score(keeper(1, **worse), 1, POLICY)
    assert found == pytest.approx(difference, abs=1e-9)


@given(
    executed=st.integers(0, 10**6),
    failed=st.integers(0, 10**6),
    rejected=st.integers(0, 10**6),
    of_this=st.integers(0, 10**6),
    recent=st.none() | st.floats(0, 1),
    latency=st.none() | st.floats(0, 10**6),
    held=st.integers(0, 200),
    uptime=st.integers(0, 10**9),
    known=st.integers(0, 10**9),
)
def test_a_score_is_between_0_and_1(
    executed: int,
    failed: int,
    rejected: int,
    of_this: int,
    recent: float | None,
    latency: float | None,
    held: int,
    uptime: int,
    known: int,
) -> None:
    done = record(1, executed=executed, failed=failed, rejected=rejected, by_definition={1: of_this})
    standing = keeper(1, record=done, recent=recent, latency_s=latency, open=held, uptime_s=uptime, known_s=known)
    assert 0 <= score(standing, 1, POLICY) <= 1


def test_requirements_exclude_whatever_the_score() -> None:
    old, new, bare, stranger = keeper(1, version="0.9.9"), keeper(2, version="1.0.0-rc1"), keeper(3, sandbox=""), keeper(4)
    policy = Policy(min_version="1.0", whitelist=frozenset({old.address, new.address, bare.address}))
    assert suitable([old, new, bare, stranger], Need(2, sandbox=True), policy) == [new]
    assert suitable([old, replace(bare, version="2")], Need(1), policy) == [replace(bare, version="2")]
    assert suitable([stranger], Need(1), policy) == []


@pytest.mark.parametrize(
    ("text", "version"),
    [("1.2.3", (1, 2, 3)), ("v2", (2, 0, 0)), ("0.10.0-dev+5", (0, 10, 0)), ("", (0, 0, 0)), ("latest", (0, 0, 0))],
)
def test_versions_are_compared_as_numbers(text: str, version: tuple[int, int, int]) -> None:
    assert version_of(text) == version


def test_who_has_had_the_task_comes_last_and_who_is_not_connected_before() -> None:
    first, second = keeper(1), keeper(2, connected=False)
    assert suitable([first, second], Need(1), POLICY) == [first]
    assert suitable([first, second], Need(1, tried=frozenset({first.address})), POLICY) == [second]
    assert suitable([first], Need(1, tried=frozenset({first.address})), POLICY) == [first]


def test_a_keeper_with_as_many_tasks_as_it_may_have_gets_none() -> None:
    full = keeper(1, open=64)
    assert choose([full], ANY, POLICY, 0) is None
    assert choose([full, keeper(2, open=63, recent=0.0)], ANY, POLICY, 0) == keeper(2, open=63, recent=0.0)


def assign(keepers: dict[int, Standing], tasks: int, *, fails: frozenset[int] = frozenset(), held: int = 0) -> Counter[int]:
    """Gives out so many tasks, `held` of them open at a time; how many each keeper got."""
    given: Counter[int] = Counter()
    under_way: list[int] = []
    for turn in range(1, tasks + 1):
        chosen = choose(list(keepers.values()), ANY, POLICY, turn - 1)
        assert chosen is not None
        number = chosen.address[-1]
        given[number] += 1
        keepers[number] = replace(chosen, turn=turn, open=chosen.open + 1)
        under_way.append(number)
        if len(under_way) > held:
            done = keepers[under_way.pop(0)]
            recent = recent_after(done.recent, executed=done.address[-1] not in fails)
            keepers[done.address[-1]] = replace(done, open=done.open - 1, recent=recent)
    return given


@pytest.mark.parametrize("held", [0, 20])
def test_equal_keepers_share_equally_in_the_long_run(held: int) -> None:
    given = assign({n: keeper(n) for n in range(1, 8)}, 7000, held=held)
    assert all(abs(count - 1000) <= 2 for count in given.values())


def test_small_differences_of_chance_make_no_rule() -> None:
    keepers = {n: keeper(n, latency_s=0.1 * n, uptime_s=100_000 - n, known_s=100_000) for n in range(1, 6)}
    given = assign(keepers, 1000)
    assert set(given.values()) == {200}


def test_a_failing_keeper_gets_few_tasks_but_is_tried_again() -> None:
    keepers = {n: keeper(n) for n in range(1, 5)}
    given = assign(keepers, 4000, fails=frozenset({4}))
    assert 4000 // (scoring.PASSED_OVER * 4) - 2 <= given[4] <= 4000 * 0.02
    assert all(abs(given[n] - given[1]) <= 2 for n in (1, 2, 3))


def test_a_keeper_that_does_better_again_is_given_its_share_again() -> None:
    keepers = {n: keeper(n) for n in range(1, 5)}
    assign(keepers, 1000, fails=frozenset({4}))
    keepers = {n: replace(k, turn=0) for n, k in keepers.items()}
    assert keepers[4].recent is not None
    assert keepers[4].recent < 0.9
    given = assign(keepers, 4000)
    assert given[4] > 500


def test_a_new_keeper_among_veterans_gets_its_share_at_once() -> None:
    veteran = {"executed": 5000, "by_definition": {1: 5000}}
    keepers = {n: keeper(n, record=record(n, **veteran), recent=1.0, uptime_s=10**6, known_s=10**6) for n in (1, 2, 3)}
    keepers[4] = keeper(4)
    given = assign(keepers, 400)
    assert given[4] == pytest.approx(100, abs=2)
