"""Every topic and direct exchange of the mesh, in one table: names, message types and size limits."""

from __future__ import annotations

from typing import TypeVar

from consensus.cid import MAX_BLOCK_BYTES
from consensus.messages import (
    Acknowledgement,
    CheckIn,
    Execution,
    NotExecuted,
    PackageReference,
    Refusal,
    RunCertificate,
    Task,
    Vote,
    Wire,
)
from p2p.network import Exchange, Topic

W = TypeVar("W", bound=Wire)


def _topic(name: str, kind: type[W], max_bytes: int) -> Topic[W]:
    return Topic(name=f"/triggerx/1/{name}", encode=lambda m: m.encode(), decode=kind.decode, max_bytes=max_bytes)


TASKS = _topic("tasks", Task, 96 * 1024)  # a JobSpec of 64 KiB, 16 KiB of storage and what surrounds them
MAX_INLINE_PACKAGE = 64 * 1024
"""Bytes of a package that goes by gossip as it is; of a larger one its reference does."""
EXECUTIONS = _topic("executions", Execution, MAX_INLINE_PACKAGE)
PACKAGES = _topic("packages", PackageReference, 512)
MAX_PACKAGE_BYTES = 160 * 1024
"""A package at most: a task, 16 KiB of calldata, 32 KiB of a script's output, and room."""
NOT_EXECUTED = _topic("not-executed", NotExecuted, 136 * 1024)  # a task and 32 KiB of a script's output
RUN_CERTIFICATES = _topic("run-certificates", RunCertificate, 140 * 1024)  # one of those and who signed
CHECK_INS = _topic("check-ins", CheckIn, 1024)


class Taken(Wire, frozen=True):
    """The answer to a direct message: taken, or the code of why not."""

    code: str = ""

    def __post_init__(self) -> None:
        if len(self.code) > 64:
            raise ValueError("code over 64 characters")


class Answer(Wire, frozen=True):
    """What a performer says of a task it was given: exactly one of the two."""

    acknowledgement: Acknowledgement | None = None
    refusal: bytes = b""

    def __post_init__(self) -> None:
        if (self.acknowledgement is None) == (not self.refusal):
            raise ValueError("either an acknowledgement or a refusal")

    def refused(self) -> Refusal | None:
        """The refusal, when that is what it is. Raises `Reject` when its bytes are none."""
        return Refusal.decode(self.refusal) if self.refusal else None


def _exchange(name: str, question: type[W], max_bytes: int) -> Exchange[W, Taken]:
    return Exchange(
        protocol=f"/triggerx/1/{name}",
        encode_request=lambda q: q.encode(),
        decode_request=question.decode,
        encode_answer=lambda a: a.encode(),
        decode_answer=Taken.decode,
        max_request_bytes=max_bytes,
        max_answer_bytes=256,
    )


VOTES = _exchange("votes", Vote, 2048)
ANSWERS = _exchange("answers", Answer, 4096)


class BlockRequest(Wire, frozen=True):
    """Asks for the block whose bytes have this sha2-256. The CID's version and codec are the asker's own affair."""

    digest: bytes

    def __post_init__(self) -> None:
        if len(self.digest) != 32:
            raise ValueError("a sha2-256 has 32 bytes")


class BlockAnswer(Wire, frozen=True):
    """The block, or the code of why not: NOT_FOUND, or BUSY (ask again, or somebody else)."""

    code: str = ""
    data: bytes = b""

    def __post_init__(self) -> None:
        if len(self.code) > 64 or (self.code and self.data):
            raise ValueError("either a code of at most 64 characters or a block")


BLOCKS = Exchange(
    protocol="/triggerx/1/blocks",
    encode_request=BlockRequest.encode,
    decode_request=BlockRequest.decode,
    encode_answer=BlockAnswer.encode,
    decode_answer=BlockAnswer.decode,
    max_request_bytes=64,
    max_answer_bytes=MAX_BLOCK_BYTES + 64,
)
"""A block of a file, by its hash."""
