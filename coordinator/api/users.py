"""Users: the owners of jobs."""

from __future__ import annotations

from quart import Blueprint, g

from coordinator.api import answers
from coordinator.api.access import Access, Answer, RefusedError, Sources
from coordinator.api.requests import address


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
        balance = sum([await sources.jobs.chain(c, "chain").balance(owner) for c in sorted(chains)])
        return answers.user_data(known, [job.id for job in jobs], balance)

    return area
