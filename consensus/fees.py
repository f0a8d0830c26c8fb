"""The one formula of fees: what `GET /api/fees` quotes, what an authorisation allows at most, and what a performer may claim.

On chain (Hub.vy): fee = (measured gas + overhead) x capped price + validation share + attesters' units + service fee +
resource fee, at most the authorisation's `max_fee`. The resource fee is this module's: base fee of the job's priority, and
the script's CPU, memory and traffic.
"""

from __future__ import annotations

from consensus.messages import Usage

BASE_FEE = {1: 3 * 10**12, 2: 2 * 10**12, 3: 10**12}
"""Wei by priority (1 high .. 3 low)."""
CPU_SECOND = 2 * 10**12
"""Wei a second of CPU."""
MIB_SECOND = 5 * 10**9
"""Wei a MiB held for a second: peak memory times wall time."""
KIB_TRANSFERRED = 10**9
"""Wei a KiB to or from declared hosts."""


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
