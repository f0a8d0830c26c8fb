"""What an execution may cost: the one formula (`consensus.fees`) on today's gas price, for quotes and for authorisations.

No user's website is read and no script is run for it: what a run takes is known from the script's own runs before.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import structlog

from consensus import fees
from consensus.codec import keccak
from consensus.errors import Failed, Invalid
from consensus.fees import Quote
from coordinator.definitions.posted import DYNAMIC, static_call
from coordinator.store.port import Store
from node.arguments import resolve_function
from node.infra.chain import Chain
from node.infra.clock import Clock
from node.infra.compute import Compute
from node.scripts.source import parse_source

log = structlog.get_logger(__name__)

UNTRIED_GAS = 500_000
"""Inner gas of a static call that reverts until its time has come."""
SCRIPTED_GAS = 1_000_000
"""Inner gas of a call that a script decides, unless its job is posted with a `gas_limit`: it cannot be tried ahead."""
LEAST_GAS = 50_000
"""A first write to fresh storage, whatever the estimate said of a warm one."""
MOST_GAS = 10_000_000
"""A third of a block of Ethereum; the hub must get it forwarded in full."""
_GAS_MARGIN = 1.3  # a call's gas changes with its contract's storage between posting and each execution
_KEPT_S = 10.0  # an estimate: clients ask again and again while their user thinks
_KEPT = 1024


class Fees:
    """Prices executions on the chains served."""

    def __init__(self, store: Store, chains: Mapping[int, Chain], clock: Clock, compute: Compute) -> None:
        self._store = store
        self._chains = chains
        self._clock = clock
        self._compute = compute
        self._estimates: OrderedDict[tuple[int, bytes, bytes], tuple[float, int]] = OrderedDict()

    def chain(self, chain_id: int, field: str) -> Chain:
        """The chain with this id. Raises `Invalid` for `field`."""
        chain = self._chains.get(chain_id)
        if chain is None:
            known = ", ".join(map(str, sorted(self._chains)))
            raise Invalid(field, f"chain {chain_id} is not served here", f"one of {known}", code="UNKNOWN_CHAIN")
        return chain

    async def bound(self, chain_id: int, *, level: int, gas: int, priority: int, script_url: str) -> Quote:
        """Most that one execution may cost now; `script_url` is empty for a static job. Raises `Transient`."""
        before = await self._store.usage(cid_of(script_url)) if script_url else None
        execution = await self._chains[chain_id].quote(level, gas)
        return fees.quote(execution, priority, scripted=bool(script_url), before=before)

    async def quote(
        self,
        chain_id: int,
        definition: int,
        *,
        contract: bytes | None,
        function: str,
        abi: str,
        arguments: str,
        script_url: str,
        level: int = 0,
        priority: int = 3,
    ) -> tuple[Quote, int]:
        """The bound for a job that is not posted yet, and the inner gas that it allows for. Raises `Invalid`, `Transient`."""
        self.chain(chain_id, "target_chain_id")
        gas = SCRIPTED_GAS if definition in DYNAMIC else UNTRIED_GAS
        if contract is not None and function:
            if arguments and definition not in DYNAMIC:
                call = await self._compute(static_call, function, arguments, abi)
                gas = await self.gas_limit(chain_id, contract, call.data)
            else:
                await self._compute(resolve_function, function, abi)
        # of a dynamic job whose script is not named yet, a script's default all the same
        script = (script_url or "?") if definition in DYNAMIC else ""
        return await self.bound(chain_id, level=level, gas=gas, priority=priority, script_url=script), gas

    async def gas_limit(self, chain_id: int, contract: bytes, call: bytes) -> int:
        """Gas that the hub must forward for this call, with a margin. Raises `Invalid` when it needs too much."""
        key, now = (chain_id, contract, keccak(call)), self._clock.now()
        at, gas = self._estimates.get(key, (float("-inf"), 0))
        if not 0 <= now - at < _KEPT_S:
            gas = await _tried(self._chains[chain_id], contract, call)
            self._estimates[key] = (now, gas)
            self._estimates.move_to_end(key)
            if len(self._estimates) > _KEPT:
                self._estimates.popitem(last=False)
        return gas


def cid_of(script_url: str) -> str:
    """What runs of a script are known by, wherever it is fetched from; '' for a URL that names no content."""
    try:
        return parse_source(script_url).cid
    except Invalid:
        return ""


async def _tried(chain: Chain, contract: bytes, call: bytes) -> int:
    try:
        estimate = await chain.estimate_call(contract, call)
    except Failed as error:
        log.info("call_reverts_now", target="0x" + contract.hex(), code=error.code, detail=error.detail)
        return UNTRIED_GAS
    wanted = max(LEAST_GAS, int(estimate * _GAS_MARGIN))
    if wanted > MOST_GAS:
        raise Invalid(
            "target_function", f"the call needs {estimate} gas, at most {int(MOST_GAS / _GAS_MARGIN)}", "do less in a call"
        )
    return wanted
