"""The one formula of fees: what `GET /api/fees` quotes, what an authorisation allows at most, and what a performer may claim.

fee = gas x price + aggregation + base fee + resources, at most the authorisation's `max_fee`. The hub (Hub.vy) measures the gas
and adds the aggregation's share; base fee and resources are this module's, and reach the hub as `resourceFee`. docs/fees.md
has the whole formula, with the sources of its constants and a worked example.
"""

from __future__ import annotations

from dataclasses import dataclass

from consensus.messages import Usage

BASE_FEE = {1: 3 * 10**12, 2: 2 * 10**12, 3: 10**12}
"""Wei by priority (1 high .. 3 low)."""
CPU_SECOND = 2 * 10**12
"""Wei a second of CPU."""
MIB_SECOND = 5 * 10**9
"""Wei a MiB held for a second: peak memory times wall time."""
KIB_TRANSFERRED = 10**9
"""Wei a KiB to or from declared hosts."""
UNKNOWN_RUN = Usage(cpu_ms=2_000, wall_ms=4_000, peak_kib=128 * 1024, transferred=256 * 1024)
"""What a run is taken to use whose script has not run yet: a start of the slowest language, a few requests."""
_MARGIN = 2  # of an expected run over those before it: the next one's data may be larger


@dataclass(frozen=True, slots=True)
class Quote:
    """Upper bound of one execution's fee, wei by its parts. `execution` is the hub's part: gas at today's price with the chain's
    margin, and the aggregation's share; `base` goes by priority, `script` is what its run may take."""

    execution: int
    base: int
    script: int

    @property
    def total(self) -> int:
        return self.execution + self.base + self.script


def run_fee(usage: Usage | None) -> int:
    """Wei for the resources of a run; 0 for none."""
    if usage is None:
        return 0
    cpu = usage.cpu_ms * CPU_SECOND // 1000
    memory = usage.peak_kib * usage.wall_ms * MIB_SECOND // (1024 * 1000)
    return cpu + memory + usage.transferred * KIB_TRANSFERRED // 1024


def resource_fee(priority: int, usage: Usage | None) -> int:
    """Wei that a performer claims beside gas: what it passes to `Hub.execute` as `resourceFee`."""
    return BASE_FEE[priority] + run_fee(usage)


def expected(before: Usage | None) -> Usage:
    """What the next run of a script may use, by what those before it used (None: nobody has run it)."""
    if before is None:
        return UNKNOWN_RUN
    return Usage(
        cpu_ms=_MARGIN * before.cpu_ms,
        wall_ms=_MARGIN * before.wall_ms,
        peak_kib=_MARGIN * before.peak_kib,
        transferred=_MARGIN * before.transferred,
    )


def quote(execution: int, priority: int, *, scripted: bool, before: Usage | None = None) -> Quote:
    """The bound for a job whose hub's part is at most `execution` wei; `before` as in `expected`."""
    return Quote(execution, BASE_FEE[priority], run_fee(expected(before)) if scripted else 0)
