"""Conditions fire once for each time they begin to hold: whatever sources, store and other coordinators do."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import trio

from consensus.conditions import AllOf, AnyOf, ApiSource, Comparison, OnCondition, StaticSource, WebSocketSource, gap_scope
from consensus.errors import Failed
from coordinator.scheduler import readings
from coordinator.store.records import Edge, EdgeStep, Fired, Firing, JobStatus, MissedPolicy
from tests.coordinator.condition_world import AWAY, FEED, INTERVAL, START, World, above, api, open_world

PRICE = api()


@pytest.fixture
async def world(autojump_clock):
    async with open_world() as opened:
        yield opened


async def walk(world: World, *values: object, source: ApiSource = PRICE) -> None:
    for value in values:
        world.sources.values[source] = value  # type: ignore[assignment]
        await world.passes()


# edges


async def test_a_condition_fires_once_while_it_holds_and_again_after_it_fell_back(world: World, autojump_clock):
    world.sources.values[PRICE] = "0.2"
    await world.post(above(PRICE, "0.5"))
    await walk(world, "0.2", "0.6", "0.7", "0.6", "0.5", "0.51")
    assert await world.numbers() == [1, 2]
    assert await world.seen() == [("0.6",), ("0.51",)]
    assert await world.edge() == Edge(2, armed=False)
    assert world.scheduler.fired == 2
    assert world.scheduler.rearmed == 1


async def test_a_first_observation_that_holds_fires(world: World, autojump_clock):
    world.sources.values[PRICE] = "1"
    await world.post(above(PRICE, "0"))
    await world.passes()
    [task] = await world.tasks()
    assert (task.trigger_id, task.definition, task.priority) == (1, 5, 3)
    assert START <= task.scheduled_at <= START + INTERVAL


async def test_a_job_that_runs_once_is_spent_with_its_first_edge(world: World, autojump_clock):
    world.sources.values[PRICE] = "1"
    await world.post(above(PRICE, "0"), recurring=False)
    await walk(world, "1", "0", "1")
    assert await world.numbers() == [1]
    job = await world.store.job(7)
    assert job is not None
    assert job.spent
    assert len(world.scheduler) == 0
    assert len(world.scheduler.readings) == 0


async def test_hysteresis_holds_through_small_falls(world: World, autojump_clock):
    await world.post(above(PRICE, "100", "5"))
    await walk(world, "101", "99", "101", "96", "101", "95", "99", "100.5")
    assert await world.seen() == [("101",), ("100.5",)]


async def test_hysteresis_survives_a_restart(world: World, autojump_clock):
    world.sources.values[PRICE] = "98"
    await world.post(above(PRICE, "100", "5"), edge=Edge(4, armed=False))
    await walk(world, "98", "99")
    assert await world.edge() == Edge(4, armed=False)
    await walk(world, "95", "101")
    assert await world.numbers() == [5]


async def test_an_unknown_value_neither_fires_nor_arms(world: World, autojump_clock):
    await world.post(above(PRICE, "0"))
    await walk(world, "1", AWAY, Failed("SOURCE_UNUSABLE", "null is no number"), "1", AWAY, "1")
    assert await world.numbers() == [1]
    await walk(world, "0", AWAY, "1")
    assert await world.numbers() == [1, 2]


async def test_a_tree_fires_as_its_parts_come_together(world: World, autojump_clock):
    one, two, three = api(1), api(2), api(3)
    world.sources.values |= {one: "0", two: "0", three: "0"}
    await world.post(AllOf((above(one, "0"), AnyOf((above(two, "0"), above(three, "0"))))))
    await walk(world, "1", source=one)
    assert await world.numbers() == []
    await walk(world, "1", source=three)
    await walk(world, "1", source=two)
    assert await world.seen() == [("1", "0", "1")]
    await walk(world, AWAY, source=two)
    await walk(world, "0", source=three)
    await walk(world, "0", "1", source=two)
    assert await world.numbers() == [1, 2]


async def test_static_sources_are_decided_at_once_and_never_asked(world: World, autojump_clock):
    await world.post(above(StaticSource("2"), "1"))
    await world.passes(0.01)
    assert await world.seen() == [("2",)]
    await world.passes(100)
    assert world.sources.asked == {}
    assert await world.numbers() == [1]


async def test_big_and_small_numbers_keep_their_digits(world: World, autojump_clock):
    await world.post(above(PRICE, "1000000000000000000000000000000"))
    await walk(world, "1000000000000000000000000000000", "1000000000000000000000000000000.000000000000000000000000000001")
    assert await world.seen() == [("1000000000000000000000000000000.000000000000000000000000000001",)]


# one look for all


async def test_a_thousand_jobs_on_one_url_make_one_request_an_interval(world: World, autojump_clock):
    for n in range(1000):
        await world.post(above(api(0, f"prices[{n % 10}]"), str(n % 7)), job_id=n)
    for route in range(10):
        world.sources.values[api(0, f"prices[{route}]")] = "3"
    await world.passes(10 * INTERVAL)
    assert world.sources.asked == Counter({"https://a.example/0": 10})
    assert len(world.scheduler.readings) == 1
    fired = [n for n in range(1000) if await world.numbers(n)]
    assert fired == [n for n in range(1000) if n % 7 < 3]
    assert world.scheduler.evaluated <= 3000


async def test_reads_are_spread_over_the_interval(world: World, autojump_clock):
    for n in range(200):
        await world.post(above(api(n), "0"), job_id=n)
    await world.passes(INTERVAL)
    moments = [int((at - world.sources.at[0][0]) / INTERVAL * 10) for at, _ in world.sources.at]
    assert len(world.sources.at) == 200
    assert max(Counter(moments).values()) < 60


async def test_a_slow_source_delays_no_other(world: World, autojump_clock):
    for n in range(50):
        world.sources.hanging[api(n, host="slow.example").url] = trio.Event()
        await world.post(above(api(n, host="slow.example"), "0"), job_id=n)
    world.sources.values[PRICE] = "1"
    await world.post(above(PRICE, "0"), job_id=99)
    await world.passes(3 * INTERVAL)
    assert world.sources.asked[PRICE.url] == 3
    assert await world.numbers(99) == [1]
    assert world.sources.most_under_way <= 5
    for event in world.sources.hanging.values():
        event.set()
    await world.passes(INTERVAL)
    assert all(world.sources.asked[url] for url in world.sources.hanging)


async def test_a_crowd_of_slow_hosts_delays_no_other(world: World, autojump_clock):
    """One user's many servers, each of which answers a moment before its time is up."""
    for n in range(400):
        source = api(0, host=f"h{n}.example")
        world.sources.values[source], world.sources.taking[source.url] = "0", 9.0
        await world.post(above(source, "0"), job_id=n)
    world.sources.values[PRICE] = "1"
    await world.post(above(PRICE, "0"), job_id=999)
    await world.passes(20 * INTERVAL)
    before = world.sources.asked.copy()
    await world.passes(20 * INTERVAL)
    asked = world.sources.asked - before
    assert asked[PRICE.url] >= 19
    assert all(asked[url] for url in world.sources.taking)
    assert world.sources.most_under_way <= 128


async def test_reads_under_way_are_bounded(world: World, autojump_clock):
    for n in range(300):
        source = api(0, host=f"h{n}.example")
        world.sources.hanging[source.url] = trio.Event()
        await world.post(above(source, "0"), job_id=n)
    await world.passes(2 * INTERVAL)
    assert world.sources.most_under_way == 128
    for event in world.sources.hanging.values():
        event.set()
    await world.passes(INTERVAL)
    assert set(world.sources.asked) == set(world.sources.hanging)


async def test_a_source_that_never_answers_is_given_up(world: World, autojump_clock):
    world.sources.hanging[PRICE.url] = trio.Event()
    await world.post(above(PRICE, "0"))
    await world.passes(3 * 60)
    assert world.sources.asked[PRICE.url] >= 2


async def test_a_source_without_jobs_is_asked_no_more(world: World, autojump_clock):
    await world.post(above(PRICE, "0"), job_id=1)
    await world.post(above(PRICE, "1"), job_id=2)
    await world.passes()
    world.scheduler.remove(1)
    await world.passes()
    assert world.sources.asked[PRICE.url] == 2
    world.scheduler.remove(2)
    world.scheduler.remove(3)
    await world.passes(10 * INTERVAL)
    assert world.sources.asked[PRICE.url] == 2
    assert len(world.scheduler.readings) == 0


async def test_jobs_that_come_and_go_leave_nothing_behind(world: World, autojump_clock):
    for n in range(5000):
        await world.post(above(api(n), "0"), job_id=n)
        world.scheduler.remove(n)
    await world.passes(2 * INTERVAL)
    assert len(world.scheduler.readings._heap) <= 1024
    assert world.scheduler.readings._readings == {}
    assert not world.scheduler._moved


# jobs that change


async def test_an_updated_job_is_watched_by_its_new_condition(world: World, autojump_clock):
    await world.post(above(PRICE, "0"))
    await walk(world, "-1")
    other = api(5)
    world.sources.values[other] = "1"
    job = await world.store.job(7)
    assert job is not None
    await world.store.update_job(replace(job, trigger=OnCondition(above(other, "0"))))
    await world.reload(7)
    await world.passes()
    assert await world.seen() == [("1",)]
    asked = world.sources.asked[PRICE.url]
    await world.passes()
    assert world.sources.asked[PRICE.url] == asked


async def test_putting_a_job_in_again_changes_nothing(world: World, autojump_clock):
    await world.post(above(PRICE, "100", "5"))
    await walk(world, "101", "97")
    for _ in range(3):
        await world.reload(7)
        await world.passes()
    assert await world.numbers() == [1]


async def test_a_paused_job_does_not_fire_and_a_resumed_one_does(world: World, autojump_clock):
    await world.post(above(PRICE, "0"))
    await walk(world, "0")
    await world.store.pause_job(7, START)
    await world.reload(7)
    await walk(world, "1")
    assert await world.numbers() == []
    await world.store.resume_job(7, None, START)
    await world.reload(7)
    await world.passes()
    assert await world.numbers() == [1]


async def test_a_condition_that_begins_to_hold_in_the_last_second_fires(world: World, autojump_clock):
    world.sources.values[PRICE] = "0"
    job = await world.post(above(PRICE, "0"), time_frame=20)
    await world.passes(job.expires_at - world.clock.now() + 0.5)
    world.scheduler.put(replace((await world.store.planned_job(7)), trigger=OnCondition(above(StaticSource("1"), "0"))))  # type: ignore[type-var]
    await world.passes(0.1)
    assert await world.numbers() == [1]


async def test_a_job_whose_life_is_over_fires_no_more_and_is_let_go(world: World, autojump_clock):
    await world.post(above(PRICE, "0"), job_id=1, time_frame=20)
    await world.post(above(StaticSource("0"), "1"), job_id=2, time_frame=20)
    await walk(world, "0", "0", "0", "0", "0", "1")
    assert await world.numbers(1) == []
    await world.passes(100)
    assert world.scheduler.jobs() == []


@pytest.mark.parametrize(
    ("policy", "expected"), [(MissedPolicy.SKIP, [1]), (MissedPolicy.RUN_ONCE, [1, 2]), (MissedPolicy.RUN_ALL, [1, 2])]
)
async def test_what_began_to_hold_unwatched_fires_unless_the_policy_is_to_skip(
    world: World, autojump_clock, policy: MissedPolicy, expected: list[int]
):
    await world.passes(1000)
    world.sources.values[PRICE] = "1"
    await world.post(above(PRICE, "0"), starts_at=START, missed=policy, edge=Edge(0))
    await walk(world, "1", "1")
    skipped = policy is MissedPolicy.SKIP
    assert await world.numbers() == ([] if skipped else [1])
    assert await world.edge() == Edge(0 if skipped else 1, armed=False)
    await walk(world, "0", "1")
    assert await world.numbers() == expected


async def test_a_new_job_fires_at_once_whatever_its_policy(world: World, autojump_clock):
    world.sources.values[PRICE] = "1"
    await world.post(above(PRICE, "0"), missed=MissedPolicy.SKIP)
    await world.passes()
    assert await world.numbers() == [1]


# the store


async def test_edges_while_the_store_is_away_are_written_when_it_is_back(world: World, autojump_clock):
    await world.post(above(PRICE, "0"))
    world.store_away = True
    await walk(world, "1", "0", "2", "0", "3")
    assert await world.numbers() == []
    world.store_away = False
    await world.passes()
    assert await world.seen() == [("1",), ("2",), ("3",)]
    assert await world.edge() == Edge(3, armed=False)


async def test_what_waits_for_the_store_is_bounded(world: World, autojump_clock):
    await world.post(above(PRICE, "0"))
    world.store_away = True
    await walk(world, *["1", "0"] * 50, "1")
    assert len(world.scheduler._steps) <= 8
    world.store_away = False
    await world.passes()
    assert await world.numbers() == [1, 2, 3, 4, 5]
    assert await world.edge() == Edge(5, armed=False)


async def test_an_edge_that_another_took_is_not_fired_again(world: World, autojump_clock):
    await world.post(above(PRICE, "0"))
    await walk(world, "0")
    await world.store.fire([Firing(7, None, edge=EdgeStep(0, Edge(1, armed=False)))], START, world.fences)
    await walk(world, "1", "1")
    assert world.answers[Fired.KNOWN] == 1
    assert await world.numbers() == []
    await walk(world, "0", "1")
    assert await world.numbers() == [2]


async def test_a_write_that_was_answered_too_late_is_not_repeated(world: World, autojump_clock):
    """The store wrote, the answer was lost: what is written again is known."""
    await world.post(above(PRICE, "0"))
    written = world.fire

    lost = [True]

    async def answers_lost(firings, /):
        answers = await written(firings)
        if lost.pop() if lost else False:
            raise AWAY
        return answers

    world.scheduler._fire = answers_lost
    await walk(world, "1", "1", "0", "1")
    assert await world.numbers() == [1, 2]


@pytest.mark.parametrize("why", [Fired.FENCED, Fired.INACTIVE])
async def test_a_job_that_is_not_ours_or_over_is_dropped(world: World, autojump_clock, why: Fired):
    await world.post(above(PRICE, "0"))
    if why is Fired.FENCED:
        await world.store.claim_shard(7, 2, START)
    else:
        await world.store.end_job(7, JobStatus.DELETED, START)
    await walk(world, "1")
    assert world.answers[why] == 1
    assert world.scheduler.jobs() == []
    assert await world.numbers() == []


async def test_firings_of_one_moment_are_written_together(world: World, autojump_clock):
    for n in range(1000):
        await world.post(above(PRICE, "0"), job_id=n)
    await walk(world, "1")
    assert sum(world.batches) == 1000
    assert max(world.batches) <= 256


# what was not seen


async def gaps(world: World, source: ApiSource = PRICE) -> list[tuple[int, int]]:
    return [(gap.began - START, gap.ended - START) for gap in await world.store.gaps([gap_scope(source)], 0)]


async def test_a_source_that_was_away_leaves_a_gap_from_the_last_value_to_the_next(world: World, autojump_clock):
    await world.post(above(PRICE, "0"))
    await walk(world, "0", AWAY, AWAY, AWAY, AWAY, "0", "0")
    [(began, ended)] = await gaps(world)
    assert began <= INTERVAL
    assert ended - began == 5 * INTERVAL


async def test_two_looks_that_fail_are_no_gap(world: World, autojump_clock):
    await world.post(above(PRICE, "0"))
    await walk(world, "0", AWAY, "0", AWAY, "0")
    assert await gaps(world) == []


async def test_a_gap_is_told_while_it_lasts(world: World, autojump_clock):
    await world.post(above(PRICE, "0"))
    await walk(world, "0", *[AWAY] * 40)
    [(began, ended)] = await gaps(world)
    assert began <= INTERVAL
    assert ended - began >= 120
    await walk(world, "0")
    [(began, ended)] = await gaps(world)
    assert ended - began == 41 * INTERVAL


async def test_a_source_that_never_had_a_value_is_a_gap_since_the_job_began(world: World, autojump_clock):
    await world.post(above(PRICE, "0"))
    await walk(world, *[Failed("SOURCE_REFUSED", "no")] * 5)
    [(began, ended)] = await gaps(world)
    assert (began, ended > 10) == (0, True)


async def test_gaps_wait_for_the_store(world: World, autojump_clock):
    await world.post(above(PRICE, "0"))
    await walk(world, "0", AWAY, AWAY)
    world.store_away = True
    await walk(world, AWAY, AWAY, "0")
    assert await gaps(world) == []
    world.store_away = False
    await world.passes()
    assert len(await gaps(world)) == 1


# WebSockets


async def test_a_websocket_fires_with_its_message_and_not_with_the_next_poll(world: World, autojump_clock):
    await world.post(above(FEED, "0"))
    await world.passes(0.1)
    world.sources.say(FEED.url, "0", "1")
    await world.passes(0.1)
    assert await world.seen() == [("1",)]
    assert world.sources.asked == {}


async def test_jobs_of_one_websocket_share_its_connection_which_ends_with_the_last(world: World, autojump_clock):
    for n in range(10):
        await world.post(Comparison(FEED, "less_than", "0"), job_id=n)
    await world.passes(0.1)
    assert list(world.sources.followed) == [FEED.url]
    world.sources.say(FEED.url, "-1")
    await world.passes(0.1)
    assert [await world.numbers(n) for n in range(10)] == [[1]] * 10
    for n in range(10):
        world.scheduler.remove(n)
    await world.passes(0.1)
    assert world.sources.followed == {}


async def test_a_silent_websocket_is_observed_and_a_broken_one_is_not(world: World, autojump_clock):
    await world.post(above(FEED, "0"))
    await world.passes(0.1)
    world.sources.say(FEED.url, "0")
    await world.passes(1000)
    world.sources.say(FEED.url, "0")
    await world.passes(0.1)
    assert await world.store.gaps([gap_scope(FEED)], 0) == []
    world.sources.break_off(FEED.url)
    await world.passes(100)
    world.sources.say(FEED.url, "not a number")
    await world.passes(100)
    world.sources.say(FEED.url, "1")
    await world.passes(0.1)
    [gap] = await world.store.gaps([gap_scope(FEED)], 0)
    assert gap.began - START == 1000
    assert gap.ended - gap.began == 200
    assert await world.numbers() == [1]


async def test_a_scheduler_that_is_run_anew_goes_on(autojump_clock):
    world = World()
    for shard in range(16):
        await world.store.claim_shard(shard, 1, START)
    world.sources.values[PRICE] = "0"
    await world.post(above(PRICE, "0"))
    await world.post(above(FEED, "0"), job_id=8)
    for value in ("0", "1"):
        world.sources.values[PRICE] = value
        async with trio.open_nursery() as nursery:
            await nursery.start(world.scheduler.run)
            await world.passes(2 * INTERVAL)
            world.sources.say(FEED.url, value)
            await world.passes(1)
            nursery.cancel_scope.cancel()
    assert await world.numbers() == [1]
    assert await world.numbers(8) == [1]


async def test_a_websocket_that_tells_no_value_is_a_gap(world: World, autojump_clock):
    await world.post(above(FEED, "0"))
    await world.passes(600)
    [gap] = await world.store.gaps([gap_scope(FEED)], 0)
    assert gap.began == START
    assert gap.ended - gap.began > 500
    world.sources.say(FEED.url, "1")
    await world.passes()
    assert await world.numbers() == [1]


async def test_websockets_beyond_what_is_held_open_are_gaps_until_their_turn(world: World, autojump_clock, monkeypatch):
    monkeypatch.setattr(readings, "_MOST_FOLLOWED", 1)
    other = WebSocketSource("wss://b.example/feed")
    async with open_world() as narrow:
        await narrow.post(above(FEED, "0"), job_id=7)
        await narrow.passes(1)
        narrow.sources.say(FEED.url, "1")
        await narrow.post(above(other, "0"), job_id=8)
        await narrow.passes(300)
        assert list(narrow.sources.followed) == [FEED.url]
        [gap] = await narrow.store.gaps([gap_scope(other)], 0)
        assert gap.ended - gap.began > 200
        narrow.scheduler.remove(7)
        await narrow.passes(1)
        narrow.sources.say(other.url, "1")
        await narrow.passes(1)
        assert await narrow.numbers(8) == [1]


async def test_an_updated_condition_is_no_longer_held_by_the_hysteresis_of_what_never_held(world: World, autojump_clock):
    world.sources.values[PRICE] = "160"
    job = await world.post(above(PRICE, "100"))
    await world.passes()
    assert await world.numbers() == [1]
    changed = replace(job, trigger=OnCondition(above(PRICE, "200", hysteresis="50")))
    await world.store.update_job(changed)
    await world.reload(7)
    await walk(world, "160", "210", "160", "210")
    assert await world.numbers() == [1, 2]
