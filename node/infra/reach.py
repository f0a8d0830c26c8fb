"""How both programs reach what their configuration names: a chain that may not answer yet, and the mesh."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import structlog
import trio

from consensus.errors import Transient
from node.infra.evm import EvmChain, open_chain
from node.infra.evm_wallet import EvmWallet
from node.infra.rpc import Rpc, open_rpc
from node.infra.secret import Secret
from node.infra.settings import ChainSettings, MeshSettings
from node.infra.sqlite import open_database
from node.infra.transactions import SENT_MIGRATIONS, FeeLimits, Outbox, SqliteTransactionLog
from p2p.host import HostConfig

_log = structlog.get_logger(__name__)

_AGAIN_S = 1.0


class Reached(NamedTuple):
    """A chain, and the endpoints it is read through."""

    chain: EvmChain
    rpc: Rpc


class Account(NamedTuple):
    """A chain, and one account's way to send transactions on it."""

    chain: EvmChain
    wallet: EvmWallet


@asynccontextmanager
async def reach_chain(settings: ChainSettings) -> AsyncIterator[Reached]:
    """The chain, as soon as an RPC answers: a program that starts before its chain waits for it. Raises `Misconfigured`."""
    async with open_rpc(settings.rpc, expect_chain_id=settings.id) as rpc:
        while True:
            try:
                chain = await open_chain(settings, rpc)
                break
            except Transient as error:
                _log.warning("chain unreachable, trying again", chain=settings.name, code=error.code, detail=error.detail)
                await trio.sleep(_AGAIN_S)
        async with _beating(chain):
            yield Reached(chain, rpc)


@asynccontextmanager
async def reach_account(settings: ChainSettings, data_dir: Path, key: Secret[bytes]) -> AsyncIterator[Account]:
    """The chain as `reach_chain`, and an account's wallet on it that never sends twice: what it sent lies in `data_dir`."""
    async with (
        reach_chain(settings) as (chain, rpc),
        open_database(data_dir / f"transactions-{settings.id}.sqlite", SENT_MIGRATIONS, durable=True) as sent,
    ):
        outbox = Outbox(rpc, key, settings.id, SqliteTransactionLog(sent), FeeLimits.of(settings.fees))
        yield Account(chain, EvmWallet(chain, outbox))


@asynccontextmanager
async def _beating(chain: EvmChain) -> AsyncIterator[None]:
    """The chain's one head subscription, for as long as the chain is used."""
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(chain.pulse.run, chain.head)
            yield
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        # The nursery is this function's own affair: what went wrong inside the caller's block reaches it as it was.
        if len(group.exceptions) == 1:
            raise group.exceptions[0] from group.exceptions[0].__cause__
        raise


def host_config(mesh: MeshSettings) -> HostConfig:
    """The peer that the configuration describes."""
    return HostConfig(identity=mesh.identity, listen=(mesh.listen,), announce=mesh.announce, bootstrap=mesh.bootstrap)
