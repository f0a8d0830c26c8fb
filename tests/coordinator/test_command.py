"""`triggerx-coordinator` at the command line, as a process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from coordinator.api.keys import digest_of
from coordinator.app import STORE_FILE, VERSION
from coordinator.store.sqlite import open_store

CONFIG = """
data_dir = "data"
[mesh]
listen = "/ip4/127.0.0.1/tcp/0"
[dispatcher]
keystore = "dispatcher.json"
password_file = "password"
[[chains]]
id = 31337
name = "nowhere"
rpc = ["http://127.0.0.1:9"]
[chains.contracts]
hub = "0x00000000000000000000000000000000000000A1"
attestation_center = "0x00000000000000000000000000000000000000a2"
keeper_registry = "0x00000000000000000000000000000000000000A3"
job_registry = "0x00000000000000000000000000000000000000a4"
gas_registry = "0x00000000000000000000000000000000000000A5"
"""


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cli.coordinator", *arguments], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "coordinator.toml"
    path.write_text(CONFIG)
    return path


def test_it_says_its_version() -> None:
    done = command("--version")
    assert (done.returncode, done.stdout.strip()) == (0, VERSION)


async def test_a_key_is_shown_once_and_kept_as_a_hash(config: Path) -> None:
    done = command("keys", "create", "--owner", "somebody", "--rate-limit", "90", "--config", str(config))
    assert done.returncode == 0, done.stderr
    text = done.stdout.strip()
    assert text.startswith("TGRX-")
    assert text not in (config.parent / "data" / STORE_FILE).read_bytes().decode("latin-1")
    async with open_store(config.parent / "data" / STORE_FILE) as store:
        key = await store.key(digest_of(text))
    assert key is not None
    assert (key.owner, key.role, key.active, key.rate_limit) == ("somebody", "user", True, 90)
    assert key.masked == f"TGRX...{text[-4:]}"


def test_what_is_misconfigured_is_said_in_one_line(config: Path, tmp_path: Path) -> None:
    missing = command("start", "--config", str(config))
    assert missing.returncode == 2
    assert "dispatcher.password_file" in missing.stderr
    assert "Traceback" not in missing.stderr
    unknown = tmp_path / "typo.toml"
    unknown.write_text(CONFIG.replace("data_dir", "date_dir"))
    typo = command("keys", "create", "--owner", "x", "--config", str(unknown))
    assert typo.returncode == 2
    assert "did you mean `data_dir`" in typo.stderr


@pytest.mark.parametrize("owner", ["", " ", "a\nb", "a" * 129, "0x12", "0x5aaeb6053F3E94C9b9A09f33669435E7Ef1BeAed"])
def test_a_key_of_nobody_is_not_made(config: Path, owner: str) -> None:
    done = command("keys", "create", "--owner", owner, "--config", str(config))
    assert (done.returncode, done.stdout) == (2, "")
    assert "--owner" in done.stderr


async def test_an_owner_is_the_same_address_however_it_is_written(config: Path) -> None:
    address = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"
    done = command("keys", "create", "--owner", address.lower(), "--config", str(config))
    async with open_store(config.parent / "data" / STORE_FILE) as store:
        key = await store.key(digest_of(done.stdout.strip()))
    assert key is not None
    assert key.owner == address


def test_a_place_where_no_ready_file_can_be_is_said_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "node.toml").write_text('role = "bootstrap"\n[mesh]\nlisten = "/ip4/127.0.0.1/tcp/0"\n[status]\nport = 0\n')
    done = subprocess.run(
        [sys.executable, "-m", "cli.node", "start", "--config", tmp_path / "node.toml", "--ready-file", tmp_path / "file" / "x"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "--ready-file" in done.stderr
    assert "Traceback" not in done.stderr
