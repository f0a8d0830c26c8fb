"""Who is who in a devnet: funded accounts by role, and the keepers' keys, written as keystores where their programs look."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from pathlib import Path

from cli.devnet.embedded.accounts import DevAccount
from consensus import bls
from node.infra import keystore
from node.infra.secret import Secret
from p2p.identity import peer_id_of

USERS = 10
"""Accounts for people and tests; nothing in the devnet sends from them."""
_ROLES = 3  # owner, dispatcher, demo owner
_PASSWORD = Secret("devnet")
_SCRYPT_N = 2  # no work at all: the accounts' keys are public knowledge


@dataclass(frozen=True, slots=True)
class KeeperPlan:
    """One keeper: its account, the peer id of the identity file in its folder, its BLS secret."""

    name: str
    account: DevAccount
    peer_id: str
    bls_secret: int = field(repr=False)


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


async def plan_roster(folder: Path, accounts: tuple[DevAccount, ...], keepers: int) -> Roster:
    """Gives out the chain's accounts and writes each program's keys into `folder/<name>`."""
    users, (owner, dispatcher, demo_owner, *operators) = accounts[:USERS], accounts[USERS : Roster.accounts_needed(keepers)]
    await _write_key(_private_folder(folder / "coordinator") / "dispatcher.json", dispatcher)
    plans = [await _keeper(folder / f"keeper-{i}", account) for i, account in enumerate(operators, start=1)]
    return Roster(users, owner, dispatcher, demo_owner, tuple(plans))


async def _keeper(folder: Path, account: DevAccount) -> KeeperPlan:
    _private_folder(folder)
    secret = bls.secret_from_seed(secrets.token_bytes(bls.SEED_MIN_BYTES))
    await _write_key(folder / "operator.json", account)
    await keystore.create_bls(folder / "bls.json", secret, _PASSWORD, public_key=bls.public_key(secret), n=_SCRYPT_N)
    return KeeperPlan(folder.name, account, peer_id_of(folder / "identity.key"), secret)


def _private_folder(folder: Path) -> Path:
    folder.mkdir(mode=0o700)
    password = folder / "password"
    password.touch(mode=0o600)
    password.write_text(_PASSWORD.reveal() + "\n")
    return folder


async def _write_key(path: Path, account: DevAccount) -> None:
    await keystore.create_operator(path, bytes.fromhex(account.private_key[2:]), _PASSWORD, n=_SCRYPT_N)
