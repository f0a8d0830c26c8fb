"""Who is who in a devnet: funded accounts by role, and the keepers' keys, written as keystores where their programs look."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path

from cli.devnet.embedded.accounts import DevAccount
from consensus import bls
from node.infra import keystore
from p2p.identity import peer_id_of

USERS = 10
"""Accounts for people and tests; nothing in the devnet sends from them."""
_ROLES = 3  # owner, dispatcher, demo owner
_PASSWORD = "devnet"  # noqa: S105  (the keys are the public test mnemonic's)


@dataclass(frozen=True, slots=True)
class KeeperPlan:
    """One keeper: its account, its BLS secret, and the peer id of the identity file in its folder."""

    name: str
    account: DevAccount
    bls_secret: int
    peer_id: str


@dataclass(frozen=True, slots=True)
class Roster:
    """Every account of a devnet."""

    users: tuple[DevAccount, ...]
    owner: DevAccount
    dispatcher: DevAccount
    demo_owner: DevAccount
    keepers: tuple[KeeperPlan, ...]

    @staticmethod
    def accounts_needed(keepers: int) -> int:
        """How many funded accounts the chain has to have."""
        return USERS + _ROLES + keepers


def plan_roster(folder: Path, accounts: tuple[DevAccount, ...], keepers: int) -> Roster:
    """Gives out the chain's accounts and writes each program's keys into `folder/<name>`. Blocks for a second: files, libp2p."""
    users, (owner, dispatcher, demo_owner, *operators) = accounts[:USERS], accounts[USERS : Roster.accounts_needed(keepers)]
    plans = tuple(_keeper(folder / f"keeper-{i}", account) for i, account in enumerate(operators, start=1))
    _write_key(_private_folder(folder / "coordinator") / "dispatcher.json", dispatcher)
    return Roster(users, owner, dispatcher, demo_owner, plans)


def _keeper(folder: Path, account: DevAccount) -> KeeperPlan:
    _private_folder(folder)
    bls_secret = bls.secret_from_seed(secrets.token_bytes(bls.SEED_MIN_BYTES))
    _write_key(folder / "operator.json", account)
    keystore.write_bls(folder / "bls.json", bls_secret, _PASSWORD, fast=True)
    return KeeperPlan(folder.name, account, bls_secret, peer_id_of(folder / "identity.key"))


def _private_folder(folder: Path) -> Path:
    folder.mkdir(mode=0o700)
    password = folder / "password"
    password.touch(mode=0o600)
    password.write_text(_PASSWORD + "\n")
    return folder


def _write_key(path: Path, account: DevAccount) -> None:
    keystore.write_ecdsa(path, bytes.fromhex(account.private_key[2:]), _PASSWORD, fast=True)
