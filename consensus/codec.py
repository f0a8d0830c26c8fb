"""What is signed: keccak and the EIP-712 digests that Hub, AttestationCenter and KeeperRegistry recompute on chain.

Every type here is a flat struct of static words, so its EIP-712 encoding is the type hash followed by the
fields, 32 bytes each (https://eips.ethereum.org/EIPS/eip-712#definition-of-encodedata).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from eth_hash.auto import keccak as keccak256

UINT256_MAX = 2**256 - 1


def keccak(data: bytes) -> bytes:
    """Keccak-256 as Ethereum uses it, 32 bytes."""
    return bytes(keccak256(data))


def word(value: int | bytes | bool) -> bytes:
    """One 32-byte ABI word: unsigned integers and addresses are right-aligned, bytes32 as they are, bytes4 left-aligned."""
    if isinstance(value, int):
        return value.to_bytes(32, "big")
    if len(value) == 20:
        return bytes(12) + value
    if len(value) > 32:
        raise ValueError(f"{len(value)} bytes do not fit a word")
    return value.ljust(32, b"\0")


def words(*values: int | bytes | bool) -> bytes:
    """`abi.encode` of static values."""
    return b"".join(map(word, values))


DOMAIN_TYPEHASH = keccak(b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")
AUTHORISATION_TYPEHASH = keccak(
    b"Authorisation(uint256 jobId,uint256 triggerId,uint256 attempt,address performer,bytes32 spec,address target,"
    b"bytes4 selector,bytes32 callHash,uint256 gasLimit,uint256 level,uint256 maxFee,uint256 notBefore,uint256 deadline)"
)
EXECUTION_TYPEHASH = keccak(
    b"Execution(uint256 taskId,uint256 jobId,uint256 triggerId,uint256 attempt,address performer,bytes32 spec,address target,"
    b"bytes32 callHash,bool success,uint256 fee,uint256 blockNumber,uint256 timestamp)"
)
ATTESTATION_TYPEHASH = keccak(b"Attestation(bytes32 root,uint256 blockNumber,uint256 epoch,uint256 round)")
POSSESSION_TYPEHASH = keccak(b"Possession(bytes key,address operator)")
# Off chain only: what a keeper says over the mesh, under the hub's domain.
ACKNOWLEDGEMENT_TYPEHASH = keccak(b"Acknowledgement(bytes32 authorisation,uint256 at)")
PACKAGE_TYPEHASH = keccak(
    b"Package(bytes32 authorisation,bytes32 transaction,address target,bytes32 callHash,uint256 resourceFee,bytes32 run)"
)
NOT_EXECUTED_TYPEHASH = keccak(b"NotExecuted(bytes32 authorisation,uint256 pinnedBlock,bytes32 code,bytes32 run,uint256 fee)")
INPUTS_TYPEHASH = keccak(b"Inputs(bytes32 authorisation,uint256 pinnedBlock,bytes32 storage)")
CHECK_IN_TYPEHASH = keccak(b"CheckIn(bytes32 peer,bytes32 version,bytes32 sandbox,uint256 at)")


@lru_cache(maxsize=256)
def domain_separator(name: str, chain_id: int, contract: bytes) -> bytes:
    """EIP-712 domain separator of one of our contracts; version is always "1"."""
    return keccak(words(DOMAIN_TYPEHASH, keccak(name.encode()), keccak(b"1"), chain_id, contract))


def typed_digest(separator: bytes, struct_hash: bytes) -> bytes:
    """The 32 bytes that get signed: keccak(0x19 0x01 || domain separator || struct hash)."""
    return keccak(b"\x19\x01" + separator + struct_hash)


@dataclass(frozen=True, slots=True)
class Domain:
    """The contracts of one chain, as far as signatures are bound to them. Addresses are 20 bytes."""

    chain_id: int
    hub: bytes
    attestation_center: bytes
    keeper_registry: bytes

    def hub_digest(self, struct_hash: bytes) -> bytes:
        return typed_digest(domain_separator("TriggerX Hub", self.chain_id, self.hub), struct_hash)

    def center_digest(self, struct_hash: bytes) -> bytes:
        return typed_digest(domain_separator("TriggerX AttestationCenter", self.chain_id, self.attestation_center), struct_hash)

    def registry_digest(self, struct_hash: bytes) -> bytes:
        return typed_digest(domain_separator("TriggerX KeeperRegistry", self.chain_id, self.keeper_registry), struct_hash)

    def attestation_digest(self, root: bytes, block_number: int, epoch: int, round_: int) -> bytes:
        """The message a committee member signs with BLS: the Merkle root of verdicts of one block's committee."""
        return self.center_digest(keccak(words(ATTESTATION_TYPEHASH, root, block_number, epoch, round_)))

    def possession_digest(self, key_evm: bytes, operator: bytes) -> bytes:
        """The statement of a proof of possession. `key_evm` is the key in EIP-2537 encoding, 128 bytes."""
        return self.registry_digest(keccak(words(POSSESSION_TYPEHASH, keccak(key_evm), operator)))


def task_id(job_id: int, trigger_id: int) -> int:
    """The same firing of the same job is the same task, whoever saw it and however often."""
    return int.from_bytes(keccak(words(job_id, trigger_id)), "big")


def pin_hash(target: bytes, selector: bytes, call_hash: bytes, spec: bytes) -> bytes:
    """`specHash` of `Hub.setJobPolicy`: what an owner pins, recomputed by the hub from each authorisation."""
    return keccak(words(target, selector, call_hash, spec))
