"""Users: the owners of jobs."""

from __future__ import annotations

from eth_utils.address import to_checksum_address
from quart import Blueprint, g, request

from coordinator.api import answers
from coordinator.api.access import Access, Answer, RefusedError, Sources
from coordinator.api.requests import email
from coordinator.definitions.values import address


def routes(sources: Sources, access: Access) -> Blueprint:
    area = Blueprint("users", __name__)

    @area.get("/api/users/<user>")
    @area.get("/api/users/address/<user>")
    @access.keyed
    async def user_by_address(user: str) -> Answer:
        owner = address(user, "address")
        jobs = await sources.store.jobs(key_owner=g.key.owner, owner=owner)
        known = await sources.store.user(owner) if jobs else None
        if known is None:
            raise RefusedError(404, "USER_NOT_FOUND", "no job of this user was posted with this API key")
        chains = {job.target.chain_id for job in jobs}
        balance = sum([await sources.jobs.fees.chain(c, "chain").balance(owner) for c in sorted(chains)])
        return answers.user_data(known, [job.id for job in jobs], balance)

    @area.get("/api/users/safe-addresses/<user>")
    @access.keyed
    async def safes_of_user(user: str) -> Answer:
        owner = address(user, "address")
        mine = {job.safe_address for job in await sources.store.jobs(key_owner=g.key.owner, owner=owner) if job.is_safe}
        safes = await sources.store.safe_addresses(owner)
        return {"safe_addresses": [answers.safe(*each) for each in safes if each[0] in mine]}

    @area.put("/api/users/email")
    @area.post("/api/users/email")
    @access.keyed
    async def set_email() -> Answer:
        body: bytes = await request.get_data()  # type: ignore[assignment]  # as_text is False
        owner, written_to = email(body)
        user = None
        if await sources.store.jobs(key_owner=g.key.owner, owner=owner):
            user = await sources.store.set_email(owner, written_to, int(sources.clock.now()))
        if user is None:
            raise RefusedError(404, "USER_NOT_FOUND", "no job of this user was posted with this API key")
        return {"user_address": to_checksum_address(owner), "email_id": user.email}

    return area
