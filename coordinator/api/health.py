"""Whether the coordinator and its parts are well, which keepers there are, and their check-ins: open to all."""

from __future__ import annotations

from typing import Any

import msgspec
from eth_utils.address import to_checksum_address
from quart import Blueprint, Response, request

from consensus.errors import Ignore, Invalid, Reject, Transient
from consensus.messages import CheckIn
from coordinator.api import answers
from coordinator.api.access import Access, Answer, RefusedError, Sources
from coordinator.api.limits import RateLimits
from coordinator.keepers import Keepers
from coordinator.points import shown
from coordinator.watch import part_rows

_OF_ONE = 120
"""Check-ins a minute that one client address may send: those of a hundred keepers behind one."""
_OF_ALL = 6000
"""Of all addresses: what is beyond is refused unread, so that forged ones cannot keep the processor at checking signatures."""
_BODY_BYTES = 4096
NOT_SERVED = "NOT_SERVED"
_STATUS = {"REPLAY": 409, "STALE": 422, "UNKNOWN_CHAIN": 422, "UNKNOWN_PEER": 403}
_WHY = {
    "REPLAY": "not newer than this keeper's last check-in",
    "STALE": "made too long ago, or the keeper's clock is wrong",
    "UNKNOWN_CHAIN": "no chain that is served here",
    "UNKNOWN_PEER": "no active keeper is registered with this peer id and operator",
    "BAD_SIGNATURE": "not signed by the operator of this peer",
}


class _Posted(msgspec.Struct, frozen=True):
    """A check-in as JSON; bytes as hex."""

    chain_id: int | str
    operator: str
    peer_id: str
    version: str
    at: int
    signature: str
    sandbox: str = ""


def routes(sources: Sources, access: Access) -> Blueprint:
    area = Blueprint("health", __name__)

    @area.get("/livez")
    async def livez() -> Answer:
        return {"status": "alive"}

    @area.get("/readyz")
    async def readyz() -> Answer:
        missing = sources.missing()
        return {"status": "not ready" if missing else "ready", "missing": missing}, 503 if missing else 200

    @area.get("/api/health")
    async def health() -> Answer:
        missing, parts = sources.missing(), sources.parts()
        away = sorted(name for name, part in parts.items() if not part.up)
        return {
            "status": "degraded" if missing or away else "healthy",
            "missing": missing,
            "degraded": away,
            "parts": part_rows(parts),
            "time": answers.rfc3339(sources.clock.now()),
        }

    @area.get("/status")
    async def status() -> Answer:
        return sources.status()

    @area.get("/metrics")
    async def metrics() -> Response:
        return Response(await sources.metrics(), content_type="text/plain; version=0.0.4; charset=utf-8")

    limits = RateLimits()

    @area.get("/operators")
    async def operators() -> Answer:
        return {"operators": _operators(_keepers(sources))}

    @area.post("/keeper/checkin")
    @area.post("/health")
    async def check_in() -> Answer:
        _allow(limits, sources.clock.now())
        body: bytes = await request.get_data()  # type: ignore[assignment]  # as_text is False
        message, peer_id = _read(body)
        try:
            await _keepers(sources).check_in(message, peer_id)
        except Ignore as error:
            raise RefusedError(_STATUS.get(error.code, 422), error.code, _WHY.get(error.code, error.detail)) from None
        except Reject as error:
            raise RefusedError(401, error.code, _WHY.get(error.code, error.detail)) from None
        return {"status": "ok", "last_checked_in": message.at}

    return area


def _keepers(sources: Sources) -> Keepers:
    if sources.keepers is None:
        raise Transient(NOT_SERVED, "this program knows no keepers")
    return sources.keepers


def _allow(limits: RateLimits, now: float) -> None:
    client = (request.remote_addr or "").encode()
    for key, limit in ((b"of " + client, _OF_ONE), (b"of all", _OF_ALL)):
        if not (allowance := limits.take(key, limit, now)).allowed:
            message = "too many check-ins; a keeper sends one a minute"
            remedy = f"wait {allowance.reset} seconds"
            raise RefusedError(429, "RATE_LIMITED", message, message=message, remedy=remedy)


def _read(body: bytes) -> tuple[CheckIn, str]:
    """The check-in and the peer id that it is bound to. Raises `Invalid`."""
    if len(body) > _BODY_BYTES:
        raise Invalid("body", f"a check-in has at most {_BODY_BYTES} bytes", code="INVALID_BODY")
    try:
        posted = msgspec.json.decode(body, type=_Posted)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid("body", str(error)[:200], "a JSON object as docs/api.md shows it", code="INVALID_BODY") from None
    if len(posted.peer_id) > 128:
        raise Invalid("peer_id", "has at most 128 characters")
    try:
        check_in = CheckIn(
            chain_id=_chain_id(posted.chain_id),
            operator=_hex("operator", posted.operator, 20),
            version=posted.version,
            sandbox=posted.sandbox,
            at=posted.at,
            signature=_hex("signature", posted.signature, 65),
        )
    except ValueError as error:
        raise Invalid("check-in", str(error)) from None
    return check_in, posted.peer_id


def _chain_id(value: int | str) -> int:
    if isinstance(value, str):
        value = int(value) if value.isascii() and value.isdecimal() and len(value) < 20 else -1
    if not 0 < value < 2**63:
        raise Invalid("chain_id", "is a positive integer")
    return value


def _hex(field: str, text: str, length: int) -> bytes:
    digits = text.removeprefix("0x")
    if len(digits) != 2 * length or not all(digit in "0123456789abcdefABCDEF" for digit in digits):
        raise Invalid(field, f"is 0x and {2 * length} hexadecimal digits")
    return bytes.fromhex(digits)


def _operators(keepers: Keepers) -> list[dict[str, Any]]:
    """Every keeper that ever checked in, a row a chain; where to reach its people is nobody's business."""
    records = {(record.chain_id, record.address): record for record in keepers.records()}
    rows = []
    for seen in keepers.all():
        record = records.get((seen.chain_id, seen.address))
        rows.append(
            {
                "keeper_address": to_checksum_address(seen.address),
                "keeper_name": record.name if record else "",
                "chain_id": str(seen.chain_id),
                "peer_id": seen.peer_id,
                "version": seen.version,
                "sandbox": seen.sandbox,
                "online": keepers.is_online(seen),
                "uptime": seen.uptime_s,
                "last_checked_in": answers.rfc3339(seen.last_seen),
                "keeper_points": shown(record.points) if record else "0",
                "no_executed_tasks": record.executed if record else 0,
                "no_attested_tasks": record.attested if record else 0,
            }
        )
    return rows
