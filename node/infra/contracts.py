"""The calls our contracts take and answer, as typed values; a test holds the signatures against the artifacts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from eth_abi.abi import decode as abi_decode
from eth_abi.abi import encode as abi_encode
from eth_abi.exceptions import DecodingError

from consensus import bls, merkle
from consensus.codec import keccak
from consensus.errors import Failed
from consensus.messages import Authorisation, Uint256
from node.infra.chain import MAX_CHARGES, MAX_RUN_FEE, Certificate, RunCharge

AUTHORISATION = "(uint256,uint256,uint256,address,bytes32,address,bytes4,bytes32,uint256,uint256,uint256,uint256,uint256)"
"""The Authorisation struct of Hub.vy, in the order of its EIP-712 type."""
CERTIFICATE_VERSION = 1


@dataclass(frozen=True, slots=True)
class Function:
    """One contract function: its name and the ABI types it takes and returns. `selector` is the call's first four bytes."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...] = ()

    @property
    def signature(self) -> str:
        return f"{self.name}({','.join(self.inputs)})"

    @property
    def selector(self) -> bytes:
        return _selector(self.signature)

    def encode(self, *values: Any) -> bytes:
        """Calldata. Addresses are 20 bytes."""
        return self.selector + abi_encode(self.inputs, values)

    def decode_input(self, data: bytes) -> tuple[Any, ...]:
        """The arguments of a call. Raises `Failed` (`MALFORMED_CALL`) for another function's or malformed calldata."""
        if data[:4] != self.selector:
            raise Failed("MALFORMED_CALL", f"not a call of {self.name}")
        return _decode(self.inputs, data[4:], self.name)

    def decode_output(self, data: bytes) -> tuple[Any, ...]:
        """What the function returned; addresses come as 20 bytes. Raises `Failed` (`MALFORMED_CALL`)."""
        return _decode(self.outputs, data, self.name)


@cache
def _selector(signature: str) -> bytes:
    return keccak(signature.encode())[:4]


def _decode(types: Sequence[str], data: bytes, name: str) -> tuple[Any, ...]:
    try:
        values = abi_decode(types, data)
    except (DecodingError, OverflowError, ValueError) as error:
        raise Failed("MALFORMED_CALL", f"{name}: {error}") from None
    return tuple(_plain(kind, value) for kind, value in zip(types, values, strict=True))


def _plain(kind: str, value: Any) -> Any:
    """eth_abi gives addresses as hex text; here they are bytes."""
    if kind == "address":
        return bytes.fromhex(value[2:])
    if kind == "address[]":
        return tuple(bytes.fromhex(each[2:]) for each in value)
    if kind.startswith("("):
        return tuple(_plain(k, v) for k, v in zip(kind[1:-1].split(","), value, strict=True))
    return value


_JOB = "(address,uint256,uint256,uint256,address,uint256,bool)"
_OPERATOR = "(uint256,address,address,uint256,uint256,bytes,bytes,uint256,uint256,uint256,uint256)"
_EXECUTION = "(uint256,uint256,address,address,uint256,uint256,uint256,uint256,uint256,bool,uint256,uint256,bytes32)"
_ONE = ("uint256",)

EXECUTE = Function("execute", (AUTHORISATION, "bytes", "address", "bytes", "uint256"), ("bool",))
EXECUTION = Function("execution", _ONE, (_EXECUTION,))
CHARGE_RUNS = Function("chargeRuns", ("(uint256,uint256,uint256,uint256)[]",), _ONE)
RUN_EARNINGS = Function("runEarnings", _ONE, _ONE)
SET_POLICY = Function("setJobPolicy", ("uint256", "bytes32", "uint256", "uint256", "uint256"))
POLICY = Function("policies", _ONE, ("(bytes32,uint256,uint256,uint256,bool)",))
SET_RUN_ALLOWANCE = Function("setRunAllowance", ("uint256", "uint256"))
RUN_ALLOWANCE = Function("runAllowance", _ONE, _ONE)
SERVICE_FEE = Function("serviceFee", (), _ONE)
OVERHEAD_GAS = Function("OVERHEAD_GAS", (), _ONE)
DATA_GAS = Function("DATA_GAS", (), _ONE)
VALIDATION_GAS = Function("VALIDATION_GAS", (), _ONE)
VALIDATION_SEAT_GAS = Function("VALIDATION_SEAT_GAS", (), _ONE)
PRIORITY_CAP = Function("PRIORITY_CAP", (), _ONE)
UNIT = Function("UNIT", (), _ONE)
HUB_LINKS = {
    "attestation_center": Function("attestationCenter", (), ("address",)),
    "keeper_registry": Function("keeperRegistry", (), ("address",)),
    "job_registry": Function("jobRegistry", (), ("address",)),
    "gas_registry": Function("gasRegistry", (), ("address",)),
}
"""The contracts that a hub works with, by their names in the configuration."""
SET_DISPATCHER = Function("setDispatcher", ("address", "bool"))
SUBMIT_VALIDATION = Function("submitTaskValidation", ("uint256", "bytes32", "bytes", "address[]"))
EXPIRE = Function("expire", _ONE)
ROUND_SECONDS = Function("ROUND_SECONDS", (), _ONE)
REGISTER = Function("register", ("bytes", "bytes", "bytes", "address"))
ADVANCE_EPOCH = Function("advanceEpoch", ())
CURRENT_EPOCH = Function("currentEpoch", (), _ONE)
EPOCH_AT = Function("epochAt", _ONE, _ONE)
EPOCH_INFO = Function("epochInfo", _ONE, ("address", "uint256", "uint256", "uint256"))
OPERATOR = Function("operator", _ONE, (_OPERATOR,))
OPERATOR_COUNT = Function("operatorCount", (), _ONE)
CREATE_JOB = Function("createJob", ("string", "uint8", "uint256", "address", "bytes"), _ONE)
DELETE_JOB = Function("deleteJob", _ONE)
JOB = Function("job", _ONE, (_JOB,))
DEPOSIT = Function("depositETH", _ONE)
GET_BALANCE = Function("getBalance", ("address",), _ONE)

FUNCTIONS: dict[str, tuple[Function, ...]] = {
    "Hub": (
        EXECUTE,
        EXECUTION,
        CHARGE_RUNS,
        RUN_EARNINGS,
        SET_POLICY,
        POLICY,
        SET_RUN_ALLOWANCE,
        RUN_ALLOWANCE,
        SERVICE_FEE,
        OVERHEAD_GAS,
        DATA_GAS,
        VALIDATION_GAS,
        VALIDATION_SEAT_GAS,
        PRIORITY_CAP,
        UNIT,
        *HUB_LINKS.values(),
        SET_DISPATCHER,
    ),
    "AttestationCenter": (SUBMIT_VALIDATION, EXPIRE, ROUND_SECONDS),
    "KeeperRegistry": (REGISTER, ADVANCE_EPOCH, CURRENT_EPOCH, EPOCH_AT, EPOCH_INFO, OPERATOR, OPERATOR_COUNT),
    "JobRegistry": (CREATE_JOB, DELETE_JOB, JOB),
    "TriggerGasRegistry": (DEPOSIT, GET_BALANCE),
}
"""Every function named here, by contract: the table that the test compares with the artifacts."""


@dataclass(frozen=True, slots=True)
class ExecuteCall:
    """The arguments of one `Hub.execute`."""

    authorisation: Authorisation
    signature: bytes
    target: bytes
    call: bytes
    resource_fee: int


def encode_execute(authorisation: Authorisation, signature: bytes, target: bytes, call: bytes, resource_fee: int) -> bytes:
    """Calldata of `Hub.execute`."""
    a = authorisation
    struct = (
        a.job_id,
        a.trigger_id,
        a.attempt,
        a.performer,
        a.spec,
        a.target,
        a.selector,
        a.call_hash,
        a.gas_limit,
        a.level,
        a.max_fee,
        a.not_before,
        a.deadline,
    )
    return EXECUTE.encode(struct, signature, target, call, resource_fee)


def decode_execute(data: bytes) -> ExecuteCall:
    """What a transaction to the hub asked for. Raises `Failed` (`MALFORMED_CALL`) when it is no valid `execute`."""
    fields, signature, target, call, resource_fee = EXECUTE.decode_input(data)
    job_id, trigger_id, attempt, performer, spec, named, selector, call_hash, gas, level, max_fee, not_before, deadline = fields
    try:
        authorisation = Authorisation(
            job_id=Uint256(job_id),
            trigger_id=Uint256(trigger_id),
            attempt=attempt,
            performer=performer,
            spec=spec,
            target=named,
            selector=selector,
            call_hash=call_hash,
            gas_limit=gas,
            level=level,
            max_fee=Uint256(max_fee),
            not_before=not_before,
            deadline=deadline,
        )
    except ValueError as error:
        raise Failed("MALFORMED_CALL", f"execute: {error}") from None
    return ExecuteCall(authorisation, signature, target, call, resource_fee)


def encode_charges(charges: Sequence[RunCharge]) -> bytes:
    """Calldata of `Hub.chargeRuns`. Raises ValueError for what the hub refuses as a whole."""
    if not 1 <= len(charges) <= MAX_CHARGES:
        raise ValueError(f"{len(charges)} charges: from 1 to {MAX_CHARGES} fit one call")
    if not all(1 <= c.fee <= MAX_RUN_FEE for c in charges):
        raise ValueError(f"a run costs from 1 to {MAX_RUN_FEE} wei")
    return CHARGE_RUNS.encode([(c.job_id, c.trigger_id, c.performer_id, c.fee) for c in charges])


def charges_key(data: bytes, again: int = 0) -> str:
    """The key under which a wallet sends a call of `chargeRuns`, once for each `again`."""
    return f"charge:{keccak(data).hex()[:32]}" + (f":{again}" if again else "")


def certificate_root(certificate: Certificate) -> bytes:
    """`proofOfTask` of a tree of one: its only leaf."""
    return merkle.leaf(certificate.task_id, certificate.execution, certificate.verdict)


def encode_certificate(certificate: Certificate, submitter_position: int) -> bytes:
    """Calldata of `submitTaskValidation` for the tree of one; the position is the submitter's in the epoch's operators.

    Raises `bls.InvalidPoint` for a signature that is no point.
    """
    head = bytes([CERTIFICATE_VERSION, certificate.verdict, certificate.round, 0, 0, submitter_position])
    place = certificate.epoch.to_bytes(8, "big") + certificate.block_number.to_bytes(8, "big")
    packed = head + place + bls.signature_to_evm(certificate.signature)
    return SUBMIT_VALIDATION.encode(certificate.task_id, certificate_root(certificate), packed, certificate.signers)
