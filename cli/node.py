"""`triggerx-node`: runs a keeper or a bootstrap peer, and makes its keys."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Annotated

import trio
import typer
from eth_utils.address import to_checksum_address

from cli.program import ReadyFile, run_until_signal, says_what_is_wrong
from consensus import bls, ecdsa
from consensus.errors import Misconfigured
from node.app import VERSION, run_node
from node.infra.keystore import create_bls, create_operator, read_password
from node.infra.settings import NodeSettings, load
from node.infra.telemetry import configure_logging

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
keys = typer.Typer(no_args_is_help=True, help="The keeper's keys.")
app.add_typer(keys, name="keys")

Config = Annotated[Path, typer.Option(help="The node's TOML configuration; see docs/configuration.md.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(VERSION)
        raise typer.Exit


@app.callback()
def main_options(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False) -> None:
    """A TriggerX node."""


@app.command()
def start(
    config: Config,
    role: Annotated[
        str | None, typer.Option(help="keeper or bootstrap; overrides the configuration.", show_default=False)
    ] = None,
    ready_file: ReadyFile = None,
) -> None:
    """Run the node until SIGTERM or Ctrl-C."""
    settings = load(config, NodeSettings, {"role": role} if role else {})
    configure_logging(settings.log, service=f"triggerx-{settings.role}")
    run_until_signal(lambda on_ready: run_node(settings, on_ready), ready_file)


@keys.command("create")
def keys_create(
    config: Config,
) -> None:
    """Make operator and BLS keystores where the configuration's [keys] says, and print the public halves."""
    settings = load(config, NodeSettings)
    if settings.keys is None:
        raise Misconfigured("keys", "missing: add the table [keys] with operator, bls and password_file")
    password = read_password(settings.keys.password_file)
    operator, bls_secret = secrets.token_bytes(32), bls.secret_from_seed(secrets.token_bytes(32))
    key = bls.public_key(bls_secret)
    for path in (settings.keys.operator, settings.keys.bls):
        if path.exists():
            raise Misconfigured("keys", f"{path} exists: move it away first, keys are never overwritten")

    async def create() -> None:
        assert settings.keys is not None
        await create_operator(settings.keys.operator, operator, password)
        await create_bls(settings.keys.bls, bls_secret, password, public_key=key)

    trio.run(create)
    typer.echo(f"operator  {to_checksum_address(ecdsa.address_of(operator))}")
    typer.echo(f"bls key   0x{key.hex()}")


def main() -> None:
    """Entry point: exit code 2 for a configuration to mend, 1 for anything else that ends the program."""
    says_what_is_wrong(app)


if __name__ == "__main__":
    main()
