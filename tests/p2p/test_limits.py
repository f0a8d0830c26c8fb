"""Bounded memories: they forget on time, and never hold more than they may."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from p2p.limits import PASSED_ON, WHOLE_LIE, Rate, RateLimiter, Seen, Standing


@given(st.lists(st.tuples(st.integers(0, 20), st.floats(0, 5)), max_size=60))
def test_seen_says_new_exactly_when_it_was_not_added_within_its_time(additions: list[tuple[int, float]]) -> None:
    seen: Seen[int] = Seen(ttl=10.0, capacity=1000)
    first: dict[int, float] = {}
    now = 0.0
    for key, pause in additions:
        now += pause
        is_new = seen.add(key, now)
        forgotten = key in first and first[key] + 10.0 <= now
        # An expired key is forgotten when the next new one comes: never before its time, perhaps a little after.
        assert is_new == (key not in first) or forgotten
        if is_new:
            first[key] = now


def test_seen_forgets_the_oldest_beyond_its_capacity() -> None:
    seen: Seen[int] = Seen(ttl=1e9, capacity=3)
    for key in range(5):
        assert seen.add(key, 0.0)
    assert [key in seen for key in range(5)] == [False, False, True, True, True]
    assert len(seen) == 3


@given(st.lists(st.floats(0, 2), max_size=80), st.integers(1, 10), st.floats(0.5, 20))
def test_no_source_ever_exceeds_its_rate_and_burst(pauses: list[float], burst: int, per_second: float) -> None:
    limiter: RateLimiter[str] = RateLimiter(Rate(per_second, burst))
    now, allowed = 0.0, 0
    for pause in pauses:
        now += pause
        allowed += limiter.allow("peer", now)
        assert allowed <= burst + now * per_second + 1e-6


def test_waiting_as_long_as_told_is_enough() -> None:
    limiter: RateLimiter[str] = RateLimiter(Rate(per_second=3.0, burst=1))
    assert limiter.wait_for("peer", 0.0) == 0.0
    wait = limiter.wait_for("peer", 0.0)
    assert limiter.wait_for("peer", wait + 1e-9) == 0.0
    assert limiter.allow("another", 0.0)


def test_a_crowd_of_sources_takes_no_more_memory_than_allowed() -> None:
    limiter: RateLimiter[int] = RateLimiter(Rate(1.0, 1), capacity=10)
    standing: Standing[int] = Standing(capacity=10)
    for source in range(1000):
        limiter.allow(source, 0.0)
        standing.blame(source, WHOLE_LIE, 0.0)
    assert len(limiter) == len(standing) == 10


def test_the_third_lie_cuts_off_and_only_the_third() -> None:
    standing: Standing[str] = Standing(half_life=600, penalty=600)
    assert [standing.blame("liar", WHOLE_LIE, float(now)) for now in range(3)] == [False, False, True]
    assert standing.refused("liar", 601.9)
    assert not standing.refused("liar", 602.0)
    assert not standing.refused("honest", 3.0)


def test_after_the_penalty_a_peer_starts_afresh() -> None:
    standing: Standing[str] = Standing(penalty=10)
    for _ in range(3):
        standing.blame("liar", WHOLE_LIE, 0.0)
    assert [standing.blame("liar", WHOLE_LIE, 20.0 + now) for now in range(3)] == [False, False, True]


def test_rare_accidents_are_forgiven() -> None:
    standing: Standing[str] = Standing(half_life=600)
    assert not any(standing.blame("unlucky", WHOLE_LIE, now * 3600.0) for now in range(100))


def test_passing_on_a_few_lies_of_others_is_forgiven_and_many_are_not() -> None:
    standing: Standing[str] = Standing()
    blames = [standing.blame("forwarder", PASSED_ON, 0.0) for _ in range(13)]
    assert blames == [False] * 12 + [True]
