"""eth_call and eth_estimateGas: run a message on a state and throw its effects away."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

from eth.abc import ComputationAPI, StateAPI
from eth.exceptions import OutOfGas, Revert, VMError
from eth.vm.forks.prague.transactions import PragueTransactionBuilder
from eth.vm.spoof import SpoofTransaction
from eth_abi.abi import decode
from eth_abi.exceptions import DecodingError
from eth_typing import Address
from eth_utils.exceptions import ValidationError

from cli.devnet.embedded.errors import REVERTED, RpcError, refused
from cli.devnet.embedded.evm import DevnetVM
from cli.devnet.embedded.pool import BASE_GAS, floor_gas

ERROR_STRING: Final = bytes.fromhex("08c379a0")  # Error(string)
PANIC: Final = bytes.fromhex("4e487b71")  # Panic(uint256)
CALL_STIPEND: Final = 2300

# geth's estimateGasErrorRatio: stop when what is known to suffice is within 1.5 % of what is known not to.
ESTIMATE_TOLERANCE_PER_MILLE: Final = 15


@dataclass(frozen=True, slots=True)
class Call:
    """A message to run. Prices are wei; 0 means no price named, and then neither base fee nor balance for gas counts."""

    sender: bytes
    to: bytes
    """Empty to create a contract."""
    data: bytes
    value: int
    gas: int
    max_fee: int
    tip: int
    access_list: tuple[tuple[bytes, tuple[int, ...]], ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What running a message gave."""

    computation: ComputationAPI
    gas_used: int
    refund: int

    @property
    def failed(self) -> bool:
        """Reverted, or ended in an exceptional halt."""
        return self.computation.is_error


def run(state: StateAPI, call: Call, chain_id: int) -> Outcome:
    """Run `call` on `state`, which is left as it was. Raises RpcError where the sender cannot even start it."""
    unsigned = PragueTransactionBuilder.new_unsigned_dynamic_fee_transaction(
        chain_id=chain_id,
        nonce=state.get_nonce(call.sender),  # type: ignore[arg-type]
        max_priority_fee_per_gas=call.tip,
        max_fee_per_gas=call.max_fee,
        gas=call.gas,
        to=Address(call.to),
        value=call.value,
        data=call.data,
        access_list=[(Address(account), slots) for account, slots in call.access_list],
    )
    transaction: Any = SpoofTransaction(unsigned, from_=call.sender)
    if call.gas < transaction.intrinsic_gas:
        raise refused(f"intrinsic gas too low: gas {call.gas}, minimum needed {transaction.intrinsic_gas}")
    balance = state.get_balance(call.sender)  # type: ignore[arg-type]
    cost = call.value + call.gas * call.max_fee
    if balance < cost:
        raise refused(f"insufficient funds for gas * price + value: balance {balance}, tx cost {cost}, overshot {cost - balance}")
    state.lock_changes()
    snapshot = state.snapshot()
    try:
        computation = state.apply_transaction(transaction)
        used = DevnetVM.finalize_gas_used(transaction, computation)
    except ValidationError as error:
        raise refused(str(error)) from error
    finally:
        state.revert(snapshot)
    return Outcome(computation, used, computation.get_gas_refund())


def output(outcome: Outcome) -> bytes:
    """What the call returned; raises RpcError with geth's code and words when it failed."""
    if outcome.failed:
        raise failure(outcome)
    return bytes(outcome.computation.output)


def failure(outcome: Outcome) -> RpcError:
    """The error that a failed call answers with."""
    error = outcome.computation.error
    if isinstance(error, Revert):
        data = bytes(outcome.computation.output)
        reason = revert_reason(data)
        return RpcError(REVERTED, f"execution reverted: {reason}" if reason else "execution reverted", "0x" + data.hex())
    return refused(_halt(error))


def revert_reason(data: bytes) -> str:
    """The text of Error(string) or the code of Panic(uint256); empty for anything else."""
    try:
        if data[:4] == ERROR_STRING:
            return str(decode(["string"], data[4:])[0])
        if data[:4] == PANIC:
            return f"panic: 0x{decode(['uint256'], data[4:])[0]:02x}"
    except (DecodingError, UnicodeDecodeError, OverflowError):
        return ""
    return ""


def _halt(error: VMError) -> str:
    if isinstance(error, OutOfGas):
        return f"out of gas: {error}"
    return str(error) or type(error).__name__


def estimate(state: StateAPI, call: Call, chain_id: int, limit: int) -> int:
    """The least gas limit (within 1.5 %) with which `call` succeeds, as geth searches for it.

    Gas used is not enough: a call passes on at most 63/64 of what is left, and refunds come only at the end.
    Raises RpcError with the call's own failure when it fails with all the gas there is.
    """
    highest = min(call.gas, limit)
    if call.max_fee:
        spare = state.get_balance(call.sender) - call.value  # type: ignore[arg-type]
        highest = min(highest, max(spare, 0) // call.max_fee)
    at_most = run(state, replace(call, gas=highest), chain_id)
    if at_most.failed:
        error = failure(at_most)
        if isinstance(at_most.computation.error, OutOfGas) and highest < limit:
            raise refused(f"gas required exceeds allowance ({highest})")
        raise error

    def fails(gas: int) -> bool:
        try:
            return run(state, replace(call, gas=gas), chain_id).failed
        except RpcError:
            return True  # below the intrinsic gas

    floor = floor_gas(call.data)
    low = max(at_most.gas_used - 1, BASE_GAS - 1)
    likely = (at_most.gas_used + at_most.refund + CALL_STIPEND) * 64 // 63
    if likely < highest:
        low, highest = (likely, highest) if fails(likely) else (low, likely)
    while low + 1 < highest and (highest - low) * 1000 > highest * ESTIMATE_TOLERANCE_PER_MILLE:
        # Most calls need little more than they use: probing near the bottom finds that sooner.
        middle = min((low + highest) // 2, low * 2)
        low, highest = (middle, highest) if fails(middle) else (low, middle)
    return max(highest, floor)
