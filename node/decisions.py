"""What a performer has decided to do with a task: journalled before anything leaves, so that a restart does exactly that."""

from __future__ import annotations

from consensus.messages import Run, Uint256, Wire
from node.scripts import Call, NoCall


class Decision(Wire, frozen=True):
    """A call and what is claimed for it (wei), or the reason why there is none (`code`, then). `run` is None for static jobs."""

    fee: Uint256
    run: Run | None = None
    target: bytes = b""
    call: bytes = b""
    code: str = ""
    detail: str = ""

    @property
    def calls(self) -> bool:
        """Whether a transaction follows."""
        return not self.code


def decision(action: Call | NoCall, run: Run | None, fee: int) -> Decision:
    if isinstance(action, Call):
        return Decision(Uint256(fee), run, action.target, action.data)
    return Decision(Uint256(fee), run, code=action.code, detail=action.detail[:512])
