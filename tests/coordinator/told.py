"""A channel that keeps what it was given, and fails as a test says."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import trio

from consensus.errors import TriggerXError


@dataclass
class Told:
    """`failures` are raised first, one a message. While it `hangs`, nothing returns."""

    messages: list[tuple[str, str, str]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    failures: deque[TriggerXError] = field(default_factory=deque)
    hangs: bool = False

    async def send(self, to: str, subject: str, text: str) -> None:
        if self.hangs:
            await trio.sleep_forever()
        await trio.sleep(0.1)
        if self.failures:
            raise self.failures.popleft()
        self.messages.append((to, subject, text))
        self.times.append(trio.current_time())

    @property
    def subjects(self) -> list[str]:
        return [subject for _, subject, _ in self.messages]

    def to(self, recipient: str) -> list[str]:
        return [subject for to, subject, _ in self.messages if to == recipient]
