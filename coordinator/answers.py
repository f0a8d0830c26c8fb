"""Hears what keepers answer to the attempts they were given: acknowledgements and refusals."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from consensus import rules
from consensus.errors import Ignore
from consensus.lifecycle import PERFORMER_FAULTS, REASONS
from consensus.messages import Acknowledgement, Refusal
from consensus.messages import Task as TaskMessage
from consensus.rules import Facts
from coordinator.signals import Signals
from coordinator.store.port import Store
from coordinator.store.records import Attempt
from p2p.network import PeerId
from p2p.topics import Answer, Taken

log = structlog.get_logger(__name__)


class Answers:
    """The handler of `ANSWERS`: writes what is true to the store, and signals it."""

    def __init__(self, store: Store, facts: Facts, signals: Signals, now_ms: Callable[[], int]) -> None:
        self._store = store
        self._facts = facts
        self._signals = signals
        self._now_ms = now_ms

    async def __call__(self, answer: Answer, peer: PeerId) -> Taken:
        """Raises `Reject` for a signature that is not the performer's."""
        said = answer.acknowledgement or answer.refused()
        assert said is not None  # an Answer is one of the two
        attempt = next((a for a in await self._store.attempts(said.task_id) if a.number == said.attempt), None)
        if attempt is None:
            return Taken("UNKNOWN_TASK")
        if isinstance(said, Refusal):
            return await self._refused(said, attempt, peer)
        return await self._acknowledge(said, attempt)

    async def _acknowledge(self, said: Acknowledgement, attempt: Attempt) -> Taken:
        authorisation = TaskMessage.decode(attempt.message).authorisation
        try:
            rules.check_acknowledgement(said, authorisation, self._facts)
        except Ignore as error:
            return Taken(error.code)
        if await self._store.acknowledge(attempt.task_id, attempt.number, self._now_ms()) is None:
            return Taken("OTHER_ATTEMPT")
        self._signals.notify(attempt.task_id)
        return Taken()

    async def _refused(self, said: Refusal, attempt: Attempt, peer: PeerId) -> Taken:
        if self._facts.operator_of(said.chain_id, peer) != attempt.performer:
            return Taken("WRONG_PERFORMER")
        known = said.code in REASONS
        code = said.code if known else "INTERNAL"
        detail = said.detail if known else f"{said.code}: {said.detail}"
        fault = code in PERFORMER_FAULTS
        if await self._store.end_attempt(attempt.task_id, attempt.number, code, detail, self._now_ms(), fault=fault):
            log.warning("attempt_refused", task_id=str(attempt.task_id), attempt=attempt.number, code=code, detail=detail[:200])
            self._signals.notify(attempt.task_id)
        return Taken()
