"""`python -m cli.devnet.embedded`: the embedded chain as a process of its own."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version

import trio
from hypercorn.config import Config
from hypercorn.trio import serve

from cli.devnet.embedded.accounts import dev_accounts
from cli.devnet.embedded.ledger import Ledger
from cli.devnet.embedded.methods import Methods
from cli.devnet.embedded.server import RpcServer

LISTENING = "Listening on "
WEI = 10**18


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m cli.devnet.embedded", description=__doc__)
    parser.add_argument("--port", type=int, default=8545, help="0 for any free one; printed once it is bound")
    parser.add_argument("--chain-id", type=int, default=31337)
    parser.add_argument("--balance", type=int, default=10_000, help="ether of each account")
    parser.add_argument("--heartbeat", type=float, help="mine an empty block after this many idle seconds")
    parser.add_argument("--accounts", type=int, default=10, help="fund this many accounts of the test mnemonic")
    return parser.parse_args(argv)


async def _run(arguments: argparse.Namespace) -> None:
    accounts = [bytes.fromhex(each.address.removeprefix("0x")) for each in dev_accounts(arguments.accounts)]
    ledger = Ledger(arguments.chain_id, dict.fromkeys(accounts, arguments.balance * WEI))
    server = RpcServer(Methods(ledger, accounts, f"embedded/py-evm/{version('py-evm')}"))

    config = Config()
    config.bind = [f"127.0.0.1:{arguments.port}"]
    config.accesslog = None
    config.errorlog = "-"
    config.loglevel = "warning"
    config.keep_alive_timeout = 3600  # clients of a devnet hold their connection; closing it under them costs a retry
    config.graceful_timeout = 0.1

    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.mine, arguments.heartbeat)
            serving = partial(serve, server, config, shutdown_trigger=trio.Event().wait, mode="asgi")  # type: ignore[arg-type]
            listening = await nursery.start(serving)
            print(f"{LISTENING}{listening[0]}", flush=True)  # noqa: T201  (whoever started us waits for this line)
            async for _ in signals:
                nursery.cancel_scope.cancel()
                break


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM or SIGINT."""
    trio.run(_run, _arguments(argv))
    sys.exit(0)


if __name__ == "__main__":
    main()
