"""Scripts as content: uploaded with an API key, and given to whoever knows the CID, as an IPFS gateway does."""

from __future__ import annotations

import msgspec
from quart import Blueprint, Response, g, request

from consensus.cid import Cid
from consensus.errors import Failed, Invalid, Transient
from coordinator.api.access import Access, Answer, RefusedError, Sources
from coordinator.api.limits import RateLimits
from node.infra.content import MAX_CONTENT_BYTES, SharedContent

NOT_SERVED = "NOT_SERVED"
_UPLOADS = 30
"""A minute of one API key's owner."""
_UNIT, _UNITS = 64 * 1024, 64
"""Bytes, and how many times so many an owner uploads a minute: 4 MiB. What comes and goes has a quarter of the store, 64 MiB, and
what was uploaded is pinned within `coordinator.pins.PAUSE_S` of being named: long before one owner can push it out."""
_OF_ONE = 120
"""Downloads a minute of one client address; keepers use the mesh."""
_OF_ALL = 1200
"""Of all addresses: 20 MiB a second at most."""
_FOR_EVER = "public, max-age=31536000, immutable"


class _Posted(msgspec.Struct, frozen=True):
    """A script as JSON: its text."""

    content: str


def routes(sources: Sources, access: Access) -> Blueprint:
    area = Blueprint("content", __name__)
    limits = RateLimits()

    @area.post("/api/content")
    @access.keyed
    async def add_content() -> Answer:
        _allow(limits, f"uploads of {g.key.owner}".encode(), _UPLOADS, sources.clock.now(), "uploads")
        body: bytes = await request.get_data()  # type: ignore[assignment]  # as_text is False
        data = _text(body) if request.mimetype == "application/json" else body
        if not data:
            raise Invalid("content", "is empty", "send the file's bytes, or {content} as JSON")
        if len(data) > MAX_CONTENT_BYTES:
            raise Invalid("content", f"has {len(data)} bytes", f"send at most {MAX_CONTENT_BYTES}")
        for _ in range(0, len(data), _UNIT):
            _allow(limits, f"bytes of {g.key.owner}".encode(), _UNITS, sources.clock.now(), "bytes uploaded")
        cid = await _content(sources).put(data)
        return {"cid": cid, "url": f"{request.host_url.rstrip('/')}/ipfs/{cid}", "ipfs_url": f"ipfs://{cid}"}, 201

    @area.get("/ipfs/<cid>")
    async def content(cid: str) -> Response:
        now = sources.clock.now()
        _allow(limits, b"downloads of " + (request.remote_addr or "").encode(), _OF_ONE, now, "requests")
        _allow(limits, b"downloads of all", _OF_ALL, now, "requests")
        try:
            named = str(Cid.parse(cid))
            known = named in request.if_none_match
            data = await _content(sources).held(named, max_bytes=MAX_CONTENT_BYTES)
        except Failed as error:
            raise RefusedError(404, error.code, error.detail) from None
        if data is None:
            raise RefusedError(404, "CONTENT_NOT_FOUND", "this coordinator does not have it; ask an IPFS gateway")
        answer = Response(b"" if known else data, 304 if known else 200, content_type=_type_of(data))
        answer.set_etag(named)
        answer.headers["Cache-Control"] = _FOR_EVER
        # What users upload is shown as text and never run, whatever a browser thinks that it is.
        answer.headers["X-Content-Type-Options"] = "nosniff"
        answer.headers["Content-Security-Policy"] = "default-src 'none'; sandbox"
        answer.headers["X-Ipfs-Path"] = f"/ipfs/{named}"
        return answer

    return area


def _content(sources: Sources) -> SharedContent:
    if sources.content is None:
        raise Transient(NOT_SERVED, "this program keeps no content")
    return sources.content


def _allow(limits: RateLimits, bucket: bytes, limit: int, now: float, what: str) -> None:
    if not (allowance := limits.take(bucket, limit, now)).allowed:
        message = f"too many {what}"
        raise RefusedError(429, "RATE_LIMITED", message, message=message, remedy=f"wait {allowance.reset} seconds")


def _text(body: bytes) -> bytes:
    try:
        return msgspec.json.decode(body, type=_Posted).content.encode()
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise Invalid("body", str(error)[:200], 'send {"content": "..."}, or the bytes', code="INVALID_BODY") from None


def _type_of(data: bytes) -> str:
    try:
        data.decode()
    except UnicodeDecodeError:
        return "application/octet-stream"
    return "text/plain; charset=utf-8"
