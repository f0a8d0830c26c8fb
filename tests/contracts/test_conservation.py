"""No wei appears or disappears: after any walk of operations the contracts hold exactly what their books say."""

from __future__ import annotations

import random
from contextlib import suppress

import pytest

from consensus.messages import Uint256
from tests.contracts.evm import Refused
from tests.contracts.world import DISPATCHER, ETHER, MIN_STAKE, NO, ROUND_SECONDS, STRANGER, UNIT, USER, Task, World, account

COORDINATOR = DISPATCHER.public_key.to_canonical_address()
USERS = [b"user%d" % i + bytes(15) for i in range(3)]
OPERATORS = range(1, 11)


def owed(world: World, tasks: list[Task]) -> int:
    """Wei escrowed or earned: pending fees whole, certified ones as far as unclaimed, the attesters' units, and runs."""
    total = sum(UNIT * world.center.view("attestations", i) + world.hub.view("runEarnings", i) for i in OPERATORS)
    for task in tasks:
        record = world.hub.view("execution", task.id)
        if record["status"] == 1:
            total += record["fee"]
        elif record["status"] == 2:
            total += sum(world.hub.view("owed", task.id, i) for i in OPERATORS)
    return total


def check(world: World, tasks: list[Task]) -> None:
    balances = sum(world.gas.view("getBalance", user) for user in (*USERS, USER))
    assert world.chain.balance(world.gas.address) == balances + owed(world, tasks)
    stakes = sum(world.registry.view("operator", i)["stake"] for i in OPERATORS)
    assert world.chain.balance(world.registry.address) == stakes
    for contract in (world.hub, world.center, world.jobs, world.demo):
        assert world.chain.balance(contract.address) == 0


@pytest.mark.parametrize("seed", range(4))
def test_the_books_hold_after_any_walk(world: World, seed):
    walk = random.Random(seed)
    tasks: list[Task] = []
    jobs: dict[bytes, int] = {}
    done: dict[str, int] = {}
    world.chain.fund(COORDINATOR)
    for user in USERS:
        world.deposit(ETHER, user)
        jobs[user] = world.create_job(kind=6, owner=user, time_frame=10**6)

    def deposit() -> None:
        world.deposit(walk.randint(1, ETHER), walk.choice(USERS))

    def withdraw() -> None:
        user = walk.choice(USERS)
        world.gas.send("withdrawETHBalance", walk.randint(1, ETHER), sender=user)

    def execute() -> None:
        user = walk.choice(USERS)
        call = walk.choice([world.ping(walk.getrandbits(256)), world.demo.encode("fail")])
        cap = Uint256(walk.choice([10**15, 10**16, ETHER]))
        trigger = walk.getrandbits(256)
        level = walk.randint(0, 4)
        performer = account(walk.choice(OPERATORS))
        fee = walk.choice([0, 10**13, 10**30])
        tasks.append(world.execute(jobs[user], trigger, performer, call, fee, max_fee=cap, level=level))

    def charge() -> None:
        batch = []
        for _ in range(walk.randint(1, 5)):
            known = walk.random() < 0.3 and tasks
            trigger = walk.choice(tasks).authorisation.trigger_id if known else walk.getrandbits(256)
            batch.append((jobs[walk.choice(USERS)], trigger, walk.choice([*OPERATORS, 99]), walk.choice([1, 10**13, 10**15])))
        world.hub.send("chargeRuns", batch, sender=COORDINATOR)

    def certify() -> None:
        task = walk.choice(tasks)
        round_ = walk.randint(0, 2)
        drawn = world.committee(task, round_)
        verdict = walk.choice([1, 1, NO])
        least = drawn.yes_quorum if verdict == 1 else drawn.no_quorum
        count = walk.randint(least, len(drawn.members))
        signers = sorted(walk.sample(range(len(drawn.members)), count))
        world.submit(world.certificate(task, verdict=verdict, round_=round_, signers=signers))

    def expire() -> None:
        world.center.send("expire", walk.choice(tasks).id, sender=STRANGER)

    def claim() -> None:
        named = [t.id for t in walk.sample(tasks, min(len(tasks), 5))]
        world.hub.send("claim", walk.choice(OPERATORS), named, sender=STRANGER)

    def wait() -> None:
        world.chain.warp(walk.randint(1, 2 * ROUND_SECONDS))

    def stake() -> None:
        world.registry.send("addStake", sender=account(walk.choice(OPERATORS)), value=walk.randint(1, MIN_STAKE))

    # Every operation once, for certain: which of the walk's are refused depends on block hashes, by way of the committees.
    world.gas.send("withdrawETHBalance", walk.randint(1, ETHER // 4), sender=USERS[0])
    check(world, tasks)
    tasks.append(world.execute(jobs[USERS[0]], walk.getrandbits(256), account(1), world.ping(1), max_fee=ETHER // 4))
    check(world, tasks)
    world.submit(world.certificate(tasks[0]))
    check(world, tasks)
    assert world.hub.view("owed", tasks[0].id, 1) > 0
    world.hub.send("claim", 1, [tasks[0].id], sender=STRANGER)
    check(world, tasks)
    assert world.hub.view("owed", tasks[0].id, 1) == 0
    world.hub.send("chargeRuns", [(jobs[USERS[0]], 1, 1, 10**13)], sender=COORDINATOR)
    check(world, tasks)
    world.hub.send("claim", 1, [], sender=STRANGER)
    check(world, tasks)
    assert world.hub.view("runEarnings", 1) == 0
    for _ in range(90):
        step = walk.choice(
            [*(deposit, withdraw, execute, execute, execute, charge, certify, certify, certify, expire, claim, wait, stake)]
        )
        try:
            step()
        except (Refused, IndexError):
            continue
        done[step.__name__] = done.get(step.__name__, 0) + 1
        check(world, tasks)
    assert "execute" in done
    for i in OPERATORS:
        with suppress(Refused):  # nothing to claim
            world.hub.send("claim", i, [t.id for t in tasks], sender=STRANGER)
    check(world, tasks)
    assert owed(world, tasks) == sum(t.fee for t in tasks if world.status(t) == 1)
