"""What a keeper has earned and not been paid yet: found in the contracts' events, paid to its rewards address."""

from __future__ import annotations

from dataclasses import dataclass

from eth_utils.address import to_canonical_address, to_checksum_address

from cli.account import Sender
from consensus.errors import Failed
from node.infra.chain import TaskValidated
from node.infra.contracts import RUN_EARNINGS, Function
from node.infra.evm import EvmChain
from node.infra.evm_reads import View

OPERATOR_ID_OF = Function("operatorIdOf", ("address",), ("uint256",))
ATTESTATIONS = Function("attestations", ("uint256",), ("uint256",))
OWED = Function("owed", ("uint256", "uint256"), ("uint256",))
CLAIM = Function("claim", ("uint256", "uint256[]"), ("uint256",))

_TASKS_AT_ONCE = 128  # what Hub.claim takes
_BLOCKS_AT_ONCE = 5_000
_VIEWS_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class Claimed:
    """What was paid: number of executions and attestations, wei for runs without a transaction, and the transactions."""

    executions: int
    attestations: int
    runs_wei: int
    transactions: tuple[str, ...]


async def claim(sender: Sender, chain: EvmChain, since_block: int) -> Claimed:
    """Claims everything the sender's operator is owed. Raises `Failed` (`UNKNOWN_OPERATOR`) for an account without one."""
    domain = chain.domain
    [operator] = await chain.reader.view(domain.keeper_registry, OPERATOR_ID_OF, to_canonical_address(sender.address))
    if operator == 0:
        raise Failed("UNKNOWN_OPERATOR", f"{sender.address} is no operator of this registry")
    [attestations] = await chain.reader.view(domain.attestation_center, ATTESTATIONS, operator)
    [runs_wei] = await chain.reader.view(domain.hub, RUN_EARNINGS, operator)
    tasks = await _owed(chain, operator, since_block)
    batches = [tasks[i : i + _TASKS_AT_ONCE] for i in range(0, len(tasks), _TASKS_AT_ONCE)]
    if not batches and (attestations or runs_wei):
        batches = [[]]  # the attestations and runs alone
    hub = to_checksum_address(domain.hub)
    receipts = [await sender.send(hub, CLAIM.encode(operator, batch)) for batch in batches]
    return Claimed(len(tasks), attestations, runs_wei, tuple(str(receipt["transactionHash"]) for receipt in receipts))


async def _owed(chain: EvmChain, operator: int, since_block: int) -> list[int]:
    """Certified tasks that the operator performed or submitted and has not been paid for."""
    head = await chain.head()
    mine: list[int] = []
    for start in range(since_block, head.number + 1, _BLOCKS_AT_ONCE):
        for event in await chain.events(start, min(start + _BLOCKS_AT_ONCE - 1, head.number)):
            if isinstance(event, TaskValidated) and operator in (event.performer_id, event.submitter_id):
                mine.append(event.task_id)
    unpaid: list[int] = []
    for i in range(0, len(mine), _VIEWS_AT_ONCE):
        asked = mine[i : i + _VIEWS_AT_ONCE]
        answers = await chain.reader.views([View(chain.domain.hub, OWED, (task_id, operator)) for task_id in asked])
        unpaid += [task_id for task_id, (wei,) in zip(asked, answers, strict=True) if wei]
    return unpaid
