"""What a job's authorisations will be bound to: for owners who pin it on chain."""

from __future__ import annotations

from quart import Blueprint

from consensus.messages import spec_cid, spec_digest
from coordinator.api.access import Access, Answer, Sources


def routes(sources: Sources, access: Access) -> Blueprint:
    area = Blueprint("specs", __name__)

    @area.get("/api/jobs/spec/<job_id>")
    @access.keyed
    async def spec_of_job(job_id: str) -> Answer:
        called = (await access.own_job(job_id, reading=True)).called
        return {"spec": "0x" + called.spec.hex(), "cid": spec_cid(spec_digest(called.spec)), "gas_limit": called.gas_limit}

    return area
