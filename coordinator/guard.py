"""The coordinator's only broad `except`s: a defect in one step is named and counted, and the other steps go on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
import trio

from consensus.errors import Misconfigured, TriggerXError, first_of
from node.infra.retry import doubling

log = structlog.get_logger(__name__)

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
_HEALTHY_S = 60.0  # a step that ran this long starts again with the first pause


class Guard:
    """Runs steps again until they return. `failures` counts by (step, code), for metrics."""

    def __init__(self) -> None:
        self.failures: Counter[tuple[str, str]] = Counter()

    def contained(self, name: str, step: Callable[..., object], *args: Any, **facts: object) -> bool:
        """Whether `step`, which does not wait, went through. A defect is logged and counted, and takes nothing else down."""
        try:
            step(*args)
        except Exception as raised:
            self.failures[name, "INTERNAL"] += 1
            log.exception("step_failed", step=name, code="INTERNAL", error=repr(raised), **facts)
            return False
        return True

    async def __call__(
        self, name: str, step: Callable[..., Awaitable[object]], *args: Any, defects: int | None = None, **facts: object
    ) -> bool:
        """Returns True when `step` has; after a failure begins it anew, later each time. False after so many `defects`.

        A defect is an exception nobody meant. `Misconfigured` and cancellation go through; `facts` are logged with a failure.
        """
        found = 0
        pauses = iter(doubling(_FIRST_PAUSE_S, _LONGEST_PAUSE_S))
        while True:
            began = trio.current_time()
            try:
                await step(*args)
                return True
            except Exception as raised:
                error = first_of(raised)
                if isinstance(error, Misconfigured):
                    raise
                meant = isinstance(error, TriggerXError)
                code = error.code if isinstance(error, TriggerXError) else "INTERNAL"
                self.failures[name, code] += 1
                log.warning("step_failed", step=name, code=code, error=repr(error), exc_info=not meant, **facts)
                found += not meant
                if found == defects:
                    return False
            if trio.current_time() - began > _HEALTHY_S:
                pauses = iter(doubling(_FIRST_PAUSE_S, _LONGEST_PAUSE_S))
            await trio.sleep(next(pauses))
