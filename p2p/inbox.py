"""One message between the wire and its reader: gate, size, decode, rule, queue. The same for every adapter of the port."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Generic, TypeVar

import structlog
import trio

from consensus.errors import Ignore, Invalid, Reject
from p2p.network import Counters, PeerId, Received, Rule, Topic

M = TypeVar("M")

log = structlog.get_logger()

Gate = Callable[[PeerId, str], bool | None]
"""May this peer publish on the topic of that name? None: the registry is not known yet. Called a message: keep it a lookup."""


def open_gate(_peer: PeerId, _topic: str) -> bool:
    """Everybody may publish everywhere."""
    return True


class Verdict(Enum):
    """What gossip does with a message: pass it on, drop it, or drop it and blame whoever sent it."""

    ACCEPT = "accept"
    IGNORE = "ignore"
    REJECT = "reject"


def encoded(topic: Topic[M], message: M) -> bytes:
    """The message's bytes; raises `Invalid` over the topic's size."""
    data = topic.encode(message)
    if len(data) > topic.max_bytes:
        raise Invalid(topic.name, f"message of {len(data)} bytes, at most {topic.max_bytes}", "send less", code="TOO_LARGE")
    return data


class Inbox(Generic[M]):
    """A subscription's receiving end."""

    def __init__(
        self, topic: Topic[M], rule: Rule[M], *, capacity: int, gate: Gate, counters: Counters, rule_timeout: float = 30.0
    ) -> None:
        self.topic = topic
        self._rule = rule
        self._rule_timeout = rule_timeout
        self._gate = gate
        self._counters = counters
        self._send: trio.MemorySendChannel[Received[M]]
        self.receive: trio.MemoryReceiveChannel[Received[M]]
        self._send, self.receive = trio.open_memory_channel[Received[M]](capacity)

    def close(self) -> None:
        self._send.close()

    def check_gate(self, source: PeerId) -> None:
        """Raises `Ignore` unless the source may publish here. Never `Reject`: registries lag, honest peers would be blamed."""
        allowed = self._gate(source, self.topic.name)
        if allowed is None:
            raise Ignore("REGISTRY_UNKNOWN", self.topic.name)
        if not allowed:
            raise Ignore("NOT_ALLOWED", self.topic.name)

    def check_size(self, data: bytes) -> None:
        """Raises `Reject` over the topic's size."""
        if len(data) > self.topic.max_bytes:
            raise Reject("TOO_LARGE", f"{len(data)} > {self.topic.max_bytes} on {self.topic.name}")

    async def judge(self, data: bytes, source: PeerId) -> Verdict:
        """Decodes, asks the rule and queues for the reader. Whatever goes wrong inside is a verdict, never an exception."""
        try:
            message = self.topic.decode(data)
            with trio.move_on_after(self._rule_timeout) as scope:
                await self._rule(message, source)
            if scope.cancelled_caught:
                raise Ignore("RULE_TIMEOUT", self.topic.name)
        except Reject as error:
            self._counters.reject(error.code)
            log.info("message_rejected", topic=self.topic.name, source=source, reason=str(error))
            return Verdict.REJECT
        except Ignore as error:
            self._counters.ignore(error.code)
            return Verdict.IGNORE
        except Exception as error:  # noqa: BLE001 - the guard: our own bug must neither take the node down nor cost a peer
            self._counters.ignore("RULE_FAILED")
            log.warning("rule_failed", topic=self.topic.name, source=source, error=repr(error))
            return Verdict.IGNORE
        self._deliver(message, source)
        return Verdict.ACCEPT

    def _deliver(self, message: M, source: PeerId) -> None:
        try:
            self._send.send_nowait(Received(message, source))
        except trio.WouldBlock:
            self._counters.dropped += 1
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the reader has left and the topic is about to follow
        else:
            self._counters.delivered += 1
