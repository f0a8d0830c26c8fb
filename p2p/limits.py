"""Bounded memories a peer is judged by: what was seen, how fast it speaks, how often it lied."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Seen(Generic[K]):
    """Remembers keys for `ttl` seconds, at most `capacity` of them, the oldest forgotten first."""

    def __init__(self, ttl: float, capacity: int) -> None:
        self._ttl = ttl
        self._capacity = capacity
        self._expiry: OrderedDict[K, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._expiry)

    def __contains__(self, key: K) -> bool:
        return key in self._expiry

    def add(self, key: K, now: float) -> bool:
        """Remembers the key; true when it was not known. A known key keeps its first expiry."""
        if key in self._expiry:
            return False
        while self._expiry:  # insertion order is expiry order, so this is amortised O(1)
            oldest, expiry = next(iter(self._expiry.items()))
            if expiry > now and len(self._expiry) < self._capacity:
                break
            del self._expiry[oldest]
        self._expiry[key] = now + self._ttl
        return True


@dataclass(frozen=True, slots=True)
class Rate:
    """A token bucket: `per_second` on average, `burst` at once."""

    per_second: float
    burst: int


@dataclass(slots=True)
class _Bucket:
    tokens: float
    updated: float


class RateLimiter(Generic[K]):
    """One token bucket a key, the least recently used forgotten beyond `capacity` keys."""

    def __init__(self, rate: Rate, capacity: int = 4096) -> None:
        self._rate = rate
        self._capacity = capacity
        self._buckets: OrderedDict[K, _Bucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def wait_for(self, key: K, now: float) -> float:
        """Takes a token and returns 0, or takes none and returns the seconds until there is one."""
        bucket = self._buckets.get(key)
        if bucket is None:
            while len(self._buckets) >= self._capacity:
                self._buckets.popitem(last=False)
            bucket = self._buckets[key] = _Bucket(float(self._rate.burst), now)
        else:
            self._buckets.move_to_end(key)
        bucket.tokens = min(self._rate.burst, bucket.tokens + (now - bucket.updated) * self._rate.per_second)
        bucket.updated = now
        if bucket.tokens < 1.0:
            return (1.0 - bucket.tokens) / self._rate.per_second
        bucket.tokens -= 1.0
        return 0.0

    def allow(self, key: K, now: float) -> bool:
        return self.wait_for(key, now) == 0.0


WHOLE_LIE = 1.0
"""What a proven lie weighs: a signed message that its rule rejects, a broken envelope, a malformed request."""

PASSED_ON = 0.2
"""What passing on another's lie weighs. An honest forwarder may see another chain head; a liars' tool does it often."""


@dataclass(slots=True)
class _Record:
    points: float
    updated: float
    refused_until: float


class Standing(Generic[K]):
    """Counts lies per peer and refuses a peer after three.

    Points halve every `half_life` seconds, so rare accidents are forgiven. A peer over the limit is refused
    for `penalty` seconds and then starts afresh. Bounded: beyond `capacity` peers the longest quiet is forgotten.
    """

    LIMIT = 2.5  # three lies within about a third of the half-life, and never two

    def __init__(self, half_life: float = 600.0, penalty: float = 600.0, capacity: int = 4096) -> None:
        self._half_life = half_life
        self._penalty = penalty
        self._capacity = capacity
        self._records: OrderedDict[K, _Record] = OrderedDict()

    def __len__(self) -> int:
        return len(self._records)

    def blame(self, peer: K, points: float, now: float) -> bool:
        """Adds points; true when this call is the one that cuts the peer off."""
        record = self._records.get(peer)
        if record is None:
            while len(self._records) >= self._capacity:
                self._records.popitem(last=False)
            record = self._records[peer] = _Record(0.0, now, 0.0)
        else:
            self._records.move_to_end(peer)
        if record.refused_until > now:
            return False
        record.points = record.points * 0.5 ** ((now - record.updated) / self._half_life) + points
        record.updated = now
        if record.points <= self.LIMIT:
            return False
        record.points = 0.0
        record.refused_until = now + self._penalty
        return True

    def refused(self, peer: K, now: float) -> bool:
        record = self._records.get(peer)
        return record is not None and record.refused_until > now
