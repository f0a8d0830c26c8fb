"""Packages by content: small ones go by gossip as they are, larger ones by CID, and a copy of each is kept where one can be."""

from __future__ import annotations

from collections.abc import Sequence

import structlog
import trio

from consensus import codec
from consensus.codec import keccak, words
from consensus.errors import Failed, Reject, Transient
from consensus.messages import Execution, PackageReference, Uint256
from node.infra.chain import ExecutionRecord
from p2p.content import Content
from p2p.network import Network, PeerId
from p2p.topics import EXECUTIONS, MAX_INLINE_PACKAGE, MAX_PACKAGE_BYTES, PACKAGES

_log = structlog.get_logger(__name__)

_KEEP_S = 30.0  # for a disk, and a daemon beside it
_FETCH_S = 20.0  # 160 KiB from a peer that is a continent away, and a few who do not answer first


def execution_digest(execution: Execution, record: ExecutionRecord) -> bytes:
    """What the hub must have recorded if it executed this package: the EXECUTION struct hash of Hub.vy."""
    authorisation = execution.task.authorisation
    return keccak(
        words(
            codec.EXECUTION_TYPEHASH,
            authorisation.task_id,
            authorisation.job_id,
            authorisation.trigger_id,
            authorisation.attempt,
            authorisation.performer,
            authorisation.spec,
            execution.target,
            keccak(execution.call),
            record.success,
            record.fee,
            record.block_number,
            record.timestamp,
        )
    )


def describes(execution: Execution, record: ExecutionRecord) -> bool:
    """Whether the package is of the execution that the hub recorded.

    One that is not says nothing about it: a task has several attempts, and whoever was given an earlier one can publish a
    well-signed package of it at any time. A `no` for that would let him have the executing keeper's work rejected.
    """
    return record.performer == execution.task.authorisation.performer and execution_digest(execution, record) == record.digest


class NoContent:
    """For a keeper without a block store: it publishes what fits into gossip, and cannot fetch what does not."""

    async def put(self, data: bytes) -> str:
        raise Transient("CONTENT_NOT_FOUND", "this keeper keeps no content")

    async def keep(self, cid: str, data: bytes) -> None:
        raise Transient("CONTENT_NOT_FOUND", "this keeper keeps no content")

    async def get(self, cid: str, *, max_bytes: int, peers: Sequence[PeerId] = ()) -> bytes:
        raise Transient("CONTENT_NOT_FOUND", "this keeper fetches no content")


class Packages:
    """Publishes this keeper's packages and fetches those of others."""

    def __init__(self, network: Network, content: Content) -> None:
        self._network = network
        self._content = content

    async def publish(self, execution: Execution, cid: str = "") -> str:
        """Gossips the package, or its reference where it is too large; returns the CID it is kept under, '' when it is not.

        `cid` is what an earlier call for the same package returned. Raises `Transient` when a large one cannot be kept.
        """
        encoded = execution.encode()
        if len(encoded) <= MAX_INLINE_PACKAGE:
            await self._network.publish(EXECUTIONS, execution)
            return cid or await self._keep(execution, encoded)
        cid = cid or await self._content.put(encoded)
        task = execution.task
        reference = PackageReference(task.chain_id, Uint256(task.task_id), task.authorisation.attempt, cid)
        await self._network.publish(PACKAGES, reference)
        return cid

    async def _keep(self, execution: Execution, encoded: bytes) -> str:
        """Nobody has to fetch it: without a copy it is gone once the mesh has forgotten it, and the execution stands all the
        same."""
        try:
            with trio.fail_after(_KEEP_S):
                return await self._content.put(encoded)
        except (Failed, Transient) as error:
            _log.debug("package not kept", task_id=str(execution.task.task_id), code=error.code, detail=error.detail)
        except trio.TooSlowError:
            _log.debug("package not kept", task_id=str(execution.task.task_id), detail=f"no answer in {_KEEP_S:g} s")
        return ""

    async def fetch(self, reference: PackageReference, source: PeerId) -> Execution:
        """The package of a reference, from the peer that signed it or whoever has it; its bytes are those of the CID.

        Raises `Transient` or `Failed` when nobody has them, `Reject` when they are no package or another task's.
        """
        try:
            with trio.fail_after(_FETCH_S):
                data = await self._content.get(reference.cid, max_bytes=MAX_PACKAGE_BYTES, peers=(source,))
        except trio.TooSlowError:
            raise Transient("CONTENT_NOT_FOUND", f"not here within {_FETCH_S:g} s") from None
        execution = Execution.decode(data)
        task = execution.task
        if (task.chain_id, task.task_id, task.authorisation.attempt) != (
            reference.chain_id,
            reference.task_id,
            reference.attempt,
        ):
            raise Reject("WRONG_PACKAGE", "the package is not of the task that its reference names")
        return execution
