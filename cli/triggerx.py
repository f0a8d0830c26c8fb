"""`triggerx`: the devnet, and what people do on chain: deploy, register a keeper, advance an epoch, claim, pin a job."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from enum import StrEnum
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, TypeVar

import trio
import typer
from eth_utils.address import to_checksum_address

from cli import content
from cli.account import Sender, address_in, chain_id_at
from cli.program import says_what_is_wrong
from consensus.codec import Domain
from consensus.errors import Misconfigured
from node.infra import keystore
from node.infra.rpc import Rpc, open_rpc
from node.infra.secret import Secret
from node.infra.settings import ChainSettings, NodeSettings, load

T = TypeVar("T")

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
epoch = typer.Typer(no_args_is_help=True, help="The epochs of the keeper registry.")
app.add_typer(epoch, name="epoch")
policy = typer.Typer(no_args_is_help=True, help="What a job's owner pins on chain, so that no coordinator can change it.")
app.add_typer(policy, name="policy")
app.add_typer(content.app, name="content")

RpcUrl = Annotated[str, typer.Option("--rpc", help="HTTP JSON-RPC endpoint of the chain.")]
KeyFile = Annotated[Path, typer.Option("--key-file", help="Keystore of the account that pays (Web3 Secret Storage).")]
Hub = Annotated[str, typer.Option("--hub", help="Address of the Hub.")]
JobId = Annotated[str, typer.Option("--job", help="The job's id, in decimal.")]
Api = Annotated[str, typer.Option("--api", help="URL of the coordinator's API.")]
ApiKeyFile = Annotated[Path, typer.Option("--api-key-file", help="File with an API key of whoever posted the job.")]
PasswordFile = Annotated[Path, typer.Option("--password-file", help="File with the keystore's password.")]


class ChainEngine(StrEnum):
    """What runs the devnet's chain."""

    auto = "auto"
    anvil = "anvil"
    embedded = "embedded"


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(version("triggerx-node"))
        raise typer.Exit


@app.callback()
def main_options(show_version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False) -> None:
    """TriggerX: a devnet on this machine, and what an operator does on chain once."""


@app.command()
def devnet(
    demo: Annotated[bool, typer.Option("--demo/--no-demo", help="Post a demo job and watch its tasks.")] = True,
    keepers: Annotated[int, typer.Option(min=2, max=50, help="Number of keepers.")] = 5,
    folder: Annotated[Path, typer.Option("--dir", help="Folder for keys, stores and logs; emptied at each start.")] = Path(
        ".devnet"
    ),
    ready_file: Annotated[
        Path | None,
        typer.Option("--ready-file", help="JSON written when all is ready; unset, devnet.json in --dir.", show_default=False),
    ] = None,
    chain: Annotated[ChainEngine, typer.Option(help="auto takes anvil when it is on PATH.")] = ChainEngine.auto,
    coordinators: Annotated[int, typer.Option(min=1, max=8, help="Number of coordinators, on one store.")] = 1,
    redis: Annotated[
        str | None, typer.Option(help="URL of the Redis that they share; unset, an embedded server.", show_default=False)
    ] = None,
) -> None:
    """A whole network on this machine: chain, contracts, keepers and coordinator, until Ctrl-C."""
    # Imported here: the other commands need neither rich nor the devnet's programs.
    from rich.console import Console

    from cli.devnet.devnet import DevnetOptions
    from cli.devnet.screen import run

    options = DevnetOptions(
        folder=folder,
        ready_file=ready_file or folder / "devnet.json",
        keepers=keepers,
        engine=chain.value,
        coordinators=coordinators,
        redis_url=redis,
    )
    trio.run(partial(run, options, demo=demo, console=Console()))


@app.command()
def deploy(
    rpc: RpcUrl,
    key_file: KeyFile,
    password_file: PasswordFile,
    settings: Annotated[Path | None, typer.Option(help="TOML file of constants; unset, a testnet's.", show_default=False)] = None,
    name: Annotated[str, typer.Option(help="The chain's name in the printed table.")] = "chain",
) -> None:
    """Deploy one set of contracts and print the [[chains]] table for the programs' configuration."""
    from cli.deployment import DeploymentSettings
    from cli.devnet.configs import chain_table, sdk_addresses, toml_text
    from node.infra.deploy import deploy as deploy_contracts

    constants = load(settings, DeploymentSettings) if settings else DeploymentSettings()
    key = _key(key_file, password_file)

    async def work(sender: Sender) -> str:
        deployment = await deploy_contracts(sender.rpc, key.reveal(), constants.for_deployer(sender.address))
        table = chain_table(deployment, name, rpc, None, poll_ms=1000)
        demo = f"# Demo: {deployment.demo}\n" if deployment.demo else ""
        addresses = json.dumps(sdk_addresses(deployment, rpc))
        sdk = f"# sdk-triggerx: CONTRACT_ADDRESSES_BY_CHAIN['{deployment.chain_id}'] = {addresses}\n"
        return f"# contracts from block {deployment.block} on\n{demo}{sdk}{toml_text({'chains': [table]})}"

    typer.echo(_send(rpc, key, work), nl=False)


@app.command()
def register(
    config: Annotated[Path, typer.Option(help="The keeper's configuration: its keys and its peer identity are registered.")],
    chain_id: Annotated[int | None, typer.Option(help="Which of its chains; unset, the only one.", show_default=False)] = None,
    stake: Annotated[str | None, typer.Option(help="Wei; unset, the registry's minimum.", show_default=False)] = None,
    rewards: Annotated[
        str | None, typer.Option(help="Address that earnings go to; unset, the operator's.", show_default=False)
    ] = None,
) -> None:
    """Register this keeper with its stake, BLS key and proof of possession, peer id and rewards address."""
    from cli.registration import check_funds, check_registry, min_stake
    from cli.registration import register as register_keeper
    from p2p.identity import peer_id_of

    settings = load(config, NodeSettings)
    if settings.keys is None:
        raise Misconfigured("keys", "missing: a keeper is registered by its keys; add the table [keys]")
    chain = _chain(settings, chain_id)
    wei = _uint256("--stake", stake) if stake is not None else None
    to = address_in("--rewards", rewards) if rewards is not None else None
    key = _key(settings.keys.operator, settings.keys.password_file)
    bls_secret = trio.run(keystore.load_bls, settings.keys.bls, keystore.read_password(settings.keys.password_file))
    peer_id = peer_id_of(settings.mesh.identity)
    c = chain.contracts
    domain = Domain(chain.id, c.hub, c.attestation_center, c.keeper_registry)

    async def work(sender: Sender) -> str:
        registry = to_checksum_address(c.keeper_registry)
        await check_registry(sender.rpc, registry, "chains.contracts.keeper_registry")
        amount = wei if wei is not None else await min_stake(sender.rpc, registry)
        await check_funds(sender, amount)
        receipt = await register_keeper(sender, registry, domain, bls_secret.reveal(), peer_id, to or sender.address, amount)
        return f"registered {sender.address} with {amount} wei and peer id {peer_id} in transaction {receipt['transactionHash']}"

    typer.echo(_send(chain.rpc[0], key, work, expect=chain.id))


@app.command()
def claim(
    config: Annotated[Path, typer.Option(help="The keeper's configuration: its account claims what it has earned.")],
    chain_id: Annotated[int | None, typer.Option(help="Which of its chains; unset, the only one.", show_default=False)] = None,
) -> None:
    """Have everything that this keeper earned paid to its rewards address."""
    from cli.rewards import claim as claim_rewards
    from node.infra.evm import open_chain

    settings = load(config, NodeSettings)
    if settings.keys is None:
        raise Misconfigured("keys", "missing: a keeper claims with its operator key; add the table [keys]")
    chain = _chain(settings, chain_id)

    async def work(sender: Sender) -> str:
        done = await claim_rewards(sender, await open_chain(chain, sender.rpc), chain.contracts.since_block)
        if not done.transactions:
            return "nothing to claim"
        runs = f" and {done.runs_wei} wei of runs" if done.runs_wei else ""
        earned = f"{done.executions} executions and {done.attestations} attestations{runs}"
        return f"claimed for {earned} in transaction {', '.join(done.transactions)}"

    typer.echo(_send(chain.rpc[0], _key(settings.keys.operator, settings.keys.password_file), work))


@epoch.command("advance")
def epoch_advance(
    rpc: RpcUrl,
    registry: Annotated[str, typer.Option("--registry", help="Address of the KeeperRegistry.")],
    key_file: KeyFile,
    password_file: PasswordFile,
) -> None:
    """Seat the changes that wait for the next epoch. Anyone may."""
    from cli.registration import advance_epoch, check_registry

    address = address_in("--registry", registry)

    async def work(sender: Sender) -> str:
        await check_registry(sender.rpc, address, "--registry")
        receipt = await advance_epoch(sender, address)
        return f"advanced in transaction {receipt['transactionHash']}"

    typer.echo(_send(rpc, _key(key_file, password_file), work))


@policy.command("hash")
def policy_hash(job: JobId, api: Api, api_key_file: ApiKeyFile) -> None:
    """Show what the coordinator holds of a job, and the hash that pins it."""
    from cli.policy import shown_by

    pin = trio.run(shown_by, api, _secret_in(api_key_file), _uint256("--job", job))
    typer.echo("\n".join(pin.lines()))


@policy.command("show")
def policy_show(job: JobId, rpc: RpcUrl, hub: Hub) -> None:
    """Show what the hub holds of a job's policy."""
    from cli.policy import policy_lines

    address, job_id = address_in("--hub", hub), _uint256("--job", job)

    async def work(connection: Rpc) -> list[str]:
        return await policy_lines(connection, address, job_id)

    typer.echo("\n".join(_ask(rpc, work)))


@policy.command("set")
def policy_set(
    job: JobId,
    api: Api,
    api_key_file: ApiKeyFile,
    rpc: RpcUrl,
    hub: Hub,
    key_file: KeyFile,
    password_file: PasswordFile,
    max_fee: Annotated[str, typer.Option("--max-fee", help="Most that one execution or run may cost, wei; 0 leaves it open.")],
    run_allowance: Annotated[
        str | None,
        typer.Option(
            help="Wei that runs without a transaction may cost in all; unset, as it is (0 at first).", show_default=False
        ),
    ] = None,
    any_gas: Annotated[bool, typer.Option("--any-gas", help="Leave the gas limit open instead of pinning today's.")] = False,
    spec_hash: Annotated[
        str | None,
        typer.Option(
            help="The hash that `policy hash` printed: nothing else is pinned. Unset, what is shown.", show_default=False
        ),
    ] = None,
) -> None:
    """Pin a job to the JobSpec that the coordinator shows now. Its owner's account sends the transaction."""
    from cli.policy import check_expected, check_registered, set_policy, shown_by

    address, job_id = address_in("--hub", hub), _uint256("--job", job)
    fee = _uint256("--max-fee", max_fee)
    allowance = None if run_allowance is None else _uint256("--run-allowance", run_allowance)
    pin = trio.run(shown_by, api, _secret_in(api_key_file), job_id)
    if spec_hash is not None:
        check_expected(pin, spec_hash)

    async def work(sender: Sender) -> list[str]:
        await check_registered(sender.rpc, address, pin)
        gas = 0 if any_gas else pin.gas_limit
        return await set_policy(sender, address, pin, max_fee=fee, gas_limit=gas, allowance=allowance)

    sent = _send(rpc, _key(key_file, password_file), work, expect=pin.spec.chain_id)
    typer.echo("\n".join([*pin.lines(), f"pinned in transaction {', '.join(sent)}"]))


def _ask(url: str, work: Callable[[Rpc], Awaitable[T]]) -> T:
    """Runs `work` on the chain that answers at `url`, with nobody's account."""

    async def run() -> T:
        async with open_rpc([url], expect_chain_id=await chain_id_at(url)) as rpc:
            return await work(rpc)

    return trio.run(run)


def _secret_in(path: Path) -> str:
    try:
        return path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise Misconfigured("--api-key-file", f"cannot read {path}: {error}") from None


def _send(url: str, key: Secret[bytes], work: Callable[[Sender], Awaitable[T]], *, expect: int | None = None) -> T:
    """Runs `work` with the account on the chain that answers at `url`, which is the one expected."""

    async def run() -> T:
        chain_id = await chain_id_at(url)
        if expect not in (None, chain_id):
            raise Misconfigured("chains.rpc", f"the first endpoint serves chain {chain_id}, not {expect}: correct one of them")
        async with open_rpc([url], expect_chain_id=chain_id) as rpc:
            return await work(Sender(rpc, key.reveal(), chain_id))

    return trio.run(run)


def _key(path: Path, password_file: Path) -> Secret[bytes]:
    return trio.run(keystore.load_operator, path, keystore.read_password(password_file))


def _chain(settings: NodeSettings, chain_id: int | None) -> ChainSettings:
    chains = [chain for chain in settings.chains if chain_id in (None, chain.id)]
    if len(chains) != 1:
        configured = ", ".join(str(chain.id) for chain in settings.chains) or "none"
        raise Misconfigured("--chain-id", f"name one of the configured chains ({configured})")
    return chains[0]


def _uint256(option: str, text: str) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > 78 or int(text) >= 2**256:
        raise Misconfigured(option, f"{text!r} is no amount; give it as digits (wei, or a job's id)")
    return int(text)


def main() -> None:
    """Entry point: exit code 2 for what the caller has to mend, 1 for anything else that ends the program."""
    says_what_is_wrong(app)


if __name__ == "__main__":
    main()
