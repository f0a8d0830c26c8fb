"""`triggerx deploy`, `register` and `epoch advance` against a real chain: what an operator types, and what is wrong with it."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import trio

from cli.devnet import configs
from cli.devnet.chain import Chain, ChainOptions, open_chain
from cli.devnet.embedded.accounts import DevAccount
from consensus import bls
from node.infra import keystore
from node.infra.evm import open_chain as open_evm
from node.infra.rpc import open_rpc
from node.infra.secret import Secret
from node.infra.settings import ChainSettings, NodeSettings, load, validated
from p2p.identity import peer_id_of
from tests.components import require
from tests.devnet.running import ROOT

PASSWORD = Secret("correct horse")
BOOTSTRAP = "/ip4/127.0.0.1/tcp/4001/p2p/12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA"
SETTINGS = """
epoch_seconds = 80
round_seconds = 20
min_stake = 1000
seat_stake = 1000
demo = true
"""


async def triggerx(*arguments: str) -> subprocess.CompletedProcess[str]:
    done = await trio.run_process(
        [sys.executable, "-m", "cli.triggerx", *arguments],
        capture_stdout=True,
        capture_stderr=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    return subprocess.CompletedProcess(arguments, done.returncode, done.stdout.decode(), done.stderr.decode())


async def keys_of(folder: Path, account: DevAccount) -> tuple[str, ...]:
    """The options that name an account's keystore and its password."""
    key, password = folder / f"{account.address}.json", folder / "password"
    if not password.exists():
        password.touch(mode=0o600)
        password.write_text(PASSWORD.reveal())
    await keystore.create_operator(key, bytes.fromhex(account.private_key[2:]), PASSWORD, n=2)
    return "--key-file", str(key), "--password-file", str(password)


async def deployed(chain: Chain, folder: Path) -> dict[str, object]:
    """The [[chains]] table that `triggerx deploy` prints."""
    (folder / "set.toml").write_text(SETTINGS)
    owner = await keys_of(folder, chain.accounts[0])
    done = await triggerx("deploy", "--rpc", chain.rpc_url, *owner, "--settings", str(folder / "set.toml"), "--name", "mine")
    assert done.returncode == 0, done.stderr
    [table] = tomllib.loads(done.stdout)["chains"]
    return dict(table)


async def test_deploy_prints_a_table_that_the_programs_take(tmp_path):
    require("anvil")
    async with open_chain(ChainOptions(engine="anvil")) as chain:
        table = await deployed(chain, tmp_path)
        settings = validated(dict(table), ChainSettings, tmp_path)
        assert (settings.id, settings.name) == (31337, "mine")
        async with open_rpc(settings.rpc, expect_chain_id=settings.id) as rpc:
            assert (await open_evm(settings, rpc)).round_seconds == 20


async def test_a_keeper_registers_itself_and_the_next_epoch_seats_it(tmp_path):
    require("anvil")
    async with open_chain(ChainOptions(engine="anvil")) as chain:
        table = await deployed(chain, tmp_path)
        folder = tmp_path / "keeper"
        folder.mkdir()
        operator = chain.accounts[1]
        secret = bls.secret_from_seed(b"k" * 32)
        _, key, _, password = await keys_of(tmp_path, operator)
        os.rename(key, folder / "operator.json")
        os.rename(password, folder / "password")
        await keystore.create_bls(folder / "bls.json", secret, PASSWORD, public_key=bls.public_key(secret), n=2)
        configs.write(folder / "config.toml", configs.keeper_config(table, BOOTSTRAP), NodeSettings)

        config = (folder / "config.toml").read_text()
        (folder / "config.toml").write_text(config.replace("id = 31337", "id = 1"))
        elsewhere = await triggerx("register", "--config", str(folder / "config.toml"))
        assert elsewhere.returncode == 2
        assert "serves chain 31337, not 1" in elsewhere.stderr
        (folder / "config.toml").write_text(config)

        rich = await triggerx("register", "--config", str(folder / "config.toml"), "--stake", str(10**30))
        assert rich.returncode == 1
        assert f"{operator.address} has" in rich.stderr

        poor = await triggerx("register", "--config", str(folder / "config.toml"), "--stake", "999")
        assert (poor.returncode, poor.stdout) == (1, "")
        assert "StakeTooLow" in poor.stderr

        done = await triggerx("register", "--config", str(folder / "config.toml"), "--rewards", chain.accounts[2].address)
        assert done.returncode == 0, done.stderr
        again = await triggerx("register", "--config", str(folder / "config.toml"))
        assert again.returncode == 1
        assert "AlreadyRegistered" in again.stderr

        anyone = await keys_of(tmp_path, chain.accounts[3])
        registry = str(dict(table["contracts"])["keeper_registry"])  # type: ignore[call-overload]
        advance = ("epoch", "advance", "--rpc", chain.rpc_url, "--registry", registry, *anyone)
        assert (await triggerx(*advance)).returncode == 0
        refused = await triggerx(*advance)
        assert refused.returncode == 1
        assert "NothingChanged" in refused.stderr
        assert "Traceback" not in refused.stderr

        nowhere = "0x" + "a1" * 20
        lost = await triggerx("epoch", "advance", "--rpc", chain.rpc_url, "--registry", nowhere, *anyone)
        assert lost.returncode == 2
        assert "no contract is at" in lost.stderr

        settings = load(folder / "config.toml", NodeSettings)
        async with open_rpc([chain.rpc_url], expect_chain_id=31337) as rpc:
            evm = await open_evm(settings.chains[0], rpc)
            [keeper] = await evm.keepers()
            assert keeper.active
            assert keeper.key == bls.public_key(secret)
            assert keeper.peer_id == peer_id_of(folder / "identity.key")
            assert keeper.address.hex() == operator.address[2:].lower()
            assert keeper.rewards.hex() == chain.accounts[2].address[2:].lower()
            epoch = await evm.epoch_at((await evm.head()).number + 1)
            assert epoch is not None
            assert [each.address for each in epoch.operators] == [keeper.address]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--rpc", "http://127.0.0.1:9"), 1, "does not answer"),
        (("--rpc", "not a url"), 1, "does not answer"),
        (("--rpc", "http://127.0.0.1:9", "--settings", "absent.toml"), 2, "absent.toml"),
    ],
)
async def test_what_is_wrong_is_said_in_a_line(tmp_path, arguments, code, words):
    account = DevAccount("0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266", "0x" + "11" * 32)
    done = await triggerx("deploy", *arguments, *await keys_of(tmp_path, account))
    assert done.returncode == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr


async def test_a_wrong_password_is_said_in_a_line(tmp_path):
    account = DevAccount("0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266", "0x" + "11" * 32)
    keys = await keys_of(tmp_path, account)
    (tmp_path / "password").write_text("wrong")
    done = await triggerx("deploy", "--rpc", "http://127.0.0.1:9", *keys)
    assert done.returncode == 2
    assert "password" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("registry", ["0x1", "0x" + "0" * 40, "0x5aaeb6053F3E94C9b9A09f33669435E7Ef1BeAed", "0x" + "\u0663" * 40])
async def test_a_mistyped_address_is_refused(registry):
    done = await triggerx("epoch", "advance", "--rpc", "x", "--registry", registry, "--key-file", "x", "--password-file", "x")
    assert done.returncode == 2
    assert "--registry" in done.stderr
    assert "Traceback" not in done.stderr


async def test_each_option_is_named_once_and_the_version_is_told():
    done = await triggerx("epoch", "advance", "--rpc", "x", "--registry", "0x1", "--key-file", "x", "--password-file", "x")
    assert (done.returncode, done.stderr.count("--registry")) == (2, 1)
    told = await triggerx("--version")
    assert (told.returncode, told.stdout.strip()) == (0, version("triggerx-node"))


@pytest.mark.parametrize("stake", ["-1", "1.5", "\u0663", str(2**256)])
async def test_a_stake_is_wei_in_digits(tmp_path, stake):
    keys = {"operator": "operator.json", "bls": "bls.json", "password_file": "password"}
    names = ("hub", "attestation_center", "keeper_registry", "job_registry", "gas_registry")
    contracts = dict.fromkeys(names, "0x" + "a1" * 20)
    table = {"id": 31337, "name": "mine", "rpc": ["http://127.0.0.1:9"], "contracts": contracts}
    configs.write(tmp_path / "config.toml", {**configs.keeper_config(table, BOOTSTRAP), "keys": keys}, NodeSettings)
    done = await triggerx("register", "--config", str(tmp_path / "config.toml"), "--stake", stake)
    assert done.returncode == 2
    assert "--stake" in done.stderr
