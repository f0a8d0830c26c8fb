"""The auditor finds what it is there to find."""

from __future__ import annotations

from tests.chaos.auditor import Due, Executed, audit

FIRST, SECOND = Due(1, 100, "interval", 100), Due(1, 110, "interval", 110)


def test_what_was_due_and_executed_once_is_clean():
    found = audit([FIRST, SECOND], [Executed(1, 100, 101), Executed(1, 110, 113)], {})
    assert found.clean
    assert found.lateness == {"interval": [1, 3]}


def test_a_firing_that_nobody_mentions_is_lost():
    found = audit([FIRST, SECOND], [Executed(1, 100, 101)], {})
    assert found.lost == [SECOND]
    assert not found.clean


def test_a_firing_that_executed_twice_is_told():
    found = audit([FIRST], [Executed(1, 100, 101), Executed(1, 100, 102)], {})
    assert found.twice == [(1, 100)]
    assert not found.clean


def test_an_execution_that_was_not_due_is_told():
    found = audit([], [Executed(1, 100, 101)], {})
    assert found.strangers == [(1, 100)]
    assert not found.clean


def test_a_failed_task_is_no_clean_end_but_its_reason_is_told():
    found = audit([FIRST], [], {(1, 100): "NO_KEEPER"})
    assert found.reported == {(1, 100): "NO_KEEPER"}
    assert not found.clean
    assert not found.lost
