"""How often a key may ask: a bucket a key, refilled steadily, told in the X-RateLimit headers."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass

_KEYS = 10_000  # buckets kept; one that was not used longest is forgotten, and begins full again


@dataclass(frozen=True, slots=True)
class Allowance:
    """`limit` requests a minute, `remaining` now, `reset` seconds until all are there again."""

    limit: int
    remaining: int
    reset: int
    allowed: bool

    def headers(self) -> dict[str, str]:
        return {
            "X-RateLimit-Limit": str(self.limit),
            "X-RateLimit-Remaining": str(self.remaining),
            "X-RateLimit-Reset": str(self.reset),
        }


class RateLimits:
    """In this process's memory: with several coordinators each counts for itself."""

    def __init__(self) -> None:
        self._buckets: OrderedDict[bytes, tuple[float, float]] = OrderedDict()

    def take(self, key: bytes, limit: int, now: float) -> Allowance:
        """Counts a request of `key` at `now` (seconds, any steady clock) against `limit` a minute."""
        left, at = self._buckets.pop(key, (float(limit), now))
        left = min(limit, left + max(0.0, now - at) * limit / 60)
        allowed = left >= 1
        left -= allowed
        self._buckets[key] = (left, now)
        if len(self._buckets) > _KEYS:
            self._buckets.popitem(last=False)
        return Allowance(limit, int(left), math.ceil((limit - left) * 60 / limit), allowed)
