"""JSON-RPC errors with geth's codes and words, which clients match on."""

from __future__ import annotations

from typing import Final

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
INTERNAL_ERROR: Final = -32603
SERVER_ERROR: Final = -32000
"""A transaction that is refused, or a call that fails without reverting."""
REVERTED: Final = 3
"""EIP-1474 leaves it free, geth gives it to reverts; `data` holds what the contract returned."""


class RpcError(Exception):
    """The answer is this error."""

    def __init__(self, code: int, message: str, data: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data


def refused(message: str) -> RpcError:
    """A transaction the chain does not take."""
    return RpcError(SERVER_ERROR, message)


def invalid_params(message: str) -> RpcError:
    """A parameter that is missing or has the wrong form."""
    return RpcError(INVALID_PARAMS, message)
