"""Scripts in every language reach the hosts that they declare, in both sandboxes, and nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from consensus.errors import Failed
from node.infra.fetch import Fetcher, open_fetcher
from node.infra.settings import FetchSettings
from node.sandbox.port import Finished, Language, Limits, Program, Sandbox
from tests.infra.test_fetch import authority
from tests.infra.web import Web, open_web, reply
from tests.sandbox.kinds import KINDS, open_kind
from tests.sandbox.test_egress import NAME, Resolver

PYTHON = """
import sys, urllib.request
print(urllib.request.urlopen(sys.stdin.read(), timeout=10).read().decode(), end="")
"""
PYTHON_HTTPS = """
import ssl, sys, urllib.request
any = ssl._create_unverified_context()
print(urllib.request.urlopen(sys.stdin.read(), timeout=10, context=any).read().decode(), end="")
"""
FETCH = """
process.env.NODE_TLS_REJECT_UNAUTHORIZED = '0';
const url = require('node:fs').readFileSync(0, 'utf8');
fetch(url).then((answer) => answer.text()).then((text) => process.stdout.write(text),
  (error) => { console.error(error.cause ? error.cause.message : error.message); process.exit(1); });
"""
GET = """
process.env.NODE_TLS_REJECT_UNAUTHORIZED = '0';
const url = require('node:fs').readFileSync(0, 'utf8');
require(url.startsWith('https') ? 'node:https' : 'node:http').get(url, (answer) => answer.pipe(process.stdout))
  .on('error', (error) => { console.error(error.message); process.exit(1); });
"""
TYPESCRIPT = """
import { readFileSync } from 'node:fs';
process.env.NODE_TLS_REJECT_UNAUTHORIZED = '0';
const url: string = readFileSync(0, 'utf8');
async function main(): Promise<void> {
  process.stdout.write(await (await fetch(url)).text());
}
main().catch((error: Error) => { console.error(String(error.cause)); process.exit(1); });
"""
GO = """package main

import (
	"crypto/tls"
	"io"
	"net/http"
	"os"
)

func main() {
	url, _ := io.ReadAll(os.Stdin)
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = &tls.Config{InsecureSkipVerify: true}
	answer, err := (&http.Client{Transport: transport}).Get(string(url))
	if err != nil {
		os.Stderr.WriteString(err.Error())
		os.Exit(1)
	}
	io.Copy(os.Stdout, answer.Body)
}
"""
CLIENTS = {
    "python": (Language.PYTHON, PYTHON_HTTPS),
    "fetch": (Language.JAVASCRIPT, FETCH),
    "http": (Language.JAVASCRIPT, GET),
    "typescript": (Language.TYPESCRIPT, TYPESCRIPT),
    "go": (Language.GO, GO),
}


@pytest.fixture
async def web() -> AsyncIterator[Web]:
    async with open_web() as opened:
        opened.replies["/price"] = reply(b'[1, "2"]')
        yield opened


@pytest.fixture
async def secure_web(tmp_path: Path) -> AsyncIterator[Web]:
    server, _ = authority(tmp_path, NAME)
    async with open_web(server) as opened:
        opened.replies["/price"] = reply(b'[1, "2"]')
        yield opened


@pytest.fixture
def resolver() -> Resolver:
    return Resolver(["127.0.0.1"])


@pytest.fixture
async def fetcher(web: Web, secure_web: Web, resolver: Resolver) -> AsyncIterator[Fetcher]:
    allow = (f"{NAME}:{web.port}", f"{NAME}:{secure_web.port}")
    async with open_fetcher(FetchSettings(allow=allow), resolver=resolver) as opened:
        yield opened


@pytest.fixture(params=KINDS)
async def sandbox(request: pytest.FixtureRequest, tmp_path: Path, fetcher: Fetcher) -> AsyncIterator[Sandbox]:
    engine = request.getfixturevalue("docker_engine") if request.param == "docker" else None
    async with open_kind(request.param, lambda: engine, tmp_path, fetcher.addresses) as opened:
        yield opened


async def asked(sandbox: Sandbox, client: str, url: str, *hosts: str, limits: Limits | None = None) -> Finished:
    language, source = CLIENTS[client]
    assert language in sandbox.languages
    return await sandbox.run(Program(language, source.encode(), url.encode(), hosts=hosts), limits or Limits())


@pytest.mark.parametrize("client", CLIENTS)
async def test_a_declared_host_answers(sandbox: Sandbox, web: Web, client: str):
    place = f"{NAME}:{web.port}"
    finished = await asked(sandbox, client, f"http://{place}/price", place)
    assert (finished.stdout, finished.stderr, finished.exit_code) == (b'[1, "2"]', b"", 0)
    assert 100 < finished.usage.transferred < 4000


@pytest.mark.parametrize("client", CLIENTS)
async def test_a_declared_host_answers_over_tls(sandbox: Sandbox, secure_web: Web, client: str):
    place = f"{NAME}:{secure_web.port}"
    finished = await asked(sandbox, client, f"https://{place}/price", place)
    assert finished.stdout == b'[1, "2"]', finished
    assert finished.exit_code == 0
    assert finished.usage.transferred > 500


@pytest.mark.parametrize("client", CLIENTS)
async def test_another_host_does_not_answer(sandbox: Sandbox, web: Web, client: str):
    finished = await asked(sandbox, client, f"https://other.example.com:{web.port}/price", f"{NAME}:{web.port}")
    assert finished.exit_code != 0
    assert b"is not declared" in finished.stderr, finished.stderr
    assert finished.usage.transferred == 0
    assert web.connections == 0


@pytest.mark.parametrize("client", CLIENTS)
async def test_a_script_that_declares_nothing_reaches_nothing(sandbox: Sandbox, web: Web, client: str):
    finished = await asked(sandbox, client, f"http://{NAME}:{web.port}/price")
    assert finished.exit_code != 0
    assert web.connections == 0


async def test_a_declared_name_that_turns_private_is_refused(sandbox: Sandbox, web: Web):
    finished = await asked(sandbox, "python", "https://rebound.example.com/price", "rebound.example.com")
    assert finished.exit_code != 0
    assert b"no address of the public internet" in finished.stderr
    assert web.connections == 0


async def test_bytes_beyond_the_limit_are_cut_off(sandbox: Sandbox, web: Web):
    web.replies["/price"] = reply(b"x" * 500_000)
    place = f"{NAME}:{web.port}"
    finished = await asked(sandbox, "python", f"http://{place}/price", place, limits=Limits(transferred=100_000))
    assert finished.exit_code != 0
    assert b"IncompleteRead" in finished.stderr
    assert finished.usage.transferred <= 100_000


ESCAPES = """
import os, socket, sys
def tried(what, *arguments):
    try:
        what(*arguments)
    except OSError as error:
        return error.errno or str(error)
    return "worked"
place, port = sys.stdin.read().split()
def connected(family, kind, where):
    with socket.socket(family, kind) as sock:
        sock.settimeout(3)
        sock.connect(where)
        sock.send(b"x")
print("tcp", tried(connected, socket.AF_INET, socket.SOCK_STREAM, (place, int(port))))
print("public", tried(connected, socket.AF_INET, socket.SOCK_STREAM, ("192.0.2.1", 80)))
print("udp", tried(connected, socket.AF_INET, socket.SOCK_DGRAM, ("192.0.2.1", 53)))
print("tcp6", tried(connected, socket.AF_INET6, socket.SOCK_STREAM, ("2001:db8::1", 80)))
print("raw", tried(socket.socket, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP))
print("packet", tried(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0x300))
print("netlink", tried(socket.socket, socket.AF_NETLINK, socket.SOCK_RAW, 0))
print("vsock", tried(socket.socket, socket.AF_VSOCK, socket.SOCK_STREAM, 0))
print("names", tried(socket.getaddrinfo, "example.com", 80))
print(os.listdir("/sys/class/net") if os.path.isdir("/sys/class/net") else ["lo"], file=sys.stderr)
"""


async def test_a_script_with_hosts_has_no_other_way_than_the_proxy(sandbox: Sandbox, web: Web):
    program = Program(Language.PYTHON, ESCAPES.encode(), f"127.0.0.1 {web.port}".encode(), hosts=(f"{NAME}:{web.port}",))
    finished = await sandbox.run(program, Limits())
    assert finished.exit_code == 0, finished.stderr
    lines = dict(line.split(" ", 1) for line in finished.stdout.decode().splitlines())
    assert len(lines) == 9
    assert "worked" not in lines.values(), lines
    assert {lines[each] for each in ("raw", "packet", "netlink", "vsock")} == {"1"}  # EPERM: the filter of system calls
    assert finished.stderr.strip() == b"['lo']"
    assert web.connections == 0


async def test_what_declares_no_host_is_refused_before_it_runs(sandbox: Sandbox):
    with pytest.raises(Failed, match="SCRIPT_INVALID"):
        await sandbox.run(Program(Language.PYTHON, b"print(1)", hosts=("a/b",)), Limits())


async def test_the_next_run_is_without_the_last_ones_way(sandbox: Sandbox, web: Web):
    place = f"{NAME}:{web.port}"
    assert (await asked(sandbox, "python", f"http://{place}/price", place)).exit_code == 0
    assert (await asked(sandbox, "python", f"http://{place}/price")).exit_code != 0


async def test_a_run_that_is_cancelled_leaves_no_proxy(sandbox: Sandbox, web: Web):
    place = f"{NAME}:{web.port}"
    began, ended = trio.Event(), trio.Event()

    async def hang(stream: trio.abc.Stream) -> None:
        began.set()
        assert not await stream.receive_some()
        ended.set()

    web.replies["/price"] = hang
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            await asked(sandbox, "python", f"http://{place}/price", place)

        nursery.start_soon(run)
        await began.wait()
        nursery.cancel_scope.cancel()
    await ended.wait()


async def test_a_name_without_an_address_is_the_scripts_to_handle(sandbox: Sandbox, resolver: Resolver):
    resolver.gone = True
    finished = await asked(sandbox, "python", f"https://{NAME}/", NAME)
    assert finished.exit_code != 0
    assert b"does not resolve" in finished.stderr
