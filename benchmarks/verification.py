"""What it takes an attester to verify one execution: a given call, and one that a script decides and that is run again for it.

`python -m benchmarks verification` prints it, `measure()` gives the numbers. The chain is in this process, so it is what the
checks themselves take; the script runs in the embedded sandbox, in Python, and reads nothing.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Annotated

import trio
import typer

from benchmarks.task_stages import quantile
from consensus import bls, ecdsa
from consensus.cid import cid_of
from consensus.codec import keccak
from consensus.conditions import Comparison, OnCondition, Source, StaticSource
from consensus.errors import Transient
from consensus.fees import resource_fee
from consensus.messages import Authorisation, Execution, JobSpec, Task, Uint256, Verdict, spec_digest
from consensus.triggers import EdgeSeen
from node.arguments import encode_call
from node.infra.chain_memory import Ledger, MemoryChain
from node.infra.clock import SystemClock
from node.infra.compute import Threads
from node.infra.fetch import open_fetcher
from node.infra.settings import FetchSettings, SandboxSettings
from node.recheck import Recheck
from node.sandbox.embedded import open_embedded
from node.scripts import Scripts
from node.scripts.library import Library
from node.scripts.runner import ScriptRunner
from node.signer import Signer
from node.verification.executions import Means, verify

DISPATCHER, OPERATOR = keccak(b"dispatcher"), keccak(b"operator")
OWNER, TARGET = keccak(b"owner")[:20], keccak(b"target")[:20]
FUNCTION, ARGUMENTS = "ping(uint256)", "[7]"
SCRIPT = b"print('[7]')\n"
MAX_FEE = 10**17


class Constants:
    """Sources that say what they are."""

    async def read_each(self, sources: Sequence[Source]) -> Mapping[Source, Decimal]:
        return {source: Decimal(source.value) for source in sources if isinstance(source, StaticSource)}

    @staticmethod
    def place(source: Source) -> str:
        return "here"


class Held:
    """Content that is one script."""

    async def put(self, data: bytes) -> str:
        return str(cid_of(data))

    async def get(self, cid: str, *, max_bytes: int, peers: Sequence[str] = ()) -> bytes:
        if cid != str(cid_of(SCRIPT)):
            raise Transient("CONTENT_NOT_FOUND", cid)
        return SCRIPT


class Bench:
    """A chain with one job, a performer that executes its firings, and what an attester needs."""

    def __init__(self, definition: int) -> None:
        self.ledger = Ledger(SystemClock())
        self.chain = MemoryChain(SystemClock(), ledger=self.ledger)
        self.signer = Signer(OPERATOR, bls.secret_from_seed(keccak(b"bls")))
        self.ledger.list_dispatcher(ecdsa.address_of(DISPATCHER))
        self.ledger.register(self.signer.address, self.signer.key, "performer")
        self.ledger.advance_epoch()
        self.ledger.deposit(OWNER, 10**24)
        job_id = self.ledger.create_job(OWNER, target=TARGET, interval=0, time_frame=3600, definition=definition)
        scripted = definition == 6
        self.spec = JobSpec(
            job_id=Uint256(job_id),
            chain_id=self.ledger.domain.chain_id,
            definition=definition,
            owner=OWNER,
            created_at=self.ledger.state.jobs[job_id].created_at,
            time_frame=3600,
            trigger=OnCondition(Comparison(StaticSource("1"), "equals", "1")),
            target=TARGET,
            function=FUNCTION,
            arguments="" if scripted else ARGUMENTS,
            level=3,
            script_url=f"ipfs://{cid_of(SCRIPT)}" if scripted else "",
            language="py" if scripted else "",
        )

    async def executed(self, edge: int, scripts: Scripts) -> Execution:
        """One firing, executed as an honest performer does."""
        domain, body, now = self.ledger.domain, self.spec.encode(), int(time.time())
        scripted = bool(self.spec.script_url)
        call = encode_call(FUNCTION, ARGUMENTS)
        authorisation = Authorisation(
            job_id=self.spec.job_id,
            trigger_id=Uint256(edge),
            attempt=1,
            performer=self.signer.address,
            spec=spec_digest(body),
            target=TARGET,
            selector=call[:4],
            call_hash=bytes(32) if scripted else keccak(call),
            gas_limit=100_000,
            level=3,
            max_fee=Uint256(MAX_FEE),
            not_before=now,
            deadline=now + 600,
        )
        signature = ecdsa.sign(DISPATCHER, domain.hub_digest(authorisation.struct_hash()))
        pinned = self.ledger.head.number if scripted else 0
        inputs = ecdsa.sign(DISPATCHER, domain.hub_digest(Task.inputs_hash(authorisation, pinned, ""))) if scripted else b""
        task = Task(domain.chain_id, authorisation, signature, body, "bench", EdgeSeen(now), pinned, "", inputs)
        run = (await scripts.run(self.spec, task)).run if scripted else None
        fee = resource_fee(self.spec.priority, run.usage if run else None)
        wallet = self.chain.wallet(self.signer.address)
        tx_hash = await wallet.send(await wallet.prepare_execution(authorisation, signature, TARGET, call, fee))
        assert (await wallet.mined(tx_hash)).success
        return self.signer.execution(task, domain, tx_hash, TARGET, call, fee, run)


async def measure(definition: int, count: int) -> list[float]:
    """Milliseconds of each verification, sorted; of type 5 (a given call) or 6 (a script's)."""
    bench, times = Bench(definition), []
    async with _scripts() as (performers, attesters):
        chains = {bench.spec.chain_id: bench.chain}
        means = Means(bench.chain, Threads(), Recheck(chains, Constants(), Threads()), attesters)
        for edge in range(1, count + 1):
            execution = await bench.executed(edge, performers)
            record = await bench.chain.execution(execution.task.task_id)
            assert record is not None
            began = time.perf_counter()
            opinion = await verify(execution, record, means)
            times.append((time.perf_counter() - began) * 1000)
            assert opinion.verdict is Verdict.YES, opinion
    return sorted(times)


@asynccontextmanager
async def _scripts() -> AsyncIterator[tuple[ScriptRunner, ScriptRunner]]:
    """Two keepers' on one sandbox: what one has run the other has not."""
    async with (
        open_fetcher(FetchSettings()) as fetcher,
        open_embedded(SandboxSettings(), addresses=fetcher.addresses) as sandbox,
    ):
        one, other = (ScriptRunner(Library(Held(), fetcher, (), Threads()), sandbox, Threads()) for _ in range(2))
        yield one, other


def main(count: Annotated[int, typer.Option(min=20, help="Executions verified of each kind.")] = 100) -> None:
    """Verifying one execution, as an attester does."""
    for name, definition in (("static", 5), ("dynamic, Python", 6)):
        times = trio.run(measure, definition, count)
        print(f"{name}: p50 {quantile(times, 0.5):.2f} ms, p99 {quantile(times, 0.99):.2f} ms")


if __name__ == "__main__":
    typer.run(main)
