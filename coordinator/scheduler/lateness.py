"""How late firings were handed over: counted for ever, remembered for a while."""

from __future__ import annotations

import math
from collections import deque

_REMEMBERED = 8192  # half a minute of a busy coordinator: enough for a p99, 64 KB


class Lateness:
    """Seconds between the moment a firing should have been handed over and the moment it was."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=_REMEMBERED)
        self.count = 0
        self.total = 0.0
        self.worst = 0.0

    def add(self, seconds: float) -> None:
        self._recent.append(seconds)
        self.count += 1
        self.total += seconds
        self.worst = max(self.worst, seconds)

    def quantile(self, q: float) -> float:
        """Of the newest 8,192, by nearest rank; 0 before the first."""
        ordered = sorted(self._recent)
        return ordered[max(0, math.ceil(q * len(ordered)) - 1)] if ordered else 0.0
