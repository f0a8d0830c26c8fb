"""One account on an EVM chain: our contracts' transactions, with everything but the nonce and the signature done ahead."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from consensus.committee import SIZE_BY_LEVEL
from consensus.errors import Failed, Transient
from consensus.messages import Authorisation
from node.infra import contracts
from node.infra.chain import Certificate, ExecutionStatus, Mined, Prepared, RunCharge
from node.infra.evm import EXECUTE_GAS, EvmChain, Tariff, intrinsic_gas
from node.infra.evm_reads import hex_of, int_of
from node.infra.gas_limits import GasLimits
from node.infra.refusals import is_contract_reason
from node.infra.rpc import RpcError
from node.infra.transaction_log import NO_LIMIT
from node.infra.transactions import Outbox, PreparedTransaction

CALL_MARGIN = 30_000
"""Gas that the hub keeps for itself beside the inner call's (Hub.vy)."""
CERTIFICATE_GAS = 300_000
CERTIFICATE_SIGNER_GAS = 15_000
"""Limits of a certificate's transaction beside its calldata: measured 215,000 with 5 signers and 235,000 with 13, fresh slots."""
EXPIRY_GAS = 120_000
"""Limit of an expiry's: measured 54,000, and 17,000 more when the owner's balance was used up."""
CHARGES_GAS = 40_000
CHARGE_GAS = 90_000
"""Limits of a batch of run charges beside its calldata: measured 65,000 for each of different owners, jobs and operators."""
_FEE_STEP = 10**6  # wei; the hub counts fees in these (execution_record.vy)
_EPOCH_MARGIN = 1.2  # over the node's estimate: members may join until it is mined
_RECEIPT_PAUSES_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


@dataclass(frozen=True, slots=True)
class EvmPrepared:
    """A transaction of this wallet, priced and built."""

    transaction: PreparedTransaction

    @property
    def key(self) -> str:
        return self.transaction.key


class EvmWallet:
    """`Wallet` over an account's `Outbox`. A doomed transaction is found by its receipt, and its reason by calling again;
    certificates and expiries of settled tasks are refused when they are prepared."""

    def __init__(self, chain: EvmChain, outbox: Outbox) -> None:
        self._chain = chain
        self._outbox = outbox
        self._gas = GasLimits(chain.reader.rpc, outbox.address)

    @property
    def address(self) -> bytes:
        return self._outbox.address

    async def prepare_execution(
        self, authorisation: Authorisation, signature: bytes, target: bytes, call: bytes, resource_fee: int
    ) -> EvmPrepared:
        data = contracts.encode_execute(authorisation, signature, target, call, resource_fee)
        key = f"execute:{authorisation.task_id}:{authorisation.attempt}"
        hub, gas = self._chain.domain.hub, execution_gas(authorisation.gas_limit, data)
        scripted = not any(authorisation.call_hash)
        if scripted and await self._outbox.sent(key) is None:  # what a script asks for is tried before it costs anything
            try:
                gas = await self._gas.tried(hub, data, gas, authorisation.not_before)
            except RpcError as error:
                raise Transient("RPC_ERROR", error.message) from error
        most = price_limit(self._chain.tariff, authorisation.level, authorisation.max_fee)
        return await self._prepare(key, hub, data, gas, most)

    async def prepare_certificate(self, certificate: Certificate) -> EvmPrepared:
        key = f"certify:{certificate.task_id}:{certificate.round}"
        epoch = await self._chain.epoch_at(certificate.block_number)
        position = epoch.by_address.get(self.address) if epoch else None
        if position is None:
            raise Failed("HUB_REFUSED", "NotActiveOperator")
        await self._refuse_settled(key, certificate.task_id)
        data = contracts.encode_certificate(certificate, position)
        gas = intrinsic_gas(data) + CERTIFICATE_GAS + CERTIFICATE_SIGNER_GAS * len(certificate.signers)
        return await self._prepare(key, self._chain.domain.attestation_center, data, gas)

    async def prepare_expiry(self, task_id: int) -> EvmPrepared:
        key = f"expire:{task_id}"
        await self._refuse_settled(key, task_id)
        return await self._prepare(key, self._chain.domain.attestation_center, contracts.EXPIRE.encode(task_id), EXPIRY_GAS)

    async def prepare_run_charges(self, charges: Sequence[RunCharge], *, again: int = 0) -> EvmPrepared:
        data = contracts.encode_charges(charges)
        gas = intrinsic_gas(data) + CHARGES_GAS + CHARGE_GAS * len(charges)
        return await self._prepare(contracts.charges_key(data, again), self._chain.domain.hub, data, gas)

    async def prepare_epoch(self) -> EvmPrepared:
        registry = self._chain.domain.keeper_registry
        data = contracts.ADVANCE_EPOCH.encode()
        request = {"from": hex_of(self.address), "to": hex_of(registry), "data": hex_of(data)}
        head = await self._chain.head()
        [current] = await self._chain.reader.view(registry, contracts.CURRENT_EPOCH)
        try:
            gas = int_of(await self._chain.reader.rpc.call("eth_estimateGas", [request]))
        except RpcError as error:
            if error.reason:
                raise Failed("HUB_REFUSED", error.reason) from error
            raise Transient("RPC_ERROR", f"eth_estimateGas: {error.message}") from error
        # The block is in the key: an advance that came too early may be tried again, and one too many is harmless.
        return await self._prepare(f"epoch:{current + 1}:{head.number}", registry, data, int(gas * _EPOCH_MARGIN))

    async def send(self, prepared: Prepared) -> bytes:
        if not isinstance(prepared, EvmPrepared):
            raise TypeError("prepared by another wallet")
        try:
            return await self._outbox.send(prepared.transaction)
        except Failed as error:
            # Some nodes run a transaction before they take it, and answer with the contract's reason.
            if error.code == "TRANSACTION_REFUSED" and is_contract_reason(error.detail):
                raise Failed("HUB_REFUSED", error.detail) from error
            raise
        except RpcError as error:
            raise Transient("RPC_ERROR", error.message) from error

    async def sent(self, key: str) -> bytes | None:
        return await self._outbox.sent(key)

    async def mined(self, tx_hash: bytes) -> Mined:
        receipt = await self._outbox.receipt(tx_hash, self._pauses())
        if not receipt.status:  # callers give up on it: in a reorganisation it may yet succeed
            receipt = await self._outbox.receipt(tx_hash, self._pauses(), confirmations=self._chain.confirmations)
        reason = "" if receipt.status else await self._reason(receipt.tx_hash, receipt.block_number)
        return Mined(receipt.tx_hash, receipt.block_number, receipt.status, receipt.gas_used, reason)

    def _pauses(self) -> Iterator[float]:
        """Quick at first, for chains that mine at once; never slower than the head is looked at."""
        slowest = self._chain.poll_seconds
        yield from (pause for pause in _RECEIPT_PAUSES_S if pause < slowest)
        yield slowest

    async def _prepare(self, key: str, to: bytes, data: bytes, gas: int, most: int = NO_LIMIT) -> EvmPrepared:
        try:
            limit = await self._gas.computed(data, gas)
            return EvmPrepared(await self._outbox.prepare(key, to, data, gas=limit, most=most))
        except RpcError as error:
            raise Transient("RPC_ERROR", error.message) from error

    async def _refuse_settled(self, key: str, task_id: int) -> None:
        """What is bound to be refused costs no gas; what was sent before must still be sendable as it was."""
        record = await self._chain.execution(task_id)
        if record is not None and record.status is ExecutionStatus.PENDING:
            return
        if await self._outbox.sent(key) is None:
            raise Failed("HUB_REFUSED", "UnknownExecution" if record is None else "AlreadyCertified")

    async def _reason(self, tx_hash: bytes, block_number: int) -> str:
        """Why a mined transaction reverted: the same call again, on the state after its block; empty when it cannot be told."""
        try:
            transaction: dict[str, Any] | None = await self._chain.reader.call("eth_getTransactionByHash", [hex_of(tx_hash)])
            if transaction is None:
                return ""
            request = {field: transaction[field] for field in ("from", "to", "value")} | {"data": transaction["input"]}
            await self._chain.reader.rpc.call("eth_call", [request, hex(block_number)])
        except RpcError as error:
            return error.reason or ""
        except (Transient, KeyError):
            return ""
        return ""


def price_limit(tariff: Tariff, level: int, max_fee: int) -> int:
    """Wei for a unit of gas beyond which the hub refuses an execution (`InsufficientFeeCap`): what the committee and the
    certificate get would be more than the job pays at all."""
    size = SIZE_BY_LEVEL[level]
    share = tariff.validation_gas + tariff.validation_seat_gas * size
    return max(0, max_fee - _FEE_STEP - tariff.unit * size) // share


def execution_gas(gas_limit: int, data: bytes) -> int:
    """Gas limit of an `execute` whose inner call gets `gas_limit` in full.

    EIP-150 forwards at most 63/64 of what is left, and the hub insists on a margin; its own work comes before and after.
    """
    return intrinsic_gas(data) + EXECUTE_GAS + -(-(gas_limit + CALL_MARGIN) * 64 // 63)
