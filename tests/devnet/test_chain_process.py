"""The chain's process: it comes up with its port, tells why it did not, and never outlives us."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import trio

from cli.devnet import chain as chain_module
from cli.devnet.chain import ChainOptions, Engine, open_chain
from consensus.errors import Failed, Misconfigured
from tests import components

ENGINES: list[Engine] = ["anvil", "embedded"]


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Engine:
    if request.param == "anvil":
        components.require("anvil")
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def fake_anvil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a program of this Python text first on PATH as `anvil`."""

    def install(text: str) -> None:
        program = tmp_path / "anvil"
        program.write_text(f"#!{sys.executable}\n{text}")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    return install


def gone(pid: int) -> bool:
    """No such process, or only its entry waiting to be collected."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except FileNotFoundError:
        return True
    return state == "Z"


async def test_it_says_what_it_is_and_leaves_nothing_behind(engine: Engine) -> None:
    async with open_chain(ChainOptions(engine=engine, accounts=3, balance=5)) as chain:
        assert chain.kind.split()[0] == engine
        assert (chain.ws_url is None) == (engine == "embedded")
        assert len(chain.accounts) == 3
        async with httpx.AsyncClient(trust_env=False) as client:
            request = {"jsonrpc": "2.0", "id": 1, "method": "eth_getBalance", "params": [chain.accounts[2].address, "latest"]}
            assert (await client.post(chain.rpc_url, json=request)).json()["result"] == hex(5 * 10**18)
        assert not gone(chain.pid)
    assert gone(chain.pid)


async def test_an_error_of_the_body_comes_out_as_it_is(engine: Engine) -> None:
    with pytest.raises(KeyError, match="mine"):
        async with open_chain(ChainOptions(engine=engine, accounts=1)) as chain:
            raise KeyError("mine")
    assert gone(chain.pid)


async def test_a_cancelled_body_ends_the_chain(engine: Engine) -> None:
    with trio.CancelScope() as scope:
        async with open_chain(ChainOptions(engine=engine, accounts=1)) as chain:
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert gone(chain.pid)


async def test_a_chain_that_dies_ends_the_body_with_its_last_words(engine: Engine) -> None:
    with pytest.raises(Failed, match="ended with code -9") as caught:  # noqa: PT012  (the context manager is what raises)
        async with open_chain(ChainOptions(engine=engine, accounts=1)) as chain:
            os.kill(chain.pid, signal.SIGKILL)
            await trio.sleep_forever()
    assert caught.value.code == "CHAIN_ENDED"
    assert "istening on" in caught.value.detail


async def test_a_taken_port_is_named_in_the_error(engine: Engine) -> None:
    async with open_chain(ChainOptions(engine=engine, accounts=1)) as chain:
        port = int(chain.rpc_url.rpartition(":")[2])
        with pytest.raises(Failed, match=r"(?i)address (already )?in use"):
            async with open_chain(ChainOptions(engine=engine, accounts=1, port=port)):
                pass  # pragma: no cover


async def test_a_heartbeat_mines_while_nothing_happens(engine: Engine) -> None:
    async with (
        open_chain(ChainOptions(engine=engine, accounts=1, heartbeat=1)) as chain,
        httpx.AsyncClient(trust_env=False) as client,
    ):
        request = {"jsonrpc": "2.0", "id": 1, "method": "eth_blockNumber", "params": []}
        with trio.fail_after(20):
            while int((await client.post(chain.rpc_url, json=request)).json()["result"], 16) < 2:  # noqa: ASYNC110
                await trio.sleep(0.05)


async def test_a_chain_that_ignores_sigterm_is_killed(fake_anvil: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    fake_anvil(
        """
import http.server, json, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
class Answer(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        result = "0x7a69" if asked["method"] == "eth_chainId" else "anvil/v0.0.0"
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "result": result}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
server = http.server.HTTPServer(("127.0.0.1", 0), Answer)
print(f"Listening on 127.0.0.1:{server.server_port}", flush=True)
server.serve_forever()
"""
    )
    monkeypatch.setattr(chain_module, "STOP_SECONDS", 0.1)
    async with open_chain(ChainOptions(engine="anvil", accounts=1)) as chain:
        assert chain.kind == "anvil 0.0.0"
    assert gone(chain.pid)


async def test_a_chain_that_never_listens_is_reported_with_its_output(fake_anvil: Callable[[str], None]) -> None:
    fake_anvil("import time; print('warming up', flush=True); time.sleep(600)")
    with pytest.raises(Failed, match="warming up") as caught:
        async with open_chain(ChainOptions(engine="anvil", accounts=1, start_seconds=0.5)):
            pass  # pragma: no cover
    assert caught.value.code == "CHAIN_NOT_READY"


async def test_a_chain_that_cannot_start_is_reported_with_its_output(fake_anvil: Callable[[str], None]) -> None:
    fake_anvil("raise SystemExit('no such hard fork')")
    with pytest.raises(Failed, match="no such hard fork"):
        async with open_chain(ChainOptions(engine="anvil", accounts=1)):
            pass  # pragma: no cover


async def test_a_wanted_anvil_that_is_not_installed_is_the_operators_to_mend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Misconfigured, match="anvil is not on PATH"):
        async with open_chain(ChainOptions(engine="anvil")):
            pass  # pragma: no cover


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's parent-death signal is Linux's")
def test_a_sigkill_of_ours_takes_the_chain_along(engine: Engine) -> None:
    starter = """
import sys, threading, trio
import trio._core._thread_cache as thread_cache
from cli.devnet.chain import ChainOptions, open_chain
# trio ends idle worker threads after ten seconds, and the kernel takes the end of the thread that started a child for
# the parent's death: a chain started from such a thread would die with it.
thread_cache.IDLE_TIMEOUT = 0.1
async def main():
    async with open_chain(ChainOptions(engine=sys.argv[1], accounts=1)) as chain:
        print("pid", chain.pid, flush=True)
        while threading.active_count() > 1:
            await trio.sleep(0.05)
        print("alive", flush=True)
        await trio.sleep_forever()
trio.run(main)
"""
    root = Path(__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", starter, engine], stdout=subprocess.PIPE, text=True, cwd=root) as process:
        assert process.stdout is not None
        pid = 0
        for line in process.stdout:
            if line.startswith("pid"):
                pid = int(line.split()[1])
            if line.startswith("alive"):
                break
        assert pid
        assert not gone(pid)
        process.kill()
        process.wait()
    wait_until_gone(pid)


def wait_until_gone(pid: int) -> None:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        poll = select.poll()
        poll.register(descriptor)
        assert poll.poll(10_000), "the chain outlived us"
    finally:
        os.close(descriptor)
