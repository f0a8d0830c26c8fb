"""The keeper's sign of life over HTTP, beside the mesh: the coordinator hears of it also when the mesh is broken between them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpcore
import msgspec
import structlog
import trio
from eth_utils.address import to_checksum_address

from consensus.errors import Transient
from consensus.messages import CheckIn

_log = structlog.get_logger(__name__)

PATH = "/keeper/checkin"
UNREACHABLE = "HEALTH_UNREACHABLE"

_TIMEOUT_S = 10.0
_MAX_ANSWER = 16 * 1024
_KNOWN = 409  # it came over the mesh before


def as_json(check_in: CheckIn, peer_id: str) -> dict[str, Any]:
    """The body of `POST /keeper/checkin`; `peer_id` is bound by the signature and else known from the mesh."""
    return {
        "chain_id": str(check_in.chain_id),
        "operator": to_checksum_address(check_in.operator),
        "peer_id": peer_id,
        "version": check_in.version,
        "sandbox": check_in.sandbox,
        "at": check_in.at,
        "signature": "0x" + check_in.signature.hex(),
    }


class CheckInPost:
    """Posts to one coordinator. An outage is logged when it begins and when it ends, not at every check-in."""

    def __init__(self, url: str, pool: httpcore.AsyncConnectionPool) -> None:
        self._url = url.rstrip("/") + PATH
        self._pool = pool
        self._away = False

    async def __call__(self, check_in: CheckIn, peer_id: str) -> None:
        """Tries once; raises nothing: the next check-in follows soon."""
        try:
            with trio.fail_after(_TIMEOUT_S):
                await self._post(msgspec.json.encode(as_json(check_in, peer_id)))
        except (Transient, trio.TooSlowError) as error:
            why = error.detail if isinstance(error, Transient) else f"no answer in {_TIMEOUT_S:g} s"
            if not self._away:
                _log.warning("check-ins do not arrive over HTTP", code=UNREACHABLE, detail=why)
            self._away = True
        else:
            if self._away:
                _log.info("check-ins arrive over HTTP again")
            self._away = False

    async def _post(self, body: bytes) -> None:
        headers = [("Content-Type", "application/json"), ("Accept", "application/json"), ("User-Agent", "triggerx-node")]
        try:
            async with self._pool.stream("POST", self._url, headers=headers, content=body) as response:
                said = b""
                async for chunk in response.aiter_stream():
                    said += chunk
                    if len(said) > _MAX_ANSWER:
                        break
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError) as error:
            raise Transient(UNREACHABLE, type(error).__name__) from None
        if response.status // 100 != 2 and response.status != _KNOWN:
            raise Transient(UNREACHABLE, f"{response.status}: {said[:200].decode(errors='replace')}")


@asynccontextmanager
async def open_check_in_post(url: str) -> AsyncIterator[CheckInPost]:
    """Dials nothing until the first check-in."""
    async with httpcore.AsyncConnectionPool(ssl_context=httpcore.default_ssl_context(), max_connections=2) as pool:
        yield CheckInPost(url, pool)
