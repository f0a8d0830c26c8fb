"""What every store keeps of scripts: a job's storage, packages until they are certified, runs until they are charged."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from consensus.lifecycle import TaskState
from consensus.messages import MAX_STORAGE_BYTES, Usage
from coordinator.store import changes as rules
from coordinator.store.changes import STORED
from coordinator.store.port import Store
from coordinator.store.records import Firing, RunPackage, Task, TaskChange
from tests.coordinator.factory import CHAIN, FENCES, OWNER, START, make_job, make_task
from tests.coordinator.stores import EVERY_STORE, certify, owner_of, some, with_job, with_task
from tests.coordinator.stores import a_store as a_store

pytestmark = EVERY_STORE
S = TaskState


async def not_executed(store: Store, task_id: int, **facts: object) -> Task | None:
    attempt = TaskChange(task_id, (S.DISPATCHED,), attempt=1)
    await store.change(attempt, START)
    return await store.change(TaskChange(task_id, (S.NOT_EXECUTED,), reason="SCRIPT_DECLINED", **facts), START)  # type: ignore[arg-type]


async def test_a_jobs_storage_moves_once_for_each_task(store: Store) -> None:
    task_id = await with_task(store)
    assert await store.storage(7) == ""
    first = TaskChange(task_id, (), {STORED: 5}, storage={"b": "1", "a": '"x"'})
    assert await store.change(first, START) is not None
    assert await store.storage(7) == '{"a":"x","b":1}'
    again = replace(first, stages={STORED: 6}, storage={"b": "2"}, arguments="[]")
    assert await store.change(again, START) is not None
    assert await store.storage(7) == '{"a":"x","b":1}'


async def test_null_deletes_a_key_and_other_jobs_keep_theirs(store: Store) -> None:
    one, other = await with_task(store), await with_task(store, 8)
    await store.change(TaskChange(one, (), {STORED: 5}, storage={"a": "1", "b": "2"}), START)
    await store.change(TaskChange(other, (), {STORED: 5}, storage={"a": "3"}), START)
    job = some(await store.job(7))
    later = make_task(job, START + 20)
    await store.fire([Firing(7, later, START + 30)], START, FENCES)
    await store.change(TaskChange(later.id, (), {STORED: 6}, storage={"a": None, "c": "true", "never": None}), START)
    assert (await store.storage(7), await store.storage(8)) == ('{"b":2,"c":true}', '{"a":3}')


async def test_storage_that_no_task_could_carry_is_not_taken(store: Store) -> None:
    task_id = await with_task(store)
    await store.change(TaskChange(task_id, (), {STORED: 5}, storage={"a": json.dumps("x" * MAX_STORAGE_BYTES)}), START)
    assert await store.storage(7) == ""


async def test_the_first_package_of_an_attempt_stays_and_another_one_marks_it(store: Store) -> None:
    task_id = await with_task(store)
    package = RunPackage(task_id, 1, b"one", START)
    await store.add_package(package)
    await store.add_package(replace(package, heard_at=START + 5))
    assert await store.packages(task_id) == [package]
    await store.add_package(replace(package, package=b"two"))
    await store.add_package(RunPackage(task_id, 2, b"later", START + 6))
    assert await store.packages(task_id) == [replace(package, contradicted=True), RunPackage(task_id, 2, b"later", START + 6)]
    assert await store.tasks_with_packages() == [task_id]
    await store.drop_packages(task_id)
    assert (await store.packages(task_id), await store.tasks_with_packages()) == ([], [])


async def test_packages_are_forgotten_by_age_and_number(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "MAX_PACKAGES", 3)
    for number in range(5):
        await store.add_package(RunPackage(number, 1, b"", START + number))
    assert await store.tasks_with_packages() == [2, 3, 4]
    await store.add_package(RunPackage(9, 1, b"", START + 4 + rules.PACKAGE_DAYS * 86_400))
    assert await store.tasks_with_packages() == [4, 9]


async def test_a_certified_run_waits_for_its_charge_and_counts_when_it_comes(store: Store) -> None:
    task_id = await with_task(store, spent=True)
    performer, attester = b"\x21" * 20, b"\x22" * 20
    ended = some(await not_executed(store, task_id, charge=b"certificate", performer=performer))
    assert (ended.ended, ended.reason) == (True, "SCRIPT_DECLINED")
    assert await not_executed(store, task_id, charge=b"another") is None
    [charge] = await store.run_charges(CHAIN, 10)
    assert (charge.task_id, charge.certificate, charge.at) == (task_id, b"certificate", START)
    assert await store.run_charges(CHAIN + 1, 10) == []
    before = (await owner_of(store)).points
    paid = TaskChange(task_id, (), {"charged": 9}, cost=70, attesters=(attester,))
    await store.change(paid, START)
    await store.change(paid, START)
    assert some(await store.task(task_id)).reason == "SCRIPT_DECLINED"
    assert await store.run_charges(CHAIN, 10) == []
    assert some(await store.job(7)).cost_actual == 70
    assert (await owner_of(store)).points == before + 70
    records = {r.address: (r.executed, r.attested, r.points) for r in await store.keeper_records()}
    assert records == {performer: (1, 0, 70), attester: (0, 1, 70)}


async def test_an_execution_overrules_a_run_without_one_and_is_what_is_paid(store: Store) -> None:
    task_id = await with_task(store)
    await not_executed(store, task_id, charge=b"certificate", performer=b"\x21" * 20)
    done = await certify(store, task_id, performer=b"\x22" * 20)
    assert (done.state, done.reason, done.cost) == (S.COMPLETED, "", 5)
    assert await store.run_charges(CHAIN, 10) == []
    assert some(await store.job(7)).cost_actual == 5


async def test_a_certificate_that_comes_late_ends_what_had_failed(store: Store) -> None:
    task_id = await with_task(store)
    await store.change(TaskChange(task_id, (S.FAILED,), reason="NO_QUORUM"), START)
    assert some(await not_executed(store, task_id)).state is S.NOT_EXECUTED


async def test_what_runs_use_is_smoothed_by_script(store: Store) -> None:
    assert await store.usage("bafy") is None
    await store.add_usage("bafy", Usage(100, 200, 300, 0))
    await store.add_usage("bafy", Usage(500, 200, 100, 8))
    assert (await store.usage("bafy"), await store.usage("other")) == (Usage(200, 200, 250, 2), None)


async def test_safes_are_listed_for_their_owner_once(store: Store) -> None:
    for number in (7, 8):
        safe = make_job(number, is_safe=True, safe_address="0xAb", safe_name=f"safe {number}", posted_at=START + number)
        await with_job(store, safe)
    assert await store.safe_addresses(OWNER) == [("0xAb", "safe 7", START + 7)]
    assert await store.safe_addresses(b"\x33" * 20) == []


async def test_a_jobs_cap_is_kept_and_changed(store: Store) -> None:
    job = await with_job(store, make_job(7, max_fee=2**100))
    assert some(await store.job(7)).max_fee == 2**100
    await store.update_job(replace(job, max_fee=5))
    assert some(await store.job(7)).max_fee == 5
