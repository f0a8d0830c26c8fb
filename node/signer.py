"""The keeper's two keys and everything they sign; nothing else in the program holds them."""

from __future__ import annotations

from consensus import bls, ecdsa, merkle
from consensus.codec import Domain
from consensus.messages import Acknowledgement, CheckIn, Execution, NotExecuted, Run, Task, Uint256, Verdict, Vote


class Signer:
    """Signs as one operator, in place: ECDSA takes 50 us, BLS 1 ms with the interpreter lock held: no thread would help."""

    def __init__(self, operator_secret: bytes, bls_secret: int) -> None:
        self._operator_secret = operator_secret
        self._bls_secret = bls_secret
        self.address = ecdsa.address_of(operator_secret)
        self.key = bls.public_key(bls_secret)

    def __repr__(self) -> str:
        return f"Signer(0x{self.address.hex()})"

    def acknowledgement(self, task: Task, domain: Domain, at: int) -> Acknowledgement:
        authorisation = task.authorisation
        digest = domain.hub_digest(Acknowledgement.struct_hash(authorisation, at))
        return Acknowledgement(
            chain_id=task.chain_id,
            task_id=Uint256(authorisation.task_id),
            attempt=authorisation.attempt,
            at=at,
            signature=ecdsa.sign(self._operator_secret, digest),
        )

    def execution(
        self, task: Task, domain: Domain, transaction: bytes, target: bytes, call: bytes, resource_fee: int, run: Run | None
    ) -> Execution:
        said = Execution.struct_hash(task.authorisation, transaction, target, call, resource_fee, run)
        return Execution(
            task=task,
            transaction=transaction,
            target=target,
            call=call,
            resource_fee=Uint256(resource_fee),
            run=run,
            signature=ecdsa.sign(self._operator_secret, domain.hub_digest(said)),
        )

    def not_executed(self, task: Task, domain: Domain, code: str, detail: str, run: Run | None, fee: int) -> NotExecuted:
        digest = domain.hub_digest(NotExecuted.struct_hash(task, code, run, fee))
        return NotExecuted(
            task=task,
            code=code,
            detail=detail[:512],
            run=run,
            fee=Uint256(fee),
            signature=ecdsa.sign(self._operator_secret, digest),
        )

    def check_in(self, domain: Domain, peer_id: str, version: str, sandbox: str, at: int) -> CheckIn:
        digest = domain.hub_digest(CheckIn.struct_hash(peer_id, version, sandbox, at))
        return CheckIn(
            chain_id=domain.chain_id,
            operator=self.address,
            version=version,
            sandbox=sandbox,
            at=at,
            signature=ecdsa.sign(self._operator_secret, digest),
        )

    def vote(
        self,
        domain: Domain,
        task_id: int,
        execution: bytes,
        verdict: Verdict,
        reason: str,
        *,
        block_number: int,
        epoch: int,
        round_: int,
    ) -> Vote:
        """BLS over the attestation digest of this one verdict. Journal the verdict before calling."""
        root = merkle.leaf(task_id, execution, verdict)
        digest = domain.attestation_digest(root, block_number, epoch, round_)
        return Vote(
            chain_id=domain.chain_id,
            task_id=Uint256(task_id),
            execution=execution,
            verdict=verdict,
            reason=reason,
            block_number=block_number,
            epoch=epoch,
            round=round_,
            signature=bls.sign(self._bls_secret, digest),
        )
