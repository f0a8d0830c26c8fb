"""`triggerx-coordinator`: runs the job API, scheduler and dispatcher, and makes API keys."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import trio
import typer

from cli.account import address_in
from cli.program import ReadyFile, run_until_signal, says_what_is_wrong
from consensus.errors import Misconfigured
from coordinator.api.keys import RATE_LIMIT, Role, new_key
from coordinator.app import VERSION, run_coordinator, store_path
from coordinator.settings import CoordinatorSettings
from coordinator.store.sqlite import open_store
from node.infra.settings import load
from node.infra.telemetry import configure_logging

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
keys = typer.Typer(no_args_is_help=True, help="API keys.")
app.add_typer(keys, name="keys")

_OWNER_CHARS = 128

Config = Annotated[Path, typer.Option(help="The coordinator's TOML configuration; see docs/configuration.md.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(VERSION)
        raise typer.Exit


@app.callback()
def main_options(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False) -> None:
    """The TriggerX coordinator."""


@app.command()
def start(config: Config, ready_file: ReadyFile = None) -> None:
    """Run the coordinator until SIGTERM or Ctrl-C."""
    settings = load(config, CoordinatorSettings)
    configure_logging(settings.log, service="triggerx-coordinator")
    run_until_signal(lambda on_ready: run_coordinator(settings, on_ready), ready_file)


@keys.command("create")
def keys_create(
    config: Config,
    owner: Annotated[str, typer.Option(help="Whose key it is: an address or a name; jobs posted with it belong to it.")],
    role: Annotated[Role, typer.Option(help="What the key may do: see its owner's jobs, or everybody's.")] = Role.USER,
    rate_limit: Annotated[int, typer.Option(help="Requests a minute.", min=1, max=1_000_000)] = RATE_LIMIT,
) -> None:
    """Make an API key and print it: it is kept as a hash and shown this once."""
    settings = load(config, CoordinatorSettings)
    text, record = new_key(_owner(owner), role=role.value, rate_limit=rate_limit, now=int(time.time()))

    async def save() -> None:
        async with open_store(store_path(settings)) as store:
            await store.add_key(record)

    trio.run(save)
    typer.echo(text)


def _owner(text: str) -> str:
    """An address in checksum case, however it was written: keys of one owner see the same jobs. Anything else is a name."""
    if text.lower().startswith("0x"):
        return address_in("--owner", text)
    if not text.strip() or not text.isprintable() or len(text) > _OWNER_CHARS:
        raise Misconfigured("--owner", f"give an address, or a name of at most {_OWNER_CHARS} printable characters")
    return text


def main() -> None:
    """Entry point: exit code 2 for a configuration to mend, 1 for anything else that ends the program."""
    says_what_is_wrong(app)


if __name__ == "__main__":
    main()
